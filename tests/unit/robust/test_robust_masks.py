"""Masks keep exactly what they say; budgets and scores follow their formulas."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robust.masks import (
    ScoredPruning,
    allocate,
    apply_,
    check_counts,
    kept_fraction,
    largest,
    magnitude_masks,
    prunable,
    scaled_start,
    select,
)
from robust.options import Prune

BUDGETS = ("uniform", "erk", "lamp", "learned")
keeps = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.just(3), st.just(3)),
    ),
    min_size=1,
    max_size=4,
)


class Net(nn.Module):
    """Each kind of layer that has, or could be thought to have, prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(8, 16, 1, bias=False)
        self.linear = nn.Linear(16, 10)
        self.to(memory_format=torch.channels_last)


def layers_of(shapes: list[tuple[int, ...]], levels: int | None) -> nn.ModuleList:
    """Layers with random weights of these shapes; whole ones up to `levels`, so full of ties."""
    weights = [torch.randn(shape) for shape in shapes]
    if levels is not None:
        weights = [w.sign() * torch.randint(levels + 1, w.shape) for w in weights]
    model = nn.ModuleList(nn.Module() for _ in weights)
    for layer, weight in zip(model, weights, strict=True):
        layer.weight = nn.Parameter(weight)
    return model


def counts_of(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_scope_is_every_convolution_and_the_classifier() -> None:
    expected = {"conv1.weight", "shortcut.weight", "linear.weight"}
    assert prunable(Net().state_dict()).keys() == expected


@given(
    values=st.lists(
        st.one_of(st.floats(0, width=32), st.sampled_from([0.0, 1.0, 1.5])), min_size=1, max_size=60
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_largest_keeps_incumbents_then_the_first_among_equals(
    values: list[float], dtype: torch.dtype, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    booleans = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    incumbents = data.draw(st.one_of(st.none(), booleans))
    stays = incumbents or [False] * len(values)
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], not stays[i], i))
    mask = largest(
        torch.tensor(values, dtype=dtype),
        count,
        None if incumbents is None else torch.tensor(incumbents),
    )
    assert mask.nonzero().flatten().tolist() == sorted(ranked[:count])


def test_the_floor_holds_in_every_channel_and_the_rest_goes_to_the_largest() -> None:
    values = torch.rand(8, 20)
    values[5] /= 1000  # a channel that a plain threshold would empty
    before = values.clone()
    mask = select(values, 64, floor=3)
    assert torch.equal(values, before)
    assert int(mask.sum()) == 64
    assert mask[5].sum() == 3
    assert mask[5][values[5].argsort(descending=True)[:3]].all()
    others = torch.arange(8) != 5
    assert values[others][mask[others]].min() > values[others][~mask[others]].max()


def test_the_mask_does_not_depend_on_the_memory_layout() -> None:
    values = torch.randint(0, 9, (8, 4, 3, 3)).float()
    moved = values.to(memory_format=torch.channels_last)
    assert torch.equal(select(values, 50, floor=2), select(moved, 50, floor=2))


@pytest.mark.parametrize(
    ("shape", "keep", "floor", "count"),
    [
        ((10, 10), 0.07, 0, 7),  # in binary 0.07 · 100 exceeds 7
        ((3, 10), 0.1, 0, 3),
        ((3, 10), 0.11, 0, 4),
        ((3, 10), 1.0, 3, 30),
        ((10, 100), 1e-05, 0, 1),
        ((32, 1, 3, 3), 0.01, 0, 3),
        ((32, 1, 3, 3), 0.01, 3, 96),
        ((4, 2, 1, 1), 0.01, 3, 8),  # a channel has only two
        ((128, 128, 3, 3), 0.01, 3, 1475),
    ],
)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_single_layer_keeps_the_same_under_every_budget(
    shape: tuple[int, ...], keep: float, floor: int, count: int, budget: str
) -> None:
    assert allocate({"a": torch.rand(shape)}, keep, Prune(budget, floor)) == {"a": count}


@pytest.mark.parametrize("budget", BUDGETS)
@given(shapes=shapes, keep=keeps, floor=st.integers(0, 4), levels=st.sampled_from([None, 0, 1, 3]))
def test_counts_are_exact(
    budget: str, shapes: list[tuple[int, ...]], keep: float, floor: int, levels: int | None
) -> None:
    model, options = layers_of(shapes, levels), Prune(budget, floor)
    sizes = [math.prod(shape) for shape in shapes]
    floors = [shape[0] * min(floor, math.prod(shape[1:])) for shape in shapes]
    masks = magnitude_masks(model, keep, options)
    counts = [int(mask.sum()) for mask in masks.values()]
    if budget == "uniform":
        wanted = [math.ceil(Decimal(str(keep)) * size) for size in sizes]
        assert counts == [max(pair) for pair in zip(wanted, floors, strict=True)]
    else:
        assert sum(counts) == max(math.ceil(Decimal(str(keep)) * sum(sizes)), sum(floors))
    for mask, shape in zip(masks.values(), shapes, strict=True):
        assert int(mask.flatten(1).sum(1).min()) >= min(floor, math.prod(shape[1:]))
    assert check_counts(masks, keep, options) is None


@pytest.mark.parametrize(
    ("keep", "floor", "counts"),
    [
        # Dimensions sum to 25, 54 and 42. 536 kept: ε = 536/121, so 110.74, 239.21 and 186.05.
        (0.1, 0, [111, 239, 186]),
        # 1608 kept: ε = 13.29 would give the last layer 558 of 320. It is dense, the other 1288
        # at ε = 1288/79 make 407.59 and 880.41.
        (0.3, 0, [408, 880, 320]),
        # Floors of 8 raise the first two to 128 and 256, which leaves 152.
        (0.1, 8, [128, 256, 152]),
        # 27 floors in the first layer are all it has; the rest is less than its floors.
        (0.01, 27, [432, 864, 270]),
        (1.0, 3, [432, 4608, 320]),
    ],
)
def test_erk_by_hand(keep: float, floor: int, counts: list[int]) -> None:
    weights = {
        "conv1": torch.empty(16, 3, 3, 3),
        "conv2": torch.empty(32, 16, 3, 3),
        "linear": torch.empty(10, 32),
    }
    allocated = allocate(weights, keep, Prune("erk", floor))
    assert allocated == dict(zip(weights, counts, strict=True))


@pytest.mark.parametrize(("keep", "floor"), [(0.02, 0), (0.1, 0), (0.5, 0), (0.2, 1), (0.3, 2)])
def test_lamp_against_a_loop(keep: float, floor: int) -> None:
    shapes = [(4, 2, 3, 3), (8, 4, 1, 1), (5, 8)]
    weights = {f"layer{i}": torch.randn(shape) * 10**i for i, shape in enumerate(shapes)}
    scores = []
    for name, weight in weights.items():
        rows = weight.flatten(1).double().numpy()
        values = rows.ravel()
        reserved = {
            channel * rows.shape[1] + int(i)
            for channel, row in enumerate(rows)
            for i in np.argsort(-np.abs(row))[:floor]
        }
        for i, w in enumerate(values):
            score = w**2 / sum(v**2 for v in values if abs(v) >= abs(w))
            scores.append((math.inf if i in reserved else score, name))
    scores.sort(reverse=True)
    kept = [name for _, name in scores[: math.ceil(keep * len(scores))]]
    for budget in ("lamp", "learned"):
        counts = allocate(weights, keep, Prune(budget, floor))
        assert counts == {name: kept.count(name) for name in weights}


def test_lamp_gives_a_layer_of_zeros_nothing_but_its_floors() -> None:
    weights = {"dead": torch.zeros(2, 5), "alive": torch.rand(2, 5) + 1}
    assert allocate(weights, 0.4, Prune("lamp", 0)) == {"dead": 0, "alive": 8}
    assert allocate(weights, 0.4, Prune("lamp", 1)) == {"dead": 2, "alive": 6}


def test_apply_zeroes_what_is_outside_and_nothing_else() -> None:
    model = Net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = magnitude_masks(model, 0.1, Prune("lamp", 3))
    apply_(model, masks)
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.ones_like(before[name], dtype=torch.bool))
        assert torch.equal(parameter[mask], before[name][mask])
        assert not parameter[~mask].any()


def test_kept_fraction_weighs_layers_by_their_size() -> None:
    masks = {"small": torch.ones(10, dtype=torch.bool), "large": torch.zeros(30, dtype=torch.bool)}
    assert kept_fraction(masks) == 0.25
    assert kept_fraction({}) == 1.0


def test_wrong_counts_are_named() -> None:
    masks = {"a": torch.zeros(4, 10, dtype=torch.bool), "b": torch.zeros(2, 30, dtype=torch.bool)}
    masks["a"][:, 0] = masks["b"][:, :3] = True
    assert check_counts(masks, 0.1, Prune("uniform", 1)) is None
    assert check_counts(masks, 0.1, Prune("learned", 1)) is None
    assert check_counts(masks, 0.2, Prune("uniform", 1)) == (
        "keep 0.2 means 8 weights in a, its mask has 4"
    )
    assert check_counts(masks, 0.2, Prune("lamp", 1)) == (
        "keep 0.2 means 20 weights in all, the masks have 10"
    )
    masks["a"][0], masks["a"][1, 1] = False, True
    for budget in ("uniform", "lamp"):
        assert check_counts(masks, 0.1, Prune(budget, 1)) == (
            "a must keep 1 weights in each output channel, one has 0"
        )
        assert check_counts(masks, 0.1, Prune(budget, 0)) is None


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_scaled_start_is_the_formula_and_begins_at_magnitude_pruning(budget: str) -> None:
    model = Net()
    weight = model.conv1.weight.detach()
    expected = math.sqrt(6 / 27) * weight / weight.abs().max()
    torch.testing.assert_close(scaled_start(weight), expected)
    magnitudes = magnitude_masks(model, 0.1, Prune(budget, 3))
    pruning = ScoredPruning(model, 0.1, Prune(budget, 3))
    assert magnitudes.keys() == pruning.masks.keys()
    assert all(torch.equal(magnitudes[name], mask) for name, mask in pruning.masks.items())


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_model_holds_the_masked_weights(budget: str) -> None:
    model = Net()
    dense = model.conv1.weight.detach().clone()
    pruning = ScoredPruning(model, 0.2, Prune(budget, 0))
    handed_out = dict(pruning.masks)
    with torch.no_grad():
        pruning.scores["conv1.weight"].copy_(torch.randn_like(dense))
    pruning.install()
    assert torch.equal(model.conv1.weight, dense * pruning.masks["conv1.weight"])
    assert not torch.equal(pruning.masks["conv1.weight"], handed_out["conv1.weight"])


def test_the_gradient_of_the_scores_by_hand() -> None:
    """w = (2, -1), m = (1, 0), x = (1, 4): y = 2, and L = y²/2 has ∂L/∂(w·m) = y·x = (2, 8)."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
    pruning = ScoredPruning(model, 0.5, Prune("uniform", 0))
    (model(torch.tensor([1.0, 4.0])) ** 2 / 2).sum().backward()
    pruning.route_gradients()
    score = pruning.scores["weight"]
    assert score.grad is not None
    # ∂L/∂m = (2·2, 8·-1), and the second score is negative.
    assert score.grad.tolist() == [[4.0, 8.0]]


def test_the_gradient_of_the_scores_is_straight_through() -> None:
    """∂L/∂m by finite differences on a mask of real numbers, times sign(s)."""
    model = nn.Linear(3, 2, bias=False, dtype=torch.double)
    pruning = ScoredPruning(model, 0.5, Prune("learned", 0))
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


@pytest.mark.parametrize("budget", ["uniform", "learned"])
def test_a_pruned_weight_can_come_back(budget: str) -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    pruning = ScoredPruning(model, 0.25, Prune(budget, 0))
    optimizer = torch.optim.SGD(pruning.scores.values(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        ((model(torch.eye(4)) - torch.tensor([[0.0], [0.0], [2.0], [0.0]])) ** 2).sum().backward()
        pruning.route_gradients()
        optimizer.step()
        pruning.install()
    assert pruning.masks["weight"].tolist() == [[False, False, True, False]]
    assert model.weight.tolist() == [[0.0, 0.0, 2.0, 0.0]]


@given(
    shapes=shapes, keep=keeps, floor=st.integers(0, 4), levels=st.sampled_from([None, 0, 1, 2, 3])
)
def test_learned_budgets_start_at_lamp_and_keep_their_total(
    shapes: list[tuple[int, ...]], keep: float, floor: int, levels: int | None
) -> None:
    model = layers_of(shapes, levels)
    lamp = counts_of(magnitude_masks(model, keep, Prune("lamp", floor)))
    pruning = ScoredPruning(model, keep, Prune("learned", floor))
    assert counts_of(pruning.masks) == lamp
    pruning.install()
    assert counts_of(pruning.masks) == lamp
    for _ in range(3):
        with torch.no_grad():
            for score in pruning.scores.values():
                score.add_(torch.randn_like(score))
        pruning.install()
        assert check_counts(pruning.masks, keep, Prune("learned", floor)) is None


def test_learned_budgets_move_between_layers() -> None:
    """Two layers of 8, 4, 2, 1: LAMP keeps 8 and 4 in each, so a 4 is the unit of its layer."""
    model = nn.ModuleList(nn.Linear(4, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0, 4.0, 2.0, 1.0]]))
        model[1].weight.copy_(torch.tensor([[80.0, 40.0, 20.0, 10.0]]))
    pruning = ScoredPruning(model, 0.5, Prune("learned", 1))
    first, second = pruning.scores.values()
    assert [mask.tolist() for mask in pruning.masks.values()] == [[[True, True, False, False]]] * 2
    with torch.no_grad():
        first[0, 2] *= 3  # 1.5 units
        second[0, 1] *= 0.9  # 0.9 units, now the least of what is kept
    pruning.install()
    assert [mask.tolist() for mask in pruning.masks.values()] == [
        [[True, True, True, False]],
        [[True, False, False, False]],
    ]
    with torch.no_grad():
        second[0, 0] *= 0.01  # would be out, were it not the floor
    pruning.install()
    assert counts_of(pruning.masks) == {"0.weight": 3, "1.weight": 1}


def test_the_search_resumes_from_scores_and_masks() -> None:
    torch.manual_seed(1)
    dense = Net().state_dict()
    options = Prune("learned", 1)

    def search() -> ScoredPruning:
        model = Net()
        model.load_state_dict(dense)
        return ScoredPruning(model, 0.2, options)

    first, resumed = search(), search()
    with torch.no_grad():
        for score in first.scores.values():
            score.add_(torch.randn_like(score) / 10)
    first.install()
    with torch.no_grad():
        for name, score in resumed.scores.items():
            score.copy_(first.scores[name])
    resumed.masks = dict(first.masks)
    resumed.install()
    for name, weight in first.weights.items():
        assert torch.equal(resumed.weights[name], weight)
