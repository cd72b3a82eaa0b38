"""The package's attacks: our batches against its own evaluation, our PGD and exact answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pyautoattack
import pytest
import torch
from robust_trained import digits, trained
from torch import Tensor, nn

from robust import library
from robust.attacks import correct, withstands
from robust.models import ResNet

EPSILON, SEED = 0.1, 7


class Linear(nn.Module):
    """Two classes by the sign of w·x + b: the distance to the other one is known exactly."""

    def __init__(self, slope: Tensor, bias: float) -> None:
        super().__init__()
        self.slope, self.bias = nn.Parameter(slope), bias

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.slope + self.bias
        return torch.stack([-score, score], dim=1)


class Constant(nn.Module):
    """Nearest of a few grey levels: robust up to half their distance, whatever attacks it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(0, 1, classes))

    def forward(self, x: Tensor) -> Tensor:
        return -20 * (x.mean(dim=(1, 2, 3))[:, None] - self.levels).square()


@pytest.fixture
def model() -> ResNet:
    return trained(epsilon=0.1)


def shortened(library_: pyautoattack.AutoAttack) -> pyautoattack.AutoAttack:
    """The same with few steps: the order of things shows, and a test can wait for it."""
    library_.apgd.n_iter = library_.apgd_targeted.n_iter = library_.fab.n_iter = 4
    library_.apgd_targeted.n_target_classes = library_.fab.n_target_classes = 3
    library_.square.n_queries = 30
    return library_


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our attacks `shortened` too."""
    ours = library._library
    monkeypatch.setattr(library, "_library", lambda *a: shortened(ours(*a)))
    monkeypatch.setattr(library, "MOST_TARGETS", 3)


def run(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Which images stand after each attack, each run on the survivors."""
    standing, after = correct(model, images, labels), {}
    for name in library.STANDARD:
        index = standing.nonzero().squeeze(1)
        standing[index] = library.autoattack(
            name, model, images[index], labels[index], epsilon=EPSILON, seed=SEED
        )
        after[name] = standing.clone()
    return after


def test_the_settings_are_those_of_the_standard_version(model: ResNet) -> None:
    """Croce & Hein 2020, sec. 4 and the package's description of `standard`."""
    images, _ = digits(2)
    made = library._library(model, images, EPSILON)
    assert made.attacks_to_run == list(library.STANDARD)
    steps = [made.apgd.n_iter, made.apgd_targeted.n_iter, made.fab.n_iter, made.square.n_queries]
    assert steps == list(library.STANDARD.values()) == [100, 100, 100, 5000]
    assert made.apgd_targeted.n_target_classes == made.fab.n_target_classes == 9
    assert made.apgd.n_restarts == made.apgd_targeted.n_restarts == made.fab.n_restarts == 1
    assert {a.eps for a in (made.apgd, made.apgd_targeted, made.fab, made.square)} == {EPSILON}


@pytest.mark.usefixtures("short")
def test_the_sequence_is_the_package_s_own(model: ResNet) -> None:
    images, labels = digits(64)
    theirs = shortened(pyautoattack.AutoAttack(model, eps=EPSILON, seed=SEED, version="standard"))
    adversarial, _ = theirs.run_standard_evaluation(images, labels, batch_size=len(images))

    after = run(model, images, labels)
    assert torch.equal(after["square"], correct(model, adversarial, labels))
    counts = [int(correct(model, images, labels).sum()), *(int(s.sum()) for s in after.values())]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_with_few_classes_every_other_class_is_a_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets = []

    def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
        targets.append((self.n_target_classes, getattr(self, "targeted", None)))
        return x

    for name in ("apgd_targeted", "fab"):
        made = library._library(Constant(4), digits(1)[0], EPSILON)
        monkeypatch.setattr(type(getattr(made, name)), "perturb", perturb)
    for name in ("apgd-t", "fab-t"):
        library.autoattack(name, Constant(4), *digits(4), epsilon=EPSILON, seed=0)
    # APGD-T is a class of its own, FAB-T an option of FAB.
    assert targets == [(3, None), (3, True)]


def test_the_targeted_attacks_run_on_the_fewest_classes() -> None:
    """A network that stands beyond the attack's reach, one that falls within it."""
    images = torch.full((2, 1, 4, 4), 0.02)
    images[1] += 0.12
    labels = torch.zeros(2, dtype=torch.long)
    network = Constant(library.LEAST_CLASSES)
    assert correct(network, images, labels).all()
    for name in ("apgd-t", "fab-t"):
        standing = library.autoattack(name, network, images, labels, epsilon=0.1, seed=0)
        assert standing.tolist() == [True, False]


def test_square_sees_no_gradient_and_breaks_more_with_more_queries(model: ResNet) -> None:
    images, labels = digits(64)
    graphs: list[bool] = []
    model.linear.register_forward_hook(lambda *a: graphs.append(a[2].requires_grad))
    clean, few, many = (
        library.square(model, images, labels, epsilon=EPSILON, queries=queries, seed=0).sum()
        for queries in (0, 5, 150)
    )
    # How many five queries break depends on the last bits of the weights: at times none.
    assert clean >= few >= many and clean > many > 0
    assert not any(graphs)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "attack",
    [
        *(partial(library.autoattack, name) for name in library.STANDARD),
        *(partial(library.apgd, norm, steps=4) for norm in library.RESTARTS),
    ],
    ids=[*library.STANDARD, *library.RESTARTS],
)
def test_randomness_is_the_seed_s_alone(attack: Callable[..., Tensor], model: ResNet) -> None:
    images, labels = digits(12)

    def found() -> list[Tensor]:
        seen: list[Tensor] = []
        handle = model.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].detach().clone())
        )
        attack(model, images, labels, epsilon=EPSILON, seed=SEED)
        handle.remove()
        return seen

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = found()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again = found()
    assert len(first) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# FAB seeks the nearest image of another class and APGD for L1 begins in a ball of thrice the size:
# what they come upon outside the ball must not count.
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("attack", "size"),
    [
        *((partial(library.autoattack, name), torch.inf) for name in library.STANDARD),
        (partial(library.square, queries=30), torch.inf),
        (partial(library.apgd, "L2", steps=6), 2),
        (partial(library.apgd, "L1", steps=6), 1),
    ],
    ids=[*library.STANDARD, "square", *library.RESTARTS],
)
def test_what_counts_as_broken_lies_in_ball_and_box(
    attack: Callable[..., Tensor],
    size: float,
    model: ResNet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[Tensor] = []

    def judge(network: nn.Module, found: Tensor, labels: Tensor) -> Tensor:
        judged.append(found)
        return correct(network, found, labels)

    monkeypatch.setattr(library, "correct", judge)
    images, labels = digits(64)
    epsilon = {torch.inf: 0.1, 2: 0.5, 1: 2.0}[size]
    standing = attack(model, images, labels, epsilon=epsilon, seed=SEED)
    (found,) = judged
    assert not standing.all()
    distance = torch.linalg.vector_norm((found - images).flatten(1), size, dim=1)
    assert distance.max() <= epsilon * (1 + 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.usefixtures("short")
def test_nothing_is_left_behind(model: ResNet) -> None:
    """Gradients, modes and the ban on algorithms that are not deterministic are as before."""
    images, labels = digits(3)
    model.train()
    torch.use_deterministic_algorithms(True)
    library.autoattack("fab-t", model, images, labels, epsilon=EPSILON, seed=0)
    assert torch.are_deterministic_algorithms_enabled()
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("short")
def test_zero_gradients_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    saturated = trained()
    with torch.no_grad():
        saturated.linear.weight.zero_()
    images, labels = digits(4)
    wanted = torch.full_like(labels, int(saturated.linear.bias.argmax()))
    library.autoattack("apgd-t", saturated, images, wanted, epsilon=EPSILON, seed=0)
    assert not caplog.records


def test_apgd_is_no_weaker_than_our_pgd(model: ResNet) -> None:
    """On the same images at the same ε (Croce & Hein 2020, table 2): up to two images of 100."""
    images, labels = digits(100)
    ours = withstands(model, images, labels, epsilon=EPSILON, alpha=EPSILON / 10, steps=50)
    theirs = library.autoattack("apgd-ce", model, images, labels, epsilon=EPSILON, seed=0)
    assert 5 < ours.sum() < 95
    assert abs(int(theirs.sum()) - int(ours.sum())) <= 5
    assert theirs.sum() <= ours.sum() + 2


@pytest.mark.parametrize("norm", library.RESTARTS)
def test_apgd_is_set_up_as_in_the_package_s_standard_version(
    norm: Literal["L2", "L1"], model: ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its norm, and with the standard version's steps, in all that decides what it does."""
    standard = pyautoattack.AutoAttack(model, norm=norm, eps=0.5, seed=SEED, version="standard")
    made: list[dict[str, Any]] = []

    def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
        made.append(vars(self).copy())
        return x

    monkeypatch.setattr(type(standard.apgd), "perturb", perturb)
    images, labels = digits(4)
    library.apgd(norm, model, images, labels, epsilon=0.5, steps=100, seed=SEED)
    expected = vars(standard.apgd) | {"logger": None, "device": images.device}
    assert made == [expected]
    assert (expected["norm"], expected["loss"], expected["eps_orig"]) == (norm, "ce", 0.5)


def test_l2_apgd_breaks_what_lies_near_a_plane() -> None:
    """No pixel can reach 0 or 1: the distance to the other class is |w·x + b| / ‖w‖₂."""
    draw = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(200, 1, 4, 4, generator=draw)
    slope = torch.randn(16, generator=draw)
    network = Linear(slope, -0.5 * float(slope.sum()))
    scores = images.flatten(1).numpy() @ slope.numpy() - 0.5 * slope.sum().item()
    distance = np.abs(scores) / np.linalg.norm(slope.numpy())
    assert_breaks_within(0.05, distance, "L2", network, images, scores)


def test_l1_apgd_breaks_what_lies_near_a_plane_in_the_box() -> None:
    """The steepest pixels go first, each as far as the box lets it."""
    images, _ = digits(200)
    slope = torch.randn(64, generator=torch.Generator().manual_seed(0))
    middle = float((images.flatten(1) @ slope).median())
    network = Linear(slope, -middle)
    x, w = images.flatten(1).double().numpy(), slope.double().numpy()
    scores = x @ w - middle
    distance = np.zeros(len(x))
    for i, score in enumerate(scores):
        up = w * -np.sign(score) > 0
        room, left = np.where(up, 1 - x[i], x[i]), abs(score)
        for pixel in np.argsort(-np.abs(w)):
            spent = min(room[pixel], left / abs(w[pixel]))
            distance[i] += spent
            left -= spent * abs(w[pixel])
    assert_breaks_within(0.5, distance, "L1", network, images, scores)


def assert_breaks_within(
    epsilon: float,
    distance: np.ndarray,
    norm: Literal["L2", "L1"],
    network: nn.Module,
    images: Tensor,
    scores: np.ndarray,
) -> None:
    """None that lie farther than `epsilon`, and all nearer but for the last seventh of the way."""
    labels = torch.from_numpy(scores > 0).long()
    standing = library.apgd(norm, network, images, labels, epsilon=epsilon, steps=20, seed=0)
    near, far = distance < 6 / 7 * epsilon, distance > 1.001 * epsilon
    assert near.sum() > 50
    assert far.sum() > 50
    assert not standing.numpy()[near].any()
    assert standing.numpy()[far].all()


# The clean images before, the found ones after; a look at the start of each restart for L2 and at
# each of its three radii for L1, which shares the steps out among them.
@pytest.mark.parametrize(("norm", "forwards"), [("L2", 1 + (1 + 3) + 1), ("L1", 1 + 5 * 6 + 1)])
def test_apgd_takes_the_steps_that_it_is_given(
    norm: Literal["L2", "L1"], forwards: int, model: ResNet
) -> None:
    images, labels = digits(20)
    clean = correct(model, images, labels)
    seen: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    standing = library.apgd(norm, model, images, labels, epsilon=0.5, steps=3, seed=0)
    assert len(seen) == forwards
    assert 0 < standing.sum() < clean.sum()
