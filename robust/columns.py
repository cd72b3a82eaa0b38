"""The attacks of an evaluation, and which of them are columns of its table.

Columns, each what stands of the images that it was run on: `clean`; `PGD-20` and, with restarts,
`PGD-50×10`, L∞ at `epsilon`, and the same with ` ε2` behind at `epsilon_large`; `L2` and `L1`,
the unseen norms of Kim et al. 2020, by APGD on the cross-entropy, each at its own radius;
`transfer` (black-box, crafted on a surrogate), `Square` (black-box, by queries) and `AutoAttack`,
L∞ at `epsilon`. Their names hold no ε, so that rows of different data sets fit one table.
No columns: what stands after each but the last of AutoAttack's four, and the probe for gradient
masking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robust import library
from robust.attacks import correct, transfer, withstands
from robust.options import Evaluate

# The probe for gradient masking: at this ε any image can be made grey.
_PROBE_EPSILON, _PROBE_STEPS, _PROBE_IMAGES = 0.5, 20, 64

# Network, images (B, C, H, W), labels (B,), seed; bool (B,): which images stand.
Run = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack on every network of an evaluation, and one entry of its record.

    `images`: how many test images it gets. `after`: the attack whose survivors alone it gets.
    `steps` are queries for Square. `seed`: where its randomness comes from, the network's when
    None.
    """

    name: str
    kind: Literal["clean", "pgd", "norm", "black", "part", "whole", "probe"]
    run: Run
    images: int
    epsilon: float = 0.0
    steps: int = 0
    restarts: int = 1
    after: str | None = "clean"
    seed: int | None = None


def plan(options: Evaluate, images: int, surrogate: nn.Module | None, seed: int) -> list[Attack]:
    """The attacks on each network, in the order in which they run.

    `images`: how many the test part has. `surrogate` is what the transfer attack is crafted on,
    `seed` the one that it was trained with.
    """
    heavy = min(images, options.heavy_images or images)
    epsilon = options.epsilon
    attacks = [
        Attack("clean", "clean", lambda model, x, y, _: correct(model, x, y), images, after=None)
    ]
    if "pgd" in options.attacks:
        efforts = dict.fromkeys(zip(options.pgd_steps, options.pgd_restarts, strict=True))
        for suffix, radius in (("", epsilon), (" ε2", options.epsilon_large)):
            for steps, restarts in efforts:
                name = f"PGD-{steps}" + (f"×{restarts}" if restarts > 1 else "") + suffix
                attacks.append(_pgd(name, "pgd", images, radius, steps, restarts))
    if "l2" in options.attacks:
        attacks.append(_apgd("L2", images, options.l2_epsilon, options.norm_steps))
    if "l1" in options.attacks:
        attacks.append(_apgd("L1", images, options.l1_epsilon, options.norm_steps))
    if surrogate is not None:
        attacks.append(_transfer(options, images, surrogate, seed))
    if "square" in options.attacks:
        attacks.append(_square(options, heavy))
    if "autoattack" in options.attacks:
        attacks += _autoattack(options, heavy)
    if "pgd" in options.attacks:
        probe = min(images, _PROBE_IMAGES)
        radius, steps = _PROBE_EPSILON, _PROBE_STEPS
        attacks.append(_pgd(f"PGD-{steps} ε {radius}", "probe", probe, radius, steps))
    return attacks


def _pgd(
    name: str,
    kind: Literal["pgd", "probe"],
    images: int,
    epsilon: float,
    steps: int,
    restarts: int = 1,
) -> Attack:
    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return withstands(
            model, x, y, epsilon=epsilon, alpha=epsilon / 10, steps=steps, restarts=restarts,
            generator=torch.Generator(x.device).manual_seed(seed),
        )  # fmt: skip

    return Attack(name, kind, run, images, epsilon, steps, restarts)


def _apgd(norm: Literal["L2", "L1"], images: int, epsilon: float, steps: int) -> Attack:
    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return library.apgd(norm, model, x, y, epsilon=epsilon, steps=steps, seed=seed)

    return Attack(norm, "norm", run, images, epsilon, steps, library.RESTARTS[norm])


def _transfer(options: Evaluate, images: int, surrogate: nn.Module, seed: int) -> Attack:
    """Every victim sees the same images: their randomness is the surrogate's."""
    epsilon, steps = options.epsilon, options.transfer_steps

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        adversarial = transfer(
            surrogate, x, y, epsilon=epsilon, alpha=options.transfer_alpha, steps=steps,
            generator=torch.Generator(x.device).manual_seed(seed),
        )  # fmt: skip
        return correct(model, adversarial, y)

    return Attack("transfer", "black", run, images, epsilon, steps, after=None, seed=seed)


def _square(options: Evaluate, images: int) -> Attack:
    epsilon, queries = options.epsilon, options.square_queries

    def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return library.square(model, x, y, epsilon=epsilon, queries=queries, seed=seed)

    return Attack("Square", "black", run, images, epsilon, queries)


def _autoattack(options: Evaluate, images: int) -> list[Attack]:
    """The four, each after the former; what the last one leaves is the column."""
    parts: list[Attack] = []
    for part, steps in library.STANDARD.items():

        def run(model: nn.Module, x: Tensor, y: Tensor, seed: int, part: str = part) -> Tensor:
            return library.autoattack(part, model, x, y, epsilon=options.epsilon, seed=seed)

        after = parts[-1].name if parts else "clean"
        name = f"AutoAttack {part}"
        parts.append(Attack(name, "part", run, images, options.epsilon, steps, after=after))
    parts[-1] = replace(parts[-1], name="AutoAttack", kind="whole")
    return parts
