"""Event logs into the ledger.

DAGMan writes two logs beside the DAG: ``<dag>.dagman.log`` about its own job and
``<dag>.nodes.log`` about every job of a node. Both are read from where the last reading stopped.
See HTCondor's manual, "Job Event Log Codes". What is read twice is recorded once.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from condorctl import cluster, progress, sharing
from condorctl.job import METRICS_FILE, check_result
from condorctl.ledger import (
    Checkpoint,
    Job,
    JobState,
    Ledger,
    LogPosition,
    Metric,
    Result,
    Run,
    Stage,
)  # fmt: skip
from condorctl.record import read as read_record

# Event types, by the numbers that stand in the log.
_SUBMIT, _EXECUTE, _EVICTED, _TERMINATED, _ABORTED = 0, 1, 4, 5, 9
_SUSPENDED, _UNSUSPENDED, _HELD, _RELEASED = 10, 11, 12, 13
_DISCONNECTED, _RECONNECTED, _RECONNECT_FAILED = 22, 23, 24

_STATES = {
    _SUBMIT: "idle",
    _EXECUTE: "running",
    _EVICTED: "idle",
    _ABORTED: "removed",
    _SUSPENDED: "suspended",
    _UNSUSPENDED: "running",
    _HELD: "held",
    _RELEASED: "idle",
    _DISCONNECTED: "disconnected",
    _RECONNECTED: "running",
    _RECONNECT_FAILED: "idle",
}

_LINGER_S = 3600

Event = dict[str, Any]


@dataclass(frozen=True)
class Unknown:
    """Why not all that could be known is in the ledger."""

    unreachable: str | None
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(filter(None, [*self.damaged, self.unreachable]))


def sync(ledger: Ledger) -> Unknown:
    """Bring every unfinished run in the ledger up to date, as far as logs and schedd tell."""
    from condorctl import spool

    elsewhere = spool.bring_back(ledger)
    damaged = [elsewhere] if elsewhere else []
    with ledger.session() as session:
        unfinished = [
            run
            for run in session.scalars(_unfinished())
            if sharing.is_ours_to_read(ledger, run)
        ]
        for run in unfinished:
            try:
                _read_logs(session, run)
            except cluster.DamagedLog as error:
                damaged.append(str(error))
        going = [(run.id, run.schedd, run.cluster) for run in unfinished if not run.finished]
    try:
        # The schedd may take its time: it is asked while nobody waits for the ledger.
        here = cluster.schedd_name() if going else ""
        ads = cluster.live([number for _, schedd, number in going if number and schedd == here])
    except cluster.Unreachable as error:
        return Unknown(str(error), tuple(damaged))
    with ledger.session() as session:
        for number, schedd, _ in going:
            if schedd == here and (told := session.get(Run, number)):
                told.seen = time.time()
        for ad in ads:
            _apply_live(session, here, ad)
    return Unknown(None, tuple(damaged))


def _unfinished() -> Select[tuple[Run]]:
    """Runs of which more can be heard: the schedd may remove a job after its DAGMan has gone."""
    open_jobs = select(Stage.run_id).join(Job).where(Job.finished.is_(None))
    lingers = (Run.finished > time.time() - _LINGER_S) & Run.id.in_(open_jobs)
    return select(Run).where(Run.finished.is_(None) | lingers)


def _read_logs(session: Session, run: Run) -> None:
    # DAGMan's own log first: when it says the end, the other log is complete.
    for event in _new_events(session, Path(f"{run.dag_file}.dagman.log")):
        _apply_to_run(run, event)
    for event in _new_events(session, Path(f"{run.dag_file}.nodes.log")):
        _apply_to_job(session, run, event)
    if run.state == "done" and not all(map(_succeeded, run.stages)):
        # DAGMan's exit code 0 does not promise that every node ran.
        run.state = "failed"
    if run.state == "failed" and not any(stage.jobs for stage in run.stages):
        run.problem = _last_error(Path(f"{run.dag_file}.dagman.out"))


def _succeeded(stage: Stage) -> bool:
    jobs = stage.origin.jobs
    return bool(jobs) and jobs[-1].state == "completed"


def _last_error(path: Path) -> str:
    """What DAGMan wrote before it gave up without submitting anything."""
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [index for index, line in enumerate(lines) if " ERROR" in line]
        if errors:
            # The line before says what the error is about; each starts with date and time.
            told = lines[max(0, errors[-1] - 1) : errors[-1] + 1]
            return "; ".join(line.split(" ", 2)[-1] for line in told)
    return f"see {path}"


def _new_events(session: Session, path: Path) -> Iterator[Event]:
    """Events that were appended to the log at `path` since the last call."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return
    position = session.get(LogPosition, str(path))
    if position is None:
        position = LogPosition(path=str(path), inode=stat.st_ino, offset=0)
        session.add(position)
    if position.inode != stat.st_ino or position.offset > stat.st_size:
        # Another file under the same name: the reader would stay silent for ever.
        position.inode, position.offset = stat.st_ino, 0
    if position.offset == stat.st_size:
        return
    yield from cluster.read_events(path, position)


def _apply_to_run(run: Run, event: Event) -> None:
    kind, when = event["EventTypeNumber"], _time(event)
    if kind == _SUBMIT:
        run.cluster = int(event["Cluster"])
    if kind == _TERMINATED:
        code = event.get("ReturnValue")
        run.exit_code = None if code is None else int(code)
        run.state = "done" if code == 0 else "failed"
        run.finished = when
    elif kind in _STATES:
        run.state = _STATES[kind]
        run.finished = when if kind == _ABORTED else None
    if kind in _STATES or kind == _TERMINATED:
        run.problem = str(event.get("HoldReason", "")) if kind == _HELD else None


def _apply_to_job(session: Session, run: Run, event: Event) -> None:
    kind, when = event["EventTypeNumber"], _time(event)
    if kind != _TERMINATED and kind not in _STATES:
        return
    number, proc = int(event["Cluster"]), int(event.get("Proc", 0))
    if kind == _SUBMIT:
        job = _submitted(session, run, event, number, proc, when)
    else:
        job = _find(session, run, number, proc)
    if job is None:
        return
    state, detail = _STATES.get(kind, ""), ""
    if kind == _TERMINATED:
        normal = bool(event.get("TerminatedNormally"))
        code = int(event["ReturnValue"]) if normal else None
        signal = None if normal else int(event.get("TerminatedBySignal", 0))
        state = "completed" if code == 0 else "failed"
        detail = f"exit code {code}" if normal else f"signal {signal}"
    elif kind == _EXECUTE:
        detail = _host(event)
    elif kind in {_HELD, _ABORTED, _EVICTED}:
        detail = str(event.get("HoldReason") or event.get("Reason") or "")
    if any(old.state == state and old.time == when and old.detail == detail for old in job.states):
        return
    job.states.append(JobState(state=state, time=when, detail=detail))
    job.state = state
    if kind == _EXECUTE:
        job.host, job.started, job.starts = detail, when, job.starts + 1
    if kind == _TERMINATED:
        job.exit_code, job.signal = code, signal
        _read_metrics(session, run, job)
        read_record(job)
    if state in {"completed", "failed", "removed"}:
        job.finished = when
    if kind == _HELD:
        job.hold_code = int(event.get("HoldReasonCode", 0))
        job.hold_subcode = int(event.get("HoldReasonSubCode", 0))
        job.hold_reason = detail


def _submitted(
    session: Session, run: Run, event: Event, number: int, proc: int, when: float
) -> Job | None:
    known = _find(session, run, number, proc)
    if known:
        return known
    name = cluster.node_name(event)
    stage = next((stage for stage in run.stages if stage.name == name), None)
    if stage is None:
        return None
    job = Job(
        schedd=run.schedd,
        cluster=number,
        proc=proc,
        attempt=len(stage.jobs) + 1,
        state="idle",
        submitted=when,
        starts=0,
    )
    stage.jobs.append(job)
    session.flush()
    return job


def _find(session: Session, run: Run, number: int, proc: int) -> Job | None:
    return session.scalar(
        select(Job)
        .join(Stage)
        .where(Stage.run_id == run.id, Job.cluster == number, Job.proc == proc)
    )


def _apply_live(session: Session, schedd: str, ad: cluster.Ad) -> None:
    """What only the queue knows: progress and checkpoints of a job that has not ended."""
    job = session.scalar(
        select(Job)
        .join(Stage)
        .join(Run)
        .where(
            Run.cluster == ad.get("DAGManJobId"),
            Run.finished.is_(None),
            Job.schedd == schedd,
            Job.cluster == ad["ClusterId"],
            Job.proc == ad["ProcId"],
            Job.finished.is_(None),
        )
    )
    if job is None:
        return
    job.progress = progress.heard(job, _record(ad.get("ChirpProgress"))) or job.progress
    _add_checkpoint(job, _record(ad.get("ChirpCheckpoint")), f"job's sandbox on {job.host}")


def _read_metrics(session: Session, run: Run, job: Job) -> None:
    """The lines that a finished job's ``metrics.jsonl`` holds; lines that are none are passed."""
    folder = run.path / job.stage.name
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    metrics: dict[tuple[int, str], Metric] = {}
    results: list[Result] = []
    records = [_record(line) for line in lines]
    job.progress = progress.ended(job, (r for r in records if r.get("kind") == "progress"))
    for record in records:
        kind = record.get("kind")
        if kind == "progress" and (told := progress.parse(record)):
            for name, value in told["metrics"].items():
                # An evicted job may have done an epoch twice: the later line counts.
                epoch = told["epoch"]
                metrics[epoch, name] = Metric(
                    job_id=job.id, epoch=epoch, name=name, value=value, time=told["time"]
                )
        elif kind == "checkpoint":
            _add_checkpoint(job, record, str(folder / str(record.get("path"))))
        elif kind == "result" and isinstance(values := record.get("values"), dict):
            with suppress(ValueError):
                check_result(values)
                results.append(Result(job_id=job.id, position=len(results), values=values))
    session.add_all([*metrics.values(), *results])


def _add_checkpoint(job: Job, record: Event, place: str) -> None:
    path, sha256 = record.get("path"), record.get("sha256")
    epoch, size = record.get("epoch"), record.get("bytes")
    if not (isinstance(path, str) and isinstance(sha256, str)):
        return
    if not (progress.is_count(epoch) and progress.is_count(size)):
        return
    same_path = [old for old in job.checkpoints if old.path == path]
    known = next((old for old in same_path if old.sha256 == sha256), None)
    if known is None:
        known = Checkpoint(path=path, epoch=epoch, bytes=size, sha256=sha256)
        job.checkpoints.append(known)
    if all(old.epoch <= known.epoch for old in same_path):
        for old in same_path:
            old.place = None
        known.place = place


def _record(text: object) -> Event:
    """The JSON object in `text`, empty when there is none: a job may write what it likes."""
    try:
        value = json.loads(text, parse_constant=_refuse) if isinstance(text, str) else None
        # Half of a surrogate pair is a string in JSON, but no text that can be stored or shown.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _host(event: Event) -> str:
    """``slot1_1@node``, or the address where HTCondor gives no name."""
    slot = event.get("SlotName")
    return str(slot) if slot else re.sub(r"[<>]|\?.*", "", str(event.get("ExecuteHost", "")))


def _time(event: Event) -> float:
    # Without a zone the log means this machine's local time, which is what `timestamp` assumes.
    return datetime.fromisoformat(str(event["EventTime"])).timestamp()
