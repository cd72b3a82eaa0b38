"""The optimisers with their schedules, and two ways to flatter solutions: averages and AWP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robust.options import Optimisation

Network = TypeVar("Network", bound=nn.Module)


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling over SGD with momentum (You et al. 2017, algorithm 1).

    v ← momentum·v + λ·(g + weight_decay·w), w ← w - lr·v, with a rate of each layer's own:
    λ = trust·‖w‖ / (‖g‖ + weight_decay·‖w‖ + 1e-8), or 1 where ‖w‖ or ‖g‖ is 0.

    Biases and BN's parameters (one axis) get λ = 1, plain SGD, as in SimCLR (Chen et al. 2020):
    they start at 0 or 1, so their norm says nothing about a fit step. RoCL's library (torchlars)
    scales them like the rest; its 1e-8 and its 1 for norms of 0 are kept here.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float,
        weight_decay: float,
        trust: float,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the present gradients; parameters without one stay as they are."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad + group["weight_decay"] * weight
                if weight.dim() > 1:
                    update *= _local_rate(weight, weight.grad, group)
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(update)
                weight.sub_(group["lr"] * state["momentum"])


def build(
    parameters: Iterable[Tensor],
    options: Optimisation,
    steps: int,
    *,
    lars_trust: float | None = None,
) -> tuple[Optimizer, LambdaLR]:
    """SGD with momentum, or LARS when `lars_trust` is given, and its learning rate by step.

    Call `scheduler.step()` after each of the `steps` optimiser steps: the rate rises linearly to
    `options.lr` over the warm-up, then falls to 0 along half a cosine, or by 10 at each milestone
    (a fraction of all steps, those of the warm-up included).
    """
    rising = round(options.warmup * steps)
    milestones = [round(fraction * steps) for fraction in options.milestones]

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if options.schedule == "milestones":
            return 0.1 ** sum(step >= milestone for milestone in milestones)
        return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2

    parameters = list(parameters)
    optimizer: Optimizer
    if lars_trust is None:
        optimizer = SGD(
            parameters,
            options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            fused=all(parameter.is_cuda for parameter in parameters),
        )
    else:
        optimizer = Lars(
            parameters,
            options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            trust=lars_trust,
        )
    return optimizer, LambdaLR(optimizer, factor)


class Average(Generic[Network]):
    """Exponential moving average of a network: its weights and BN statistics, step by step.

    `model` is the average itself, in eval mode, on the device of the original. The decay warms up
    as min(decay, (1 + t)/(10 + t)) after t updates, so that the random start is soon forgotten.
    Buffers of whole numbers are copied.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Network) -> None:
        """Move the average towards `model`; once after each optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        present = model.state_dict()
        averages = self.model.state_dict()
        moving = [name for name, average in averages.items() if average.is_floating_point()]
        # Together: on a GPU that is a few kernels, not one for each tensor.
        torch._foreach_lerp_(
            [averages[name] for name in moving], [present[name] for name in moving], 1 - decay
        )
        for name in averages.keys() - moving:
            averages[name].copy_(present[name])


@contextmanager
def perturbed(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Inside, `model` has adversarially perturbed weights: AWP (Wu, Xia & Wang 2020, sec. 4).

    One step up the gradient g of `loss()`: w + γ·‖w‖·g/‖g‖ for each layer's weight (more than one
    axis), g taken only where w ≠ 0, so that a pruned weight stays pruned. Run forward and backward
    of the training step inside; afterwards, also after an exception, the former weights are back,
    bit by bit. The pass that finds g leaves no gradient and moves no BN statistics. γ = 0 does
    nothing and never calls `loss`.
    """
    if gamma == 0:
        yield
        return
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    with _unchanged(model.buffers()):
        gradients = torch.autograd.grad(loss(), weights)
    with _unchanged(weights):
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                direction = gradient * (weight != 0)
                length = direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
                weight.add_(direction / length * (gamma * weight.norm()))
        yield


@contextmanager
def _unchanged(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever happens inside, `tensors` then hold again what they hold now."""
    copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in copies:
                tensor.copy_(copy)


def _local_rate(weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """λ of `Lars`, a scalar that stays on the device: no step waits for it."""
    w, g = weight.norm(), gradient.norm()
    rate = group["trust"] * w / (g + group["weight_decay"] * w + 1e-8)
    return torch.where((w > 0) & (g > 0), rate, torch.ones_like(rate))
