"""Files on their way into a folder: whole or not at all under their own names, and never twice.

What has come of a file lies under a hidden name beside it until the rest has come, too; the next
fetch goes on from there once the far side has said that its own file begins just so.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from condorctl.deadline import Deadline
from condorctl.errors import UserError
from condorctl.files.sandbox import Broken, Changed, Header, Refused, Want
from condorctl.terminal import Progress

File = dict[str, Any]

_CHUNK = 1 << 20


class Reader(Protocol):
    """Where bytes come from: a file here, or the far side's stream."""

    def read(self, count: int, /) -> bytes: ...


def check_path(path: str) -> None:
    """Raise UserError unless `path` names something inside a folder."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts or "\0" in path:
        raise UserError(f"{path!r}: name a path inside the job's own folder")


def want(root: Path, name: str, called: str) -> Want:
    """A request for `called`, which is to become `root`/`name`, with what is here of it."""
    target = root / name
    for path in (_partial(target), target):
        with suppress(OSError, Refused), open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                return Want(called, size, _digest(file, size).hexdigest())
    return Want(called)


def receive(
    source: Reader, root: Path, name: str, header: Header, asked: Want,
    progress: Progress, deadline: Deadline,
) -> File:  # fmt: skip
    """Read the rest of a file, verify all of it, and only then give it its name `root`/`name`.

    Raises Broken when fewer bytes come, or all do not have the sha256 that was announced (an empty
    one means that nobody knows it); what came is kept in the first case.
    """
    target = root / name
    done, size = header.offset, header.size
    if done and done == size and (kept := _kept(target, asked)):
        progress(name, size, size)
        return {"path": name, "target": str(target), "bytes": size, "sha256": kept}
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if size - done > free:
        raise UserError(
            f"{name} has {size} bytes, and {target.parent} has room for {free}: "
            "make room, or name another folder by --to",
            1,
        )
    with _partial_file(target, done) as (file, partial):
        hasher = _begin(file, target, asked, done)
        while done < size:
            deadline.left(1)
            chunk = source.read(min(_CHUNK, size - done))
            if not chunk:
                raise Broken(f"{name} ended after {done} of {size} bytes")
            hasher.update(chunk)
            file.write(chunk)
            done += len(chunk)
            progress(name, done, size)
        file.flush()
        os.fsync(file.fileno())
        if header.sha256 and hasher.hexdigest() != header.sha256:
            partial.unlink(missing_ok=True)
            raise Changed(f"{name} changed while it was read")
        partial.replace(target)
    return {"path": name, "target": str(target), "bytes": size, "sha256": hasher.hexdigest()}


def offer(file: IO[bytes], asked: Want, digest: str) -> Header:
    """What `sandbox.get` says of a file in a sandbox, of a file that lies here; seeks to it."""
    size = os.fstat(file.fileno()).st_size
    begins = 0 < asked.bytes <= size and _digest(file, asked.bytes).hexdigest() == asked.sha256
    offset = asked.bytes if begins else 0
    file.seek(offset)
    return Header(asked.name, size, digest, offset)


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """A plain file; raises Refused for a device, a FIFO or a link, and OSError."""
    try:
        # Without O_NONBLOCK a FIFO that nobody writes to would never open.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise Refused(str(path)) from None
        raise error
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Refused(str(path))
        yield file


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _partial_file(target: Path, offset: int) -> Iterator[tuple[IO[bytes], Path]]:
    """The file that `target` grows in, for this process alone; it stays unless it is empty."""
    path = _partial(target)
    number = _open_locked(path)
    if number is None:
        # Another fetch is at it: each brings its own, and the later one's name holds.
        path = path.with_name(f"{path.name}-{os.getpid()}")
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        own = True
    else:
        own = False
    with os.fdopen(number, "r+b") as file:
        try:
            yield file, path
        finally:
            with suppress(OSError, ValueError):
                file.flush()
            if own or not os.fstat(file.fileno()).st_size:
                # After the rename it is the target's own name, which is another path.
                path.unlink(missing_ok=True)


def _open_locked(path: Path) -> int | None:
    """The file at `path`, created if need be; None while another process holds it."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(number)
            return None
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(number).st_ino:  # noqa: PTH116
                return number
        # Between the two calls its holder was done and renamed it.
        os.close(number)


def _begin(file: IO[bytes], target: Path, asked: Want, offset: int) -> Any:
    """Have the first `offset` bytes in `file`, as they were when they were asked about."""
    if not offset:
        file.truncate(0)
        return hashlib.sha256()
    hasher = _digest(file, offset)
    if hasher.hexdigest() != asked.sha256:
        file.seek(0)
        file.truncate(0)
        with suppress(OSError, Refused), open_plain(target) as whole:
            _copy(whole, file, offset)
        hasher = _digest(file, offset)
        if hasher.hexdigest() != asked.sha256:
            file.truncate(0)
            raise Broken(f"{target.name} changed here while it was fetched")
    file.truncate(offset)
    file.seek(offset)
    return hasher


def _kept(target: Path, asked: Want) -> str | None:
    """The sha256 of the whole file that is here already, under its own name."""
    with suppress(OSError, Refused), open_plain(target) as file:
        if os.fstat(file.fileno()).st_size == asked.bytes:
            digest = _digest(file, asked.bytes).hexdigest()
            return str(digest) if digest == asked.sha256 else None
    return None


def _copy(source: IO[bytes], to: IO[bytes], count: int) -> None:
    while count and (chunk := source.read(min(_CHUNK, count))):
        to.write(chunk)
        count -= len(chunk)
    to.flush()


def _digest(file: IO[bytes], count: int) -> Any:
    """sha256 of the first `count` bytes, or of all that there are."""
    hasher = hashlib.sha256()
    file.seek(0)
    while count and (chunk := file.read(min(_CHUNK, count))):
        hasher.update(chunk)
        count -= len(chunk)
    return hasher
