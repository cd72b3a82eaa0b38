"""What a word on the command line means: a run, a stage, a job.

A job is named by its number (``12``, ``12.0``), by its full id (``schedd#12.0``), or by its stage
(``train`` of the latest run, ``pipeline-3/train``), whose latest job is meant.
"""

from __future__ import annotations

import getpass
import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import UserError, suggest
from condorctl.ledger import NEWEST_FIRST, Job, Run, Stage

# A cluster or a job of it, as condor_q and the ledger write them.
JOB_ID = re.compile(r"(?:(?P<schedd>.+)#)?(?P<cluster>\d{1,10})(?:\.(?P<proc>\d{1,10}))?")


def run(session: Session, name: str | None) -> Run:
    """The run called `name`, or the user's latest one.

    Raises UserError when there is none.
    """
    latest = select(Run).order_by(*NEWEST_FIRST).limit(1)
    if session.get_bind().dialect.name != "sqlite":
        # A group's ledger; one's own file is one's own, also when root's pool runs as another user.
        latest = latest.where(Run.owner == getpass.getuser())
    found = session.scalar(latest if name is None else select(Run).where(Run.name == name))
    if found:
        return found
    if name is None:
        raise UserError("no run in the ledger yet: `condorctl submit pipeline` starts one", 1)
    newest = session.scalar(latest)
    hint = f"the latest is {newest.name}" if newest else "it is empty"
    raise UserError(f"no run {name!r} in the ledger; {hint}", 1)


def stage(session: Session, text: str) -> Stage:
    """The stage ``run/stage``, or ``stage`` of the user's latest run.

    Raises UserError when there is none.
    """
    head, slash, name = text.rpartition("/")
    of = run(session, head if slash else None)
    for found in of.stages:
        if found.name == name:
            return found
    raise UserError(
        f"{of.name} has no stage {name!r}{suggest(name, [stage.name for stage in of.stages])}", 1
    )


def job(session: Session, text: str) -> Job | Run:
    """The job that `text` names; the run whose DAGMan job it is, if it is one.

    Raises UserError when there is none, and for a stage that has no job yet.
    """
    match = JOB_ID.fullmatch(text.strip())
    if not match:
        of = stage(session, text.strip())
        of = of.source or of
        if not of.jobs:
            raise UserError(f"{of.run.name}/{of.name} has no job yet: `condorctl status`", 1)
        return of.jobs[-1]
    cluster, proc = int(match["cluster"]), int(match["proc"] or 0)
    found = _latest(session, Job, match["schedd"], Job.cluster == cluster, Job.proc == proc)
    dag = _latest(session, Run, match["schedd"], Run.cluster == cluster)
    if found and not (dag and dag.submitted > found.submitted):
        return found  # type: ignore[no-any-return]
    if dag:
        return dag  # type: ignore[no-any-return]
    raise UserError(f"no job {text} in the ledger: `condorctl status` shows a run's job ids", 1)


def is_job_id(text: str) -> bool:
    """Whether `text` is a job's number or full id, and no stage's name."""
    return bool(JOB_ID.fullmatch(text.strip()))


def jobs(session: Session, text: str) -> list[Job] | Run:
    """The jobs that `text` names; the run whose DAGMan job it is, if it is one.

    A cluster without a process means all of its, a stage those of its latest attempt. Raises
    UserError as `job` does.
    """
    match = JOB_ID.fullmatch(text.strip())
    found = job(session, text)
    if isinstance(found, Run):
        return found
    if not match:
        return found.stage.current
    if match["proc"]:
        return [found]
    return [one for one in found.stage.jobs if one.cluster == found.cluster]


def _latest(session: Session, table: Any, schedd: str | None, *where: Any) -> Any:
    # A schedd set up anew counts from 1 again: the latest one of that number is meant.
    query = sa.select(table).where(*where).order_by(table.submitted.desc()).limit(1)
    return session.scalar(query.where(table.schedd == schedd) if schedd else query)
