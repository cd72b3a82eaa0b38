"""Where a job's files are, by its state.

They are in its sandbox while it runs, in the schedd's spool when it was evicted with them, and in
the folder it was submitted from when it has ended.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from condorctl.condor import cluster, evicted, holds
from condorctl.deadline import Deadline
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Run, find, job_states

_JOB_ATTRIBUTES = [
    "ClusterId", "ProcId", "Iwd", "SUBMIT_Iwd", "Out", "Err", "TransferOutputRemaps", "JobStatus",
    "QDate",
]  # fmt: skip
# A job is in the queue a little before its log says so.
_SAME_S = 5.0


@dataclass(frozen=True)
class Target:
    """What one needs to know of a job to find its files, free of the database.

    `row` is the ledger's number of the job, None for a DAG's own job. `logs` are what it gives
    unless one names other files: its output, its errors, its event log, its record.
    """

    row: int | None
    number: str
    id: str
    label: str
    state: str
    starts: int
    submitted: float
    folder: Path
    out: Path
    err: Path
    log: Path
    more_logs: tuple[Path, ...] = ()
    spooled: bool = False
    superseded: bool = False
    cleaned: bool = False
    host: str = ""
    hold: str = ""
    checksums: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    succeeded: bool = False

    @property
    def ended(self) -> bool:
        return self.state in job_states.ENDED

    @property
    def logs(self) -> list[Path]:
        """The files with what the job and HTCondor say; the event log is the last."""
        return list(dict.fromkeys([self.out, self.err, *self.more_logs, self.log]))

    @property
    def why_not(self) -> str:
        """Why there is less than all of its files: a part of a sentence, empty for a done job."""
        if self.cleaned:
            return "`condorctl clean` has taken the run's files away"
        if self.state == "held":
            never = "" if self.starts else "it never ran, and "
            return f"{never}it is held: {self.hold}"
        if self.state == "idle":
            if not self.starts:
                return "it has not started; `condorctl status` shows when it does"
            return (
                "it was evicted and waits to start again; what it had written stayed on its node "
                "(when_to_transfer_output = ON_EXIT_OR_EVICT in its template brings it along)"
            )
        if self.state == "removed":
            return "it was removed before it ended"
        if self.state == "disconnected":
            return "its node does not answer now"
        return ""


def targets(ledger: Ledger, text: str) -> list[Target]:
    """The jobs that `text` means: one, or all processes of a cluster or of a stage's last attempt.

    Raises UserError when there is none.
    """
    with ledger.session() as session:
        found = find.jobs(session, text)
        return [_of_dag(found)] if isinstance(found, Run) else [_of_job(job) for job in found]


def again(ledger: Ledger, target: Target) -> Target:
    """`target` as the ledger has it now."""
    with ledger.session() as session:
        if target.row is not None:
            return _of_job(session.get_one(Job, target.row))
        found = find.jobs(session, target.id)
        return _of_dag(found) if isinstance(found, Run) else target


def _of_job(job: Job) -> Target:
    stage, run = job.stage, job.stage.run
    ours = run.kind == "pipeline"
    # A job of ours works for the run's folder; what it leaves is remapped to its stage's.
    folder = stage.folder if ours else job.folder
    told = [*((o.path, o.sha256) for o in job.written), *_checkpoints(job)]
    hold = holds.explain(job.hold_code, job.hold_subcode, job.number, job.hold_reason or "")
    return Target(
        row=job.id,
        number=job.number,
        id=job.id_text,
        label=f"job {job.number} ({run.name}, {stage.name})",
        state=job.state,
        starts=job.starts,
        submitted=job.submitted,
        folder=folder,
        out=Path(job.out) if job.out else folder / f"{job.cluster}.out",
        err=Path(job.err) if job.err else folder / f"{job.cluster}.err",
        log=_event_log(job, folder),
        more_logs=(folder / f"{job.cluster}.job",) if ours else (),
        spooled=job.spooled,
        superseded=job.attempt < stage.jobs[-1].attempt,
        cleaned=run.cleaned is not None,
        host=run.host,
        hold=f"{hold.cause}; {hold.mend}. HTCondor says: {job.hold_reason or ''}",
        checksums=dict(told) if job.finished is not None else {},
        outputs=tuple(stage.outputs),
        succeeded=job.state == "completed",
    )


def _event_log(job: Job, folder: Path) -> Path:
    own = Path(job.log) if job.log else folder / "events.log"
    dag = job.stage.run.dag
    # DAGMan keeps a log of all nodes, for those that have none of their own.
    return own if own.exists() or not dag else dag.with_name(f"{dag.name}.nodes.log")


def _checkpoints(job: Job) -> list[tuple[str, str]]:
    return [(one.path, one.sha256) for one in job.checkpoints if one.place]


def _of_dag(run: Run) -> Target:
    assert run.dag is not None  # a run without a DAG is not found by a job's number
    dag = run.dag
    out, log, *more = (
        dag.with_name(f"{dag.name}.{name}")
        for name in ("dagman.out", "dagman.log", "nodes.log", "lib.out", "lib.err")
    )
    state = {"done": "completed"}.get(run.state, run.state)
    return Target(
        row=None,
        number=f"{run.cluster}.0",
        id=f"{run.schedd}#{run.cluster}.0",
        label=f"DAG job of {run.name}",
        state=state,
        starts=1,
        submitted=run.submitted,
        folder=run.path,
        out=out,
        err=more[-1],
        log=log,
        more_logs=tuple(more[:-1]),
        cleaned=run.cleaned is not None,
        host=run.host,
        hold=run.problem or "",
        succeeded=state == "completed",
    )


def asked(target: Target) -> Target:
    """`target` with what the schedd's queue or history says of its folder and its logs.

    For a job that the ledger knows too little of; the same target where the schedd does not
    know it either.
    """
    ad, _ = _ad(target)
    if not ad:
        return target
    folder = Path(str(ad.get("SUBMIT_Iwd") or ad.get("Iwd") or target.folder))
    out, err = (folder / str(ad[key]) if ad.get(key) else None for key in ("Out", "Err"))
    log = target.log if target.log.exists() else folder / target.log.name
    return replace(target, folder=folder, out=out or target.out, err=err or target.err, log=log)


def remaps(target: Target) -> dict[str, Path]:
    """Where the job's outputs go that its submit file sends elsewhere, by their own names."""
    text = str(_ad(target)[0].get("TransferOutputRemaps") or "")
    found = {}
    for pair in re.split(r"(?<!\\);", text):
        name, equals, to = pair.partition("=")
        if equals and not re.match(r"\s*\w+://", to):
            found[name.strip()] = target.folder / to.strip()
    return found


def spooled(target: Target, deadline: Deadline) -> tuple[Target, str | None]:
    """`target`, a spooled job, after the schedd has sent its files; and what did not come.

    Where it has sent them before, and forgotten the job, they are in its folder.
    """
    queued = _ad(target)[1]
    return asked(target), evicted.bring(target.number, deadline) if queued else None


def check_schedd(target: Target) -> None:
    """Raise UserError when the job is at another schedd than this process talks to.

    That one may have given the same number to another job.
    """
    schedd = target.id.rpartition("#")[0]
    if schedd != cluster.schedd_name():
        raise UserError(
            f"{target.label}: it is at schedd {schedd}, which is not the one asked from here", 3
        )


def missing_folder(target: Target) -> UserError:
    """What to say when the job's folder is not there."""
    if target.cleaned:
        return UserError(f"{target.label}: {target.why_not}", 1)
    here = socket.gethostname()
    elsewhere = f"; it is on {target.host}" if target.host not in ("", here) else ""
    return UserError(f"{target.label}: its folder {target.folder} is not here{elsewhere}", 1)


def _ad(target: Target) -> tuple[cluster.Ad, bool]:
    """What the schedd knows of the job, and whether it is in the queue."""
    number, _, proc = target.number.partition(".")
    with suppress(UserError):
        check_schedd(target)
        ad, queued = cluster.job_ad(int(number), int(proc), _JOB_ATTRIBUTES) or ({}, False)
        # A schedd that was set up anew gives the same numbers to others.
        if abs(float(ad.get("QDate", target.submitted)) - target.submitted) < _SAME_S:
            return ad, queued
    return {}, False


def kept(target: Target) -> Path | None:
    """The schedd's own folder of a job that has left its slot and has not ended."""
    if target.row is None or not target.starts:
        return None
    if target.state in job_states.OUT_OF_REACH:
        check_schedd(target)
        return evicted.folder(target.number)
    return None


def names(target: Target, paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each log where it is brought to: its own, unless two are called the same."""
    found: dict[Path, str] = {}
    for path in paths:
        name = path.name
        if name in found.values():
            name = f"{target.number}.{name}"
        found[path] = name
    return found
