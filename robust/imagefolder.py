"""Images in torchvision's ImageFolder layout, from a folder or straight out of a tar archive.

`train/<class>/…` and `test/<class>/…` hold one image a file, in any format that PIL reads.
Folders below a class count as torchvision has it; hidden files and other kinds of file do not.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import os
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condorctl.errors import UserError, printable

PARTS = ("train", "test")

# A file as (part, class, ..., name), its bytes.
File = tuple[tuple[str, ...], bytes]

# No training image comes near; a few bytes of an archive can claim to unpack to terabytes.
_LARGEST_FILE = 64 * 2**20

_GREY_MODES = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class Samples:
    """`pixels` uint8 (N, C, H, W), `labels` int64 (N,): positions in the sorted class names."""

    pixels: Tensor
    labels: Tensor


def read(root: Path) -> tuple[tuple[str, ...], Samples, Samples]:
    """The class names in sorted order, the training and the test images below `root`.

    The images of each class come in the order of their paths, and the classes take turns, so the
    first n of a part are a fair sample of it. That order is the same for a folder and for an
    archive of it. Images have one channel when all files are grey, else three; transparency is
    dropped.

    Raises UserError, one line that names `root` and the file, for a damaged, oversized or 16-bit
    image, images of different sizes, an archive that is damaged or points outside itself, a link
    that leads in a circle, a class not named in UTF-8, and parts that lack images or a class.
    """
    files = _archived(root) if root.is_file() else _walked(root)
    decoder = _Decoder(root)
    images: dict[tuple[str, ...], np.ndarray] = {}
    with _progress(root) as show:
        for path, content in files:
            images[path] = decoder.decode(path, content)
            show(len(images))
    classes = _classes(images, root)
    channels = 1 if all(image.ndim == 2 for image in images.values()) else 3
    train, test = (_stacked(images, part, classes, channels) for part in PARTS)
    return classes, train, test


class _Decoder:
    """Decodes the files of one data set, whose images are all of the first one's size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.first: tuple[str, tuple[int, int]] | None = None

    def decode(self, path: tuple[str, ...], content: bytes) -> np.ndarray:
        """uint8 (H, W) of a grey image, (H, W, 3) of any other."""
        name = "/".join(path)
        try:
            with Image.open(io.BytesIO(content), formats=_formats()[0]) as image:
                self._check(image, name)
                mode = "L" if image.mode in _GREY_MODES else "RGB"
                return np.asarray(image if image.mode == mode else image.convert(mode))
        except UserError:
            raise
        except Exception as error:  # a damaged file fails in whatever way its bytes happen to
            raise UserError(
                f"{self.root}: {name}: damaged, or no image ({type(error).__name__}); "
                "replace or remove it"
            ) from None

    def _check(self, image: Image.Image, name: str) -> None:
        """Refuse what would not fit the others, before its pixels are decoded."""
        first, size = self.first = self.first or (name, image.size)
        if image.size != size:
            raise UserError(
                f"{self.root}: {name} has {image.width}×{image.height} pixels, {first} has "
                f"{size[0]}×{size[1]}; bring all images to one size"
            )
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise UserError(f"{self.root}: {name} has more than 8 bits a channel; save it with 8")


def _walked(root: Path) -> Iterator[File]:
    """The image files below a folder, in the order of their paths."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}")

    def refuse_circles(folder: str, below: list[str]) -> None:
        for link in (Path(folder, name) for name in below):
            if link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve()):
                raise UserError(f"{link}: a link to a folder that holds it; remove it")

    for part in PARTS:
        if not (root / part).is_dir():
            continue
        for folder, below, names in os.walk(root / part, onerror=unreadable, followlinks=True):
            refuse_circles(folder, below)
            below.sort()
            for name in sorted(names):
                file = Path(folder, name)
                path = file.relative_to(root).parts
                if not _counts(path):
                    continue
                if not file.is_file():
                    raise UserError(f"{file}: neither a file nor a link to one; remove it")
                try:
                    content = file.read_bytes()
                except OSError as error:
                    raise UserError(f"{file}: {error.strerror}") from None
                yield path, content


def _archived(root: Path) -> Iterator[File]:
    """The image files of an archive, in its order, read in one go; nothing is unpacked to disk."""
    try:
        with _decompressed(root) as stream:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_WholeHeader) as archive:
                yield from _members(archive, root)
            # Checksums stand behind what they guard: read up to them.
            while stream.read(2**20):
                pass
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{root}: damaged, cut short, or neither a .tar, a .tar.gz nor a .tar.xz ({error})"
        ) from None


def _decompressed(root: Path) -> BinaryIO:
    """The bytes of a tar archive; what packs them is told by their first bytes, not by the name."""
    with root.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(root))
    if magic.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.open(root))
    return root.open("rb")


class _WholeHeader(tarfile.TarInfo):
    """A member's header that must be intact.

    tarfile takes a damaged or missing one behind the first for the archive's end, which would
    leave out the rest of the images without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _WholeHeader:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _members(archive: tarfile.TarFile, root: Path) -> Iterator[File]:
    """The image files of `archive`. Links, devices and names that lead outside are never followed.

    One folder around train/ and test/ is accepted, when all images share it.
    """
    around: tuple[str, ...] | None = None
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{root}: {member.name} points outside the archive; pack it again with "
                "`tar -C DIR -c train test`"
            )
        split = 0 if name.parts and name.parts[0] in PARTS else 1
        path = name.parts[split:]
        if member.isdir() or not path or path[0] not in PARTS:
            continue
        # A link may stand for a whole class, whatever its name: passed over, the class would be.
        if not member.isreg():
            raise UserError(
                f"{root}: {member.name} is a link or a device; pack the files themselves, with "
                "`tar --dereference --hard-dereference`"
            )
        if not _counts(path):
            continue
        if around not in (None, name.parts[:split]):
            raise UserError(
                f"{root}: {member.name} is one data set too many; keep one train/ and one test/"
            )
        around = name.parts[:split]
        if member.size > _LARGEST_FILE:
            raise UserError(
                f"{root}: {member.name} has {member.size} bytes, more than an image of a data set"
            )
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        yield path, content.read()


def _counts(path: tuple[str, ...]) -> bool:
    """Whether a path below the root is an image's, by its place and its name."""
    return (
        len(path) > 2
        and path[0] in PARTS
        and path[-1].lower().endswith(_formats()[1])
        and not any(name.startswith(".") for name in path)
    )


@cache
def _formats() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PIL's formats and their file name suffixes, but for EPS: it would start Ghostscript."""
    Image.init()
    # The usual ones first: PIL tries them in this order.
    formats = ("JPEG", "PNG", *sorted(set(Image.OPEN) - {"JPEG", "PNG", "EPS"}))
    suffixes = Image.registered_extensions().items()
    return formats, tuple(suffix for suffix, name in suffixes if name in formats)


@contextmanager
def _progress(root: Path) -> Iterator[Callable[[int], None]]:
    """What shows the number of images read: once a second, when stderr is a terminal."""
    due = time.monotonic() + 1 if sys.stderr.isatty() else math.inf
    begun = False

    def show(count: int) -> None:
        nonlocal due, begun
        if time.monotonic() > due:
            due, begun = time.monotonic() + 1, True
            text = f"\r{printable(str(root))}: {count:,} images read"
            print(text, end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if begun:  # whatever is said next, an error among it, gets a line of its own
            print(file=sys.stderr)


def _classes(paths: Iterable[tuple[str, ...]], root: Path) -> tuple[str, ...]:
    """The class names, sorted; UserError unless both parts have images of each class."""
    named = {(part, name) for part, name, *_ in paths}
    classes = tuple(sorted({name for _, name in named}))
    for name in classes:
        # Such a name is in no JSON, so no evaluation and no export could say it.
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{root}: class {name} is not named in UTF-8; rename it")
    for part in PARTS:
        present = {name for of, name in named if of == part}
        if not present:
            raise UserError(
                f"{root}: no image in {part}/<class>/; ImageFolder's layout is train/<class>/ and "
                "test/<class>/ (torchvision's own CIFAR archives: unpack, and give the folder)"
            )
        for name in classes:
            if name not in present:
                raise UserError(
                    f"{root}: class {name} has no image in {part}/; both parts need every class"
                )
    if len(classes) < 2:
        raise UserError(f"{root}: one class alone, {classes[0]}; there is nothing to tell apart")
    return classes


def _stacked(
    images: dict[tuple[str, ...], np.ndarray], part: str, classes: tuple[str, ...], channels: int
) -> Samples:
    """The images of one part, the classes taking turns."""
    seen: Counter[str] = Counter()
    turns = []
    for path in sorted(path for path in images if path[0] == part):
        turns.append((seen[path[1]], path))
        seen[path[1]] += 1
    order = [path for _, path in sorted(turns)]
    height, width = images[order[0]].shape[:2]
    pixels = np.empty((len(order), channels, height, width), dtype=np.uint8)
    for row, path in zip(pixels, order, strict=True):
        # A grey image among coloured ones fills all three channels.
        row[:] = images[path] if images[path].ndim == 2 else images[path].transpose(2, 0, 1)
    label = {name: position for position, name in enumerate(classes)}
    return Samples(torch.from_numpy(pixels), torch.tensor([label[path[1]] for path in order]))
