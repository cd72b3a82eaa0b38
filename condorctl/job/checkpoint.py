"""Checkpoints that a job goes on from: after an eviction, a crash, a retry, on another node.

    state = checkpoint.load(read=torch.load)              # the newest that is intact, or None
    ...
    if checkpoint.due():                                  # in the loop over batches: costs nothing
        checkpoint.save(write=lambda path: torch.save(state, path), epoch=epoch)

They lie in ``checkpoints/`` of the working directory, the last two of them. In a job of condorctl's
each goes to the submit side, too, through HTCondor's chirp: at once when the job must leave its
slot, else at most once a minute (the stage's key ``checkpoint_copy_interval``) and in no more than
a twentieth of the time. Every start of the job, be it in a new cluster, gets what is there.

What a job has recorded is part of its checkpoint: `load` puts ``metrics.jsonl`` back as it was, so
lines of lost work are gone and those before are there once. Call it before `progress`.

SIGTERM, which HTCondor sends before it takes the slot away, only sets a flag: `due` is true from
then on, and `save` ends the process. Its exit code is then 85 where HTCondor was told to take that
for a checkpoint (``checkpoint_interval``), else 143, the shell's for SIGTERM. HTCondor looks at
neither when it evicts, holds or removes a job; to anybody else the job has failed, not ended well.
With ``checkpoint_interval`` the job exits with 85 after each such time, too: HTCondor then keeps
its outputs and checkpoints and starts it again where it is (manual, "Self-Checkpointing").
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

from condorctl.job import chirp, records
from condorctl.job.folder import FOLDER, KEPT, Checkpoint, Folder
from condorctl.job.settings import Settings

State = TypeVar("State")

# The exit code that HTCondor's manual proposes for "this is a checkpoint, start me again".
EXIT_CODE = 85
_TERMINATED = 128 + signal.SIGTERM
# At most this share of the time goes into copies to the submit side.
_COPYING = 1 / 20


@dataclass
class _Loop:
    """What is known of this process's work since it last called `load`. Monotonic seconds."""

    settings: Settings
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    copied: float = -float("inf")
    copying_s: float = 0.0
    refused: bool = False
    # Why the last copy did not get there: each reason is told once.
    trouble: str = ""
    # Those on the submit side, the oldest first.
    there: list[Checkpoint] = field(default_factory=list)
    # Files that came damaged, and may be so on the submit side: names of whole ones are trusted.
    damaged: set[str] = field(default_factory=set)


_loop = _Loop(Settings())
_stop = threading.Event()


def load(read: Callable[[str], State], of: Mapping[str, str] | None = None) -> State | None:
    """What `read` makes of the newest intact checkpoint, given its path; None when there is none.

    One that is damaged is passed over for the one before, with a line on stderr. So is one that was
    saved with another `of`: name there what it must agree in, such as a hash of the configuration.
    Raises whatever `read` does.
    """
    global _loop
    _loop = _Loop(Settings.of_this_job())
    _listen()
    folder, of = Folder(Path(FOLDER)), dict(of or {})
    found = folder.checkpoints(_tell)
    _loop.there = found[::-1]
    for one in found:
        if one.of != of:
            differs = sorted(
                key for key in of.keys() | one.of.keys() if of.get(key) != one.of.get(key)
            )
            _tell(f"checkpoint {one.number} (epoch {one.epoch}) has another {', '.join(differs)} "
                  "and is not used")  # fmt: skip
            continue
        if fault := folder.fault(one):
            _tell(f"checkpoint {one.number} (epoch {one.epoch}) is damaged and not used: {fault}")
            folder.remove(one)
            _loop.there.remove(one)
            _loop.damaged.update(one.names)
            continue
        state = read(str(folder.path / one.state.name))
        folder.put_back(one)
        _tell(f"goes on from checkpoint {one.number} (epoch {one.epoch})")
        return state
    if _loop.settings.in_pool:
        # Of an earlier start that left no checkpoint: its work is done again.
        Path(records.METRICS_FILE).write_bytes(b"")
    return None


def due() -> bool:
    """Whether it is time to save: the job was told to stop, or the last one is long ago."""
    return _stop.is_set() or time.monotonic() - _loop.saved >= _loop.settings.every_s


def save(
    write: Callable[[str], object],
    epoch: int,
    of: Mapping[str, str] | None = None,
    files: Sequence[str] = (),
) -> str:
    """Keep what `write` writes to the path that it is given; return the SHA-256 of that.

    `epoch` is the last whole one. `files` are outputs so far that the final ones depend on, such as
    the best model; `load` puts them back. Does not return when the job must leave or, with
    ``checkpoint_interval``, when that time is over. Raises OSError when the disk is full.
    """
    folder, of = Folder(Path(FOLDER)), dict(of or {})
    # That nothing is recorded yet is to be put back, too.
    Path(records.METRICS_FILE).touch()
    made = folder.add(write, epoch, of, [records.METRICS_FILE, *files], _loop.settings.job)
    folder.prune(of)
    _loop.saved = time.monotonic()
    told = {"path": f"{FOLDER}/{made.state.name}", "epoch": epoch}
    told |= {"bytes": made.state.bytes, "sha256": made.state.sha256}
    chirp.set_attribute(records.CHECKPOINT_ATTRIBUTE, told)
    _copy(folder, made)
    interval = _loop.settings.interval_s
    if interval and (_stop.is_set() or time.monotonic() - _loop.began >= interval):
        raise SystemExit(EXIT_CODE)
    if _stop.is_set():
        raise SystemExit(_TERMINATED)
    return made.state.sha256


def clear(of: Mapping[str, str] | None = None) -> None:
    """Remove the checkpoints of work that is done: there is nothing to go on from."""
    folder = Folder(Path(FOLDER))
    folder.prune(dict(of or {}), keep=0)
    if not _stop.is_set() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()


def _listen() -> None:
    """Have SIGTERM set the flag; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _stop.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if not _stop.is_set():
        signal.signal(signal.SIGTERM, stop)


def _copy(folder: Folder, made: Checkpoint) -> None:
    """Send the newest checkpoint to the submit side, when it is time for it."""
    there, now = _loop.settings.folder, _loop.saved
    pause = max(_loop.settings.copy_s, _loop.copying_s / _COPYING)
    if not there or _loop.refused or not (_stop.is_set() or now - _loop.copied >= pause):
        return
    try:
        with chirp.Connection() as connection:
            before = connection.names(there)
            for name in made.names:
                # A file that is there is whole, and its name tells what it holds.
                if name not in before or name in _loop.damaged:
                    connection.put(folder.path / name, f"{there}/{name}")
                    _loop.damaged.discard(name)
            _loop.there = [*_loop.there, made][-KEPT:]
            old = before - {name for one in _loop.there for name in one.names}
            # Manifests first: what they name must be there as long as they are.
            for name in sorted(old, key=lambda name: not name.endswith(".json")):
                connection.remove(f"{there}/{name}")
    except chirp.NotAllowed as error:
        _loop.refused = True
        mend = (
            "" if _loop.settings.brought else "; the stage's key checkpoint_interval has it do so"
        )
        _tell(f"{error}: checkpoints leave this node only when HTCondor brings them{mend}")
    except OSError as error:
        # The submit side may be away for a while; this checkpoint stays here, the next one tries.
        if str(error) != _loop.trouble:
            _tell(f"checkpoint {made.number} was not copied to the submit side: {error}")
        _loop.trouble = str(error)
    else:
        # A copy that failed says nothing of how long one takes.
        _loop.copying_s = time.monotonic() - now
    _loop.copied = now


def _tell(words: str) -> None:
    print(f"condorctl: {words}", file=sys.stderr, flush=True)
