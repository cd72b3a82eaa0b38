"""What a run on a schedd elsewhere has left by now, brought back into its folder here.

A copy of what DAGMan and its jobs write there (`submit.spool`) grows in the run's folder: logs
while they are written, a stage's files with each start and end of one of its jobs. So everything
that reads a run's folder works alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from condorctl import drafts
from condorctl.condor import cluster, holds
from condorctl.condor.codes import OVER, JobEvent, JobStatus
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, sharing

# What comes back lies here first, below the run's folder.
STAGING = ".spooled"
# Each bringing back costs the schedd a process.
_INTERVAL_S = 4.0
_TOLD = ["JobStatus", "HoldReasonCode", "JobStartDate", "SUBMIT_Iwd"]
_NOT_SENT = "its DAGMan has never started: `condorctl resume {}` submits it again"
# Whole only when DAGMan has ended, as is its rescue file, which it writes when it fails.
_LAST = ("dagman.out", "lib.out", "lib.err", "metrics")


@dataclass(frozen=True)
class _Spooled:
    """What bringing a run back takes, free of the database."""

    row: int
    dag: Path
    number: int
    began: float

    @property
    def folder(self) -> Path:
        return self.dag.parent

    @property
    def staging(self) -> Path:
        return self.folder / STAGING

    def log(self, name: str) -> str:
        return f"{self.dag.name}.{name}"


def bring_back(ledger: Ledger) -> str | None:
    """Bring what spooled runs have left by now into their folders; what could not be, in a line.

    Only runs on the schedd that this process talks to. Another process that is at it is not
    waited for.
    """
    with ledger.session() as session:
        runs = session.scalars(select(Run).where(Run.finished.is_(None), Run.spooled))
        going = [
            (
                run.schedd,
                _Spooled(
                    run.id, Path(run.dag_file or ""), run.cluster, run.resumed or run.submitted
                ),
            )
            for run in runs
            if run.cluster is not None and sharing.is_ours_to_read(ledger, run)
        ]
    if not going:
        return None
    try:
        here = cluster.schedd_name()
    except cluster.Unreachable as error:
        return str(error)
    problems = []
    for schedd, run in going:
        if schedd != here:
            problems.append(f"{run.folder.name} is on schedd {schedd}: --schedd {schedd} asks it")
            continue
        with _locked(run) as mine:
            try:
                if mine:
                    _bring(ledger, run, here)
            except UserError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{error.filename or run.folder}: {error.strerror}")
    return "; ".join(problems) or None


def _bring(ledger: Ledger, run: _Spooled, here: str) -> None:
    htcondor, schedd, _ = cluster.connection()
    job = f"{run.number}.0"
    try:
        ads = schedd.query(constraint=f"ClusterId == {run.number}", projection=_TOLD)
        if not ads:
            problem = f"its DAG job {job} has left the queue of {here} with all files"
            _give_up(ledger, run, "removed", problem)
            return
        if _never_starts(ads[0]):
            if not drafts.is_under_way(run.folder, run.began):
                take_back(run.number)
                _give_up(ledger, run, "failed", _NOT_SENT.format(run.folder.name))
            return
        if ads[0].get("SUBMIT_Iwd") != str(run.staging):
            # Whoever submitted it was killed before that was said.
            schedd.edit([job], "SUBMIT_Iwd", f'"{run.staging}"')
        ended = ads[0]["JobStatus"] in OVER
        logs = [run.log("nodes.log"), run.log("dagman.log")]
        _retrieve(schedd, job, logs)
        if stages := _touched(run):
            _retrieve(schedd, job, stages)
        if ended:
            number = 1 + len(list(run.folder.glob(run.log("rescue*"))))
            for name in (*_LAST, f"rescue{number:03}"):
                with contextlib.suppress(htcondor.HTCondorException):
                    _retrieve(schedd, job, [run.log(name)])
    except htcondor.HTCondorException as error:
        raise cluster.refused(f"{run.folder.name}: nothing came back", error) from None
    _install(run, last=logs)
    if ended:
        with contextlib.suppress(htcondor.HTCondorException):
            schedd.edit([job], "LeaveJobInQueue", "false")


def _never_starts(ad: Any) -> bool:
    """Whether the job's files did not arrive.

    It waits for them, for ever where nobody began to send them; where that broke off the schedd
    has removed the job.
    """
    waits = (ad["JobStatus"], ad.get("HoldReasonCode")) == (JobStatus.HELD, holds.SPOOLING)
    return waits or (ad["JobStatus"] == JobStatus.REMOVED and "JobStartDate" not in ad)


def take_back(number: int) -> None:
    """Remove a DAGMan job that never started. Raises the bindings' own errors."""
    htcondor, schedd, _ = cluster.connection()
    schedd.act(htcondor.JobAction.Remove, [f"{number}.0"], ("its files did not arrive", 0))
    schedd.edit([f"{number}.0"], "LeaveJobInQueue", "false")


def _retrieve(schedd: Any, job: str, paths: list[str]) -> None:
    schedd.edit([job], "TransferOutput", f'"{",".join(paths)}"')
    schedd.retrieve([job])


def _touched(run: _Spooled) -> list[str]:
    """The stages of whose jobs the log tells more than its copy in the run's folder."""
    known = (run.folder / run.log("nodes.log")).stat().st_size
    position = cluster.Start()
    nodes: dict[int, str] = {}
    stages = set()
    for event in cluster.read_events(run.staging / run.log("nodes.log"), position):
        number = int(event["Cluster"])
        if event["EventTypeNumber"] == JobEvent.SUBMIT:
            nodes[number] = cluster.node_name(event) or ""
        elif position.offset > known:
            stages.add(nodes.get(number, ""))
    return sorted(name for name in stages if (run.folder / name / "stage.sub").exists())


def _install(run: _Spooled, last: list[str]) -> None:
    """Move what came into the run's folder; logs last, since they announce the rest."""
    files = [path for path in run.staging.rglob("*") if path.is_file() and not path.is_symlink()]
    order = {run.staging / name: number for number, name in enumerate(last, 1)}
    for path in sorted(files, key=lambda path: order.get(path, 0)):
        target = run.folder / path.relative_to(run.staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".log" and target.exists():
            # Readers know a log by its inode and go on where they stopped.
            with path.open("rb") as source, target.open("ab") as file:
                source.seek(file.tell())
                shutil.copyfileobj(source, file)
        elif path.name != "stage.sub":
            path.replace(target)
            continue
        path.unlink()


def _give_up(ledger: Ledger, run: _Spooled, state: str, problem: str) -> None:
    with ledger.session() as session:
        found = session.get_one(Run, run.row)
        found.state, found.finished, found.problem = state, time.time(), problem


@contextlib.contextmanager
def _locked(run: _Spooled) -> Iterator[bool]:
    """Whether it is ours to bring something back now."""
    run.staging.mkdir(exist_ok=True)
    with (run.folder / f"{STAGING}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        early = time.time() - os.fstat(file.fileno()).st_mtime < _INTERVAL_S
        if not early:
            os.utime(file.fileno())
        yield not early
