"""The digits and their split, and the random views."""

from __future__ import annotations

import pytest
import torch

from robust.config import load_preset, override
from robust.data import digits, shuffled_batches
from robust.views import random_view

VIEWS = load_preset("smoke").views


def test_the_split_covers_the_digits_once_and_is_stratified() -> None:
    data = digits(split_seed=0)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1257, 180, 360]
    for part in parts:
        assert part.images.shape[1:] == (1, 8, 8)
        assert part.images.min() == 0
        assert part.images.max() == 1
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01
    rows = torch.cat([part.images.flatten(1) for part in parts])
    assert len(rows.unique(dim=0)) == 1797  # no two digits are equal, so no image is in two parts


def test_the_fingerprint_tells_splits_apart() -> None:
    assert digits(0).fingerprint == digits(0).fingerprint
    assert digits(0).fingerprint != digits(1).fingerprint


def test_an_epoch_is_every_image_once_in_random_order() -> None:
    part = digits(0).validation
    batches = list(shuffled_batches(part, 64))
    assert [len(labels) for _, labels in batches] == [64, 64, 52]
    images = torch.cat([images for images, _ in batches])
    assert not torch.equal(images, part.images)
    assert torch.equal(images.unique(dim=0), part.images.unique(dim=0))


def test_views_without_any_change_are_the_images() -> None:
    config = load_preset("smoke")
    names = ("rotation", "shift", "scale", "gamma", "brightness")
    still = override(config, [f"views.{name}=0" for name in names], "pretrain").views
    images = digits(0).validation.images
    torch.testing.assert_close(random_view(images, still), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rotation", "shift", "scale", "gamma", "brightness"])
def test_each_option_alone_changes_the_view_within_range(name: str) -> None:
    config = load_preset("smoke")
    others = {"rotation", "shift", "scale", "gamma", "brightness"} - {name}
    options = override(config, [f"views.{other}=0" for other in others], "pretrain").views
    images = digits(0).validation.images
    seen = random_view(images, options)
    assert seen.shape == images.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    changed = (seen - images).abs().flatten(1).max(dim=1).values > 1e-3
    assert changed.float().mean() > 0.9


def test_every_image_gets_parameters_of_its_own() -> None:
    same = digits(0).train.images[:1].expand(32, -1, -1, -1)
    assert len(random_view(same, VIEWS).flatten(1).unique(dim=0)) == 32
