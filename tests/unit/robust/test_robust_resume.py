"""A stage that was stopped at any batch ends as one that was not: the same file, the same lines."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from robust_tiny import run_tiny

from condorctl.job import checkpoint
from robust import resume


class Stopper:
    """Stands in for the clock and the signal: a checkpoint is due, or a stop asked, after a batch.

    Batches are counted from 1 on over all epochs of a start.
    """

    def __init__(self) -> None:
        self.count, self.stop, self.save = 0, 0, 0

    def due(self) -> bool:
        self.count += 1
        if self.count == self.stop:
            checkpoint._stop.set()
        return self.count in (self.stop, self.save)

    def start(self, stop: int = 0, save: int = 0) -> None:
        checkpoint._stop.clear()
        self.count, self.stop, self.save = 0, stop, save


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopper]:
    before, made = signal.getsignal(signal.SIGTERM), Stopper()
    monkeypatch.setattr(checkpoint, "due", made.due)
    yield made
    checkpoint._stop.clear()
    signal.signal(signal.SIGTERM, before)


def left(folder: Path) -> tuple[str, list[dict[str, object]]]:
    """The hash of the output's file, and the lines of the record, their times apart."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [
        {key: value for key, value in json.loads(line).items() if key != "time"} for line in lines
    ]
    return hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest(), records


def move(old: Path, new: Path) -> None:
    """What another start of a job finds: its checkpoints and nothing else."""
    new.mkdir()
    (old / "checkpoints").rename(new / "checkpoints")


# Stage, arguments, batches an epoch: 320 images. Two epochs each.
STAGES = {
    "pretrain": (["pretrain", "--set", "pretrain.optimizer=lars"], 3),
    "linear": (["linear", "--init", "@pretrain", "--robust"], 3),
    "features": (["linear", "--init", "@pretrain"], 3),
    "finetuned-linear": (["linear", "--init", "@pretrain", "--finetune", "--ss"], 3),
    "train": (["train", "--set", "train.awp=0.01", "--set", "train.ema=0.9"], 5),
    "score": (["score", "--init", "@train", "--keep", "0.1"], 3),
    "learned": (["score", "--init", "@train", "--keep", "0.2", "--set", "prune.budget=learned"], 3),
    "finetune": (["finetune", "--init", "@score", "--set", "finetune.ema=0.9"], 3),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stopped_stage_ends_as_an_undisturbed_one(
    run: Path, tmp_path: Path, stopper: Stopper, name: str
) -> None:
    (stage, *words), batches = STAGES[name]
    words = [
        str(run / word[1:] / "checkpoint.pt") if word.startswith("@") else word for word in words
    ]
    stopper.start()
    assert run_tiny(tmp_path / "whole", stage, *words) == 0
    assert not (tmp_path / "whole" / "checkpoints").exists()
    chance = random.Random(name)
    # In the midst of each epoch and where one ends; the start after that is stopped, too.
    for first in (
        chance.randint(1, batches - 1),
        batches,
        chance.randint(batches + 1, 2 * batches),
    ):
        folder = tmp_path / f"at-{first}"
        stopper.start(stop=first)
        with pytest.raises(SystemExit) as left_with:
            run_tiny(folder, stage, *words)
        assert left_with.value.code == 143
        # Whatever the generators were at, they are put back.
        torch.manual_seed(first)
        rest = 2 * batches - first
        if rest > 1:
            move(folder, again := tmp_path / f"at-{first}-again")
            stopper.start(stop=chance.randint(1, rest - 1))
            with pytest.raises(SystemExit):
                run_tiny(again, stage, *words)
            folder = again
        move(folder, end := tmp_path / f"at-{first}-end")
        stopper.start()
        assert run_tiny(end, stage, *words) == 0
        assert left(end) == left(tmp_path / "whole")


def test_the_best_epoch_so_far_belongs_to_the_checkpoint(tmp_path: Path, stopper: Stopper) -> None:
    words = ["--set", "train.select=best", "--set", "train.epochs=4", "--set", "train.lr=0.05"]
    stopper.start()
    assert run_tiny(tmp_path / "whole", "train", *words) == 0
    best = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["epoch"]
    for stop in (5 * best + 3, 18):
        stopper.start(stop=min(stop, 19))
        with pytest.raises(SystemExit):
            run_tiny(tmp_path / f"{stop}", "train", *words)
        move(tmp_path / f"{stop}", again := tmp_path / f"{stop}-again")
        stopper.start()
        assert run_tiny(again, "train", *words) == 0
        assert left(again) == left(tmp_path / "whole")


def test_lines_of_lost_work_are_gone(tmp_path: Path, stopper: Stopper) -> None:
    """The record has gone further than the last checkpoint, as after a power cut."""
    stopper.start()
    assert run_tiny(tmp_path / "whole", "train") == 0
    stopper.start(save=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robust.resume.Loop.end", lambda self: None)
        assert run_tiny(tmp_path / "a", "train") == 0
    assert len(left(tmp_path / "a")[1]) == 4
    stopper.start()
    assert run_tiny(tmp_path / "a", "train") == 0
    assert left(tmp_path / "a") == left(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        (["--set", "train.lr=0.02"], "configuration"),
        (["--seed", "1"], "seed, start"),
        (["--set", "data.validation=200"], "configuration, data"),
    ],
)
def test_a_checkpoint_of_other_work_is_not_used(
    tmp_path: Path, stopper: Stopper, capsys: pytest.CaptureFixture[str],
    changed: list[str], differs: str,
) -> None:  # fmt: skip
    stopper.start()
    assert run_tiny(tmp_path / "whole", "train", *changed) == 0
    stopper.start(stop=2)
    with pytest.raises(SystemExit):
        run_tiny(tmp_path / "other", "train")
    move(tmp_path / "other", tmp_path / "new")
    stopper.start(stop=0)
    assert run_tiny(tmp_path / "new", "train", *changed) == 0
    assert f"checkpoint 1 (epoch 0) has another {differs}" in capsys.readouterr().err
    assert left(tmp_path / "new") == left(tmp_path / "whole")
    # It is somebody's work all the same, and still there.
    assert len(list((tmp_path / "new" / "checkpoints").glob("*.json"))) == 1


def test_another_code_does_not_take_the_next_step(
    tmp_path: Path, stopper: Stopper, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stopper.start(stop=2)
    with pytest.raises(SystemExit):
        run_tiny(tmp_path, "train")
    monkeypatch.setattr(resume, "_code", lambda: "changed")
    stopper.start()
    assert run_tiny(tmp_path, "train") == 0
    assert "has another code and is not used" in capsys.readouterr().err


def test_every_generator_is_put_back() -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), random.random()]

    random.seed(3)
    np.random.seed(3)
    np.random.randn()  # leaves half of a pair behind
    state = resume._generators()
    drawn = draw(), np.random.randn()
    random.seed(4)
    np.random.seed(4)
    resume._set_generators(state)
    assert (draw(), np.random.randn()) == drawn
