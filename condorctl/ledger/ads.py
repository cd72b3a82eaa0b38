"""What the schedd's queue and its history say of runs, where their event logs do not.

Jobs without a log of their own live by it alone. Of a foreign DAG's jobs it tells where their files
are. A run that neither queue nor history knows is "unknown": nobody can say how it ended.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from condorctl import drafts
from condorctl.condor import cluster
from condorctl.condor.codes import OVER, JobStatus, JobUniverse
from condorctl.ledger import Job, JobState, Run, Stage, job_states, runfile

Ad = dict[str, Any]

# Of several jobs that have not all ended, the first of these is the state of their run.
_GOING = ("running", "suspended", "disconnected", "idle", "held", "unknown")
# As long as that a job that has just ended may be on its way from the queue into the history.
_UNDER_WAY_S = 60.0
# And so long that its event may be on its way into its log.
_SETTLED_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """What is to be asked about a run, free of the database."""

    run: int
    schedd: str
    since: float
    # Of a DAG: its DAGMan job, the log that this one writes, and whether it may be missing.
    dag: int | None = None
    log: str | None = None
    may_be_gone: bool = False
    # Whether the history has been searched for it in vain; that is long, and does not grow.
    unknown: bool = False
    # Whether jobs that have ended lack what only an ad tells.
    past: bool = False
    # Of a run that was left before its DAGMan job had a number: its folder.
    unsent: str | None = None
    # The jobs that have not ended: of a DAG, as far as its log tells.
    jobs: frozenset[tuple[int, int]] = frozenset()
    # Those of them that were known when they were last asked for.
    known: frozenset[tuple[int, int]] = frozenset()


@dataclass
class Told:
    """What the schedd has answered at `time`, by run."""

    time: float
    runs: set[int] = field(default_factory=set)
    live: dict[int, list[Ad]] = field(default_factory=dict)
    past: dict[int, list[Ad]] = field(default_factory=dict)
    # DAGs that are not in the queue any more, with the history's ad of their DAGMan job.
    gone: dict[int, Ad | None] = field(default_factory=dict)
    # Of runs that were left before their DAGMan job had a number: that number, if it has one.
    unsent: dict[int, int | None] = field(default_factory=dict)
    # DAGs that are in the queue.
    present: dict[int, Ad] = field(default_factory=dict)
    # Jobs of DAGs that neither their log nor the queue knew to be going on or to have ended.
    missing: dict[int, frozenset[tuple[int, int]]] = field(default_factory=dict)
    # Jobs of DAGs of which the history alone has told the end.
    ended: dict[int, list[Job]] = field(default_factory=dict)


def wanted(session: Session, run: Run) -> Wanted | None:
    """What the schedd is to be asked about `run`; None when nothing."""
    if run.kind == "jobs" and run.finished:
        return None
    going = select(Job.cluster, Job.proc, Job.state).join(Stage)
    going = going.where(Stage.run_id == run.id, Job.state.not_in(job_states.ENDED))
    left = list(session.execute(going))
    jobs = frozenset((number, proc) for number, proc, _ in left)
    known = frozenset((number, proc) for number, proc, state in left if state != "unknown")
    if run.kind == "jobs":
        return Wanted(run.id, run.schedd, run.submitted, jobs=jobs, known=known)
    past = run.kind == "dag" and _lacks(session, run)
    if run.cluster is None:
        # It has no number yet: somebody submits it just now, or was killed on the way.
        began = run.resumed or run.submitted
        abandoned = run.host == socket.gethostname() and not drafts.is_under_way(run.path, began)
        where = run.folder if abandoned and run.kind == "pipeline" else None
        return None if run.finished else Wanted(run.id, run.schedd, began, unsent=where)
    if run.finished and not (past or known):
        return None
    return Wanted(
        run.id,
        run.schedd,
        run.submitted,
        dag=run.cluster,
        log=f"{run.dag_file}.dagman.log",
        may_be_gone=not (run.finished or run.spooled),
        unknown=run.state == "unknown",
        past=past,
        jobs=jobs,
        known=known,
    )


def _lacks(session: Session, run: Run) -> bool:
    """Whether jobs have ended just now of which no ad was seen."""
    recent = time.time() - _UNDER_WAY_S
    jobs = select(func.count()).select_from(Job).join(Stage)
    jobs = jobs.where(Stage.run_id == run.id, Job.iwd.is_(None), Job.finished.is_not(None))
    if not run.finished or run.finished < recent:
        jobs = jobs.where(Job.finished >= recent)
    return bool(session.scalar(jobs))


def ask(runs: Sequence[Wanted]) -> Told:
    """Ask the schedd about `runs`. Raises Unreachable."""
    told = Told(time.time(), {one.run for one in runs})
    for one in runs:
        if one.unsent:
            told.unsent[one.run] = cluster.dag_of(one.unsent)
    dags = [one.dag for one in runs if one.dag is not None]
    loose = {number for one in runs if one.dag is None for number, _ in one.jobs}
    live = cluster.live(dags, sorted(loose))
    by_dag: dict[int, list[Ad]] = defaultdict(list)
    by_cluster: dict[int, list[Ad]] = defaultdict(list)
    for ad in live:
        by_dag[ad.get("DAGManJobId", -1)].append(ad)
        by_cluster[ad["ClusterId"]].append(ad)
    questions, since = [], told.time
    for one in runs:
        past = []
        if one.dag is not None:
            told.live[one.run] = by_dag[one.dag]
            own = [ad for ad in by_cluster[one.dag] if _is_of(ad, one)]
            if own:
                told.present[one.run] = own[0]
            elif one.may_be_gone:
                told.gone[one.run] = None
                past += [] if one.unknown else [f"ClusterId == {one.dag}"]
            if one.past:
                past.append(f"DAGManJobId == {one.dag}")
            # Its log has not told the end: it may be on its way, or have found the disk full.
            missing = one.known - _keys(told.live[one.run])
            if missing:
                # Those of an earlier DAGMan of the run are none of this one's.
                told.live[one.run] += cluster.live([], sorted({number for number, _ in missing}))
                told.missing[one.run] = missing = missing - _keys(told.live[one.run])
            past += [f"ClusterId == {number}" for number in sorted({n for n, _ in missing})]
        else:
            numbers = {number for number, _ in one.jobs}
            told.live[one.run] = [ad for number in numbers for ad in by_cluster[number]]
            left = one.known - _keys(told.live[one.run])
            past = [f"ClusterId == {number}" for number in {n for n, _ in left}]
        questions += past
        since = min(since, one.since) if past else since
    if questions:
        _sort(runs, cluster.history(" || ".join(questions), since - _UNDER_WAY_S), told)
    return told


def _keys(told: Iterable[Ad]) -> set[tuple[int, int]]:
    return {(ad["ClusterId"], ad["ProcId"]) for ad in told}


def _is_of(ad: Ad, one: Wanted) -> bool:
    """Whether it is the run's DAGMan job, and no other one that has its number in another pool."""
    return ad.get("UserLog") in (None, one.log) or not one.may_be_gone


def _sort(runs: Sequence[Wanted], past: list[Ad], told: Told) -> None:
    by_dag = {one.dag: one for one in runs if one.dag is not None}
    by_cluster = {number: one for one in runs for number, _ in one.jobs}
    for ad in past:
        number = ad["ClusterId"]
        if number in by_cluster:
            told.past.setdefault(by_cluster[number].run, []).append(ad)
        elif (of := by_dag.get(ad.get("DAGManJobId", -1))) is not None:
            told.past.setdefault(of.run, []).append(ad)
        if (of := by_dag.get(number)) is not None and of.run in told.gone and _is_of(ad, of):
            told.gone[of.run] = ad


def apply(session: Session, run: Run, told: Told) -> Iterator[tuple[Job, Ad]]:
    """Enter what was told of the jobs of `run`; yields those in the queue that have not ended."""
    if own := told.present.get(run.id):
        status = own.get("JobStatus", 0)
        # How it ended, its log or the history will tell.
        ended = status == JobStatus.COMPLETED
        state = "idle" if ended else job_states.OF_STATUS.get(status, "idle")
        since = float(own.get("EnteredCurrentStatus", told.time))
        # No log has told that its DAGMan was held, nor will one.
        unheard = state == "held" and told.time - since >= _SETTLED_S
        if run.state == "unknown" or (unheard and not run.finished and run.state != state):
            run.state, run.problem = state, str(own.get("HoldReason") or "") or None
    live, past = told.live.get(run.id, []), told.past.get(run.id, [])
    if not (live or past or told.missing.get(run.id)) and run.kind != "jobs":
        return
    query = select(Job).join(Stage).where(Stage.run_id == run.id)
    query = query.where(Job.finished.is_(None) | Job.iwd.is_(None))
    jobs = {(job.cluster, job.proc): job for job in session.scalars(query)}
    known = set(jobs)
    if run.kind == "jobs":
        every = select(Job.cluster, Job.proc).join(Stage).where(Stage.run_id == run.id)
        known = {(number, proc) for number, proc in session.execute(every)}
    seen = set()
    for ad in (*past, *live):
        key = (ad["ClusterId"], ad["ProcId"])
        job = jobs.get(key)
        if key not in known and run.kind == "jobs" and takes_all(run):
            job = jobs[key] = add(run.stages[0], ad)
        if job is None:
            continue
        seen.add(key)
        enter(job, ad, run.kind)
    if run.kind != "jobs":
        told.ended[run.id] = _mend(jobs, past, live, told)
    for ad in live:
        job = jobs.get((ad["ClusterId"], ad["ProcId"]))
        if job is not None and job.finished is None:
            yield job, ad
    gone = jobs.keys() if run.kind == "jobs" else told.missing.get(run.id, frozenset())
    for key in gone - seen:
        job = jobs.get(key)
        last = job.states[-1].time if job and job.states else job.submitted if job else 0.0
        if job and job.state not in job_states.ENDED and last < told.time - _UNDER_WAY_S:
            _vanish(job, run.seen or job.submitted)


def _mend(
    jobs: Mapping[tuple[int, int], Job], past: Sequence[Ad], live: Sequence[Ad], told: Told
) -> list[Job]:
    """What the log of a DAG's jobs should have told and did not; the jobs that have ended so.

    An event that HTCondor cannot write is lost: the disk was full, or a shadow was killed.
    """
    ended = []
    for ad in past:
        job = jobs.get((ad["ClusterId"], ad["ProcId"]))
        if job is not None and job.state not in job_states.ENDED and ad["JobStatus"] in OVER:
            _enter_state(job, ad)
            ended.append(job)
    for ad in live:
        job = jobs.get((ad["ClusterId"], ad["ProcId"]))
        status, since = ad["JobStatus"], float(ad.get("EnteredCurrentStatus", told.time))
        if job is None or job.state in job_states.ENDED or told.time - since < _SETTLED_S:
            continue
        stands = status in (JobStatus.IDLE, JobStatus.HELD)
        if stands and job_states.OF_STATUS[status] != job.state:
            _enter_state(job, ad)
        elif status == JobStatus.RUNNING and job.state == "idle":
            # To the queue a job runs while its files are still on their way, which is no start yet.
            began = float(ad.get("JobCurrentStartExecutingDate", 0))
            if job.states[-1].time <= began <= told.time - _SETTLED_S:
                job.host, job.started = str(ad.get("RemoteHost", "")), began
                job.starts += 1
                _change(job, "running", began, job.host)
    return ended


def recall(run: Run, past: Sequence[Ad]) -> None:
    """Enter what the history tells of the jobs of the DAG `run`, whose log begins anew each time.

    Also of jobs that the log does not tell of any more.
    """
    stages = {stage.name: stage for stage in run.stages}
    jobs = {(job.cluster, job.proc): job for stage in run.stages for job in stage.jobs}
    for ad in sorted(past, key=lambda ad: (ad["ClusterId"], ad["ProcId"])):
        job = jobs.get((ad["ClusterId"], ad["ProcId"]))
        if job is None:
            stage = stages.get(ad.get("DAGNodeName", ""))
            if stage is None:
                continue
            job = add(stage, ad)
            _enter_state(job, ad)
        enter(job, ad, run.kind)
    for stage in run.stages:
        clusters = sorted({job.cluster for job in stage.jobs})
        for job in stage.jobs:
            job.attempt = clusters.index(job.cluster) + 1


def takes_all(run: Run) -> bool:
    """Whether all processes of its clusters belong to the run, not only one that was named."""
    return run.provenance.get("proc") is None


def add(stage: Stage, ad: Ad) -> Job:
    """A new job of `stage`, in the state of its ad."""
    job = Job(
        schedd=stage.run.schedd,
        cluster=ad["ClusterId"],
        proc=ad["ProcId"],
        attempt=1,
        state="idle",
        submitted=float(ad.get("QDate", time.time())),
        starts=0,
        usage={},
        states=[],
    )
    job.states.append(JobState(state="idle", time=job.submitted, detail=""))
    stage.jobs.append(job)
    return job


def enter(job: Job, ad: Ad, kind: str) -> None:
    """What the ad tells of `job`: its files, what it uses, and its state where no log does."""
    usage = dict(job.usage or {})
    if ad.get("ResidentSetSize") and ad.get("NumJobStarts"):
        usage["memory_mb"] = max(usage.get("memory_mb", 0), (ad["ResidentSetSize"] + 1023) // 1024)
    if ad.get("DiskUsage") and ad.get("NumJobStarts"):
        usage.setdefault("disk_kb", ad["DiskUsage"])
    if used := ad.get("RemoteUserCpu", 0) + ad.get("RemoteSysCpu", 0):
        usage["cpu_s"] = max(usage.get("cpu_s", 0), used)
    if usage != job.usage:
        job.usage = usage
    if kind == "pipeline":
        return
    job.iwd = ad.get("Iwd") or job.iwd
    job.out, job.err = _file(ad, "Out") or job.out, _file(ad, "Err") or job.err
    job.log = _file(ad, "UserLog") or job.log
    job.spooled = bool(ad.get("StageInFinish"))
    job.cpus = ad.get("CpusProvisioned", job.cpus)
    job.gpus = ad.get("GPUsProvisioned", job.gpus)
    if ad.get("JobUniverse") == JobUniverse.SCHEDULER:
        # The DAGMan of a sub-DAG: it runs beside the schedd, in nobody's slot.
        job.cpus = job.gpus = 0
    ended = ad["JobStatus"] in OVER
    if job.state == "unknown" or (kind == "jobs" and (ended or not has_log(job))):
        _enter_state(job, ad)


def has_log(job: Job) -> bool:
    """Whether a log here tells of the job."""
    return bool(job.log) and Path(job.log or "").is_file()


def _file(ad: Ad, name: str) -> str | None:
    """The file that the ad names, absolute; None where there is none."""
    value = str(ad.get(name, ""))
    if not value or value == "/dev/null":
        return None
    return str(Path(str(ad.get("Iwd", "/"))) / value)


def _enter_state(job: Job, ad: Ad) -> None:
    if job.state in job_states.ENDED:
        return
    number, since = ad["JobStatus"], float(ad.get("EnteredCurrentStatus", job.submitted))
    started = ad.get("JobCurrentStartDate")
    if started and ad.get("NumJobStarts", 0) > job.starts:
        host = str(ad.get("RemoteHost") or ad.get("LastRemoteHost") or "")
        job.host, job.started, job.starts = host, float(started), ad["NumJobStarts"]
        _change(job, "running", float(started), host)
    if number == JobStatus.COMPLETED:
        by_signal = bool(ad.get("ExitBySignal"))
        job.signal = ad.get("ExitSignal", 0) if by_signal else None
        job.exit_code = None if by_signal else ad.get("ExitCode")
        ended = f"signal {job.signal}" if by_signal else f"exit code {job.exit_code}"
        _change(job, "completed" if job.exit_code == 0 else "failed", since, ended)
    elif number == JobStatus.HELD:
        job.hold_code = ad.get("HoldReasonCode", 0)
        job.hold_subcode = ad.get("HoldReasonSubCode", 0)
        job.hold_reason = str(ad.get("HoldReason", ""))
        _change(job, "held", since, job.hold_reason)
    else:
        state = job_states.OF_STATUS.get(number, "idle")
        _change(job, state, since, str(ad.get("RemoveReason", "")) if state == "removed" else "")
    if job.state in job_states.ENDED:
        job.finished = since
        runfile.learnt(job)


def _change(job: Job, state: str, when: float, detail: str) -> None:
    # A log may have told the same with less delay, or other words.
    if job.state != state:
        last = job.states[-1].time if job.states else when
        job.states.append(JobState(state=state, time=max(when, last), detail=detail))
        job.state = state
        runfile.learnt(job)


def _vanish(job: Job, when: float) -> None:
    if job.state != "unknown":
        _change(job, "unknown", when, "neither the queue nor the history of its schedd knows it")


def lost(run: Run, told: Told, before: float) -> bool:
    """Whether `run`, whose DAGMan has left the queue, has ended, as the history tells.

    It is "unknown" when the history does not; `before` is when it was last heard of.
    """
    if run.finished or run.id not in told.gone:
        return False
    ad = told.gone[run.id]
    if ad and ad.get("JobStatus") in OVER:
        removed = ad["JobStatus"] == JobStatus.REMOVED
        run.exit_code = None if removed else ad.get("ExitCode")
        run.state = "removed" if removed else ("done" if run.exit_code == 0 else "failed")
        run.finished = float(ad.get("EnteredCurrentStatus", told.time))
        return True
    began = run.resumed or run.submitted
    if run.state == "unknown" or told.time - began < _UNDER_WAY_S:
        return False
    run.state = "unknown"
    run.problem = (
        f"schedd {run.schedd} knows its DAGMan job {run.cluster} neither in its queue nor in its "
        "history, and the DAG's log does not tell its end"
    )
    for stage in run.stages:
        for job in stage.jobs:
            if job.state not in job_states.ENDED:
                _vanish(job, before)
    return False


def find_again(session: Session, run: Run, number: int | None) -> None:
    """What becomes of `run`, which was left while it was submitted: its DAGMan job is `number`.

    None means that the queue has none.
    """
    if number is not None:
        run.cluster = number
        return
    if not run.path.exists():
        # Its folder was not even named; nothing of it is left but the entry.
        session.delete(run)
        return
    run.state, run.finished = "failed", time.time()
    run.problem = (
        "it never came into the queue, because condorctl was stopped while submitting it: "
        f"`condorctl resume {run.name}` does that"
    )


def conclude(session: Session, run: Run) -> None:
    """The state of a run of jobs without a DAG, from those of its jobs."""
    jobs = select(Job.state, func.count(), func.max(Job.finished), func.max(Job.exit_code))
    jobs = jobs.join(Stage).where(Stage.run_id == run.id).group_by(Job.state)
    rows = list(session.execute(jobs))
    counts = {state: count for state, count, _, _ in rows}
    last = max((when for _, _, when, _ in rows if when is not None), default=run.submitted)
    going = next((state for state in _GOING if state in counts), None)
    expected = run.provenance.get("procs") or 0
    if going is None and sum(counts.values()) < expected and time.time() - last < _UNDER_WAY_S:
        # The schedd makes the others of them later, unless somebody has removed what is left.
        going = "idle"
    run.problem = None
    if going == "unknown":
        known = "neither the queue nor the history of its schedd knows"
        run.problem = f"{known} {counts['unknown']} of its jobs: nobody can tell their end"
    if going:
        run.state, run.finished, run.exit_code = going, None, None
        return
    run.state = next((state for state in ("failed", "removed") if state in counts), "done")
    run.finished = last
    run.exit_code = max((code for *_, code in rows if code is not None), default=None)
