"""Pruning masks: how many weights each layer keeps, which ones stay, and scores that learn it.

Scope (HYDRA, Sehwag et al. 2020): every convolution, stem and shortcuts included, and the
classifier's weight; never BN, never a bias. `keep` is the fraction of the weights that stay, of
each layer (budget uniform) or of all layers together (the other budgets). It counts as the decimal
it is written as: 0.07 of 100 is 7, not the 8 of binary rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from robust.options import Prune

Masks = dict[str, Tensor]


def prunable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that masks apply to: `weight` of convolutions and linear layers.

    The name matters too: the buffers that normalise the input have four axes and are no weights.
    """
    return {
        name: tensor
        for name, tensor in state.items()
        if name.rpartition(".")[2] == "weight" and tensor.dim() > 1
    }


def allocate(weights: Mapping[str, Tensor], keep: float, options: Prune) -> dict[str, int]:
    """How many weights each layer keeps, out of `weights` (out × in …) and 0 < `keep` ≤ 1.

    Every output channel keeps `options.floor` weights, or all it has. Beyond that, by budget:

    - uniform: ⌈keep·n⌉ of each layer, or its floors if they are more (HYDRA).
    - erk: counts proportional to the sum of a layer's dimensions, within its floors and its size
      (Erdős-Rényi-Kernel, Evci et al. 2020, sec. 3), whole numbers by largest remainder.
    - lamp, learned: what falls to each layer when the weights with the largest LAMP scores stay
      (Lee et al. 2021, eq. 4). Learned scores start from there.

    The last three keep ⌈keep·N⌉ of all N weights exactly, or the sum of the floors if it is more.
    Uniform and erk look at the shapes alone.
    """
    floors = {name: _floor_of(weight, options.floor) for name, weight in weights.items()}
    if options.budget == "uniform":
        return {
            name: max(_fraction(weight.numel(), keep), floors[name])
            for name, weight in weights.items()
        }
    total = max(_fraction(sum(w.numel() for w in weights.values()), keep), sum(floors.values()))
    if options.budget == "erk":
        counts = _proportional(
            shares=[sum(weight.shape) for weight in weights.values()],
            low=list(floors.values()),
            high=[weight.numel() for weight in weights.values()],
            total=total,
        )
    else:
        scores = [_lamp_scores(weight, options.floor) for weight in weights.values()]
        parts = largest(torch.cat(scores), total).split([len(score) for score in scores])
        counts = [int(part.count_nonzero()) for part in parts]
    return dict(zip(weights, counts, strict=True))


def select(importance: Tensor, count: int, floor: int) -> Tensor:
    """The mask (bool, same shape) of the `count` largest of `importance` (≥ 0, out × in …).

    The `floor` largest of each output channel stay in any case; `count` includes them.
    """
    return largest(_reserve(importance, floor).flatten(), count).view(importance.shape)


def largest(values: Tensor, count: int, incumbents: Tensor | None = None) -> Tensor:
    """The mask (bool) of the `count` largest of `values` (1-D, float32 or float64, 0 to ∞).

    Among equals at the threshold the `incumbents` (bool, same shape) stay, then the first ones,
    so that the count is exact.
    """
    if not 0 < count < len(values):
        return torch.full_like(values, count > 0, dtype=torch.bool)
    # Floats ≥ 0 are ordered as their bit patterns are: a histogram of the leading 16 bits finds
    # the bin of the threshold, and only that bin is sorted. Several times as fast as kthvalue.
    bits = torch.int32 if values.dtype == torch.float32 else torch.int64
    bins = values.view(bits) >> (torch.iinfo(bits).bits - 16)
    above = len(values) - torch.bincount(bins).cumsum(0)
    edge = int((above < count).nonzero()[0])
    mask = bins > edge
    contested = (bins == edge).nonzero().squeeze(1)
    if incumbents is not None:
        stays = incumbents[contested]
        contested = torch.cat([contested[stays], contested[~stays]])
    order = values[contested].sort(descending=True, stable=True).indices
    mask[contested[order[: count - int(above[edge])]]] = True
    return mask


def magnitude_masks(model: nn.Module, keep: float, options: Prune) -> Masks:
    """Masks of the largest |w|: least-weight-magnitude pruning (LWM), the baseline."""
    weights = {
        name: weight.detach() for name, weight in prunable(dict(model.named_parameters())).items()
    }
    counts = allocate(weights, keep, options)
    return {
        name: select(weight.abs(), counts[name], options.floor) for name, weight in weights.items()
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
    return sum(int(mask.count_nonzero()) for mask in masks.values()) / total if total else 1.0


def check_counts(masks: Mapping[str, Tensor], keep: float, options: Prune) -> str | None:
    """None when `masks` keep what `keep` means under `options`, else a clause that says what not.

    Budgets that depend on the weights (lamp, learned) are held to their total and their floors.
    """
    kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    if options.budget in ("uniform", "erk"):
        for name, count in allocate(masks, keep, options).items():
            if kept[name] != count:
                return f"keep {keep} means {count} weights in {name}, its mask has {kept[name]}"
    else:
        floors = sum(_floor_of(mask, options.floor) for mask in masks.values())
        total = max(_fraction(sum(mask.numel() for mask in masks.values()), keep), floors)
        if sum(kept.values()) != total:
            return f"keep {keep} means {total} weights in all, the masks have {sum(kept.values())}"
    for name, mask in masks.items():
        fewest, least = int(mask.flatten(1).sum(1).min()), min(options.floor, mask[0].numel())
        if fewest < least:
            return f"{name} must keep {least} weights in each output channel, one has {fewest}"
    return None


class ScoredPruning:
    """HYDRA's search for a mask: dense weights frozen, one trainable score for each.

    Between `install` calls the model's own parameters hold w·m, so the attack and the loss run
    the plain network: the mask is computed once an optimiser step, and `loss.backward()` leaves
    ∂L/∂(w·m) in each parameter's `.grad`.

    Under the budget `learned` a layer's scores are measured in units of the smallest one that
    magnitude pruning with LAMP's counts keeps there, and compete across layers: the search starts
    at those counts, then weights move from layer to layer while their total stays.

    Its state are `scores` and `masks` (which settle ties): to resume, build it on the dense model,
    set both, and the model's weights.
    """

    def __init__(self, model: nn.Module, keep: float, options: Prune) -> None:
        self.weights = prunable(dict(model.named_parameters()))
        self.dense = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.scores = {name: nn.Parameter(scaled_start(w)) for name, w in self.dense.items()}
        self._options = options
        self._counts = allocate(self.dense, keep, options)
        self.masks = self._layer_masks()
        self._units = {
            name: _unit(score.detach().abs(), self.masks[name], options.floor)
            for name, score in self.scores.items()
            if options.budget == "learned"
        }
        self.install()

    @torch.no_grad()
    def install(self) -> None:
        """Masks from the present scores; the model gets w·m. Once after each optimiser step."""
        self.masks = self._competing_masks() if self._units else self._layer_masks()
        for name, weight in self.weights.items():
            weight.copy_(self.dense[name] * self.masks[name])

    @torch.no_grad()
    def route_gradients(self) -> None:
        """Straight-through: ∂L/∂s = ∂L/∂m · sign(s), with ∂L/∂m = ∂L/∂(w·m) · w.

        Call after `backward`. Pruned weights get a gradient too: it is how they come back.
        """
        for name, weight in self.weights.items():
            assert weight.grad is not None, "route_gradients comes after backward"
            self.scores[name].grad = weight.grad * self.dense[name] * self.scores[name].sign()
            weight.grad = None

    def _layer_masks(self) -> Masks:
        return {
            name: select(score.detach().abs(), self._counts[name], self._options.floor)
            for name, score in self.scores.items()
        }

    def _competing_masks(self) -> Masks:
        """The largest scores of the whole network, each in its layer's unit."""
        values = [
            _reserve(score.abs(), self._options.floor).flatten().div_(self._units[name])
            for name, score in self.scores.items()
        ]
        incumbents = torch.cat([mask.flatten() for mask in self.masks.values()])
        mask = largest(torch.cat(values), sum(self._counts.values()), incumbents)
        parts = mask.split([len(value) for value in values])
        return {
            name: part.view(score.shape)
            for (name, score), part in zip(self.scores.items(), parts, strict=True)
        }


def scaled_start(weight: Tensor) -> Tensor:
    """Scores √(6/fan_in)·w/max|w|: ordered as |w|, so the search begins at magnitude pruning."""
    fan_in = weight[0].numel()
    return math.sqrt(6 / fan_in) * weight / _not_zero(weight.abs().max())


def _fraction(size: int, keep: float) -> int:
    """⌈keep·size⌉ with `keep` as the decimal it is written as."""
    return math.ceil(Fraction(str(keep)) * size)


def _floor_of(weight: Tensor, floor: int) -> int:
    """How many weights the floors of a layer's output channels reserve."""
    return weight.shape[0] * min(floor, weight[0].numel())


def _reserve(importance: Tensor, floor: int) -> Tensor:
    """A copy (out × all else) in which the `floor` largest of each output channel are infinite."""
    values = importance.clone(memory_format=torch.contiguous_format).flatten(1)
    if floor:
        first = values.topk(min(floor, values.shape[1]), dim=1, sorted=False).indices
        values.scatter_(1, first, torch.inf)
    return values


def _proportional(shares: list[int], low: list[int], high: list[int], total: int) -> list[int]:
    """Whole numbers ∝ `shares`, each within [low, high], that sum to `total` (Σlow ≤ … ≤ Σhigh).

    The sum grows piecewise linearly with the rate (count = rate·share where no bound holds), with
    a corner wherever a number leaves its lower or meets its upper bound.
    """
    bounds = list(zip(shares, low, high, strict=True))

    def counts(rate: Fraction) -> list[Fraction]:
        return [min(max(rate * share, Fraction(lo)), Fraction(hi)) for share, lo, hi in bounds]

    corners = {Fraction(bound, share) for share, lo, hi in bounds for bound in (0, lo, hi)}
    corner = max(rate for rate in corners if sum(counts(rate)) <= total)
    slope = sum(share for share, lo, hi in bounds if lo <= corner * share < hi)
    missing = total - sum(counts(corner))
    exact = counts(corner + Fraction(missing, slope)) if slope else counts(corner)
    whole = [math.floor(count) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _lamp_scores(weight: Tensor, floor: int) -> Tensor:
    """A layer's LAMP scores w²/Σv² over the v that follow in ascending order, w included.

    In that order, float64, on the CPU: the scores of two layers must compare alike on every
    device. Infinite for the weights that the floors reserve.
    """
    reserved = _reserve(weight.abs(), floor).isinf().flatten().cpu()
    squares, order = weight.cpu().flatten().double().square().sort(stable=True)
    following = squares.flip(0).cumsum(0).flip(0)
    scores = squares / _not_zero(following)
    return scores.masked_fill(reserved[order], torch.inf)


def _unit(score: Tensor, mask: Tensor, floor: int) -> Tensor:
    """The smallest |score| that `mask` keeps by competition; the largest one if the floors are all.

    Divided by it, what a mask keeps is ≥ 1 and what it drops ≤ 1, which makes 1 the threshold of
    every layer. (Rounding does not blur it: x/t < 1 for floats 0 < x < t.)
    """
    by_floor = _reserve(score, floor).isinf().view_as(score)
    competing = score[mask & ~by_floor & (score > 0)]
    return competing.min() if len(competing) else _not_zero(score.max())


def _not_zero(divisor: Tensor) -> Tensor:
    """`divisor`, but 1 instead of 0: a layer of zeros must not become one of NaN."""
    return torch.where(divisor == 0, 1, divisor)
