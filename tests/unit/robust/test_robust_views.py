"""Views and augmentation, against torchvision image by image and against NumPy."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision

from robust import views
from robust.config import load_preset
from robust.options import Augment, Views
from robust.views import augment, random_view

OFF = Views(
    crop=1,
    flip=0,
    rotation=0,
    shift=0,
    scale=0,
    gamma=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    jitter=1,
    grayscale=0,
    anneal=0,
)
ROCL = replace(
    OFF,
    crop=0.08,
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter=0.8,
    grayscale=0.2,
)


def photos(n: int, height: int = 5, width: int = 4) -> Tensor:
    """Random RGB images; of the first, rows are grey, black, white, or equal in two channels."""
    images = torch.rand(n, 3, height, width)
    images[0, :, 0] = images[0, :1, 0]
    images[0, :, 1, :2], images[0, :, 1, 2:] = 0, 1
    for row, (one, other) in enumerate([(0, 1), (1, 2), (2, 0)], start=2):
        images[0, one, row] = images[0, other, row]
    return images


def ramps(n: int, height: int, width: int) -> Tensor:
    """Images that say where each pixel was: channel 0 its column, 1 its row, 2 noise."""
    images = torch.rand(n, 3, height, width)
    images[:, 0] = torch.linspace(0, 1, width)
    images[:, 1] = torch.linspace(0, 1, height)[:, None]
    return images


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_as_torchvision_defines_it(name: str) -> None:
    images = photos(40)
    amounts = torch.rand(40) - 0.5 if name == "hue" else torch.rand(40) * 2
    amounts[:3] = torch.tensor([-0.5, 0, 0.5] if name == "hue" else [0, 1, 2])
    images[1], images[2] = images[0], images[0]
    changed = getattr(views, f"adjust_{name}")(images, amounts)
    for image, amount, seen in zip(images, amounts.tolist(), changed, strict=True):
        expected = getattr(torchvision, f"adjust_{name}")(image, amount)
        torch.testing.assert_close(seen, expected, atol=3e-6, rtol=0)


def test_one_channel_changes_as_torchvision_defines_it() -> None:
    images, factor = torch.rand(8, 1, 6, 6), torch.rand(8) * 2
    for name in ("brightness", "contrast"):
        changed = getattr(views, f"adjust_{name}")(images, factor)
        for image, amount, seen in zip(images, factor.tolist(), changed, strict=True):
            expected = getattr(torchvision, f"adjust_{name}")(image, amount)
            torch.testing.assert_close(seen, expected, atol=1e-6, rtol=0)


def boxes(options: Views, n: int, height: int, width: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """Images, the boxes (top, left, height, width) that ramps show were cropped, and the views."""
    images = ramps(n, height, width)
    seen = random_view(images, options)
    columns = (seen[:, 0] * (width - 1)).flatten(1)
    lines = (seen[:, 1] * (height - 1)).flatten(1)
    found = []
    for where in (lines, columns):
        low, high = where.amin(1), where.amax(1)
        found += [low, high - low + 1]
    top, tall, left, wide = (value.round().int().numpy() for value in found)
    return images, np.stack([top, left, tall, wide], axis=1), seen


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24)])
def test_a_crop_is_the_box_resized(height: int, width: int) -> None:
    images, found, seen = boxes(replace(OFF, crop=0.08), 100, height, width)
    for image, box, view in zip(images, found.tolist(), seen, strict=True):
        expected = torchvision.resized_crop(image, *box, size=[height, width], antialias=True)
        torch.testing.assert_close(view, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("smallest", "height", "width"), [(0.08, 32, 32), (0.6, 12, 20)])
def test_boxes_are_drawn_as_torchvision_draws_them(
    smallest: float, height: int, width: int
) -> None:
    _, ours, _ = boxes(replace(OFF, crop=smallest), 3000, height, width)
    one = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(one, [smallest, 1], [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    for ours_drawn, theirs_drawn in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(ours_drawn, theirs_drawn).pvalue > 0.001
    for derived in (np.multiply, np.divide):  # area and aspect
        sizes = (derived(drawn[:, 3], drawn[:, 2]) for drawn in (ours, theirs))
        assert ks_2samp(*sizes).pvalue > 0.001


@pytest.mark.parametrize(("height", "width", "tall", "wide"), [(6, 30, 6, 8), (30, 6, 8, 6)])
def test_an_image_too_long_for_any_draw_gives_its_middle(
    height: int, width: int, tall: int, wide: int
) -> None:
    _, found, _ = boxes(replace(OFF, crop=0.9), 50, height, width)
    assert np.unique(found, axis=0).tolist() == [
        [(height - tall) // 2, (width - wide) // 2, tall, wide]
    ]


def test_flips_are_whole_and_as_frequent_as_asked_for() -> None:
    images = photos(2000)
    seen = random_view(images, replace(OFF, flip=0.3))
    flipped = (seen - images.flip(3)).abs().flatten(1).amax(1) < 1e-5
    same = (seen - images).abs().flatten(1).amax(1) < 1e-5
    assert (flipped ^ same).all()
    assert 0.27 < flipped.float().mean() < 0.33


def motions(options: Views, strength: float = 1.0) -> tuple[np.ndarray, ...]:
    """Angle, zoom and shift (in pixels) of 400 views, from the plane that each ramp became."""
    height, width = 40, 60
    images = ramps(400, height, width)
    seen = random_view(images, options, strength).double()
    across = seen[:, 0] * (width - 1)
    down = seen[:, 1] * (height - 1)
    # The middle 8×8 pixels, which no option of these tests takes beyond the image.
    rows, columns = slice(height // 2 - 4, height // 2 + 4), slice(width // 2 - 4, width // 2 + 4)
    y, x = np.mgrid[-3.5:4, -3.5:4]
    plane = np.stack([x.ravel(), y.ravel(), np.ones(64)], axis=1)
    fits = []
    for field in (across, down):
        values = field[:, rows, columns].reshape(400, 64).numpy()
        fits.append(np.linalg.lstsq(plane, values.T, rcond=None)[0])
        assert np.abs(plane @ fits[-1] - values.T).max() < 1e-3  # an affine map, nothing else
    (a, b, right), (c, d, below) = fits
    # A rotation with a zoom, in pixels, though the image is no square.
    np.testing.assert_allclose(a, d, atol=1e-3)
    np.testing.assert_allclose(b, -c, atol=1e-3)
    return np.arctan2(c, a), np.hypot(a, c), right - (width - 1) / 2, below - (height - 1) / 2


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_rotation_zoom_and_shift_are_uniform_in_their_ranges(strength: float) -> None:
    angle, zoom, right, below = motions(
        replace(OFF, rotation=0.6, scale=0.3, shift=3), strength=strength
    )
    for drawn, bound in ((angle, 0.6), (zoom - 1, 0.3), (right, 3.0), (below, 3.0)):
        assert kstest(drawn / (bound * strength), "uniform", (-1, 2)).pvalue > 0.001
    drawn = np.stack([angle, zoom, right, below])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.2


def test_each_motion_alone_leaves_the_others_out() -> None:
    for option, alone in (("rotation", 0), ("scale", 1)):
        angle, zoom, right, below = motions(replace(OFF, **{option: 0.3}))
        moved = [np.abs(angle).max(), np.abs(zoom - 1).max()]
        assert moved[alone] > 0.2
        assert moved[1 - alone] < 1e-4
        assert max(np.abs(right).max(), np.abs(below).max()) < 1e-3


def test_beyond_the_image_is_nothing() -> None:
    seen = random_view(torch.ones(200, 1, 8, 8), replace(OFF, shift=3))
    assert seen[:, :, :, :3].amin() == 0
    assert (seen.amax(dim=(1, 2, 3)) == 1).all()


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_brightness_and_gamma_are_drawn_per_image_in_their_ranges(strength: float) -> None:
    images = torch.rand(500, 3, 4, 4) * 0.6 + 0.02
    factor = random_view(images, replace(OFF, brightness=0.5), strength) / images
    torch.testing.assert_close(factor, factor[:, :1, :1, :1].expand_as(factor))
    drawn = (factor[:, 0, 0, 0] - 1).numpy() / (0.5 * strength)
    # A weaker view changes the colours of fewer images as well.
    assert kstest(drawn[drawn != 0], "uniform", (-1, 2)).pvalue > 0.001
    power = random_view(images, replace(OFF, gamma=0.7), strength).log() / images.log()
    torch.testing.assert_close(power, power[:, :1, :1, :1].expand_as(power), atol=1e-3, rtol=0)
    drawn = power[:, 0, 0, 0].log().numpy() / (0.7 * strength)
    assert kstest(drawn, "uniform", (-1, 2)).pvalue > 0.001


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_is_the_share_of_images_whose_colours_change(name: str, strength: float) -> None:
    images = photos(2000)
    seen = random_view(images, replace(OFF, **{name: 0.4}, jitter=0.8), strength)
    changed = ((seen - images).abs().flatten(1).amax(1) > 2e-6).float().mean().item()
    assert changed == pytest.approx(0.8 * strength, abs=0.04)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_grey_views_are_torchvisions_and_as_frequent_as_asked_for(strength: float) -> None:
    images = photos(2000)
    seen = random_view(images, replace(OFF, grayscale=0.4), strength)
    expected = torchvision.rgb_to_grayscale(images, num_output_channels=3)
    grey = (seen - expected).abs().flatten(1).amax(1) < 1e-6
    assert torch.equal(seen[~grey], images[~grey])
    assert grey.float().mean().item() == pytest.approx(0.4 * strength, abs=0.04)


def test_the_order_of_the_jitters_is_drawn_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("brightness", "contrast", "saturation", "hue"):

        def record(images: Tensor, amount: Tensor, name: str = name) -> Tensor:
            order.append(name)
            return images

        monkeypatch.setattr(views, f"adjust_{name}", record)
    for _ in range(480):
        random_view(torch.rand(1, 3, 4, 4), replace(ROCL, crop=1, flip=0))
    orders = Counter(zip(*[iter(order)] * 4, strict=True))
    assert len(orders) == math.factorial(4)
    assert max(orders.values()) < 2.5 * 480 / 24


def test_one_channel_knows_no_colours_and_draws_nothing_for_them() -> None:
    images = torch.rand(5, 1, 4, 4)
    state = torch.get_rng_state()
    colours = replace(OFF, saturation=0.5, hue=0.5, grayscale=1)
    assert random_view(images, colours) is images
    assert torch.equal(torch.get_rng_state(), state)


def test_no_distortion_is_the_images_themselves() -> None:
    images = photos(5)
    assert random_view(images, OFF) is images
    everything = replace(ROCL, rotation=0.3, shift=2, scale=0.2, gamma=0.3)
    assert random_view(images, everything, strength=0.0) is images


def test_a_weaker_crop_takes_more_of_the_image() -> None:
    _, found, _ = boxes(replace(OFF, crop=0.2), 2000, 32, 32)
    assert (found[:, 2] * found[:, 3]).min() < 0.25 * 1024
    images = ramps(2000, 32, 32)
    seen = random_view(images, replace(OFF, crop=0.2), strength=0.5)
    low, high = seen[:, :2].flatten(2).amin(2), seen[:, :2].flatten(2).amax(2)
    share = ((high - low) * 31 + 1).prod(dim=1) / 1024
    assert 0.58 < share.min() < 0.65  # 1 - 0.5 · (1 - 0.2) = 0.6, in whole pixels


@settings(max_examples=25, deadline=None)
@given(
    strength=st.floats(0, 1),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    crop=st.floats(0.01, 1),
    large=st.booleans(),
)
def test_a_view_keeps_shape_and_range(
    strength: float, channels: int, height: int, width: int, crop: float, large: bool
) -> None:
    options = Views(crop, 0.5, 3, 4, 0.9, 3, 1, 1, 1, 0.5, 1, 0.5, 0) if large else ROCL
    images = torch.rand(6, channels, height, width)
    before = images.clone()
    seen = random_view(images, replace(options, crop=crop), strength)
    assert seen.shape == images.shape
    assert seen.dtype == torch.float32
    assert torch.isfinite(seen).all()
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert torch.equal(images, before)


def test_every_image_gets_parameters_of_its_own_from_the_global_generator() -> None:
    for options, image in (
        (load_preset("smoke").views, torch.rand(1, 1, 8, 8)),
        (ROCL, torch.rand(1, 3, 32, 32)),
    ):
        same = image.expand(32, -1, -1, -1)
        torch.manual_seed(3)
        first = random_view(same, options)
        assert len(first.flatten(1).unique(dim=0)) == 32
        torch.manual_seed(3)
        assert torch.equal(random_view(same, options), first)


@pytest.mark.parametrize(
    ("anneal", "epoch", "epochs", "expected"),
    [
        (0, 700, 1000, 1.0),
        (50, 1, 1000, 1.0),
        (50, 50, 1000, 1.0),
        (50, 51, 1000, 0.95),
        (50, 501, 1000, 0.5),
        (50, 1000, 1000, 0.05),
        (1, 4, 4, 0.25),
        (3, 10, 10, 0.1),
        (20, 10, 10, 1.0),
    ],
)
def test_strength_falls_by_steps(anneal: int, epoch: int, epochs: int, expected: float) -> None:
    assert views.strength(anneal, epoch, epochs) == pytest.approx(expected, abs=1e-12)


def test_augmentation_moves_a_window_over_the_padded_image() -> None:
    images = photos(1200)
    seen = augment(images, Augment(pad=2, flip=0.25)).numpy()
    found: Counter[tuple[int, int, bool]] = Counter()
    for image, view in zip(images.numpy(), seen, strict=True):
        padded = np.pad(image, [(0, 0), (2, 2), (2, 2)])
        matches = [
            (down, right, flipped)
            for down in range(5)
            for right in range(5)
            for flipped in (False, True)
            if np.array_equal(
                padded[:, down : down + 5, right : right + 4][:, :, :: -1 if flipped else 1], view
            )
        ]
        assert len(matches) == 1
        found[matches[0]] += 1
    windows = Counter((down, right) for down, right, _ in found.elements())
    assert len(windows) == 25
    assert max(windows.values()) < 2 * 1200 / 25
    assert 0.2 < sum(flipped for _, _, flipped in found.elements()) / 1200 < 0.3


def test_augmentation_that_is_off_costs_nothing() -> None:
    images = photos(4)
    state = torch.get_rng_state()
    assert augment(images, Augment(pad=0, flip=0)) is images
    assert torch.equal(torch.get_rng_state(), state)
