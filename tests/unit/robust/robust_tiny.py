"""The stages with options so small that a test can afford to run them."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

from robust.cli import main

TINY = {
    "pretrain": [
        "model.widths=[4,8]",
        "pretrain.epochs=2",
        "pretrain.batch_size=512",
        "pretrain.steps=1",
    ],
    "train": [
        "model.widths=[4,8]",
        "train.epochs=2",
        "train.batch_size=256",
        "trades.steps=1",
        "trades.validation_steps=1",
    ],
    "score": ["score.epochs=2", "score.batch_size=512"],
    "finetune": ["finetune.epochs=2", "finetune.batch_size=512"],
    "evaluate": [
        "evaluate.epsilons=[0.1]",
        "evaluate.steps=2",
        "evaluate.strong_steps=3",
        "evaluate.strong_restarts=2",
    ],
}


def run_tiny(folder: Path, stage: str, *arguments: str) -> int:
    """One stage with the tiny options, in `folder` like a job in its sandbox; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [word for setting in TINY[stage] for word in ("--set", setting)]
    preset = ["--preset", "smoke"] if stage in ("pretrain", "train") else []
    with chdir(folder):
        return main([stage, *preset, *settings, *arguments])
