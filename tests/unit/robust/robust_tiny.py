"""The stages with options so small that a test can afford to run them."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

from robust.cli import main

# A quarter of the digits' images. The other stages take network and data from their checkpoint.
SMALL = [
    "model.widths=[4,8]",
    "model.blocks=[1,1]",
    "data.train_images=320",
    "data.validation=50",
]

TINY = {
    "pretrain": [
        *SMALL,
        "pretrain.epochs=2",
        "pretrain.batch_size=128",
        "pretrain.steps=1",
        "pretrain.projector_hidden=16",
        "pretrain.projector_out=8",
    ],
    "linear": ["linear.epochs=2", "linear.batch_size=128", "adversary.steps=1"],
    "train": [
        *SMALL,
        "train.epochs=2",
        "train.batch_size=64",
        "adversary.steps=1",
        "adversary.validation_steps=1",
    ],
    "score": ["score.epochs=2", "score.batch_size=128"],
    "finetune": ["finetune.epochs=2", "finetune.batch_size=128"],
    "evaluate": [
        "evaluate.epsilon=0.1",
        "evaluate.pgd_steps=[2, 3]",
        "evaluate.pgd_restarts=[1, 2]",
    ],
}


def run_tiny(folder: Path, stage: str, *arguments: str) -> int:
    """One stage with the tiny options, in `folder` like a job in its sandbox; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [word for setting in TINY[stage] for word in ("--set", setting)]
    preset = ["--preset", "smoke"] if stage in ("pretrain", "train") else []
    with chdir(folder):
        return main([stage, *preset, *settings, *arguments])
