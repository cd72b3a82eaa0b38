"""The ledger compared with what HTCondor itself remembers, and with the folders of its runs.

Each difference has a `kind`, the `run` and the `job` that it is about (null where it is about
none), the difference in words (`text`) and what mends it (`mend`).

The queue is the truth about jobs that have not ended, the schedd's history about those that have,
as far as it reaches back: it is rotated (HTCondor manual, MAX_HISTORY_LOG).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import drafts, paths
from condorctl.condor import cluster
from condorctl.condor.codes import OVER, JobStatus
from condorctl.ledger import Base, Job, Ledger, Run, Stage, events, job_states, runfile

Ad = dict[str, Any]
Key = tuple[int, int]

# Seconds by which a log and an ad may tell the same moment differently.
_SAME_S = 5.0
# To the schedd a job whose submit machine was away is running all the time.
_ALIKE = {"disconnected": "running"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be, and its mend."""

    kind: str
    run: str | None
    job: str | None
    text: str
    mend: str


def check(ledger: Ledger) -> dict[str, Any]:
    """All differences, after the ledger was brought up to date; as `api.ledger_check` returns them.

    The schedd that this process talks to is asked about its own jobs. Raises UserError.
    """
    unknown = events.sync(ledger)
    found = [Difference("log", None, None, line, _RESTORE) for line in unknown.damaged]
    remarks, forgotten, jobs = [], 0, 0
    told, here = None, ""
    try:
        here, told = cluster.schedd_name(), _Told()
    except cluster.Unreachable as error:
        remarks.append(f"jobs were not compared: {error}")
    with ledger.session() as session:
        found += _database(session)
        runs = list(session.scalars(select(Run).order_by(Run.id)))
        for run in runs:
            if told and run.schedd == here:
                of_run = _jobs(session, run)
                jobs += len(of_run)
                forgotten += told.forgets(of_run)
                found += told.compare(run, of_run)
        found += _folders(ledger, runs)
        other = sorted({run.schedd for run in runs if run.schedd != here and here})
    if forgotten:
        remarks.append(f"{forgotten} jobs ended before what the schedd's history still knows")
    if unknown.unreachable and told:
        remarks.append(unknown.unreachable)
    if other:
        remarks.append(f"jobs of {', '.join(other)} were not compared: this schedd is {here}")
    remarks.append(f"{len(runs)} runs and {jobs} jobs compared, {len(found)} differences")
    return {
        "ok": not found,
        "differences": [asdict(one) for one in found],
        "checked": {"runs": len(runs), "jobs": jobs},
        "forgotten": forgotten,
        "remarks": remarks,
    }


_RESTORE = "restore the log from a backup, or have its run resumed"


class _Told:
    """What the queue and the history of the schedd hold."""

    def __init__(self) -> None:
        # In this order what leaves the queue meanwhile is seen twice, and not never.
        self._live = {_key(ad): ad for ad in cluster.everything()}
        past = cluster.history("true", 0)
        self._past: dict[Key, Ad] = {}
        for ad in past:
            self._past.setdefault(_key(ad), ad)
        ends = [float(ad["EnteredCurrentStatus"]) for ad in past if "EnteredCurrentStatus" in ad]
        # What ended before the first that is left may have been forgotten.
        self._reaches_to = min(ends, default=float("inf"))
        self._by_dag: dict[int, list[Ad]] = {}
        for ad in (*self._past.values(), *self._live.values()):
            if (dag := ad.get("DAGManJobId")) is not None:
                self._by_dag.setdefault(dag, []).append(ad)

    def _of(self, key: Key, submitted: float) -> Ad | None:
        for ads_ in (self._live, self._past):
            ad = ads_.get(key)
            # A schedd set up anew counts from 1 again.
            if ad and abs(float(ad.get("QDate", submitted)) - submitted) <= _SAME_S:
                return ad
        return None

    def _may_have_forgotten(self, job: Job) -> bool:
        return job.finished is not None and job.finished < self._reaches_to

    def forgets(self, jobs: list[Job]) -> int:
        """How many of the jobs, which have ended, the history does not reach back to."""
        old = filter(self._may_have_forgotten, jobs)
        return sum(self._of((job.cluster, job.proc), job.submitted) is None for job in old)

    def compare(self, run: Run, jobs: list[Job]) -> Iterator[Difference]:
        known = {(job.cluster, job.proc) for job in jobs}
        for job in jobs:
            where = f"{run.name}/{job.stage.name} ({job.number})"
            ad = self._of((job.cluster, job.proc), job.submitted)
            if ad is None:
                if job.state != "unknown" and not self._may_have_forgotten(job):
                    text = f"{where} is {job.state}, but neither queue nor history knows it"
                    yield Difference("unknown", run.name, job.number, text, _mend(run))
                continue
            if (job.cluster, job.proc) in self._live and ad.get("JobStatus") in OVER:
                # Its node has not answered yet.
                continue
            for text in _differences(job, ad):
                yield Difference("job", run.name, job.number, f"{where} {text}", _mend(run))
        for number in filter(None, (run.cluster, *run.earlier)):
            for ad in self._by_dag.get(number, ()):
                if float(ad.get("QDate", 0)) < run.submitted - _SAME_S or _key(ad) in known:
                    continue
                job_id = "{}.{}".format(*_key(ad))
                text = f"{run.name}: job {job_id} of its DAG is not in the ledger"
                yield Difference("missing", run.name, job_id, text, _mend(run))
        yield from self._compare_dag(run)

    def _compare_dag(self, run: Run) -> Iterator[Difference]:
        if run.cluster is None or run.kind == "jobs":
            return
        key = (run.cluster, 0)
        live, past = self._live.get(key), self._past.get(key)
        if run.finished and live and live.get("JobStatus") not in OVER:
            text = f"{run.name} is {run.state}, but its DAG job {run.cluster}.0 is in the queue"
            yield Difference("run", run.name, f"{run.cluster}.0", text, _mend(run))
        if not run.finished and past and not live:
            text = f"{run.name} is {run.state}, but its DAG job {run.cluster}.0 has ended"
            yield Difference("run", run.name, f"{run.cluster}.0", text, _mend(run))


def _differences(job: Job, ad: Ad) -> Iterator[str]:
    """What the ad says otherwise."""
    status = ad.get("JobStatus", 0)
    if status == JobStatus.COMPLETED:
        code = None if ad.get("ExitBySignal") else ad.get("ExitCode")
        signal = ad.get("ExitSignal") if ad.get("ExitBySignal") else None
        if job.state not in ("completed", "failed"):
            yield f"is {job.state}; HTCondor says that it has ended"
            return
        final = job.stage.final_exit_codes
        # The ledger has the command's own code where stage.sh had to tell DAGMan another one.
        translated = bool(final) and code == final[0] and job.exit_code in final
        if (job.exit_code, job.signal) != (code, signal) and not translated:
            ours = _end(job.exit_code, job.signal)
            yield f"ended with {ours}; HTCondor says {_end(code, signal)}"
    elif status == JobStatus.REMOVED:
        if job.state not in job_states.ENDED:
            yield f"is {job.state}; HTCondor says that it was removed"
            return
    else:
        told = job_states.OF_STATUS.get(status)
        if told and told != _ALIKE.get(job.state, job.state):
            yield f"is {job.state}; HTCondor says {told}"
        return
    ended = float(ad.get("CompletionDate") or ad.get("EnteredCurrentStatus") or 0)
    if status == JobStatus.REMOVED and job.finished:
        # It is gone when its node has answered, which may be long after it was told to go.
        ended = max(ended, job.finished)
    if job.finished and ended and abs(job.finished - ended) > _SAME_S:
        yield f"ended {abs(job.finished - ended):.0f} s {_off(job.finished - ended)} HTCondor says"


def _end(code: int | None, signal: int | None) -> str:
    return f"exit code {code}" if signal is None else f"signal {signal}"


def _off(seconds: float) -> str:
    return "later than" if seconds > 0 else "earlier than"


def _mend(run: Run) -> str:
    again = "move the ledger away and `condorctl ledger rebuild`"
    return f"`condorctl status {run.name}` reads its logs again if they grow; else {again}"


def _key(ad: Ad) -> Key:
    return ad["ClusterId"], ad["ProcId"]


def _jobs(session: Session, run: Run) -> list[Job]:
    return list(session.scalars(select(Job).join(Stage).where(Stage.run_id == run.id)))


def _database(session: Session) -> Iterator[Difference]:
    """What is wrong in the database itself; PostgreSQL lets none of it happen."""
    again = "move the ledger away and `condorctl ledger rebuild` makes it again"
    if session.get_bind().dialect.name == "sqlite":
        for (line,) in session.execute(sa.text("PRAGMA integrity_check")):
            if line != "ok":
                yield Difference("integrity", None, None, f"SQLite says: {line}", again)
        for table, row, parent, _ in session.execute(sa.text("PRAGMA foreign_key_check")):
            text = f"row {row} of {table} refers to a row of {parent} that is gone"
            yield Difference("integrity", None, None, text, again)
    for table in Base.metadata.sorted_tables:
        # A table that cannot be read to its end says so here.
        session.execute(select(sa.func.count()).select_from(table))


def _folders(ledger: Ledger, runs: list[Run]) -> Iterator[Difference]:
    """Runs whose folder is gone, folders whose run is unknown, and what was left half-made."""
    mine = [run for run in runs if runfile.is_ours_to_keep(run)]
    for run in mine:
        if run.kind == "pipeline" and not run.cleaned and not run.path.is_dir():
            text = f"{run.name}: its folder {run.folder} is gone"
            mend = f"`condorctl clean {run.name}` settles it; or bring the folder back"
            yield Difference("folder", run.name, None, text, mend)
        elif not runfile.place(ledger, run).is_file():
            text = f"{run.name}: the ledger alone knows it, {runfile.place(ledger, run)} is missing"
            yield Difference("record", run.name, None, text, "`condorctl ledger rebuild`")
    known = {run.folder for run in runs}
    places = {run.path.parent for run in mine if run.kind == "pipeline"} | {paths.runs()}
    for place in sorted(place for place in places if place.is_dir()):
        for folder in sorted(path for path in place.iterdir() if path.is_dir()):
            if folder.name.startswith(".") or str(folder.absolute()) in known:
                continue
            if (folder / runfile.FILE).exists():
                text, mend = "its run is not in the ledger", f"`condorctl ledger rebuild {folder}`"
            else:
                text = f"is no run's: it has no {runfile.FILE}"
                mend = "look at it, and move it away"
            yield Difference("folder", None, None, f"{folder}: {text}", mend)
        for draft in drafts.leftovers(place):
            text = f"{draft}: was left by a condorctl that was stopped"
            yield Difference("leftover", None, None, text, "the next `condorctl submit` removes it")
