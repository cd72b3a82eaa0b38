"""Masks keep exactly what they say; scores learn by the straight-through formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust.masks import (
    ScoredPruning,
    apply_,
    kept_count,
    kept_fraction,
    magnitude_masks,
    prunable,
    scaled_start,
    select,
)
from robust.models import ResNet


@pytest.mark.parametrize(
    ("shape", "keep", "floor", "count"),
    [
        ((3, 10), 0.1, 0, 3),  # in binary 0.1 · 30 exceeds 3
        ((3, 10), 0.11, 0, 4),
        ((3, 10), 1.0, 3, 30),
        ((32, 1, 3, 3), 0.01, 0, 3),
        ((32, 1, 3, 3), 0.01, 3, 96),
        ((4, 2, 1, 1), 0.01, 3, 8),  # a channel has only two
        ((128, 128, 3, 3), 0.01, 3, 1475),
    ],
)
def test_kept_count(shape: tuple[int, ...], keep: float, floor: int, count: int) -> None:
    assert kept_count(torch.Size(shape), keep, floor) == count
    assert int(select(torch.rand(shape), keep, floor).sum()) == count


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 1.0])
def test_without_a_floor_the_largest_stay(keep: float) -> None:
    values = torch.rand(8, 4, 3, 3)
    mask = select(values, keep, floor=0).numpy().ravel()
    order = np.argsort(-values.numpy().ravel())
    assert mask[order[: mask.sum()]].all()
    assert mask.sum() == math.ceil(keep * 288)


def test_the_floor_holds_in_every_channel_and_the_rest_goes_to_the_largest() -> None:
    values = torch.rand(8, 20)
    values[5] /= 1000  # a channel that a plain threshold would empty
    mask = select(values, 0.4, floor=3)
    assert int(mask.sum()) == 64
    assert mask[5].sum() == 3
    assert mask[5][values[5].argsort(descending=True)[:3]].all()
    others = torch.arange(8) != 5
    assert values[others][mask[others]].min() > values[others][~mask[others]].max()


@pytest.mark.parametrize("floor", [0, 2])
def test_ties_do_not_change_the_count(floor: int) -> None:
    assert int(select(torch.ones(6, 10), 0.3, floor).sum()) == 18
    assert int(select(torch.zeros(6, 10), 0.3, floor).sum()) == 18


def test_scope_is_every_convolution_and_the_classifier() -> None:
    model = ResNet(channels=1, widths=[4, 8], classes=10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    masked = prunable(model.state_dict())
    assert len(masked) == len(layers) == 7
    assert {"conv1.weight", "blocks.1.shortcut.0.weight", "linear.weight"} <= masked.keys()


def test_kept_fraction_weighs_layers_by_their_size() -> None:
    masks = {"small": torch.ones(10, dtype=torch.bool), "large": torch.zeros(30, dtype=torch.bool)}
    assert kept_fraction(masks) == 0.25
    assert kept_fraction({}) == 1.0


def test_apply_zeroes_what_is_outside_and_nothing_else() -> None:
    model = ResNet(channels=1, widths=[4, 8], classes=10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = magnitude_masks(model, 0.1, floor=3)
    apply_(model, masks)
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.ones_like(before[name], dtype=torch.bool))
        assert torch.equal(parameter[mask], before[name][mask])
        assert not parameter[~mask].any()


def test_the_scaled_start_is_the_formula_and_begins_at_magnitude_pruning() -> None:
    model = ResNet(channels=1, widths=[4, 8], classes=10)
    weight = model.state_dict()["blocks.1.conv1.weight"]
    expected = math.sqrt(6 / 36) * weight / weight.abs().max()
    torch.testing.assert_close(scaled_start(weight), expected)
    magnitudes = magnitude_masks(model, 0.1, floor=3)
    pruning = ScoredPruning(model, 0.1, floor=3)
    assert magnitudes.keys() == pruning.masks.keys()
    assert all(torch.equal(magnitudes[name], mask) for name, mask in pruning.masks.items())


def test_the_model_holds_the_masked_weights() -> None:
    model = ResNet(channels=1, widths=[4, 8], classes=10)
    dense = model.conv1.weight.detach().clone()
    pruning = ScoredPruning(model, 0.2, floor=0)
    with torch.no_grad():
        pruning.scores["conv1.weight"].copy_(torch.randn_like(dense))
    pruning.install()
    assert torch.equal(model.conv1.weight, dense * pruning.masks["conv1.weight"])


def test_the_gradient_of_the_scores_is_straight_through() -> None:
    """∂L/∂m by finite differences on a mask of real numbers, times sign(s)."""
    model = nn.Linear(3, 2, bias=False, dtype=torch.double)
    pruning = ScoredPruning(model, 0.5, floor=0)
    dense, score = pruning.dense["weight"], pruning.scores["weight"]
    mask = pruning.masks["weight"].double()
    x, y = torch.randn(4, 3, dtype=torch.double), torch.randn(4, 2, dtype=torch.double)

    def loss(m: Tensor) -> float:
        return (((x @ (dense * m).T).tanh() - y) ** 2).sum().item()

    ((model(x).tanh() - y) ** 2).sum().backward()
    pruning.route_gradients()
    h = 1e-6
    for i in range(2):
        for j in range(3):
            bump = torch.zeros_like(mask)
            bump[i, j] = h
            slope = (loss(mask + bump) - loss(mask - bump)) / (2 * h)
            assert score.grad is not None
            expected = slope * math.copysign(1, score[i, j].item())
            assert score.grad[i, j].item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.grad is None


def test_a_pruned_weight_can_come_back() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    pruning = ScoredPruning(model, 0.25, floor=0)
    optimizer = torch.optim.SGD(pruning.scores.values(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        ((model(torch.eye(4)) - torch.tensor([[0.0], [0.0], [2.0], [0.0]])) ** 2).sum().backward()
        pruning.route_gradients()
        optimizer.step()
        pruning.install()
    assert pruning.masks["weight"].tolist() == [[False, False, True, False]]
    assert model.weight.tolist() == [[0.0, 0.0, 2.0, 0.0]]
