"""Steering what is in the queue: whole runs are cancelled, runs and jobs held and released."""

from __future__ import annotations

import getpass
import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.condor import cluster
from condorctl.condor.codes import JobStatus
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Run, events, find, job_states
from condorctl.steer import resume

Json = dict[str, Any]

# DAGMan removes its jobs and writes its rescue file before it goes.
_CANCEL_S = 60.0
_INTERVAL_S = 0.5


def cancel(ledger: Ledger, name: str | None) -> Json:
    """Remove a run from the queue, the latest one without a name; wait until it is gone.

    Returns `run`, `state`, and the name of the `rescue` file that `condorctl resume` goes on from
    (None where there is none). Raises UserError when it has ended, or does not go within a minute.
    """
    events.sync(ledger)
    with ledger.session() as session:
        run = find.run(session, name)
        if run.finished:
            raise UserError(f"{run.name} has ended ({run.state}): there is nothing to cancel", 1)
        _check(run.schedd)
        # DAGMan, told to go, removes its jobs itself.
        wanted = _of_run(run) if run.kind == "jobs" else f"ClusterId == {_dag(run)}"
        chosen, folder = run.name, run.folder
    there = cluster.act("remove", wanted, _reason("cancel")) != (0, 0)
    deadline = time.monotonic() + _CANCEL_S
    while True:
        left = cluster.is_queued(folder)
        events.sync(ledger)
        with ledger.session() as session:
            run = find.run(session, chosen)
            if run.finished and not (left and run.kind == "pipeline"):
                files = resume.rescues(run.dag) if run.dag and run.path.is_dir() else []
                rescue = files[-1].name if files else None
                return {"run": chosen, "state": run.state, "rescue": rescue}
        if not there:
            raise UserError(f"{chosen} is not in the queue: `condorctl resume {chosen}` goes on", 1)
        if time.monotonic() > deadline:
            raise UserError(f"{chosen} is still being removed: `condorctl status {chosen}`", 3)
        time.sleep(_INTERVAL_S)


def hold(ledger: Ledger, word: str) -> Json:
    """Hold a job, or a run: DAGMan and all its jobs. What runs is stopped.

    Returns `what` was meant and the number of `jobs`. Raises UserError when none is in the queue.
    """
    return _act(ledger, "hold", word)


def release(ledger: Ledger, word: str) -> Json:
    """Release a job, or all jobs of a run; as `hold`."""
    return _act(ledger, "release", word)


def remove(ledger: Ledger, word: str) -> Json:
    """Remove one job; to DAGMan it has failed. As `hold`, but refuses a whole run."""
    return _act(ledger, "remove", word)


def _act(ledger: Ledger, action: str, word: str) -> Json:
    events.sync(ledger)
    with ledger.session() as session:
        found = _find(session, word)
        _check(found.schedd)
        if isinstance(found, Run):
            what, wanted = found.name, _of_run(found)
            if action == "remove":
                raise UserError(f"{word} is a run: `condorctl cancel {what}` removes it")
            ended = found.finished
        else:
            what = f"{found.stage.run.name}/{found.stage.name} ({found.number})"
            wanted = f"ClusterId == {found.cluster} && ProcId == {found.proc}"
            ended = found.state in job_states.ENDED
        if ended:
            raise UserError(f"{what} has ended ({found.state}): nothing to {action}", 1)
    # Released is only what is held; and what is held already is no error.
    if action == "release":
        wanted = f"({wanted}) && JobStatus == {JobStatus.HELD}"
    done, already = cluster.act(action, wanted, _reason(action))
    if done + already == 0:
        raise UserError(f"{what}: nothing of it in the queue to {action}", 1)
    events.sync(ledger)
    return {"what": what, "jobs": done + already}


def _find(session: Session, word: str) -> Job | Run:
    run = session.scalar(select(Run).where(Run.name == word))
    return run or find.job(session, word)


def _of_run(run: Run) -> str:
    if run.kind != "jobs":
        return f"ClusterId == {_dag(run)} || DAGManJobId == {_dag(run)}"
    clusters = sorted({job.cluster for stage in run.stages for job in stage.jobs})
    return " || ".join(f"ClusterId == {number}" for number in clusters) or "false"


def _dag(run: Run) -> int:
    if run.cluster is None:
        raise UserError(f"{run.name}: its DAGMan job is not known yet; try again", 1)
    return run.cluster


def _check(schedd: str) -> None:
    here = cluster.schedd_name()
    if here != schedd:
        raise UserError(f"that is on schedd {schedd}, this one is {here}")


def _reason(action: str) -> str:
    return f"condorctl {action}, by {getpass.getuser()}"
