"""Stage 5: accuracy on the test part, clean and under attack, one row a network. All in fp32."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condorctl import job
from condorctl.errors import UserError
from robust import checkpoint, library, machine, masking
from robust.checkpoint import CLASSIFIERS, Checkpoint
from robust.columns import Attack, plan
from robust.config import override, to_dict
from robust.data import Dataset, Part
from robust.masks import kept_fraction
from robust.models import ResNet
from robust.options import Config
from robust.record import Record

Row = dict[str, Any]


@dataclass(frozen=True)
class _Network:
    """One row to be: a checkpoint with its file's name and SHA-256, and the network it holds."""

    path: str
    digest: str
    source: Checkpoint
    model: ResNet

    @classmethod
    def load(cls, path: str, keep: float | None = None) -> _Network:
        source = checkpoint.load(path, CLASSIFIERS, keep)
        return cls(path, checkpoint.file_hash(path), source, checkpoint.restore(source, path))


def evaluate(
    paths: Mapping[str, str],
    settings: list[str],
    *,
    root: str | None,
    surrogate: str | None,
    keep: float | None,
    out: str,
    device: torch.device,
) -> dict[str, Row]:
    """Attack each checkpoint of `paths` (by model name) on the test part; record and print a row.

    A row: `keep` as asked for, `kept` as the mask has it, accuracies in 0..1, and `details` with
    all else, each attack's ε among it. Keep ratio and mask are the checkpoint's; `keep` only
    refuses others. The attacks are those of the first checkpoint's configuration with `settings`
    applied.

    `out` is the record: an evaluation that was interrupted goes on from it and ends with the
    figures of an undisturbed one, because each batch of each attack draws from a generator of its
    own. Raises UserError before any attack when a checkpoint, the data or `out` does not fit.
    """
    networks = {name: _Network.load(path, keep) for name, path in paths.items()}
    crafted_on = _Network.load(surrogate) if surrogate else None
    everyone = [*networks.values(), *([crafted_on] if crafted_on else [])]
    first = next(iter(networks.values())).source.config
    config = override(first, settings, stage="evaluate")
    sources = ((network.path, network.source) for network in everyone)
    dataset = checkpoint.load_data(config, root, *sources, device=device)
    _refuse_too_few_classes(config, dataset)
    test = dataset.test
    for network in everyone:
        network.model.to(device)
    attacks = plan(
        config.evaluate,
        len(test),
        crafted_on.model if crafted_on else None,
        crafted_on.source.seed if crafted_on else 0,
    )
    rests_on = {
        "networks": {name: network.digest for name, network in networks.items()},
        "surrogate": crafted_on.digest if crafted_on else None,
        "options": to_dict(config)["evaluate"],
        "data": dataset.fingerprint,
    }
    record = Record(out, rests_on, machine.describe(device), len(test))
    _attack(networks, attacks, test, config, record)

    counts = torch.bincount(test.labels, minlength=len(dataset.classes))
    chance = int(counts.max()) / len(test)
    for name, network in networks.items():
        row = _row(name, network, attacks, config, record, chance)
        for warning in row["details"]["warnings"]:
            print(f"warning: {name}: gradient masking? {warning}", file=sys.stderr, flush=True)
        record.rows[name] = row
        job.result(model=name, **row)
    record.finish()
    return record.rows


def _refuse_too_few_classes(config: Config, dataset: Dataset) -> None:
    if "autoattack" in config.evaluate.attacks and len(dataset.classes) < library.LEAST_CLASSES:
        raise UserError(
            f"evaluate.attacks: autoattack needs {library.LEAST_CLASSES} classes, {dataset.name} "
            f"has {len(dataset.classes)}; leave it out"
        )


def _attack(
    networks: Mapping[str, _Network],
    attacks: list[Attack],
    test: Part,
    config: Config,
    record: Record,
) -> None:
    """Run what `record` does not hold yet; a line and a figure for each attack that is done."""
    # The first images of a test part need not be a fair sample of it: whoever made it had an order.
    order = torch.randperm(
        len(test), generator=torch.Generator().manual_seed(config.data.split_seed)
    )
    size = config.evaluate.batch_size
    batches = {a.name: order[: a.images].sort().values.split(size) for a in attacks}
    total = len(networks) * sum(len(batches[a.name]) for a in attacks)
    done = 0
    try:
        for place, (name, network) in enumerate(networks.items()):
            for number, attack in enumerate(attacks, start=1):
                for position, index in enumerate(batches[attack.name]):
                    done += 1
                    if not record.done(name, attack.name, index.tolist()):
                        _batch(name, network, attack, position, index, test, record)
                        job.progress(epoch=done, epochs=total)
                        record.save_checkpoint_if_due()
                print(
                    f"evaluate  {place * len(attacks) + number}/{len(networks) * len(attacks)}  "
                    f"{name}  {attack.name}  {_accuracy(name, attack, record):.4f}  "
                    f"({record.seconds(name, attack.name):.1f} s)",
                    flush=True,
                )
    finally:
        record.save()


def _batch(
    name: str,
    network: _Network,
    attack: Attack,
    position: int,
    index: Tensor,
    test: Part,
    record: Record,
) -> None:
    """One batch of one attack on one network; `index` into the test part.

    The seed depends on what the batch is, not on what ran before it.
    """
    began = time.monotonic()
    standing = torch.ones(len(index), dtype=torch.bool)
    if attack.after is not None:
        standing = record.standing(name, attack.after)[index]
    if standing.any():
        chosen = index[standing].to(test.labels.device)
        seed = _seed(attack.seed if attack.seed is not None else network.source.seed,
                     attack.name, position)  # fmt: skip
        verdict = attack.run(network.model, test.images(chosen), test.labels[chosen], seed)
        standing[standing.clone()] = verdict.cpu()
    seconds = time.monotonic() - began
    record.add(name, attack.name, index.tolist(), standing.tolist(), seconds)


def _seed(seed: int, attack: str, position: int) -> int:
    """63 bits out of a run's seed, an attack's name and a batch's number."""
    digest = hashlib.sha256(f"{seed} {attack} {position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _accuracy(name: str, attack: Attack, record: Record) -> float:
    return int(record.standing(name, attack.name).sum()) / attack.images


def _row(
    name: str,
    network: _Network,
    attacks: list[Attack],
    config: Config,
    record: Record,
    chance: float,
) -> Row:
    source = network.source
    columns = [a for a in attacks if a.kind not in ("part", "probe")]
    return {
        "keep": source.keep,
        "kept": kept_fraction(source.masks),
        **{a.name: _accuracy(name, a, record) for a in columns},
        "details": {
            "stage": source.stage,
            "seed": source.seed,
            "epoch": source.epoch,
            "checkpoint": network.digest,
            "surrogate": record.evaluation["surrogate"],
            "data": {"name": source.data.name, "fingerprint": source.data.fingerprint},
            "config": {**to_dict(source.config), "evaluate": to_dict(config)["evaluate"]},
            "attacks": {
                a.name: {
                    "accuracy": _accuracy(name, a, record),
                    "images": a.images,
                    "epsilon": a.epsilon,
                    "steps": a.steps,
                    "restarts": a.restarts,
                    "seconds": round(record.seconds(name, a.name), 2),
                }
                for a in attacks
            },
            "seconds": round(sum(record.seconds(name, a.name) for a in attacks), 2),
            "machines": record.machines,
            "warnings": masking.signs(_outcomes(name, attacks, record), chance),
        },
    }


def _outcomes(name: str, attacks: Iterable[Attack], record: Record) -> list[masking.Outcome]:
    """What the check for gradient masking looks at."""
    return [
        masking.Outcome(
            attack.name,
            attack.kind,
            attack.epsilon,
            attack.steps * attack.restarts,
            record.attacked(name, attack.name),
            record.standing(name, attack.name),
        )
        for attack in attacks
        if attack.kind in ("pgd", "black", "probe")
    ]
