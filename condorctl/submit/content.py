"""Files by their content: hashes of files and folders, copies that share their blocks.

A folder's hash is that of its files, each by its path, whether it may be executed, and its hash;
its name and its times do not count.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

# A file system whose clock ticks this slowly can change a file without changing its times.
_COARSE_S = 2.0
# Where these come from, the file system cannot share blocks or the kernel cannot ask it to.
_NO_SHARING = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO,
}  # fmt: skip
_CHUNK = 1 << 30

# Whether a path below a folder is left out.
Skip = Callable[[Path], bool]


def nothing(path: Path) -> bool:
    """Leaves nothing out."""
    return False


def sha256(file: Path) -> str:
    """The file's SHA-256 in hexadecimal. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files(path: Path, skip: Skip = nothing) -> Iterator[Path]:
    """The files at or below `path` in a fixed order, links followed.

    Raises OSError for what cannot be read and for links that lead in a circle.
    """
    return (found for found in _walk(path, skip, ()) if not found.is_dir())


def _walk(path: Path, skip: Skip, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """`path` and all below it, a folder before what it holds."""
    found = path.stat()
    yield path
    if not stat.S_ISDIR(found.st_mode):
        return
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        raise OSError(errno.ELOOP, "a link that leads in a circle", str(path))
    for entry in sorted(path.iterdir()):
        if not skip(entry):
            yield from _walk(entry, skip, (*above, identity))


def manifest(path: Path, skip: Skip = nothing) -> dict[str, str]:
    """Paths below `path` (of a file, its own name) and their SHA-256. Raises OSError."""
    base = path if path.is_dir() else path.parent
    return {str(file.relative_to(base)): sha256(file) for file in files(path, skip)}


def tree_sha256(path: Path, skip: Skip = nothing) -> str:
    """The hash of a file, or of all files of a folder as the module says. Raises OSError."""
    if not path.is_dir():
        return sha256(path)
    lines = (
        f"{file.relative_to(path)}\0{int(os.access(file, os.X_OK))}\0{sha256(file)}\0"
        for file in files(path, skip)
    )
    return text_sha256("".join(lines))


def root_sha256(path: Path) -> str:
    """The hash of a folder that is a whole root file system: its links are not followed.

    From here they would lead into this machine's own files. Raises OSError.
    """
    lines = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders.sort()
        for name in sorted([*names, *folders]):
            entry = Path(folder, name)
            found = entry.lstat()
            what = ""
            if stat.S_ISLNK(found.st_mode):
                what = str(entry.readlink())
            elif stat.S_ISREG(found.st_mode):
                what = sha256(entry)
            lines.append(f"{entry.relative_to(path)}\0{found.st_mode:o}\0{what}\0")
    return text_sha256("".join(lines))


def _refuse(error: OSError) -> NoReturn:
    raise error


def text_sha256(text: str) -> str:
    """The hash of a text; a file's name in it may be no UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stamp(path: Path, skip: Skip = nothing) -> tuple[str | None, int]:
    """What changes when a file or a folder does, without reading it; and its size in bytes.

    None when something in it was changed so lately that a further change might not show.
    Raises OSError.
    """
    listing, size, newest = [], 0, 0
    for file in files(path, skip):
        found = file.stat()
        size += found.st_size
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        times = f"{found.st_mtime_ns}\0{found.st_ctime_ns}"
        listing.append(f"{file}\0{found.st_size}\0{times}\0{found.st_ino}\0{found.st_dev}\0")
    settled = newest / 1e9 < time.time() - _COARSE_S
    return text_sha256("".join(listing)) if settled else None, size


def copy(source: Path, target: Path, skip: Skip = nothing) -> None:
    """Copy a file or a folder, links followed; `target` must not be there.

    Shares the blocks with the original where the file system can. Raises OSError.
    """
    for found in _walk(source, skip, ()):
        to = target / found.relative_to(source)
        if found.is_dir():
            to.mkdir()
        else:
            _copy_file(found, to)


def link(source: Path, target: Path) -> None:
    """Have the file `source` at `target`, too: the same one where possible, else a copy.

    Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        target.hardlink_to(source)
        return
    _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    if not stat.S_ISREG(source.stat().st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a folder", str(source))
    with source.open("rb") as reading, target.open("xb") as writing:
        try:
            while os.copy_file_range(reading.fileno(), writing.fileno(), _CHUNK):
                pass
        except OSError as error:
            if error.errno not in _NO_SHARING:
                raise
        # The rest, all of it where nothing could be shared; file systems of the kernel's own
        # (/proc) say that their files are empty.
        reading.seek(writing.seek(0, os.SEEK_END))
        shutil.copyfileobj(reading, writing)
    shutil.copystat(source, target)
