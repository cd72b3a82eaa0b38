"""Bringing a job's files back: out of its sandbox while it runs, from the run's folder afterwards.

A running job is reached through condor_ssh_to_job. The remote exit status cannot be trusted (into a
container it is lost), so every file travels with its size and sha256 in-band and the stream has an
end mark; a file that changes under our hands is asked for again.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sqlalchemy import select as sql_select
from sqlalchemy.orm import Session

from condorctl import events, status
from condorctl.errors import UserError
from condorctl.ledger import Fetched, Job, Ledger, Run

# Called with a file's name, the bytes that have arrived and its size.
Progress = Callable[[str, int, int], None]

_CONNECT_S = 60.0
_STALL_S = 60.0
_CHUNK = 1 << 20
# condor_tail sends the end of a file: more than any log that one wants to read.
_TAIL_BYTES = 1 << 30
_ATTEMPTS = 3

# Writes for each file "<size> <sha256> <name>\0" and the first <size> bytes: a log may grow
# meanwhile. `find` expands folders; links are not followed out of the sandbox. Without line breaks,
# which condor_ssh_to_job loses on the way.
_SEND = (
    'for name do if [ -f "$name" ] && [ -r "$name" ]; then '
    'size=$(wc -c <"$name"); size=$((size)); sum=$(head -c "$size" <"$name" | sha256sum); '
    """printf '%s %s %s\\0' "$size" "${sum%% *}" "$name"; head -c "$size" <"$name"; """
    """else printf '%s - %s\\0' -1 "$name"; fi; done"""
)
_SEND_ALL = (
    "send=$1; shift; for path do "
    """[ -e "$path" ] || { printf '%s - %s\\0' -1 "$path"; exit; }; done; """
    'for path do if [ -d "$path" ]; then '
    'find "$path" -type f -exec sh -c "$send" sh {} +; else sh -c "$send" sh "$path"; fi; done; '
    """printf '%s - \\0' -2"""
)
_MISSING, _END = -1, -2

# condor_ssh_to_job says these while a job is starting; the next try may get through.
_NOT_YET = re.compile(
    r"is not running|not yet ready|suspended|Failed to read address|starter address"
    r"|Use -auto-retry",
    re.IGNORECASE,
)
_JOB_ID = re.compile(r"(?:(?P<schedd>.+)#)?(?P<cluster>\d{1,10})(?:\.(?P<proc>\d{1,10}))?")


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


class _Broken(Exception):
    """The stream ended early or a file changed while it was read."""


class _NoSsh(Exception):
    """condor_ssh_to_job will not get into this job, however often it tries."""


class _NotRunning(Exception):
    """The job has left its slot since it was looked up."""


def fetch(
    ledger: Ledger,
    job: str,
    paths: Sequence[str] = (),
    to: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[dict[str, Any]]:
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
    with ledger.session() as session:
        target = _find(session, job)
    to = to or Path("fetched") / target.number
    try:
        if target.state in {"running", "suspended"}:
            try:
                files = list(_from_sandbox(target, paths, to, progress))
            except _NotRunning:
                events.sync(ledger)
                with ledger.session() as session:
                    target = _find(session, job)
                files = list(_from_folder(target, paths, to, progress))
        else:
            files = list(_from_folder(target, paths, to, progress))
    except OSError as error:
        raise UserError(f"{error.filename or to}: {error.strerror}", 1) from None
    if target.row is not None:
        with ledger.session() as session:
            now = time.time()
            session.add_all(Fetched(job_id=target.row, time=now, **file) for file in files)
    return files


def _find(session: Session, text: str) -> _Target:
    match = _JOB_ID.fullmatch(text.strip())
    if not match:
        raise UserError(f"{text!r} is no job id: write 12, 12.0 or schedd#12.0")
    cluster, proc = int(match["cluster"]), int(match["proc"] or 0)
    jobs = sql_select(Job).where(Job.cluster == cluster, Job.proc == proc)
    runs = sql_select(Run).where(Run.cluster == cluster)
    if match["schedd"]:
        jobs = jobs.where(Job.schedd == match["schedd"])
        runs = runs.where(Run.schedd == match["schedd"])
    # A schedd set up anew counts from 1 again: the latest job of that number is meant.
    job = session.scalar(jobs.order_by(Job.submitted.desc()).limit(1))
    run = session.scalar(runs.order_by(Run.submitted.desc()).limit(1))
    if job and not (run and run.submitted > job.submitted):
        return _of_job(job)
    if run:
        names = ("dagman.out", "dagman.log", "nodes.log", "lib.out", "lib.err")
        return _Target(
            row=None,
            number=f"{cluster}.0",
            state="in its folder",
            label=f"DAG job of {run.name}",
            folder=run.path,
            logs=tuple(f"{run.dag.name}.{name}" for name in names),
            superseded=False,
            checksums={},
        )
    raise UserError(f"no job {text} in the ledger: `condorctl status` shows a run's job ids", 1)


def _of_job(job: Job) -> _Target:
    stage = job.stage
    return _Target(
        row=job.id,
        number=job.number,
        state=job.state,
        label=f"job {job.number} ({stage.run.name}, {stage.name})",
        folder=stage.run.path / stage.name,
        logs=(f"{job.cluster}.out", f"{job.cluster}.err", "events.log"),
        superseded=job is not stage.jobs[-1],
        checksums={
            c.path: c.sha256 for c in job.checkpoints if job.state in {"completed", "failed"}
        },
    )


def _from_folder(
    target: _Target, paths: Sequence[str], to: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Copy from the run's folder, where HTCondor has put a job's output."""
    if not target.folder.is_dir():
        raise UserError(f"{target.label}: its folder {target.folder} is gone", 1)
    if paths and target.superseded:
        raise UserError(
            f"{target.label}: a later attempt has replaced its files; its logs are still there", 1
        )
    wanted = [target.folder / path for path in paths or target.logs]
    found = [path for path in wanted if path.exists()]
    if paths and len(found) < len(wanted):
        missing = next(path for path in wanted if not path.exists())
        raise UserError(
            f"{target.label}: has no {missing.relative_to(target.folder)}{_because(target.state)}",
            1,
        )
    if not paths and not [path for path in found if path.name != "events.log"]:
        raise UserError(f"{target.label}: there is no output{_because(target.state)}", 1)
    for source in _files(found):
        name = str(source.relative_to(target.folder))
        with source.open("rb") as file:
            yield _write(
                file, name, to / name, source.stat().st_size, target.checksums.get(name), progress
            )


def _because(state: str) -> str:
    return {
        "idle": ": it has not started; `condorctl status` shows when it does",
        "held": ": it is held; `condorctl status` says why",
        "removed": ": it was removed before it ended",
        "disconnected": " here: its node does not answer now",
    }.get(state, "")


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        else:
            yield path


def _from_sandbox(
    target: _Target, paths: Sequence[str], to: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Stream out of the running job's sandbox through condor_ssh_to_job."""
    out, err, log = target.logs
    if not paths:
        with (target.folder / log).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield _write(file, log, to / log, size, None, progress)
    # While it runs, HTCondor keeps a job's output under names of its own.
    names = {"_condor_stdout": out, "_condor_stderr": err}
    wanted = list(paths or names)
    for attempt in range(_ATTEMPTS):
        try:
            with _ssh(target, wanted) as stream:
                received = [
                    _write(stream, name, to / names.get(name, name), size, digest, progress)
                    for name, size, digest in _headers(stream, target, wanted)
                ]
            yield from received
            return
        except _NoSsh as error:
            if paths:
                raise UserError(f"{target.label}: cannot be reached: {error}", 1) from None
            yield _tail(target, [], to / out, progress)
            yield _tail(target, ["-no-stdout", "-stderr"], to / err, progress)
            return
        except _Broken as error:
            if attempt == _ATTEMPTS - 1:
                raise UserError(f"{target.label}: {error}; tried {_ATTEMPTS} times", 1) from None


def _tail(target: _Target, options: Sequence[str], to: Path, progress: Progress) -> dict[str, Any]:
    """The job's output or errors by condor_tail, for a site that allows no ssh."""
    command = ["condor_tail", *options, "-maxbytes", str(_TAIL_BYTES), target.number]
    with tempfile.TemporaryFile() as file:
        try:
            answer = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE,
                timeout=_STALL_S,
            )  # fmt: skip
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{target.label}: condor_tail: {error}", 1) from None
        if answer.returncode:
            complaint = status.printable(answer.stderr.decode(errors="replace").strip())
            raise UserError(f"{target.label}: condor_tail: {complaint}", 1)
        size = file.tell()
        file.seek(0)
        return _write(file, to.name, to, size, None, progress)


def _headers(
    stream: _Stream, target: _Target, wanted: Sequence[str]
) -> Iterator[tuple[str, int, str]]:
    while True:
        size_text, _, rest = stream.read_until(b"\0").partition(" ")
        digest, _, name = rest.partition(" ")
        try:
            size = int(size_text)
        except ValueError:
            raise _Broken("a file changed while it was read") from None
        if size == _END:
            return
        if size == _MISSING:
            raise UserError(f"{target.label}: has no {status.printable(name)}", 1)
        # The far side is not trusted with the choice of where to write.
        if not any(name == path or name.startswith(f"{path.rstrip('/')}/") for path in wanted) or (
            ".." in PurePosixPath(name).parts
        ):
            raise UserError(f"{target.label}: sent {status.printable(name)!r} unasked", 1)
        yield name, size, digest


def _write(
    source: Any, name: str, target: Path, size: int, digest: str | None, progress: Progress
) -> dict[str, Any]:
    """Copy `size` bytes into a temporary file, verify them, and only then give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    hasher, done = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            while done < size:
                chunk = source.read(min(_CHUNK, size - done))
                if not chunk:
                    raise _Broken(f"{name} ended after {done} of {size} bytes")
                hasher.update(chunk)
                file.write(chunk)
                done += len(chunk)
                progress(name, done, size)
            file.flush()
            os.fsync(file.fileno())
        if digest and hasher.hexdigest() != digest:
            if not isinstance(source, _Stream):
                raise UserError(f"{name}: is not what the job wrote: its sha256 differs", 1)
            raise _Broken(f"{name} changed while it was read")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return {"path": name, "target": str(target), "bytes": size, "sha256": hasher.hexdigest()}


class _Stream:
    """The far side's output, with a limit on how long it may say nothing."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        assert process.stdout is not None
        self._process, self._stderr, self._fd = process, stderr, process.stdout.fileno()
        self._buffer = b""

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        if not self._buffer:
            self._fill()
        chunk, self._buffer = self._buffer[:count], self._buffer[count:]
        return chunk

    def read_until(self, mark: bytes) -> str:
        """Text up to `mark`, which is dropped."""
        while mark not in self._buffer:
            if len(self._buffer) > _CHUNK or not self._fill():
                raise _Broken(self.complaint() or "the connection ended early")
        text, _, self._buffer = self._buffer.partition(mark)
        return text.decode(errors="surrogateescape")

    def complaint(self) -> str:
        """The last line that condor_ssh_to_job wrote to its standard error."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return status.printable(lines[-1]) if lines else ""

    def _fill(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], _STALL_S)
        if not ready:
            raise _Broken(f"nothing came for {_STALL_S:.0f} s")
        chunk = os.read(self._fd, _CHUNK)
        self._buffer += chunk
        return bool(chunk)


@contextmanager
def _ssh(target: _Target, wanted: Sequence[str]) -> Iterator[_Stream]:
    """Run the sending script in the job's sandbox; retries while the job is starting."""
    script = shlex.join(["sh", "-c", _SEND_ALL, "sh", _SEND, *wanted])
    deadline = time.monotonic() + _CONNECT_S
    while True:
        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    ["condor_ssh_to_job", target.number, script],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                )  # fmt: skip
            except FileNotFoundError:
                raise _NoSsh("condor_ssh_to_job is not on PATH") from None
            try:
                stream = _Stream(process, stderr)
                if stream._buffer or stream._fill():
                    yield stream
                    return
                process.wait(_STALL_S)
                complaint = stream.complaint()
            finally:
                process.kill()
                process.wait()
        if not _NOT_YET.search(complaint):
            raise _NoSsh(complaint)
        if time.monotonic() > deadline:
            raise _NotRunning
        time.sleep(1.0)
