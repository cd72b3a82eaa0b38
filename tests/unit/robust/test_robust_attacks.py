"""Attacks: what they reach, what they leave alone, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robust.attacks import instance_attack, pgd, trades_attack, uniform_start, withstands
from robust.config import load_preset
from robust.data import digits
from robust.losses import divergence, nt_xent
from robust.models import Projector, ResNet
from robust.pretrain import Embedding, rocl_step
from robust.supervised import trades_step

CONFIG = load_preset("smoke")
DIGITS = digits(split_seed=0).train
EPSILON, ALPHA = 0.15, 0.0375


@pytest.fixture
def model() -> ResNet:
    """A small network that has learned enough for an attack to have something to break."""
    network = ResNet(channels=1, widths=[4, 8], classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    images, labels = batch(256)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network


@pytest.fixture
def embed(model: ResNet) -> Embedding:
    return Embedding(model, Projector(8, hidden=8, out=4))


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    return DIGITS.images[:n], DIGITS.labels[:n]


def assert_within(adversarial: Tensor, images: Tensor, epsilon: float) -> None:
    assert (adversarial - images).abs().max() <= epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def test_pgd_on_a_linear_loss_ends_in_the_corner_of_the_ball() -> None:
    images, _ = batch()
    slope = torch.randn_like(images)
    found = pgd(images, images, lambda x: (x * slope).sum(), epsilon=EPSILON, alpha=ALPHA, steps=10)
    torch.testing.assert_close(found, (images + EPSILON * slope.sign()).clamp(0, 1))


def test_pgd_stays_in_the_ball_and_beats_one_step(model: ResNet) -> None:
    model.eval()
    images, labels = batch()

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), labels)

    reached = [loss(images).item()]
    for alpha, steps in ((EPSILON, 1), (ALPHA, 20)):
        found = pgd(images, images, loss, epsilon=EPSILON, alpha=alpha, steps=steps)
        assert_within(found, images, EPSILON)
        reached.append(loss(found).item())
    assert reached == sorted(reached)
    assert reached[2] > reached[1]


def test_a_start_outside_the_ball_is_projected() -> None:
    images, _ = batch()
    found = pgd(images, images + 5, lambda x: x.sum(), epsilon=EPSILON, alpha=ALPHA, steps=0)
    assert_within(found, images, EPSILON)


def test_uniform_start_fills_the_ball() -> None:
    noise = uniform_start(torch.zeros(200, 1, 8, 8), EPSILON)
    assert -EPSILON <= noise.min() < -0.99 * EPSILON
    assert 0.99 * EPSILON < noise.max() <= EPSILON


def test_trades_attack_raises_the_divergence(model: ResNet) -> None:
    images, _ = batch()
    found = trades_attack(model, images, CONFIG.trades)
    assert_within(found, images, CONFIG.trades.epsilon)
    model.eval()
    start = images + 0.001 * torch.randn_like(images)
    clean = model(images)
    assert divergence(clean, model(found)) > 10 * divergence(clean, model(start))


def test_instance_attack_raises_nt_xent(embed: Embedding) -> None:
    images, _ = batch()
    target = images.flip(3)
    found = instance_attack(embed, images, target, CONFIG.pretrain)
    assert_within(found, images, CONFIG.pretrain.epsilon)
    embed.eval()
    anchor = embed(target)
    assert nt_xent([embed(found), anchor], 0.5) > nt_xent([embed(images), anchor], 0.5)


def test_embedding_the_target_once_is_exact(embed: Embedding) -> None:
    embed.eval()
    images, _ = batch()
    target = images.flip(3)
    with torch.no_grad():
        anchor = embed(target)
    x = images.clone().requires_grad_()
    (once,) = torch.autograd.grad(nt_xent([embed(x), anchor], 0.5), x)
    (again,) = torch.autograd.grad(nt_xent([embed(x), embed(target)], 0.5), x)
    torch.testing.assert_close(once, again)


@pytest.mark.parametrize("training", [True, False])
def test_attacks_touch_neither_weights_nor_statistics_nor_mode(
    embed: Embedding, training: bool
) -> None:
    embed.train(training)
    before = {name: tensor.clone() for name, tensor in embed.state_dict().items()}
    images, labels = batch()
    trades_attack(embed.network, images, CONFIG.trades)
    instance_attack(embed, images, images.flip(3), CONFIG.pretrain)
    withstands(embed.network, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=2)
    assert all(parameter.grad is None for parameter in embed.parameters())
    assert all(torch.equal(before[name], t) for name, t in embed.state_dict().items())
    assert all(module.training is training for module in embed.modules())


class Flops(TorchDispatchMode):
    """Sums what torch's own formulas give for every convolution and matrix product that runs.

    A convolution's backward counts its image gradient and its weight gradient apart, whichever
    of them it was asked for. (`FlopCounterMode` itself fails under `autograd.grad`.)
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], object]) -> int:
    counter = Flops()
    with counter:
        run()
    return counter.total


def forward_images(module: nn.Module, run: Callable[[], object]) -> int:
    """How many images went forward through `module` during `run`."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run()
    handle.remove()
    return sum(seen)


def test_trades_10_costs_27_forwards_an_image(model: ResNet) -> None:
    images, labels = batch()
    model.train()

    def step() -> None:
        trades_step(model, images, labels, CONFIG.trades).backward()

    assert CONFIG.trades.steps == 10
    assert forward_images(model, step) == (1 + 10 + 2) * len(images)
    one = flops(lambda: model(images))
    stem = flops(lambda: model.conv1(images))
    # The training passes need no gradient for their images: the stem's share of 2 F falls away.
    assert flops(step) == 27 * one - 2 * stem


def test_rocl_7_costs_24_forwards_an_image(embed: Embedding) -> None:
    images, _ = batch()
    embed.train()

    def step() -> None:
        rocl_step(embed, images, images.flip(3), CONFIG.pretrain).backward()

    assert CONFIG.pretrain.steps == 7
    assert forward_images(embed, step) == (1 + 7 + 3) * len(images)
    one = flops(lambda: embed(images))
    stem = flops(lambda: embed.network.conv1(images))
    similarities = flops(step) - (24 * one - 3 * stem)
    assert 0 <= similarities < one


def every_iterate(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, alpha: float, steps: int
) -> Tensor:
    """What `withstands` must find with one restart, without dropping an image."""
    low, high = (images - epsilon).clamp(0, 1), (images + epsilon).clamp(0, 1)
    alive = model(images).argmax(1) == labels
    drawn = torch.zeros_like(images)
    drawn[alive] = torch.rand_like(images[alive])
    x = (images + (2 * drawn - 1) * epsilon).clamp(low, high)
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        logits = model(x)
        alive = alive & (logits.argmax(1) == labels)
        if step < steps:
            F.cross_entropy(logits, labels).backward()
            assert x.grad is not None
            x = (x + alpha * x.grad.sign()).clamp(low, high)
    return alive


def test_dropping_broken_images_changes_no_verdict(model: ResNet) -> None:
    model.eval()
    images, labels = batch(64)
    torch.manual_seed(3)
    expected = every_iterate(model, images, labels, epsilon=0.05, alpha=0.0125, steps=3)
    torch.manual_seed(3)
    found = withstands(model, images, labels, epsilon=0.05, alpha=0.0125, steps=3)
    assert torch.equal(found, expected)
    assert 0 < found.sum() < (model(images).argmax(1) == labels).sum()


def test_dropping_broken_images_saves_forwards(model: ResNet) -> None:
    images, labels = batch(64)
    count = forward_images(
        model,
        lambda: withstands(model, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=20),
    )
    assert count < (1 + 20 + 1) * len(images) * 0.9


def test_restarts_only_break_more(model: ResNet) -> None:
    images, labels = batch(64)

    def standing(restarts: int) -> Tensor:
        torch.manual_seed(5)
        return withstands(
            model, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=1, restarts=restarts
        )

    clean, once, often = standing(0), standing(1), standing(6)
    assert clean.sum() > once.sum() > often.sum()
    assert not (often & ~once).any()
    model.eval()
    assert torch.equal(clean, model(images).argmax(1) == labels)


def test_a_network_that_is_always_wrong_costs_one_forward(model: ResNet) -> None:
    model.eval()
    images, _ = batch()
    wrong = (model(images).argmax(1) + 1) % 10
    assert not withstands(model, images, wrong, epsilon=EPSILON, alpha=ALPHA, steps=5).any()


def test_attack_options_are_used(model: ResNet) -> None:
    images, _ = batch()
    small = replace(CONFIG.trades, epsilon=0.01, alpha=0.01)
    assert_within(trades_attack(model, images, small), images, 0.01)
