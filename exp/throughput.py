"""How fast each kind of step runs here, and what it owes to each measure: images a second.

`python exp/throughput.py PRESET [PATTERN]`: a table of the rows whose name matches the pattern.
A step is `Stage.attack`, `mixed_loss`, backward and optimiser on synthetic images of CIFAR's shape;
the last rows are what a reported PGD step costs. MFU counts the forward-equivalents of
docs/method.md, "What a step costs", against the dense bf16 peak of an H100 (989 TFLOP/s).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from robust.attacks import correct, withstands
from robust.config import load_preset, override
from robust.cost import size
from robust.data import Dataset, Part
from robust.graphs import plain
from robust.masks import magnitude_masks
from robust.models import ResNet
from robust.optim import build
from robust.options import Config
from robust.pretrain import Pretraining
from robust.supervised import Finetuning, Scoring, Training
from robust.training import Stage, seed_everything

Step = Callable[[], object]

PEAK = 989e12
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 20 if DEVICE.type == "cuda" else 2


def seconds(step: Step, steps: int = STEPS) -> float:
    """Of one step, the mean over `steps` after three to warm up and record."""
    for _ in range(3):
        step()
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return (time.perf_counter() - start) / steps


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def synthetic(count: int) -> Dataset:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    part = Part(pixels, torch.randint(0, 10, (count,), device=DEVICE), scale=255)
    classes = tuple("0123456789")
    return Dataset("synthetic", part, part, part, classes, (0.5,) * 3, (0.25,) * 3, "none")


def network(config: Config) -> ResNet:
    return ResNet(3, config.model.widths, config.model.blocks, 10).to(DEVICE)


def training(name: str, config: Config, dataset: Dataset) -> Stage:
    model = network(config)
    if name == "pretrain":
        return Pretraining(config, 0, dataset, DEVICE)
    if name == "score":
        return Scoring(model, config, 0, dataset, 0.1)
    if name == "finetune":
        return Finetuning(model, config, 0, dataset, 0.1, magnitude_masks(model, 0.1, config.prune))
    return Training(model, config, 0, dataset, config.train)


def train_step(stage: Stage) -> Step:
    part, batch = stage.dataset.train, stage.options.batch_size
    optimizer, scheduler = build(
        stage.parameters(), stage.options, 1000,
        lars_trust=0.001 if stage.name == "pretrain" else None,
    )  # fmt: skip
    stage.begin(1)

    def step() -> None:
        index = torch.randint(0, len(part), (batch,)).to(DEVICE)
        made = stage.attack(part.images(index), part.labels[index])
        optimizer.zero_grad()
        stage.mixed_loss(*made).backward()
        stage.before_step()
        optimizer.step()
        stage.after_step()
        scheduler.step()

    return step


def forwards(stage: str, config: Config) -> int:
    """Forward-equivalents an image."""
    return 2 * config.pretrain.steps + 10 if stage == "pretrain" else 2 * config.adversary.steps + 7


def macs(config: Config) -> int:
    """Multiply-accumulates of one forward."""
    return int(size(network(config).cpu(), {}, (3, 32, 32))["macs"]["dense"])


# Stage, batch, precision, replayed as a CUDA graph, cuDNN's benchmark.
ROWS = [
    *(("train", b, p, r, False) for b in (128, 256, 512) for p in ("fp32", "bf16") for r in (0, 1)),
    ("train", 256, "bf16", 1, True),
    *((stage, 256, "bf16", 1, False) for stage in ("score", "finetune", "pretrain")),
]


def main(preset: str, pattern: str = "") -> None:
    config = load_preset(preset)
    seed_everything(0)
    dataset = synthetic(4096)
    flop = 2 * macs(config)
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{gpu}, torch {torch.__version__}, preset {preset}, {flop / 1e9:.3f} GFLOP a forward")
    print(f"{'step':<44} {'ms':>8} {'images/s':>9} {'MFU %':>6}")

    def show(name: str, images: int, forward: int, make: Callable[[], Step]) -> None:
        if not re.search(pattern, name):
            return
        try:
            took = seconds(make())
        except Exception as error:  # a row that fails shall not cost the others
            print(f"{name:<44} {type(error).__name__}: {error}".splitlines()[0], flush=True)
            return
        mfu = 100 * forward * flop * images / took / PEAK
        print(f"{name:<44} {1e3 * took:8.2f} {images / took:9.0f} {mfu:6.1f}", flush=True)

    for stage, batch, precision, replayed, tuned in ROWS:
        torch.backends.cudnn.benchmark = tuned
        settings = [
            f"compute.attack={precision}",
            f"compute.training={precision}",
            f"{stage}.batch_size={batch}",
        ]

        def trained(
            stage: str = stage, settings: Sequence[str] = settings, replayed: int = replayed
        ) -> Step:
            made = training(stage, override(config, settings, stage), dataset)
            if not replayed:
                made.replay = plain  # type: ignore[assignment]
            return train_step(made)

        how = ", replayed" * replayed + ", cudnn.benchmark" * tuned
        show(f"{stage}, batch {batch}, {precision}{how}", batch, forwards(stage, config), trained)
    torch.backends.cudnn.benchmark = False
    model = network(config).eval()

    def reported(batch: int) -> None:
        x = dataset.test.images(slice(batch))
        with torch.no_grad():
            y = model(x).argmax(1)  # all right, and ε too small to change it: no image drops out
        pgd = partial(withstands, model, x, y, epsilon=1e-9, alpha=1e-10, steps=10)
        show(f"reported forward, batch {batch}", batch, 1, lambda: partial(correct, model, x, y))
        show(f"reported PGD-10 step, batch {batch}", 10 * batch, 2, lambda: pgd)

    for batch in (250, 1000):
        reported(batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
