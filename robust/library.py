"""Square, AutoAttack and APGD for L2 and L1, from the authors' own package `pyautoattack`.

AutoAttack (Croce & Hein 2020) is four attacks one after another, each on the images that the
former left standing. They are driven here one batch of one attack at a time, so that a long
evaluation shows progress and resumes; the settings are those the package calls `standard`, but
for queries and steps that a caller names. Images are contiguous: the package flattens views.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from pyautoattack import AutoAttack  # type: ignore[import-untyped]
from pyautoattack.autopgd_base import APGDAttack  # type: ignore[import-untyped]
from torch import Tensor, nn

from robust.attacks import correct, reported

# Steps of each attack (of each target class, queries for Square), in the order of the standard
# version.
STANDARD = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}

# Of APGD on the cross-entropy, in the standard versions for these norms.
RESTARTS: dict[Literal["L2", "L1"], int] = {"L2": 1, "L1": 5}

# Target classes of APGD-T and FAB-T, where there are as many.
MOST_TARGETS = 9

# The targeted DLR loss divides by a difference that takes the fourth largest logit.
LEAST_CLASSES = 4

# It warns of each batch that has a zero gradient; evaluate has a check of its own for masking.
logging.getLogger("auto-attack").setLevel(logging.CRITICAL)


class _Attack(Protocol):
    """What the package's attacks have in common."""

    seed: int

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images where it found some, the clean ones elsewhere."""


def square(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, queries: int, seed: int
) -> Tensor:
    """Which images the Square attack leaves standing: bool (B,).

    L∞, black-box: it sees logits, no gradient (Andriushchenko et al. 2020). Images (B, C, H, W)
    float32 in [0, 1]; each is asked about at most `queries` times after its start. Of images that
    are a quarter longer than wide the first, largest squares stand out: it is weaker there.
    """
    attack = _library(model, images, epsilon).square
    attack.n_queries = queries
    return _standing(attack, model, images, labels, seed)


def apgd(
    norm: Literal["L2", "L1"],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    seed: int,
) -> Tensor:
    """Which images APGD on the cross-entropy leaves standing: bool (B,).

    `RESTARTS` times `steps` steps, each time on the survivors (Croce & Hein 2020, sec. 3). For L1
    the steps are sparse, the projection is onto ball and box at once, and a restart takes 30 % of
    its steps within 3ε, 30 % within 2ε and the rest within ε (Croce & Hein 2021); it needs three.
    """
    attack = APGDAttack(
        model, norm=norm, eps=epsilon, n_iter=steps, n_restarts=RESTARTS[norm],
        use_largereps=norm == "L1", device=images.device,
    )  # fmt: skip
    return _standing(attack, model, images, labels, seed)


def autoattack(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, seed: int
) -> Tensor:
    """Which images one of the four `STANDARD` attacks leaves standing: bool (B,).

    L∞. 100 steps of APGD on the cross-entropy; 100 for each of 9 target classes of APGD and of
    FAB, all but the label's where there are fewer than 10; 5000 queries of Square. The whole is
    all four, each on the survivors. Needs `LEAST_CLASSES` classes.
    """
    library = _library(model, images, epsilon)
    with reported(model, images), torch.no_grad():
        classes = model(images[:1]).shape[1]
    targets = min(MOST_TARGETS, classes - 1)
    library.apgd_targeted.n_target_classes = library.fab.n_target_classes = targets
    library.apgd.loss = "ce"
    library.fab.targeted = True
    attacks: dict[str, _Attack] = dict(
        zip(
            STANDARD,
            (library.apgd, library.apgd_targeted, library.fab, library.square),
            strict=True,
        )
    )
    return _standing(attacks[name], model, images, labels, seed)


def _library(model: nn.Module, images: Tensor, epsilon: float) -> AutoAttack:
    return AutoAttack(model, norm="Linf", eps=epsilon, version="standard", device=images.device)


def _standing(
    attack: _Attack, model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> Tensor:
    attack.seed = seed
    with reported(model, images), _own_randomness(images.device), torch.no_grad():
        adversarial = attack.perturb(images, labels)
    return correct(model, adversarial, labels)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The package seeds torch's global generators: give them back as they were.

    FAB's cumulative sum has no deterministic form on a GPU, so torch would refuse it where a
    caller has asked for deterministic algorithms only.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
