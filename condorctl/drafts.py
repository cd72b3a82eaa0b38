"""Folders of runs that are being made or taken away: whole under their name, or not there.

A folder is made under another name, and taken away under one. What somebody who was killed has left
under such a name is removed by the next who comes by. Who works on a folder holds a lock on it,
which the kernel takes back when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from condorctl.errors import UserError

_PREFIX = ".new-"
# Seconds after which something is taken for left behind where the file system knows no locks.
_ABANDONED_S = 86400
_UNDER_WAY_S = 60


@contextlib.contextmanager
def new(runs: Path) -> Iterator[Path]:
    """An empty folder in `runs`, made if need be, to be renamed; else it is removed at the end.

    What is left of others' is removed first. Raises UserError.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with _alone(runs):
            _sweep(runs)
            draft = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=runs))
            held = _lock(draft)
    except OSError as error:
        raise UserError(f"{runs}: {error.strerror}") from None
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _unlock(held)


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Have others see that somebody submits the run in `folder`. Raises UserError if one does."""
    try:
        held = _lock(folder)
    except BlockingIOError:
        name = folder.name
        raise UserError(f"{name} is just being submitted: `condorctl status {name}`", 1) from None
    try:
        yield
    finally:
        _unlock(held)


def is_under_way(folder: Path, since: float) -> bool:
    """Whether somebody may be submitting the run in `folder`, who began at `since`."""
    recent = time.time() - since < _UNDER_WAY_S
    try:
        held = _lock(folder)
    except BlockingIOError:
        return True
    except OSError:
        # It is about to get its name, if somebody is at work on one that has none yet.
        drafts = set(folder.parent.glob(f"{_PREFIX}*"))
        busy = bool(drafts - set(leftovers(folder.parent)))
        return is_under_way(folder, since) if folder.exists() else busy and recent
    _unlock(held)
    return held is None and recent


def remove(folder: Path) -> None:
    """Remove the folder of a run; who is killed on the way leaves nothing of its name.

    Raises OSError when that cannot be begun.
    """
    with _alone(folder.parent):
        scrap = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder.parent))
        folder.rename(scrap / folder.name)
    shutil.rmtree(scrap, ignore_errors=True)


def leftovers(runs: Path) -> list[Path]:
    """What nobody works on any more below `runs`."""
    found = []
    for draft in sorted(runs.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            held = _lock(draft)
            _unlock(held)
            if held is not None or time.time() - draft.stat().st_mtime > _ABANDONED_S:
                found.append(draft)
    return found


def sweep(runs: Path) -> None:
    """Remove what nobody works on any more below `runs`, if it can be."""
    with contextlib.suppress(OSError), _alone(runs):
        _sweep(runs)


def _sweep(runs: Path) -> None:
    for draft in leftovers(runs):
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Nobody makes or sweeps a draft meanwhile: one that has no lock yet looks abandoned."""
    number = os.open(runs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _lock(folder: Path) -> int | None:
    """The lock on `folder`; None where the file system knows none.

    Raises BlockingIOError when somebody holds it, OSError when there is no such folder.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:
        os.close(number)
        return None
    return number


def _unlock(held: int | None) -> None:
    if held is not None:
        os.close(held)
