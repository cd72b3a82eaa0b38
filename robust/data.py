"""Data sets as tensors in memory, split once into training, validation and test part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

VALIDATION_IMAGES = 180
TEST_IMAGES = 360


@dataclass(frozen=True)
class Part:
    """`images` (N, C, H, W) float32 in [0, 1], `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts; `fingerprint` is the SHA-256 of every pixel and label in its part."""

    train: Part
    validation: Part
    test: Part
    channels: int
    classes: int
    fingerprint: str


def digits(split_seed: int) -> Dataset:
    """scikit-learn's digits, 1797 real scans of 8×8×1 with values k/16: 1257/180/360, stratified.

    The split depends on `split_seed` alone, never on a run's seed: stages that hand checkpoints
    to each other must agree on what is test.
    """
    source = load_digits()
    images = torch.from_numpy(source.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(source.target).long()
    rest, test = train_test_split(
        torch.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=split_seed
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION_IMAGES, stratify=labels[rest], random_state=split_seed
    )
    digest = hashlib.sha256()
    for index in (train, validation, test):
        digest.update(images[index].numpy().tobytes() + labels[index].numpy().tobytes())
    return Dataset(
        train=Part(images[train], labels[train]),
        validation=Part(images[validation], labels[validation]),
        test=Part(images[test], labels[test]),
        channels=1,
        classes=10,
        fingerprint=digest.hexdigest(),
    )


def shuffled_batches(part: Part, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (images, labels) in an order from torch's generator; the last may be smaller."""
    for index in torch.randperm(len(part)).split(batch_size):
        yield part.images[index], part.labels[index]
