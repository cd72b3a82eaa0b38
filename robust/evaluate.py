"""Stage 5: accuracy on the test part, clean and under attack, one row a network. All in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from condorctl import job
from robust import checkpoint
from robust.attacks import withstands
from robust.config import Evaluate, override
from robust.data import Part
from robust.masks import kept_fraction
from robust.models import ResNet
from robust.training import seed_everything

STAGES = ("train", "score", "finetune")

Row = dict[str, float]


@dataclass(frozen=True)
class Attack:
    """PGD on the cross-entropy from random starts, α = ε/10; without restarts clean accuracy."""

    name: str
    epsilon: float
    steps: int
    restarts: int


def attacks(options: Evaluate) -> list[Attack]:
    """The columns of the table.

    One start of twenty steps flatters at a large ε, so the strong attack stands beside it.
    """
    weak = [
        Attack(f"PGD-{options.steps} ε {epsilon:g}", epsilon, options.steps, restarts=1)
        for epsilon in options.epsilons
    ]
    strong = Attack(
        f"PGD-{options.strong_steps}×{options.strong_restarts} ε {options.strong_epsilon:g}",
        options.strong_epsilon,
        options.strong_steps,
        options.strong_restarts,
    )
    return [Attack("clean", 0.0, steps=0, restarts=0), *weak, strong]


def evaluate(paths: Mapping[str, str], settings: list[str]) -> dict[str, Row]:
    """Attack each checkpoint of `paths` (by model name) on the test part; record and print a row.

    A row: `keep` as asked for, `kept` as the mask has it, then accuracies in 0..1. Keep ratio and
    mask are the checkpoint's and cannot be given. The attacks are those of the first checkpoint's
    configuration with `settings` applied. Raises UserError before any attack when one checkpoint
    does not fit.
    """
    sources = {name: checkpoint.load(path, STAGES) for name, path in paths.items()}
    first = next(iter(sources.values()))
    options = override(first.config, settings, stage="evaluate").evaluate
    dataset = checkpoint.load_data(first.config, *((paths[n], s) for n, s in sources.items()))
    models = {n: checkpoint.restore(s, dataset, paths[n]) for n, s in sources.items()}

    columns = attacks(options)
    rows: dict[str, Row] = {}
    done, total = 0, len(models) * len(columns)
    for name, model in models.items():
        # A row must not depend on which other models stand beside it.
        seed_everything(sources[name].seed)
        row = {"keep": sources[name].keep, "kept": kept_fraction(sources[name].masks)}
        for attack in columns:
            row[attack.name] = accuracy(model, dataset.test, attack, options.batch_size)
            done += 1
            job.progress(epoch=done, epochs=total, accuracy=row[attack.name])
            print(f"evaluate  {done}/{total}  {name}  {attack.name}  {row[attack.name]:.4f}",
                  flush=True)  # fmt: skip
        job.result(model=name, **row)
        rows[name] = row
    return rows


def accuracy(model: ResNet, part: Part, attack: Attack, batch_size: int) -> float:
    """Fraction of `part` that stays right under `attack`."""
    standing = [
        withstands(
            model,
            images,
            labels,
            epsilon=attack.epsilon,
            alpha=attack.epsilon / 10,
            steps=attack.steps,
            restarts=attack.restarts,
        )
        for images, labels in zip(
            part.images.split(batch_size), part.labels.split(batch_size), strict=True
        )
    ]
    return int(torch.cat(standing).sum()) / len(part)
