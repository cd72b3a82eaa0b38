"""Attacks: what they reach, what they leave alone, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_trained import digits, trained
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robust.attacks import (
    correct,
    instance_attack,
    pgd,
    pgd_attack,
    random_start,
    reported,
    trades_attack,
    transfer,
    withstands,
)
from robust.config import load_preset
from robust.losses import divergence, nt_xent
from robust.models import Embedding, Projector, ResNet, Twin

CONFIG = load_preset("smoke")
EPSILON, ALPHA = 0.15, 0.0375


@pytest.fixture
def model() -> ResNet:
    return trained().train()


@pytest.fixture
def embed(model: ResNet) -> Embedding:
    return Embedding(model, Projector(8, hidden=8, out=4))


def assert_within(adversarial: Tensor, images: Tensor, epsilon: float) -> None:
    assert (adversarial - images).abs().max() <= epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def test_pgd_on_a_linear_loss_ends_in_the_corner_of_the_ball() -> None:
    images, _ = digits(16)
    slope = torch.randn_like(images)
    found = pgd(images, images, lambda x: (x * slope).sum(), epsilon=EPSILON, alpha=ALPHA, steps=10)
    torch.testing.assert_close(found, (images + EPSILON * slope.sign()).clamp(0, 1))


def test_pgd_stays_in_the_ball_and_beats_one_step(model: ResNet) -> None:
    model.eval()
    images, labels = digits(16)

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), labels)

    reached = [loss(images).item()]
    for alpha, steps in ((EPSILON, 1), (ALPHA, 20)):
        found = pgd(images, images, loss, epsilon=EPSILON, alpha=alpha, steps=steps)
        assert_within(found, images, EPSILON)
        reached.append(loss(found).item())
    assert reached == sorted(reached)
    assert reached[2] > reached[1]


@given(seed=st.integers(0, 10_000), epsilon=st.floats(1e-3, 2), far=st.floats(0, 20, width=32))
@settings(max_examples=40, deadline=None)
def test_a_start_outside_the_ball_is_projected(seed: int, epsilon: float, far: float) -> None:
    """Onto the nearest point of each pixel's two intervals, [clean - ε, clean + ε] and [0, 1]."""
    images, _ = digits(3)
    start = images + far * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    found = pgd(images, start, lambda x: x.sum(), epsilon=epsilon, alpha=ALPHA, steps=0)
    nearest = [
        min(max(x, clean - epsilon, 0.0), clean + epsilon, 1.0)
        for x, clean in zip(start.flatten().tolist(), images.flatten().tolist(), strict=True)
    ]
    np.testing.assert_allclose(found.flatten().numpy(), nearest, atol=1e-6)


def test_every_iterate_lies_in_ball_and_box(model: ResNet) -> None:
    model.eval()
    images, labels = digits(32)
    seen: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return F.cross_entropy(model(x), labels)

    start = random_start(images, EPSILON)
    seen.append(pgd(images, start, loss, epsilon=EPSILON, alpha=ALPHA, steps=10))
    assert len(seen) == 11
    for x in seen:
        assert_within(x, images, EPSILON)
    assert (seen[-1] - images).abs().max() >= 0.99 * EPSILON


def test_a_random_start_is_uniform_and_its_generator_s_alone() -> None:
    images = torch.full((4000, 1, 1, 3), 0.5)
    before = torch.get_rng_state()
    first, again, other = (
        random_start(images, 0.2, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # A tenth of the points lies in each tenth of the interval, give or take 4.5 deviations.
    counts, _ = np.histogram(first.numpy(), bins=10, range=(0.3, 0.7))
    assert counts.sum() == 12_000
    assert abs(counts - 1200).max() < 150


def test_agrees_with_foolbox(model: ResNet) -> None:
    """From a zero start, with the same steps: the same images, and the same ones broken."""
    model.eval()
    images, labels = digits(100)
    radius, steps = 0.05, 10
    mine = pgd(
        images,
        images,
        lambda x: F.cross_entropy(model(x), labels, reduction="sum"),
        epsilon=radius,
        alpha=radius / 4,
        steps=steps,
    )
    attack = foolbox.attacks.LinfPGD(abs_stepsize=radius / 4, steps=steps, random_start=False)
    _, theirs, broken = attack(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=radius
    )
    # A gradient of nearly zero may round to the other sign: such an image goes another way.
    same = (mine - theirs).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert same.float().mean() >= 0.9
    standing = correct(model, mine, labels)
    assert torch.equal(standing[same], ~broken[same])
    assert 0.1 < standing.float().mean() < 0.9


def test_trades_attack_raises_the_divergence(model: ResNet) -> None:
    images, _ = digits(16)
    found = trades_attack(model, images, CONFIG.adversary)
    assert_within(found, images, CONFIG.adversary.epsilon)
    model.eval()
    start = images + 0.001 * torch.randn_like(images)
    clean = model(images)
    assert divergence(clean, model(found)) > 10 * divergence(clean, model(start))


def test_pgd_attack_raises_the_cross_entropy(model: ResNet) -> None:
    images, labels = digits(16)
    found = pgd_attack(model, images, labels, CONFIG.adversary)
    assert_within(found, images, CONFIG.adversary.epsilon)
    model.eval()
    start = random_start(images, CONFIG.adversary.epsilon)
    assert F.cross_entropy(model(found), labels) > 2 * F.cross_entropy(model(start), labels)
    assert not torch.equal(found, pgd_attack(model, images, labels, CONFIG.adversary))


def test_a_bf16_twin_finds_much_the_same(model: ResNet) -> None:
    """What training does on a GPU: convolutions in bf16, images and logits in fp32."""
    images, labels = digits(64)
    twin = Twin(model, torch.bfloat16)
    found = pgd_attack(twin, images, labels, CONFIG.adversary)
    assert found.dtype == torch.float32
    exact = pgd_attack(Twin(model), images, labels, CONFIG.adversary)
    left = [correct(model, x, labels).float().mean() for x in (images, found, exact)]
    assert left[0] - left[1] > 0.9 * (left[0] - left[2])


def test_instance_attack_raises_nt_xent(embed: Embedding) -> None:
    images, _ = digits(16)
    target = images.flip(3)
    found = instance_attack(embed, images, target, CONFIG.pretrain)
    assert_within(found, images, CONFIG.pretrain.epsilon)
    embed.eval()
    anchor = embed(target)
    assert nt_xent([embed(found), anchor], 0.5) > nt_xent([embed(images), anchor], 0.5)


def test_embedding_the_target_once_is_exact(embed: Embedding) -> None:
    embed.eval()
    images, _ = digits(16)
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
    frozen = embed.network.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in embed.state_dict().items()}
    images, labels = digits(16)
    network = embed.network
    trades_attack(network, images, CONFIG.adversary)
    pgd_attack(network, images, labels, CONFIG.adversary)
    instance_attack(embed, images, images.flip(3), CONFIG.pretrain)
    withstands(network, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=2)
    transfer(network, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=2)
    assert all(parameter.grad is None for parameter in embed.parameters())
    assert all(torch.equal(before[name], t) for name, t in embed.state_dict().items())
    assert all(module.training is training for module in embed.modules())
    assert [p for p in embed.parameters() if not p.requires_grad] == [frozen]


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


def test_the_training_attacks_cost_what_the_cost_model_allows(embed: Embedding) -> None:
    """In forward-equivalents an image: TRADES 1 + 2k, PGD 2k, RoCL's 1 + 2k."""
    images, labels = digits(16)
    adversary, pretrain = CONFIG.adversary, CONFIG.pretrain
    one = flops(lambda: embed.network(images))
    assert flops(lambda: trades_attack(embed.network, images, adversary)) == (
        (1 + 2 * adversary.steps) * one
    )
    assert flops(lambda: pgd_attack(embed.network, images, labels, adversary)) == (
        2 * adversary.steps * one
    )
    embedded = flops(lambda: embed(images))
    similarities = flops(lambda: instance_attack(embed, images, images.flip(3), pretrain)) - (
        (1 + 2 * pretrain.steps) * embedded
    )
    assert 0 <= similarities < embedded


def forward_images(module: nn.Module, run: Callable[[], object]) -> int:
    """How many images went forward through `module` during `run`."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run()
    handle.remove()
    return sum(seen)


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
    images, labels = digits(64)
    torch.manual_seed(3)
    expected = every_iterate(model, images, labels, epsilon=0.05, alpha=0.0125, steps=3)
    found = withstands(
        model,
        images,
        labels,
        epsilon=0.05,
        alpha=0.0125,
        steps=3,
        generator=torch.Generator().manual_seed(3),
    )
    assert torch.equal(found, expected)
    assert 0 < found.sum() < (model(images).argmax(1) == labels).sum()


def test_dropping_broken_images_saves_forwards(model: ResNet) -> None:
    images, labels = digits(64)
    count = forward_images(
        model,
        lambda: withstands(model, images, labels, epsilon=EPSILON, alpha=ALPHA, steps=20),
    )
    assert count < (1 + 20 + 1) * len(images) * 0.9


def test_restarts_and_radius_only_break_more(model: ResNet) -> None:
    images, labels = digits(64)

    def standing(restarts: int, radius: float) -> Tensor:
        return withstands(
            model, images, labels, epsilon=radius, alpha=radius, steps=1, restarts=restarts,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip

    radius = 0.05
    clean, once, often = (standing(restarts, radius) for restarts in (0, 1, 8))
    assert clean.sum() > once.sum() > often.sum()
    assert not (often & ~once).any()
    assert torch.equal(clean, correct(model, images, labels))
    assert standing(1, 4 * radius).sum() < once.sum()


def test_a_network_that_is_always_wrong_costs_one_forward(model: ResNet) -> None:
    model.eval()
    images, _ = digits(16)
    wrong = (model(images).argmax(1) + 1) % 10
    assert not withstands(model, images, wrong, epsilon=EPSILON, alpha=ALPHA, steps=5).any()


def test_attack_options_are_used(model: ResNet) -> None:
    images, labels = digits(16)
    small = replace(CONFIG.adversary, epsilon=0.01, alpha=0.01)
    assert_within(trades_attack(model, images, small), images, 0.01)
    assert_within(pgd_attack(model, images, labels, small), images, 0.01)


def test_transfer_attacks_every_image_to_the_end(model: ResNet) -> None:
    images, labels = digits(64)
    found = transfer(
        model,
        images,
        labels,
        epsilon=EPSILON,
        alpha=ALPHA,
        steps=10,
        generator=torch.Generator().manual_seed(0),
    )
    assert_within(found, images, EPSILON)
    model.eval()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = (images + EPSILON * noise).clamp(0, 1)
    for _ in range(10):
        x = x.detach().requires_grad_()
        F.cross_entropy(model(x), labels, reduction="sum").backward()
        assert x.grad is not None
        x = (x + ALPHA * x.grad.sign()).clamp(images - EPSILON, images + EPSILON).clamp(0, 1)
    torch.testing.assert_close(found, x.detach())
    assert correct(model, found, labels).float().mean() < 0.2


def test_reported_attacks_run_in_fp32_whatever_surrounds_them(model: ResNet) -> None:
    images, labels = digits(64)
    seen: set[tuple[torch.dtype, bool, bool]] = set()
    model.linear.register_forward_hook(
        lambda _, __, out: seen.add(
            (out.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        )
    )
    tf32 = torch.backends.cudnn.allow_tf32

    def run() -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        arguments = {"epsilon": 0.05, "alpha": 0.0125, "steps": 5, "generator": draw}
        return [
            correct(model, images, labels),
            withstands(model, images, labels, **arguments),
            transfer(model, images, labels, **arguments),
        ]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert seen == {(torch.float32, False, False)}
    assert torch.backends.cudnn.allow_tf32 == tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).dtype == torch.bfloat16


def test_a_network_in_half_precision_is_never_reported(model: ResNet) -> None:
    images, labels = digits(4)
    with pytest.raises(TypeError, match=r"float32, not in torch\.bfloat16"):
        correct(Twin(model, torch.bfloat16), images, labels)
    with pytest.raises(TypeError, match=r"float32, not in torch\.float64"):
        correct(model, images.double(), labels)


def test_a_reported_network_gets_batches_of_few_sizes(model: ResNet) -> None:
    """Attacks drop broken images; batches of every size would make the heap grow and grow."""
    images, _ = digits(100)
    expected = model.eval()(images)
    sizes: list[int] = []
    model.conv1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad(), reported(model, images), reported(model, images):
        for size in range(101):
            logits = model(images[:size])
            assert logits.shape == (size, expected.shape[1])
            torch.testing.assert_close(logits, expected[:size])
    assert all(size <= filled <= 1.125 * size for size, filled in enumerate(sizes))
    assert len(set(sizes)) == 1 + 16 + 8 + 8 + 5
    model(images[:99])
    assert sizes[-1] == 99
