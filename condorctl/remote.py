"""Bringing files back: out of a job's sandbox while it runs, from the run's folder afterwards."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from condorctl import events, find, sandbox
from condorctl.errors import UserError
from condorctl.ledger import Fetched, Job, Ledger, Run

# Called with a file's name, the bytes that have arrived and its size.
Progress = Callable[[str, int, int], None]
File = dict[str, Any]

_CHUNK = 1 << 20
_ATTEMPTS = 3
_EVENT_LOG = "events.log"
_WHY_NOT = {
    "idle": ": it has not started; `condorctl status` shows when it does",
    "held": ": it is held; `condorctl status` says why",
    "removed": ": it was removed before it ended",
    "disconnected": " here: its node does not answer now",
}


@dataclass(frozen=True)
class _Target:
    """What `fetch` needs to know of a job, free of the database."""

    row: int | None
    number: str
    state: str
    label: str
    folder: Path
    logs: tuple[str, ...]
    superseded: bool
    checksums: dict[str, str]


def fetch(
    ledger: Ledger,
    job: str,
    paths: Sequence[str] = (),
    to: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[File]:
    """Bring `paths` of a job into the folder `to`; its output, errors and event log by default.

    `job` is ``cluster``, ``cluster.proc`` or ``schedd#cluster.proc``; the id of a DAG's own job
    gives DAGMan's logs. Paths are relative to the job's sandbox. Each file appears under its own
    name only once it is whole and its sha256 agrees. Returns a dictionary a file with ``path``,
    ``target``, ``bytes`` and ``sha256``.

    Raises UserError when there is no such job or file, or the job cannot be reached.
    """
    for path in paths:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or not parts or "\0" in path:
            raise UserError(f"{path!r}: name a path inside the job's own folder")
    target = _look_up(ledger, job)
    to = to or Path("fetched") / target.number
    try:
        try:
            running = target.state in {"running", "suspended"}
            source = _from_sandbox if running else _from_folder
            files = list(source(target, paths, to, progress))
        except sandbox.NotRunning:
            # It ended between the look and the call: its files are on their way here, or here.
            events.sync(ledger)
            target = _look_up(ledger, job)
            files = list(_from_folder(target, paths, to, progress))
    except OSError as error:
        raise UserError(f"{error.filename or to}: {error.strerror}", 1) from None
    if target.row is not None:
        with ledger.session() as session:
            now = time.time()
            session.add_all(Fetched(job_id=target.row, time=now, **file) for file in files)
    return files


def _look_up(ledger: Ledger, text: str) -> _Target:
    with ledger.session() as session:
        found = find.job(session, text)
        return _of_job(found) if isinstance(found, Job) else _of_dag(found)


def _of_job(job: Job) -> _Target:
    stage = job.stage
    ended = job.finished is not None
    return _Target(
        row=job.id,
        number=job.number,
        state=job.state,
        label=f"job {job.number} ({stage.run.name}, {stage.name})",
        folder=stage.run.path / stage.name,
        logs=(f"{job.cluster}.out", f"{job.cluster}.err", _EVENT_LOG),
        superseded=job is not stage.jobs[-1],
        checksums={c.path: c.sha256 for c in job.checkpoints if ended and c.place},
    )


def _of_dag(run: Run) -> _Target:
    assert run.dag is not None  # a run without a DAG is not found by a job's number
    names = ("dagman.out", "dagman.log", "nodes.log", "lib.out", "lib.err")
    return _Target(
        row=None,
        number=f"{run.cluster}.0",
        state="in its folder",
        label=f"DAG job of {run.name}",
        folder=run.path,
        logs=tuple(f"{run.dag.name}.{name}" for name in names),
        superseded=False,
        checksums={},
    )


def _from_folder(
    target: _Target, paths: Sequence[str], to: Path, progress: Progress
) -> Iterator[File]:
    """Copy from the run's folder, where HTCondor has put a job's output."""
    if not target.folder.is_dir():
        raise UserError(f"{target.label}: its folder {target.folder} is gone", 1)
    if paths and target.superseded:
        raise UserError(
            f"{target.label}: a later attempt has replaced its files; its logs are still there", 1
        )
    why = _WHY_NOT.get(target.state, "")
    found = [path for path in paths or target.logs if (target.folder / path).exists()]
    missing = next((path for path in paths if path not in found), None)
    if missing:
        raise UserError(f"{target.label}: has no {missing}{why}", 1)
    if not [path for path in found if path != _EVENT_LOG]:
        raise UserError(f"{target.label}: there is no output{why}", 1)
    for source in _expand(target.folder / path for path in found):
        name = str(source.relative_to(target.folder))
        with source.open("rb") as file:
            digest = target.checksums.get(name)
            try:
                yield _copy(file, name, to / name, _size(file), digest, progress)
            except sandbox.Broken:
                raise UserError(f"{target.label}: {source} is not what the job wrote", 1) from None


def _from_sandbox(
    target: _Target, paths: Sequence[str], to: Path, progress: Progress
) -> Iterator[File]:
    """Ask the running job itself, as often as files change under our hands."""
    out, err, _ = target.logs
    names = {sandbox.STDOUT: out, sandbox.STDERR: err}
    wanted = list(paths or names)
    if not paths:
        with (target.folder / _EVENT_LOG).open("rb") as file:
            yield _copy(file, _EVENT_LOG, to / _EVENT_LOG, _size(file), None, progress)
    for attempt in range(_ATTEMPTS):
        try:
            with sandbox.stream(target.number, wanted) as stream:
                received = [
                    _copy(stream, name, to / names.get(name, name), size, digest, progress)
                    for name, size, digest in stream.files(wanted)
                ]
            yield from received
            return
        except sandbox.Missing as error:
            raise UserError(f"{target.label}: has no {error}", 1) from None
        except sandbox.NoSsh as error:
            if paths:
                raise UserError(f"{target.label}: cannot be reached: {error}", 1) from None
            yield from (_tail(target, name, to / names[name], progress) for name in names)
            return
        except sandbox.Broken as error:
            if attempt == _ATTEMPTS - 1:
                raise UserError(f"{target.label}: {error}; tried {_ATTEMPTS} times", 1) from None


def _tail(target: _Target, name: str, to: Path, progress: Progress) -> File:
    with tempfile.TemporaryFile() as file:
        try:
            sandbox.tail(target.number, name, file)
        except sandbox.NoSsh as error:
            raise UserError(f"{target.label}: cannot be reached: {error}", 1) from None
        file.seek(0)
        return _copy(file, name, to, _size(file), None, progress)


def _copy(
    source: IO[bytes] | sandbox.Stream,
    name: str,
    target: Path,
    size: int,
    digest: str | None,
    progress: Progress,
) -> File:
    """Copy `size` bytes into a temporary file, verify them, and only then give it its name.

    Raises Broken when there are fewer bytes, or they do not have the sha256 `digest`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    hasher, done = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            while done < size:
                chunk = source.read(min(_CHUNK, size - done))
                if not chunk:
                    raise sandbox.Broken(f"{name} ended after {done} of {size} bytes")
                hasher.update(chunk)
                file.write(chunk)
                done += len(chunk)
                progress(name, done, size)
            file.flush()
            os.fsync(file.fileno())
        if digest and hasher.hexdigest() != digest:
            raise sandbox.Broken(f"{name} changed while it was read")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return {"path": name, "target": str(target), "bytes": size, "sha256": hasher.hexdigest()}


def _expand(paths: Iterator[Path]) -> Iterator[Path]:
    """Each file, and each file below a folder; links in a folder are left alone."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        else:
            yield path


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
