"""Data sets as 8-bit tensors on the compute device, split once into three parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from condorctl.errors import UserError
from robust import imagefolder
from robust.options import Data

# The digits come without a test part. Whatever the options, it is these many, drawn by this seed:
# every digits result is measured on the same images.
DIGITS_TEST_IMAGES = 360
DIGITS_TEST_SEED = 0

# Where torchvision keeps what it downloads.
_CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

_HOW = (
    "give --data-root a folder with cifar-10-batches-py or cifar-100-python, as "
    """`python -c "import torchvision; torchvision.datasets.CIFAR10('DIR', download=True)"` """
    "fills DIR, or one with train/<class>/ and test/<class>/, or a tar of the latter"
)


@dataclass(frozen=True)
class Part:
    """`pixels` uint8 (N, C, H, W) and `labels` int64 (N,) on one device; `scale` stands for 1.0."""

    pixels: Tensor
    labels: Tensor
    scale: int

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor | slice = slice(None)) -> Tensor:
        """float32 (n, C, H, W) in [0, 1], made anew at each call: four times the room of uint8."""
        return self.pixels[index].float() / self.scale


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts and what describes them.

    `classes`: names in label order. `mean` and `std`: of each channel over the training part, in
    units of [0, 1]; a constant channel has std 0. `fingerprint`: SHA-256 over scale, class names
    and shape, and every pixel and label, part by part; `name` does not enter.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]


class _Source(NamedTuple):
    """A data set as it is found: a training and a test part, on the CPU."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part


def load(options: Data, root: str | None, device: torch.device | str = "cpu") -> Dataset:
    """The data set that `options` asks for, from `root` (`--data-root`; empty text is none).

    The validation part is drawn out of the training part, then the subset of what is left, so it
    is the same for subsets of any size. Both are stratified and depend on `split_seed` alone,
    never on a run's seed: stages that hand checkpoints to each other must agree on what is test.

    Raises UserError, one line, when data are missing, damaged or too few.
    """
    source = _read(options.source, root or None)
    seed = options.split_seed
    everything = torch.arange(len(source.train))
    validation, rest = _drawn(source, "train", everything, options.validation, seed, "validation")
    train, test = rest, torch.arange(len(source.test))
    if options.train_images not in (0, len(rest)):
        train, _ = _drawn(source, "train", rest, options.train_images, seed, "train_images")
    if options.test_images not in (0, len(test)):
        test, _ = _drawn(source, "test", test, options.test_images, seed, "test_images")
    parts = (
        _taken(source.train, train),
        _taken(source.train, validation),
        _taken(source.test, test),
    )
    mean, std = _moments(parts[0])
    on_train, on_validation, on_test = (
        Part(part.pixels.to(device), part.labels.to(device), part.scale) for part in parts
    )
    return Dataset(
        name=source.name,
        train=on_train,
        validation=on_validation,
        test=on_test,
        classes=source.classes,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(source.classes, parts),
    )


def shuffled(part: Part) -> Tensor:
    """An order of the part's images for one epoch, int64 (N,) on the CPU.

    It comes from torch's CPU generator: the same on every device.
    """
    return torch.randperm(len(part))


def batches(
    part: Part, batch_size: int, order: Tensor | None = None, done: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of the whole part, less the first `done` batches; the last may be smaller.

    In the part's own order, or in that of `order`, int64 (N,).
    """
    order = None if order is None else order.to(part.labels.device)
    for start in range(done * batch_size, len(part), batch_size):
        where = slice(start, start + batch_size)
        index = where if order is None else order[where]
        yield part.images(index), part.labels[index]


def _read(wanted: str, root: str | None) -> _Source:
    """The data set `wanted`, as `options.Data.source` names it."""
    if wanted == "digits":
        if root is not None:
            raise UserError(
                f"--data-root {root}: data.source is digits, which come with scikit-learn; leave "
                "the option (and $ROBUST_DATA_ROOT) out, or --set data.source=auto"
            )
        return _digits()
    if root is None:
        raise UserError(f"--data-root is missing, data.source is {wanted}: {_HOW}")
    path = Path(root)
    kind = _found(wanted, path)
    return _folder(path) if kind == "folder" else _cifar(kind, path)


def _found(wanted: str, root: Path) -> str:
    """Which of cifar10, cifar100 and folder to read from `root`; `wanted` itself unless auto."""
    try:
        root.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--data-root {root}: {reason}; {_HOW}") from None
    if root.is_file():
        present = ["folder"]
    else:
        present = [kind for kind, name in _CIFAR_FOLDERS.items() if (root / name).is_dir()]
        if any((root / part).is_dir() for part in imagefolder.PARTS):
            present.append("folder")
    if wanted in present:
        return wanted
    if wanted != "auto":
        missing = _CIFAR_FOLDERS.get(wanted, "train/")
        raise UserError(f"--data-root {root}: holds no {missing} for data.source {wanted}; {_HOW}")
    if not present:
        raise UserError(f"--data-root {root}: holds no data set; {_HOW}")
    if len(present) > 1:
        raise UserError(
            f"--data-root {root}: holds {' and '.join(present)}; --set data.source= to one of them"
        )
    return present[0]


def _digits() -> _Source:
    """scikit-learn's digits: 1797 real scans of 8×8×1 with values 0 to 16, 360 of them for test."""
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    whole = Part(pixels, torch.from_numpy(bunch.target).long(), scale=16)
    train, test = train_test_split(
        torch.arange(len(whole)),
        test_size=DIGITS_TEST_IMAGES,
        stratify=whole.labels,
        random_state=DIGITS_TEST_SEED,
    )
    classes = tuple(str(name) for name in bunch.target_names)
    return _Source("digits", classes, _taken(whole, train), _taken(whole, test))


def _cifar(kind: str, root: Path) -> _Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) as torchvision keeps it, in the original order."""
    # Here, because it takes a second to import, which digits and folders need not wait for.
    from torchvision.datasets import CIFAR10, CIFAR100

    kinds = {"cifar10": ("CIFAR-10", CIFAR10), "cifar100": ("CIFAR-100", CIFAR100)}
    name, reader = kinds[kind]
    try:
        # torchvision compares every file with its known checksum before it unpickles it.
        train, test = (reader(root, train=training, download=False) for training in (True, False))
    except (RuntimeError, OSError):
        raise UserError(
            f"{root / _CIFAR_FOLDERS[kind]}: incomplete or damaged, by torchvision's checksums; "
            f"remove it and download {name} again"
        ) from None
    parts = (
        Part(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
            scale=255,
        )
        for part in (train, test)
    )
    return _Source(name, tuple(train.classes), *parts)


def _folder(root: Path) -> _Source:
    """A folder in ImageFolder's layout, or a tar archive of one, under the name it bears."""
    classes, *samples = imagefolder.read(root)
    name = root.name if root.name not in ("", "..") else root.resolve().name
    for ending in (".gz", ".xz", ".tar", ".tgz", ".txz"):
        name = name.removesuffix(ending) if root.is_file() else name
    return _Source(name, classes, *(Part(s.pixels, s.labels, scale=255) for s in samples))


def _drawn(
    source: _Source, part: str, pool: Tensor, count: int, seed: int, key: str
) -> tuple[Tensor, Tensor]:
    """`count` positions out of `pool`, stratified, and the others."""
    labels = (source.train if part == "train" else source.test).labels[pool]
    classes = len(source.classes)
    if not classes <= count <= len(pool) - classes:
        whole = "" if key == "validation" else ", or 0 to take all"
        raise UserError(
            f"data.{key} = {count}: of the {len(pool)} images that {source.name} has for it, "
            f"stratified over {classes} classes, choose {classes} to {len(pool) - classes}{whole}"
        )
    for label, images in enumerate(torch.bincount(labels, minlength=classes).tolist()):
        if images < 2:
            raise UserError(
                f"data.{key} = {count}: class {source.classes[label]} of {source.name} has only "
                f"{images} image for a stratified draw in {part}; it takes two"
            )
    others, drawn = train_test_split(pool, test_size=count, stratify=labels, random_state=seed)
    return drawn, others


def _taken(part: Part, index: Tensor) -> Part:
    return Part(part.pixels[index], part.labels[index], part.scale)


def _moments(part: Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exact: from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / part.scale
    moments = []
    for channel in part.pixels.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = share @ values
        moments.append((mean.item(), (share @ (values - mean) ** 2).sqrt().item()))
    means, deviations = zip(*moments, strict=True)
    return means, deviations


def _fingerprint(classes: tuple[str, ...], parts: tuple[Part, ...]) -> str:
    """SHA-256 over all that a network can learn from or be measured by."""
    digest = hashlib.sha256()
    for part in parts:
        header = [part.scale, classes, list(part.pixels.shape)]
        digest.update(json.dumps(header).encode())
        digest.update(part.pixels.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
