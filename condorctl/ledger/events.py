"""Event logs into the ledger.

DAGMan writes two logs beside the DAG: ``<dag>.dagman.log`` about its own job and
``<dag>.nodes.log`` about every job of a node. Jobs without a DAG write the log that their submit
file names, if it names one. Each is read from where the last reading stopped. See HTCondor's
manual, "Job Event Log Codes". What is read twice is recorded once. What no log tells, the queue
and the schedd's history do (`ads`).
"""

from __future__ import annotations

import glob
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, or_, select
from sqlalchemy.orm import Session, selectinload

from condorctl.condor import cluster, dagman
from condorctl.job import METRICS_FILE, check_result
from condorctl.job.folder import FOLDER, Folder
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
    ads,
    progress,
    runfile,
    sharing,
)  # fmt: skip
from condorctl.ledger.record import read as read_record

# Event types, by the numbers that stand in the log.
SUBMIT, _EXECUTE, _EVICTED, _TERMINATED, _ABORTED = 0, 1, 4, 5, 9
_SUSPENDED, _UNSUSPENDED, _HELD, _RELEASED = 10, 11, 12, 13
_POST_ENDED, _PRE_SKIP = 16, 34
_DISCONNECTED, _RECONNECTED, _RECONNECT_FAILED = 22, 23, 24

_STATES = {
    SUBMIT: "idle",
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
# What a stage's submit file calls the log of its jobs.
_STAGE_LOG = "events.log"

# DAGMan tells of nodes without a job as of jobs in this cluster.
_NO_CLUSTER = 0
# Bytes: of a log with more news than that only so many are read in one transaction, because nobody
# else gets at the ledger meanwhile. Two thousand events, half a second.
_BATCH = 1 << 19
# Rows that one query asks for by name: below what either database takes as parameters.
_MOST_AT_ONCE = 5000
_PRE_FAILED = re.compile(rb"PRE Script of node (?P<node>\S+) failed", re.IGNORECASE)
_CPU_TIME = re.compile(r"(\d+) (\d+):(\d+):(\d+)")

Event = dict[str, Any]
Json = dict[str, Any]
# Progress and usage of jobs by cluster and process.
Heard = Mapping[tuple[int, int], tuple[Json | None, Json | None]]


@dataclass(frozen=True)
class Unknown:
    """Why not all that could be known is in the ledger."""

    unreachable: str | None
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(filter(None, [*self.damaged, self.unreachable]))


def sync(ledger: Ledger) -> Unknown:
    """Bring every unfinished run in the ledger up to date, as far as logs and schedd tell."""
    from condorctl.submit import spool

    elsewhere = spool.bring_back(ledger)
    damaged = [elsewhere] if elsewhere else []
    _catch_up(ledger)
    unreachable = _sync(ledger, damaged)
    damaged += runfile.keep_learnt(ledger)
    return Unknown(unreachable, tuple(damaged))


def _sync(ledger: Ledger, damaged: list[str]) -> str | None:
    """Why the schedd could not be asked, if so; what is wrong with logs is added to `damaged`."""
    with ledger.session() as session:
        unfinished = [run for run in _unfinished(session) if sharing.is_ours_to_read(ledger, run)]
        for run in unfinished:
            try:
                read_logs(session, run)
            except cluster.DamagedLog as error:
                damaged.append(str(error))
        questions = [ads.wanted(session, run) for run in unfinished]
        wanted = [one for one in questions if one]
    try:
        # The schedd may take its time: it is asked while nobody waits for the ledger.
        here = cluster.schedd_name() if wanted else ""
        told = ads.ask([one for one in wanted if one.schedd == here])
    except cluster.Unreachable as error:
        return str(error)
    if not told.runs:
        return None
    with ledger.session() as session:
        for run in session.scalars(select(Run).where(Run.id.in_(told.runs))):
            before, run.seen = run.seen or run.submitted, told.time
            if run.kind != "jobs" and told.missing.get(run.id):
                # They may have ended between the look at the log and the question.
                with suppress(cluster.DamagedLog):
                    read_logs(session, run)
            for job, ad in ads.apply(session, run, told):
                _apply_chirp(job, ad)
            if run.kind == "pipeline":
                _read_files(session, run, told.ended.get(run.id, []))
            if not run.finished and run.id in (told.gone.keys() | told.unsent.keys()):
                # It may have ended between the look at its logs and the question.
                with suppress(cluster.DamagedLog):
                    read_logs(session, run)
                if ads.lost(run, told, before):
                    _conclude(session, run)
            if run.id in told.unsent and run.cluster is None:
                ads.find_again(session, run, told.unsent[run.id])
            if run.kind == "jobs":
                ads.conclude(session, run)
    return None


def _unfinished(session: Session) -> list[Run]:
    """Runs of which more can be heard: the schedd may remove a job after its DAGMan has gone."""
    open_jobs = select(Stage.run_id).join(Job).where(Job.finished.is_(None))
    lingers = (Run.finished > time.time() - _LINGER_S) & Run.id.in_(open_jobs)
    return list(session.scalars(select(Run).where(Run.finished.is_(None) | lingers)))


def _catch_up(ledger: Ledger) -> None:
    """Read the long news of DAGs bit by bit, letting others at the ledger in between.

    What is wrong with a log is left for `sync` to say.
    """
    with ledger.session() as session:
        large = [run for run in _unfinished(session) if run.kind != "jobs" and _is_large(run)]
        behind = [run.id for run in large if sharing.is_ours_to_read(ledger, run)]
        behind = [row for row in behind if _news(session, session.get_one(Run, row)) > _BATCH]
    for row in behind:
        more = True
        while more:
            with ledger.session() as session, suppress(cluster.DamagedLog):
                more = False
                more = read_logs(session, session.get_one(Run, row), _BATCH)


def _is_large(run: Run) -> bool:
    with suppress(OSError):
        return Path(f"{run.dag_file}.nodes.log").stat().st_size > _BATCH
    return False


def read_logs(session: Session, run: Run, most: int | None = None) -> bool:
    """Enter what the logs of `run` tell since they were read last; whether there is more.

    Of a DAG's nodes' log `most` bytes are read, if that is a number. Raises DamagedLog; what stood
    before the damage is entered then.
    """
    if run.kind == "jobs":
        _read_job_logs(session, run)
        return False
    going = run.finished is None
    more = most is not None and _news(session, run) > most
    # DAGMan's own log first: when it says the end, the other log is complete. It is not heard
    # before the other one is read that far: a run that has ended is not looked at again.
    for event in _new_events(session, Path(f"{run.dag_file}.dagman.log"), until_end=more):
        _apply_to_run(session, run, event)
    _read_nodes_log(session, run, Path(f"{run.dag_file}.nodes.log"), most if more else None)
    if going and run.finished:
        _conclude(session, run)
    return more


def read_again(session: Session, run: Run, aside: Sequence[Path], heard: Heard) -> None:
    """Enter what the logs of the pipeline `run`, of which nothing was read yet, tell.

    `aside` are the logs of nodes before the present one. What is kept of what jobs said is `heard`:
    their progress and usage, by cluster and process. Raises DamagedLog, as `read_logs`.
    """
    log = Path(f"{run.dag_file}.nodes.log")
    for old in (log, Path(f"{run.dag_file}.dagman.log")):
        if position := session.get(LogPosition, str(old)):
            session.delete(position)
            session.flush()
    for event in _new_events(session, Path(f"{run.dag_file}.dagman.log")):
        _apply_to_run(session, run, event)
    reading = _Reading(session, run, heard)
    try:
        for path in aside:
            start = LogPosition(path=str(path), inode=0, offset=0)
            # What of it cannot be read was told when it was the present one.
            with suppress(cluster.DamagedLog):
                _apply_all(reading, cluster.read_events(path, start))
            # As `resume` does it.
            for stage in run.stages:
                stage.outcome = stage.outcome if _succeeded(stage) else None
        _apply_all(reading, _new_events(session, log))
    finally:
        reading.read_files()
    if run.finished:
        _conclude(session, run)


def _apply_all(reading: _Reading, events: Iterator[Event]) -> None:
    for chunk in _in_chunks(events):
        reading.expect(chunk)
        for event in chunk:
            _apply_to_job(reading, event)


def _read_nodes_log(session: Session, run: Run, log: Path, most: int | None = None) -> None:
    reading = _Reading(session, run)
    try:
        _apply_all(reading, _new_events(session, log, most=most))
        if run.kind == "dag":
            _read_failed_scripts(reading)
    finally:
        reading.read_files()


def _in_chunks(events: Iterator[Event]) -> Iterator[list[Event]]:
    """`events` in lists; those before an error come before the error."""
    chunk: list[Event] = []
    try:
        for event in events:
            chunk.append(event)
            if len(chunk) >= _MOST_AT_ONCE:
                yield chunk
                chunk = []
    except cluster.DamagedLog:
        yield chunk
        raise
    yield chunk


def _read_job_logs(session: Session, run: Run) -> None:
    jobs = select(Job.log, Job.cluster).join(Stage).where(Stage.run_id == run.id).distinct()
    rows = list(session.execute(jobs))
    numbers = {number for _, number in rows}
    reading = _Reading(session, run)
    for log in sorted({log for log, _ in rows if log}):
        # Jobs of many runs may share one log, and each run reads it for itself.
        for chunk in _in_chunks(_new_events(session, Path(log), f"{log}#{run.id}")):
            ours = [event for event in chunk if event.get("Cluster") in numbers]
            reading.expect(ours)
            for event in ours:
                _apply_to_job(reading, event)
    ads.conclude(session, run)


def _conclude(session: Session, run: Run) -> None:
    """What became of the nodes and so of the run, now that DAGMan has ended."""
    # Nobody may ever write it again.
    with suppress(OSError):
        runfile.sweep(run.path / runfile.FILE)
    stages = list(
        session.scalars(
            select(Stage).where(Stage.run_id == run.id).options(selectinload(Stage.jobs))
        )
    )
    verdict = dagman.Verdict(False)
    if run.kind == "dag":
        verdict = dagman.verdict(Path(run.dag_file or ""), run.resumed or run.submitted)
    for stage in stages:
        if _succeeded(stage):
            continue
        if stage.name in verdict.done or (verdict.all_done and not stage.jobs):
            stage.outcome = "done"
        elif stage.name in verdict.failed:
            stage.outcome = "failed"
    # DAGMan's exit code 0 does not promise that every node ran.
    if run.state == "done" and not (verdict.all_done or all(map(_succeeded, stages))):
        run.state = "failed"
    if run.state == "failed" and not any(stage.jobs for stage in stages):
        run.problem = _last_error(Path(f"{run.dag_file}.dagman.out"))


def _succeeded(stage: Stage) -> bool:
    if stage.outcome and not stage.source:
        return stage.outcome == "done"
    jobs = stage.origin.current
    return bool(jobs) and all(job.state == "completed" for job in jobs)


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


def _read_failed_scripts(reading: _Reading) -> None:
    """Nodes whose PRE script has failed: no job and no event tells, only DAGMan's own words."""
    path = Path(f"{reading.run.dag_file}.dagman.out")
    position = _position(reading.session, path, str(path))
    if position is None:
        return
    with suppress(OSError), path.open("rb") as file:
        file.seek(position.offset)
        text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        position.offset += len(text)
        for match in _PRE_FAILED.finditer(text):
            stage = reading.stage(match["node"].decode("utf-8", "replace"))
            if stage and not stage.jobs and stage.outcome is None:
                stage.outcome = "failed"


def _position(session: Session, path: Path, key: str) -> LogPosition | None:
    """How far the file was read, None when there is nothing new in it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    position = session.get(LogPosition, key)
    if position is None:
        position = LogPosition(path=key, inode=stat.st_ino, offset=0)
        session.add(position)
    if position.inode != stat.st_ino or position.offset > stat.st_size:
        # Another file under the same name: the reader would stay silent for ever.
        position.inode, position.offset = stat.st_ino, 0
    return position if position.offset < stat.st_size else None


def _last_words(session: Session, path: Path, key: str) -> Iterator[Event]:
    """What was written to a log after it was last read, and before somebody renamed it."""
    position = session.get(LogPosition, key)
    if position is None:
        return
    with suppress(OSError):
        if path.exists() and path.stat().st_ino == position.inode:
            return
        for aside in sorted(path.parent.glob(f"{glob.escape(path.name)}?*")):
            if aside.stat().st_ino == position.inode:
                yield from cluster.read_events(aside, position)


def _news(session: Session, run: Run) -> int:
    """How many bytes of its nodes' log are not read yet."""
    path = Path(f"{run.dag_file}.nodes.log")
    try:
        stat = path.stat()
    except OSError:
        return 0
    position = session.get(LogPosition, str(path))
    if position is None or position.inode != stat.st_ino or position.offset > stat.st_size:
        return stat.st_size
    return stat.st_size - position.offset


def _new_events(
    session: Session,
    path: Path,
    key: str | None = None,
    most: int | None = None,
    until_end: bool = False,
) -> Iterator[Event]:
    """Events that were appended to the log at `path` since the last call for the same `key`.

    At most some `most` bytes of them; with `until_end` those before the end of the job.
    """
    yield from _last_words(session, path, key or str(path))
    position = _position(session, path, key or str(path))
    if position is None:
        return
    start = before = position.offset
    for event in cluster.read_events(path, position):
        if until_end and event["EventTypeNumber"] in (_TERMINATED, _ABORTED):
            position.offset = before
            return
        before = position.offset
        yield event
        if most is not None and before - start >= most:
            return


def _apply_to_run(session: Session, run: Run, event: Event) -> None:
    kind, when = event["EventTypeNumber"], time_of(event)
    if kind == SUBMIT:
        number = int(event["Cluster"])
        if run.kind == "dag" and run.cluster not in (None, number):
            if number in run.earlier:
                return
            _begin_again(session, run, number, when)
        run.cluster = number
    elif run.kind == "dag" and run.cluster != int(event["Cluster"]):
        return
    if kind == _TERMINATED:
        code = event.get("ReturnValue")
        run.exit_code = None if code is None else int(code)
        run.state = "done" if code == 0 else "failed"
        run.finished = when
    elif kind in _STATES:
        run.state = _STATES[kind]
        run.finished = when if kind == _ABORTED else None
    if run.kind != "pipeline":
        run.unkept += 1
    if kind in _STATES or kind == _TERMINATED:
        run.problem = str(event.get("HoldReason", "")) if kind == _HELD else None


def _begin_again(session: Session, run: Run, number: int, when: float) -> None:
    """The user has submitted the rest of a foreign DAG: its nodes' log begins anew."""
    resumes = run.provenance.get("resumes", [])
    run.provenance = {
        **run.provenance,
        "resumes": [*resumes, {"time": int(when), "dag": run.cluster}],
    }
    run.earlier = [*run.earlier, *([run.cluster] if run.cluster is not None else [])]
    run.cluster, run.exit_code = number, None
    for stage in run.stages:
        stage.outcome = stage.outcome if stage.outcome == "done" else None
    if position := session.get(LogPosition, f"{run.dag_file}.nodes.log"):
        position.offset = 0


class _Reading:
    """The stages and jobs that a log of `run` tells of, and what is to be read when it is read.

    They are loaded for many events at once: a query an event would take minutes for a DAG of ten
    thousand nodes.
    """

    def __init__(self, session: Session, run: Run, heard: Heard | None = None) -> None:
        self.session, self.run, self._heard = session, run, heard or {}
        self._stages: dict[str, Stage] = {}
        self._clusters: dict[int, Stage] = {}
        self._jobs: dict[tuple[int, int], Job] = {}
        # Jobs of other runs: a folder that was copied brings its logs along.
        self._others: set[tuple[int, int, float]] = set()
        # The nodes whose stand-ins for a job were seen.
        self.without_job: dict[tuple[int, ...], Stage] = {}
        # Jobs that no log of a stage knows.
        self.strangers: set[tuple[int, int]] = set()
        # Jobs of which the log has told the end, each once, in that order.
        self.ended: dict[Job, None] = {}

    def expect(self, events: Sequence[Event]) -> None:
        """Load what these events are about."""
        names = {name for event in events if (name := cluster.node_name(event))}
        numbers = {int(event["Cluster"]) for event in events} - {_NO_CLUSTER}
        self._load(names - self._stages.keys(), numbers - self._clusters.keys())

    def _load(self, names: Collection[str], numbers: Collection[int]) -> None:
        if not (names or numbers):
            return
        jobs = selectinload(Stage.jobs)
        parts = (Job.states, Job.checkpoints, Job.written)
        ours = select(Job.stage_id).where(Job.cluster.in_(numbers))
        query = select(Stage).where(Stage.run_id == self.run.id)
        query = query.where(or_(Stage.name.in_(names), Stage.id.in_(ours)))
        for stage in self.session.scalars(query.options(*map(jobs.selectinload, parts))):
            self._stages[stage.name] = stage
            self._jobs.update({(job.cluster, job.proc): job for job in stage.jobs})
            self._clusters.update({job.cluster: stage for job in stage.jobs})
        others = select(Job.cluster, Job.proc, Job.submitted).join(Stage)
        others = others.where(Job.schedd == self.run.schedd, Job.cluster.in_(numbers))
        others = others.where(Stage.run_id != self.run.id)
        self._others |= {(*row,) for row in self.session.execute(others)}

    def stage(self, name: str) -> Stage | None:
        """The stage called `name`; of a foreign DAG it is made when it was not known."""
        if name not in self._stages:
            self._load({name}, ())
        if name not in self._stages and self.run.kind == "dag":
            self._stages[name] = Stage(name=name, position=len(self.run.stages), needs=[], jobs=[])
            self.run.stages.append(self._stages[name])
        return self._stages.get(name)

    def job(self, number: int, proc: int) -> Job | None:
        """The job of the run with that cluster and process."""
        return self._jobs.get((number, proc))

    def read_files(self) -> None:
        """Read what the jobs that have ended left in the folders of their stages."""
        if self.run.kind == "pipeline":
            _read_files(self.session, self.run, list(self.ended))
        self.ended.clear()

    def stage_of(self, number: int) -> Stage | None:
        """The stage that the cluster is of."""
        return self._clusters.get(number)

    def submitted(self, stage: Stage, number: int, proc: int, when: float) -> Job | None:
        """A job of the stage that was not known; None if it is another run's."""
        if (number, proc, when) in self._others:
            return None
        latest = stage.jobs[-1] if stage.jobs else None
        attempt = latest.attempt + (latest.cluster != number) if latest else 1
        progress, usage = self._heard.get((number, proc), (None, None))
        job = Job(
            progress=progress,
            usage=dict(usage or {}),
            metrics=[],
            results=[],
            schedd=self.run.schedd,
            cluster=number,
            proc=proc,
            attempt=attempt,
            state="idle",
            submitted=when,
            starts=0,
            states=[],
            checkpoints=[],
            written=[],
        )
        stage.jobs.append(job)
        self._jobs[number, proc] = job
        self._clusters[number] = stage
        return job


def _apply_to_job(reading: _Reading, event: Event) -> None:
    kind, when = event["EventTypeNumber"], time_of(event)
    number, proc = int(event["Cluster"]), int(event.get("Proc", 0))
    if kind in (_POST_ENDED, _PRE_SKIP) or number == _NO_CLUSTER:
        _apply_to_node(reading, event)
        return
    if kind != _TERMINATED and kind not in _STATES:
        return
    job = reading.job(number, proc)
    if job is None and kind == SUBMIT:
        job = _submitted(reading, event, number, proc, when)
    if job is None and reading.run.kind == "pipeline":
        job = _unannounced(reading, number, proc, when)
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
        _read_slot(job, event.get("ExecuteProps") or {})
    if kind == _TERMINATED:
        job.exit_code, job.signal = code, signal
        _read_slot(job, event)
        _read_usage(job, event)
        reading.ended[job] = None
    if state in {"completed", "failed", "removed"}:
        job.finished = when
    if kind == _HELD:
        job.hold_code = int(event.get("HoldReasonCode", 0))
        job.hold_subcode = int(event.get("HoldReasonSubCode", 0))
        job.hold_reason = detail
    runfile.learnt(job)


def _submitted(reading: _Reading, event: Event, number: int, proc: int, when: float) -> Job | None:
    if reading.run.kind == "jobs":
        # A process that the schedd has made of a cluster only now.
        stage = reading.stage_of(number) if ads.takes_all(reading.run) else None
    else:
        name = cluster.node_name(event)
        stage = reading.stage(name) if name else None
    if stage is None:
        return None
    stage.outcome = None
    return reading.submitted(stage, number, proc, when)


def _unannounced(reading: _Reading, number: int, proc: int, when: float) -> Job | None:
    """A job whose submission is not in the log, as of a disk that was full: its stage's own log
    names it. What that has first of it stands for the submission.
    """
    if (number, proc) in reading.strangers:
        return None
    mark = f"({number:03}.{proc:03}.".encode()
    for folder in (stage.folder for stage in reading.run.stages):
        for log in folder.glob(f"{_STAGE_LOG}*"):
            with suppress(OSError):
                if mark in log.read_bytes() and (stage := reading.stage(folder.name)):
                    return reading.submitted(stage, number, proc, when)
    reading.strangers.add((number, proc))
    return None


def _apply_to_node(reading: _Reading, event: Event) -> None:
    """An event about a node and not about a job of its: it is skipped, is no job, or is judged."""
    kind = event["EventTypeNumber"]
    number = tuple(int(event.get(key, 0)) for key in ("Cluster", "Proc", "Subproc"))
    name = cluster.node_name(event)
    stage = reading.stage(name) if name else reading.without_job.get(number)
    if stage is None:
        return
    reading.without_job[number] = stage
    if kind == _POST_ENDED:
        good = bool(event.get("TerminatedNormally")) and event.get("ReturnValue") == 0
        stage.outcome = "done" if good else "failed"
    elif kind in (_PRE_SKIP, SUBMIT):
        # What stands in for a job of a NOOP node succeeds at once.
        stage.outcome = "done"


def _read_slot(job: Job, told: Any) -> None:
    """What the job's slot gave it."""
    cpus, gpus = told.get("Cpus"), told.get("GPUs")
    job.cpus = cpus if isinstance(cpus, int) else job.cpus
    job.gpus = gpus if isinstance(gpus, int) else job.gpus


def _read_usage(job: Job, event: Event) -> None:
    usage = dict(job.usage or {})
    for name, key in (("memory_mb", "MemoryUsage"), ("disk_kb", "DiskUsage")):
        if isinstance(value := event.get(key), int | float):
            usage[name] = value
    parts = _CPU_TIME.findall(str(event.get("TotalRemoteUsage", "")))
    if parts:
        usage["cpu_s"] = sum(
            ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
            for days, hours, minutes, seconds in parts
        )
    job.usage = usage


def _apply_chirp(job: Job, ad: cluster.Ad) -> None:
    """What a job that has not ended says of itself."""
    job.progress = progress.heard(job, _record(ad.get("ChirpProgress"))) or job.progress
    _add_checkpoint(job, _record(ad.get("ChirpCheckpoint")), f"job's sandbox on {job.host}")


def _read_files(session: Session, run: Run, jobs: Sequence[Job]) -> None:
    """What each of these jobs, which have ended, left in the folder of its stage."""
    session.flush()  # rows refer to the jobs'
    metrics: list[Json] = []
    results: list[Json] = []
    for job in jobs:
        if job.attempt == job.stage.jobs[-1].attempt:
            # A later attempt would have written over it.
            _read_metrics(run.path / job.stage.name, job, metrics, results)
        read_record(job)
        if job.state == "completed":
            # A stage that is done goes on from nowhere, and its checkpoints may be large.
            with suppress(OSError):
                Folder(job.stage.folder / FOLDER).empty()
    for table, rows in ((Metric, metrics), (Result, results)):
        told = [row["job_id"] for row in rows]
        for start in range(0, len(told), _MOST_AT_ONCE):
            # An end that is told twice, as by a schedd that was killed, counts once.
            again = set(told[start : start + _MOST_AT_ONCE])
            session.execute(delete(table).where(table.job_id.in_(again)))
        if rows:
            session.execute(insert(table), rows)


def _read_metrics(folder: Path, job: Job, metrics: list[Json], results: list[Json]) -> None:
    """The rows in the job's ``metrics.jsonl`` are added; lines that are none are passed."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    mine: dict[tuple[int, str], Json] = {}
    position = 0
    records = [_record(line) for line in lines]
    job.progress = progress.ended(job, (r for r in records if r.get("kind") == "progress"))
    for record in records:
        kind = record.get("kind")
        if kind == "progress" and (told := progress.parse(record)):
            epoch, when = told["epoch"], told["time"]
            for name, value in told["metrics"].items():
                # An evicted job may have done an epoch twice: the later line counts.
                row = {"job_id": job.id, "epoch": epoch, "name": name, "value": value}
                mine[epoch, name] = {**row, "time": when}
        elif kind == "checkpoint":
            _add_checkpoint(job, record, str(folder / str(record.get("path"))))
        elif kind == "result" and isinstance(values := record.get("values"), dict):
            with suppress(ValueError):
                check_result(values)
                results.append({"job_id": job.id, "position": position, "values": values})
                position += 1
    metrics += mine.values()


def _add_checkpoint(job: Job, record: Event, place: str) -> None:
    path, sha256 = record.get("path"), record.get("sha256")
    epoch, size = record.get("epoch"), record.get("bytes")
    if not (isinstance(path, str) and isinstance(sha256, str)):
        return
    if not (progress.is_count(epoch) and progress.is_count(size)):
        return
    same_path = [old for old in job.checkpoints if _slot(old.path) == _slot(path)]
    known = next((old for old in same_path if old.sha256 == sha256), None)
    if known is None:
        known = Checkpoint(path=path, epoch=epoch, bytes=size, sha256=sha256)
        job.checkpoints.append(known)
    if all(old.epoch <= known.epoch for old in same_path):
        for old in same_path:
            old.place = None
        known.place = place


def _slot(path: str) -> str:
    """What a later checkpoint takes the place of: its own path, or all that a job goes on from."""
    return FOLDER if path.startswith(f"{FOLDER}/") else path


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


def time_of(event: Event) -> float:
    """When it happened, in Unix seconds."""
    # Without a zone the log means this machine's local time, which is what `timestamp` assumes.
    return datetime.fromisoformat(str(event["EventTime"])).timestamp()
