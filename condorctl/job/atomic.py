"""Files that are there whole or not at all, whenever the machine or the process stops."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def write(target: Path, writer: Callable[[str], object]) -> tuple[str, int]:
    """Have `writer` make a file, and put it at `target`; its SHA-256 and its bytes.

    `writer` gets the name of a temporary file beside `target`. Raises OSError as it does, and then
    leaves what was at `target`.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        writer(str(partial))
        digest, size = settle(partial)
        replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return digest, size


def settle(file: Path) -> tuple[str, int]:
    """Bring what `file` holds onto the disk; its SHA-256 and its bytes."""
    with file.open("rb+") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = stream.tell()
        os.fsync(stream.fileno())
    return digest, size


def replace(partial: Path, target: Path) -> None:
    """Rename `partial`, which is settled; the name, too, is on the disk then."""
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(file: Path) -> str:
    """The SHA-256 of what `file` holds, in hexadecimal. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
