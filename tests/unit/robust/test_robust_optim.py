"""Optimisers, schedules, averages and AWP against their formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robust.optim import Average, Lars, build, perturbed
from robust.options import Optimisation

OPTIONS = Optimisation(
    epochs=1,
    batch_size=2,
    lr=2.0,
    momentum=0.9,
    weight_decay=0.01,
    warmup=0.0,
    schedule="cosine",
    milestones=(),
)


def rates(steps: int, **changes: Any) -> list[float]:
    """The learning rate of each step of a training, and the one after the last."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer, scheduler = build([weight], replace(OPTIONS, **changes), steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def network() -> nn.Sequential:
    """Convolution, BN and classifier, a third of the convolution pruned; in train mode."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        model[0].weight.view(-1)[::3] = 0
    return model


def task(model: nn.Module) -> Callable[[], Tensor]:
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    return lambda: F.cross_entropy(model(images), labels)


def test_lars_is_the_formula_step_by_step() -> None:
    lr, momentum, decay, trust = 1.5, 0.9, 0.05, 0.02
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(3, 4), (2, 3, 3, 3), (5,)]
    tensors = [nn.Parameter(torch.randn(shape, dtype=torch.double)) for shape in shapes]
    arrays = [tensor.detach().numpy().copy() for tensor in tensors]
    buffers = [np.zeros_like(array) for array in arrays]
    optimizer = Lars(tensors, lr, momentum=momentum, weight_decay=decay, trust=trust)
    for _ in range(5):
        for i, tensor in enumerate(tensors):
            tensor.grad = torch.randn_like(tensor)
            gradient: NDArray[np.float64] = tensor.grad.numpy()
            local = 1.0
            if len(shapes[i]) > 1:
                w, g = np.sqrt((arrays[i] ** 2).sum()), np.sqrt((gradient**2).sum())
                local = trust * w / (g + decay * w + 1e-8)
            buffers[i] = momentum * buffers[i] + local * (gradient + decay * arrays[i])
            arrays[i] = arrays[i] - lr * buffers[i]
        optimizer.step()
        for tensor, array in zip(tensors, arrays, strict=True):
            np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=1e-12)


def test_lars_moves_a_weight_that_starts_at_zero() -> None:
    weight, idle = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    Lars([weight, idle], 0.5, momentum=0.9, weight_decay=0.1, trust=0.001).step()
    assert weight.tolist() == [[-0.5, -0.5], [-0.5, -0.5]]
    assert idle.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_lars_resumes() -> None:
    def steps(optimizer: Lars, weight: Tensor, seeds: list[int]) -> None:
        for seed in seeds:
            weight.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    straight = nn.Parameter(torch.eye(3))
    settings = {"momentum": 0.9, "weight_decay": 0.1, "trust": 0.1}
    first = Lars([straight], 1.0, **settings)
    steps(first, straight, [0, 1])
    resumed = nn.Parameter(straight.detach().clone())
    second = Lars([resumed], 1.0, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(first, straight, [2, 3])
    steps(second, resumed, [2, 3])
    assert torch.equal(straight, resumed)


def test_trust_decides_between_sgd_and_lars() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    plain, _ = build([weight], OPTIONS, 10)
    adaptive, _ = build([weight], OPTIONS, 10, lars_trust=0.02)
    assert type(plain) is torch.optim.SGD
    assert type(adaptive) is Lars
    for optimizer in (plain, adaptive):
        assert optimizer.param_groups[0]["momentum"] == 0.9
        assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert adaptive.param_groups[0]["trust"] == 0.02


def test_warmup_then_half_a_cosine() -> None:
    # Peak 2: two steps of warm-up, then (1 + cos(πk/8)) for k = 0 … 8.
    expected = [1, 2, 2, 1.92388, 1.70711, 1.38268, 1, 0.61732, 0.29289, 0.07612, 0]
    assert rates(10, warmup=0.2) == pytest.approx(expected, abs=1e-5)
    assert rates(4) == pytest.approx([2, 1.70711, 1, 0.29289, 0], abs=1e-5)


def test_milestones_divide_by_ten() -> None:
    # RoCL's linear evaluation, 30, 50 and 100 of 150 epochs, two steps an epoch.
    seen = rates(300, schedule="milestones", milestones=(0.2, 1 / 3, 2 / 3))
    assert seen[:60] == [2] * 60
    assert seen[60:100] == pytest.approx([0.2] * 40)
    assert seen[100:200] == pytest.approx([0.02] * 100)
    assert seen[200:] == pytest.approx([0.002] * 101)
    assert rates(10, warmup=0.4, schedule="milestones", milestones=(0.5,))[:6] == pytest.approx(
        [0.5, 1, 1.5, 2, 2, 0.2]
    )


@pytest.mark.parametrize("decay", [0.15, 0.99])
def test_the_average_in_closed_form(decay: float) -> None:
    model = nn.BatchNorm1d(1, dtype=torch.double)
    values = [3.0, -1.0, 4.0, 1.0, 5.0, 9.0]
    with torch.no_grad():
        model.weight.fill_(2.0)
    average = Average(model, decay)
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(len(values))]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        assert model.running_mean is not None
        model.running_mean.fill_(-value)
        assert model.num_batches_tracked is not None
        model.num_batches_tracked += 1
        average.update(model)
    # Each value's share: what it entered with, times every decay after it.
    shares = [(1 - d) * math.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    fresh = sum(share * value for share, value in zip(shares, values, strict=True))
    state = average.model.state_dict()
    assert state["weight"].item() == pytest.approx(math.prod(decays) * 2 + fresh)
    assert state["running_mean"].item() == pytest.approx(-fresh)
    assert state["num_batches_tracked"].item() == 6
    assert model.weight.item() == 9


def test_the_average_is_a_network_of_its_own_in_eval_mode() -> None:
    model = network()
    average = Average(model, 0.9)
    assert not average.model.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    own = {tensor.data_ptr() for tensor in average.model.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values())


def test_the_average_keeps_zeros_zero() -> None:
    model = network()
    average = Average(model, 0.9)
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.mul_(1.7)
        average.update(model)
    assert torch.equal(average.model[0].weight == 0, model[0].weight == 0)


def test_awp_is_one_step_up_the_gradient_of_each_layer() -> None:
    model = network().double()
    images, labels = torch.rand(8, 1, 4, 4).double(), torch.arange(8) % 3

    def loss() -> Tensor:
        return F.cross_entropy(model(images), labels)

    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    slopes: dict[str, Tensor] = {}
    for name in ("0.weight", "4.weight"):  # central differences, entry by entry
        weight = model.get_parameter(name).detach()
        slopes[name] = torch.zeros_like(weight)
        for i in range(weight.numel()):
            ends = []
            for h in (1e-6, -1e-6):
                weight.view(-1)[i] += h
                ends.append(loss().item())
                weight.view(-1)[i] = before[name].view(-1)[i]
            slopes[name].view(-1)[i] = (ends[0] - ends[1]) / 2e-6
    with perturbed(model, loss, 0.01):
        for name, weight in model.named_parameters():
            moved = (weight - before[name]).detach()
            if name not in slopes:
                assert not moved.any()
                continue
            slope = slopes[name] * (before[name] != 0)
            expected = 0.01 * before[name].norm() * slope / slope.norm()
            torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-8)
            assert moved.norm().item() == pytest.approx(0.01 * before[name].norm().item())
            assert not moved[before[name] == 0].any()


def test_awp_raises_the_loss_and_trains_on_the_perturbed_network() -> None:
    model = network()
    loss = task(model)
    calm = loss()
    with perturbed(model, loss, 0.05):
        raised = loss()
        raised.backward()
        expected = torch.autograd.grad(loss(), list(model.parameters()))
    assert raised > calm
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("where", ["nowhere", "in the proxy pass", "inside"])
def test_awp_gives_the_very_same_weights_back(where: str) -> None:
    model = network()
    loss = task(model)
    before = copy.deepcopy(model.state_dict())

    def proxy() -> Tensor:
        value = loss()
        if where == "in the proxy pass":
            raise Interrupted
        return value

    with (
        pytest.raises(Interrupted) if where != "nowhere" else nullcontext(),
        perturbed(model, proxy, 0.3),
    ):
        assert not torch.equal(model[0].weight, before["0.weight"])
        if where == "inside":
            raise Interrupted
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_awp_moves_bn_statistics_by_the_training_pass_alone() -> None:
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    loss = task(model)
    with perturbed(model, loss, 0.0):
        assert torch.equal(model[0].weight, twin[0].weight)
    with perturbed(model, loss, 1e-3):
        assert torch.equal(model[1].running_mean, twin[1].running_mean)
        assert model[1].num_batches_tracked == 0
        loss()
    assert model[1].num_batches_tracked == 1


def test_awp_survives_a_gradient_of_zero() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with perturbed(model, lambda: (model(torch.zeros(1, 2)) ** 2).sum(), 0.1):
        assert torch.equal(model.weight, before)


def test_awp_of_zero_costs_nothing() -> None:
    def never() -> Tensor:
        raise AssertionError("the loss was evaluated")

    model = network()
    before = model[0].weight.detach().clone()
    with perturbed(model, never, 0):
        assert torch.equal(model[0].weight, before)
