"""The folder that keeps a job's checkpoints, on the execute node as on the submit side.

A checkpoint is a manifest, ``000007-<hash>.json``, and the files that it names: the state, which
the script wrote, and files that belong to it, such as ``metrics.jsonl`` at that moment. Each is
called after its own SHA-256, so two folders can be poured into one, an unchanged file is kept and
sent once, and a damaged one is known.

    {"format": 1, "number": 7, "epoch": 3, "time": ..., "job": "12.0", "of": {...},
     "state": {"sha256": ..., "bytes": ...}, "files": {"metrics.jsonl": {"sha256": ..., ...}}}
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from condorctl.job import atomic

FOLDER = "checkpoints"
# The second last is there for the day when the last is damaged.
KEPT = 2

_FORMAT = 1
_MANIFEST = re.compile(r"\d{6,}-([0-9a-f]{16})\.json")
_PART = re.compile(r"[0-9a-f]{16}\.part")
# What a copy to the submit side is called until it is whole.
_COPIED = re.compile(r".+\.partial")
_PARTIAL = re.compile(r"\.(\d+)\.partial")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint; `sha256` in hexadecimal."""

    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.sha256[:16]}.part"


@dataclass(frozen=True)
class Checkpoint:
    """What a manifest says. `number` counts a job's checkpoints, `time` is in Unix seconds.

    `job` is the one that wrote it, None outside a pool; `of` is what the script says it is a
    checkpoint of; `files` are those that go back to where they were.
    """

    number: int
    epoch: int
    time: float
    job: str | None
    of: dict[str, str]
    state: Part
    files: dict[str, Part]

    def text(self) -> bytes:
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True).encode()

    @property
    def name(self) -> str:
        return f"{self.number:06}-{hashlib.sha256(self.text()).hexdigest()[:16]}.json"

    @property
    def names(self) -> list[str]:
        """All its files, the manifest last: where that one is, the others are."""
        parts = [self.state, *self.files.values()]
        return [*dict.fromkeys(part.name for part in parts), self.name]

    @property
    def bytes(self) -> int:
        return self.state.bytes + sum(part.bytes for part in self.files.values())


class Folder:
    """The checkpoints at `path`, which need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self, tell: Tell = lambda _: None) -> list[Checkpoint]:
        """Those whose manifests are intact, the newest first; `tell` hears of the others."""
        found = []
        for file in sorted(self._files(_MANIFEST)):
            try:
                found.append(_read(file))
            except (OSError, ValueError, KeyError, TypeError) as error:
                tell(f"{file} is damaged ({error}) and is not used")
        return sorted(found, key=lambda one: (one.number, one.time), reverse=True)

    def fault(self, one: Checkpoint) -> str | None:
        """What is wrong with the files of a checkpoint, None when nothing is."""
        for part in (one.state, *one.files.values()):
            file = self.path / part.name
            try:
                if file.stat().st_size != part.bytes:
                    return f"{file} is of {file.stat().st_size} bytes instead of {part.bytes}"
                if atomic.sha256(file) != part.sha256:
                    return f"{file} is not what was written: its hash is another"
            except OSError as error:
                return f"{file}: {error.strerror}"
        return None

    def add(
        self,
        write: Callable[[str], object],
        epoch: int,
        of: Mapping[str, str],
        files: Sequence[str],
        job: str | None = None,
    ) -> Checkpoint:
        """Keep what `write` writes, with `files` as they are now, as the newest. Raises OSError."""
        self.path.mkdir(exist_ok=True)
        numbers = [one.number for one in self.checkpoints()]
        made = Checkpoint(
            number=max(numbers, default=0) + 1,
            epoch=epoch,
            time=round(time.time(), 3),
            job=job,
            of=dict(of),
            state=self._store(write),
            files={name: self._store(_copier(name)) for name in files},
        )
        self._write(lambda partial: Path(partial).write_bytes(made.text()), lambda _: made.name)
        return made

    def prune(self, of: Mapping[str, str], keep: int = KEPT) -> None:
        """Remove all but the newest `keep` checkpoints of `of`, and files that none names."""
        every = self.checkpoints()
        mine = [one for one in every if one.of == of]
        left = [one for one in every if one.of != of] + mine[:keep]
        named = {name for one in left for name in one.names}
        # Manifests first: what they name must be there as long as they are.
        for file in [*self._files(_MANIFEST), *self._files(_PART)]:
            if file.name not in named:
                file.unlink(missing_ok=True)
        for file in self._files(_PARTIAL):
            if not _is_being_written(file):
                file.unlink(missing_ok=True)

    def empty(self, keep: int = 0) -> None:
        """Remove the checkpoints of all work but the newest `keep`."""
        named = {name for one in self.checkpoints()[:keep] for name in one.names}
        for file in [*self._files(_MANIFEST), *self._files(_PART), *self._files(_COPIED)]:
            if file.name not in named:
                file.unlink(missing_ok=True)

    def remove(self, one: Checkpoint) -> None:
        """Remove a checkpoint that is of no use; what it named goes with the next `prune`."""
        (self.path / one.name).unlink(missing_ok=True)

    def put_back(self, one: Checkpoint) -> None:
        """Put the files of a checkpoint back to where they were. Raises OSError."""
        for name, part in one.files.items():
            target = Path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(target, _copier(self.path / part.name))

    def _store(self, write: Callable[[str], object]) -> Part:
        return self._write(write, lambda part: part.name)

    def _write(self, write: Callable[[str], object], name: Callable[[Part], str]) -> Part:
        """Have `write` make a file; put it under the name that is asked for once it is whole."""
        partial = self.path / f".{os.getpid()}.partial"
        try:
            write(str(partial))
            part = Part(*atomic.settle(partial))
            atomic.replace(partial, self.path / name(part))
        finally:
            partial.unlink(missing_ok=True)
        return part

    def _files(self, name: re.Pattern[str]) -> Iterator[Path]:
        if self.path.is_dir():
            yield from (file for file in self.path.iterdir() if name.fullmatch(file.name))


def _read(file: Path) -> Checkpoint:
    text = file.read_bytes()
    match = _MANIFEST.fullmatch(file.name)
    if not match or hashlib.sha256(text).hexdigest()[:16] != match[1]:
        raise ValueError("its hash is another")
    told: dict[str, Any] = json.loads(text)
    if told.pop("format") != _FORMAT:
        raise ValueError("another version of condorctl wrote it")
    files = {name: Part(**part) for name, part in told.pop("files").items()}
    if any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in files):
        raise ValueError("it names a file outside the job's folder")
    return Checkpoint(state=Part(**told.pop("state")), files=files, **told)


def _copier(name: str | Path) -> Callable[[str], object]:
    return lambda partial: shutil.copyfile(name, partial)


def _is_being_written(file: Path) -> bool:
    """Whether the process that began it is still there."""
    match = _PARTIAL.fullmatch(file.name)
    try:
        os.kill(int(match[1]) if match else 0, 0)
    except OSError:
        return False
    return True
