"""Pruning masks: which weights stay, and scores that learn it.

Scope (HYDRA, Sehwag et al. 2020): every convolution, stem and shortcuts included, and the
classifier's weight; never BN, never a bias. `keep` is the fraction of a layer's weights that stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


def prunable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that masks apply to: those with an input and an output axis."""
    return {name: tensor for name, tensor in state.items() if tensor.dim() > 1}


def kept_count(shape: torch.Size, keep: float, floor: int) -> int:
    """How many weights of a layer stay: ⌈keep·n⌉, or what the floor asks for if that is more.

    `keep` counts as the decimal it is written as: 0.1 of 30 is 3, not the 4 of binary rounding.
    """
    wanted = math.ceil(Fraction(str(keep)) * shape.numel())
    return max(wanted, shape[0] * min(floor, shape[1:].numel()))


def select(importance: Tensor, keep: float, floor: int) -> Tensor:
    """The mask (bool, same shape) of the `kept_count` largest of `importance` (≥ 0, out × in …).

    The `floor` largest of each output channel stay in any case, the rest by one threshold for the
    layer, found by selection, not by sorting. Among equals at the threshold the first ones stay,
    so that the count is exact.
    """
    values = importance.flatten(1).clone()
    count = kept_count(importance.shape, keep, floor)
    if floor:
        first = values.topk(min(floor, values.shape[1]), dim=1, sorted=False).indices
        values.scatter_(1, first, torch.inf)
    flat = values.flatten()
    threshold = flat.kthvalue(len(flat) - count + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(importance.shape)


def magnitude_masks(model: nn.Module, keep: float, floor: int) -> Masks:
    """Masks of the largest |w|: least-weight-magnitude pruning (LWM), the baseline."""
    return {
        name: select(weight.detach().abs(), keep, floor)
        for name, weight in prunable(dict(model.named_parameters())).items()
    }


@torch.no_grad()
def apply_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every weight outside its mask to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].mul_(mask)


def kept_fraction(masks: Mapping[str, Tensor]) -> float:
    """Kept weights over all prunable weights, every weight counting alike; 1 without masks."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


class ScoredPruning:
    """HYDRA's search for a mask: dense weights frozen, one trainable score for each.

    Between `install` calls the model's own parameters hold w·m, so the attack and the loss run
    the plain network: the mask is computed once an optimiser step, and `loss.backward()` leaves
    ∂L/∂(w·m) in each parameter's `.grad`.
    """

    def __init__(self, model: nn.Module, keep: float, floor: int) -> None:
        self.keep, self.floor = keep, floor
        self.weights = prunable(dict(model.named_parameters()))
        self.dense = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.scores = {name: nn.Parameter(scaled_start(w)) for name, w in self.dense.items()}
        self.masks: Masks = {}
        self.install()

    @torch.no_grad()
    def install(self) -> None:
        """Masks from the present scores; the model gets w·m. Once after each optimiser step."""
        for name, score in self.scores.items():
            self.masks[name] = select(score.abs(), self.keep, self.floor)
            self.weights[name].copy_(self.dense[name] * self.masks[name])

    @torch.no_grad()
    def route_gradients(self) -> None:
        """Straight-through: ∂L/∂s = ∂L/∂m · sign(s), with ∂L/∂m = ∂L/∂(w·m) · w.

        Call after `backward`. Pruned weights get a gradient too: it is how they come back.
        """
        for name, weight in self.weights.items():
            assert weight.grad is not None, "route_gradients comes after backward"
            self.scores[name].grad = weight.grad * self.dense[name] * self.scores[name].sign()
            weight.grad = None


def scaled_start(weight: Tensor) -> Tensor:
    """Scores √(6/fan_in)·w/max|w|: ordered as |w|, so the search begins at magnitude pruning."""
    fan_in = weight[0].numel()
    return math.sqrt(6 / fan_in) * weight / weight.abs().max()
