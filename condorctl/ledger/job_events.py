"""Events of an event log, one by one, as rows of the ledger: nodes, their jobs, what these used.

The types of events are those of HTCondor's manual, "Job Event Log Codes".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

from condorctl.condor import cluster
from condorctl.ledger import Job, JobState, Run, Stage, ads, gpus, leavings, runfile

# Event types, by the numbers that stand in the log (manual, "Job Event Log Codes").
SUBMIT, EXECUTE, EVICTED, TERMINATED, SHADOW_EXCEPTION, ABORTED = 0, 1, 4, 5, 7, 9
SUSPENDED, UNSUSPENDED, HELD, RELEASED = 10, 11, 12, 13
POST_ENDED, REMOTE_ERROR, PRE_SKIP = 16, 21, 34
DISCONNECTED, RECONNECTED, RECONNECT_FAILED = 22, 23, 24

STATES = {
    SUBMIT: "idle",
    EXECUTE: "running",
    EVICTED: "idle",
    ABORTED: "removed",
    SUSPENDED: "suspended",
    UNSUSPENDED: "running",
    HELD: "held",
    RELEASED: "idle",
    DISCONNECTED: "disconnected",
    RECONNECTED: "running",
    RECONNECT_FAILED: "idle",
}

# What a stage's submit file calls the log of its jobs.
_STAGE_LOG = "events.log"
# DAGMan tells of nodes without a job as of jobs in this cluster.
_NO_CLUSTER = 0
_CPU_TIME = re.compile(r"(\d+) (\d+):(\d+):(\d+)")

Event = dict[str, Any]
Json = dict[str, Any]
# Progress and usage of jobs by cluster and process.
Heard = Mapping[tuple[int, int], tuple[Json | None, Json | None]]


class Reading:
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
            leavings.read(self.session, self.run, list(self.ended))
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


def apply_to_job(reading: Reading, event: Event) -> None:
    kind, when = event["EventTypeNumber"], time_of(event)
    number, proc = int(event["Cluster"]), int(event.get("Proc", 0))
    if kind in (POST_ENDED, PRE_SKIP) or number == _NO_CLUSTER:
        _apply_to_node(reading, event)
        return
    if kind != TERMINATED and kind not in STATES:
        return
    job = reading.job(number, proc)
    if job is None and kind == SUBMIT:
        job = _submitted(reading, event, number, proc, when)
    if job is None and reading.run.kind == "pipeline":
        job = _unannounced(reading, number, proc, when)
    if job is None:
        return
    state, detail = STATES.get(kind, ""), ""
    if kind == TERMINATED:
        normal = bool(event.get("TerminatedNormally"))
        code = int(event["ReturnValue"]) if normal else None
        signal = None if normal else int(event.get("TerminatedBySignal", 0))
        state = "completed" if code == 0 else "failed"
        detail = f"exit code {code}" if normal else f"signal {signal}"
    elif kind == EXECUTE:
        detail = _host(event)
    elif kind in {HELD, ABORTED, EVICTED}:
        detail = str(event.get("HoldReason") or event.get("Reason") or "")
    if any(old.state == state and old.time == when and old.detail == detail for old in job.states):
        return
    job.states.append(JobState(state=state, time=when, detail=detail))
    job.state = state
    if kind == EXECUTE:
        job.host, job.started, job.starts = detail, when, job.starts + 1
        slot = event.get("ExecuteProps") or {}
        _read_slot(job, slot)
        job.machine = {"gpus": devices} if (devices := gpus.given(slot)) else {}
    if kind == TERMINATED:
        job.exit_code, job.signal = code, signal
        _read_slot(job, event)
        _read_usage(job, event)
        reading.ended[job] = None
    if state in {"completed", "failed", "removed"}:
        job.finished = when
    if kind == HELD:
        job.hold_code = int(event.get("HoldReasonCode", 0))
        job.hold_subcode = int(event.get("HoldReasonSubCode", 0))
        job.hold_reason = detail
    runfile.learnt(job)


def _submitted(reading: Reading, event: Event, number: int, proc: int, when: float) -> Job | None:
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


def _unannounced(reading: Reading, number: int, proc: int, when: float) -> Job | None:
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


def _apply_to_node(reading: Reading, event: Event) -> None:
    """An event about a node and not about a job of its: it is skipped, is no job, or is judged."""
    kind = event["EventTypeNumber"]
    number = tuple(int(event.get(key, 0)) for key in ("Cluster", "Proc", "Subproc"))
    name = cluster.node_name(event)
    stage = reading.stage(name) if name else reading.without_job.get(number)
    if stage is None:
        return
    reading.without_job[number] = stage
    if kind == POST_ENDED:
        good = bool(event.get("TerminatedNormally")) and event.get("ReturnValue") == 0
        stage.outcome = "done" if good else "failed"
    elif kind in (PRE_SKIP, SUBMIT):
        # What stands in for a job of a NOOP node succeeds at once.
        stage.outcome = "done"


def _read_slot(job: Job, told: Any) -> None:
    """What the job's slot gave it."""
    cpus, number = told.get("Cpus"), told.get("GPUs")
    job.cpus = cpus if isinstance(cpus, int) else job.cpus
    job.gpus = number if isinstance(number, int) else job.gpus


def _read_usage(job: Job, event: Event) -> None:
    usage = {**(job.usage or {}), **gpus.used(event, job.gpus)}
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


def _host(event: Event) -> str:
    """``slot1_1@node``, or the address where HTCondor gives no name."""
    slot = event.get("SlotName")
    return str(slot) if slot else re.sub(r"[<>]|\?.*", "", str(event.get("ExecuteHost", "")))


def time_of(event: Event) -> float:
    """When it happened, in Unix seconds."""
    # Without a zone the log means this machine's local time, which is what `timestamp` assumes.
    return datetime.fromisoformat(str(event["EventTime"])).timestamp()
