"""Why a job is where it is: the cause in plain words, the lines that show it, what mends it.

An explanation is a dictionary, the ``--json`` output of ``condorctl explain JOB``:

job       cluster.proc, None for a stage that has no job
id        schedd#cluster.proc
run, stage
state     of the job (`ledger`); of a stage without one: "waiting", "ready", "not run", "failed"
cause     in plain words
mend      what to do, commands in backticks
evidence  lines that show it: file, line (from 1), text
tried     how often the stage was tried, and how often it may be
analysis  of an idle job: what the pool offers it (`waiting`); of a held one: code, subcode, reason;
          sent_back: how often in a row its nodes gave it back with an error
note      why this may not be the present state; None when it is
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.orm import Session

from condorctl.condor import holds
from condorctl.errors import UserError
from condorctl.explain import ended, held, idle, stages, underway
from condorctl.explain.known import Known, Queue
from condorctl.ledger import Job, Ledger, Run, Stage, events, executions, find

Json = dict[str, Any]

# Longer than this a job that could run does not wait without a word (`explain RUN`).
LONG_S = 600
_JOB = re.compile(r"(?:.+#)?\d+(?:\.\d+)?")


def explain(ledger: Ledger, what: str | None) -> Json:
    """The explanation of the job or stage that `what` names.

    Of a run (the latest one without `what`): its `run`, `state`, `note`, and as `jobs` the
    explanation of each job that needs its user, those with the same cause as one, whose `also`
    names the others.

    Raises UserError when there is no such job or run.
    """
    unknown = events.sync(ledger)
    with ledger.session() as session:
        asked = _open_jobs(_look_up(session, what))
    # The pool may take its time: it is asked while nobody waits for the ledger.
    queue = Queue(asked, unknown.unreachable)
    with ledger.session() as session:
        found = _look_up(session, what)
        run = found if isinstance(found, Run) else _stage(found).run
        known = Known(run, str(unknown) or None, queue)
        if isinstance(found, Run):
            return _of_run(known)
        if isinstance(found, Job):
            return _of_job(known, found)
        return stages.of_stage(known, found)


def _look_up(session: Session, what: str | None) -> Run | Stage | Job:
    if what is None or not ("/" in what or _JOB.fullmatch(what)):
        try:
            return find.run(session, what)
        except UserError:
            if what is None:
                raise
    if what is not None and _JOB.fullmatch(what):
        return find.job(session, what)
    stage = find.stage(session, what or "")
    return _worst(stage.origin.current) or stage


def _stage(found: Stage | Job) -> Stage:
    return found.stage if isinstance(found, Job) else found


def _worst(jobs: Iterable[Job]) -> Job | None:
    order = ("held", "failed", "removed", "disconnected", "suspended", "idle", "running")
    rank = {state: number for number, state in enumerate(order)}
    return min(jobs, key=lambda job: (rank.get(job.state, len(order)), job.proc), default=None)


def _open_jobs(found: Run | Stage | Job) -> set[tuple[str, int, int]]:
    """The jobs about which the queue knows more than the ledger: schedd, cluster, proc."""
    if isinstance(found, Stage):
        return set()
    jobs = [found] if isinstance(found, Job) else [j for s in found.stages for j in s.current]
    wanted = [job for job in jobs if job.state in {"idle", "held"}]
    return {(job.schedd, job.cluster, job.proc) for job in wanted}


def _of_run(known: Known) -> Json:
    """Every job of the run that needs its user."""
    found: list[Json] = []
    if told := stages.of_run(known):
        found.append(told)
    for stage in known.run.stages:
        found += _needing(known, stage)
    return {
        "run": known.run.name,
        "state": known.run.state,
        "note": known.note,
        "jobs": _together(found),
    }


def _needing(known: Known, stage: Stage) -> list[Json]:
    state = known.states[stage.name]
    if stage.source or state in {"done", "retrying"}:
        return []
    wrong = [job for job in stage.current if job.state in {"held", "failed", "removed"}]
    found = [_of_job(known, job) for job in wrong]
    if not found and state == "failed":
        found = [stages.of_stage(known, stage)]
    for job in stage.current:
        if job.state not in {"idle", "running"} or known.unreachable:
            continue
        told = _of_job(known, job)
        seen = told["analysis"] or {}
        on_hold = told["state"] == "held" and seen.get("code") != holds.SPOOLING
        sent_back = seen.get("sent_back", 0) >= executions.OFTEN
        if on_hold or sent_back or seen.get("never") or seen.get("waited_s", 0) > LONG_S:
            found.append(told)
    return found


def _of_job(known: Known, job: Job) -> Json:
    """Why the job is in its state."""
    how: dict[str, Callable[[Known, Job], Json]] = {
        "held": held.explain,
        "idle": idle.explain,
        "failed": ended.failed,
        "removed": ended.removed,
        "disconnected": underway.disconnected,
        "suspended": underway.suspended,
        "running": underway.running,
        "completed": ended.completed,
    }
    return known.row(job.stage, job, job.state) | how[job.state](known, job)


def _together(found: list[Json]) -> list[Json]:
    """Explanations of jobs of one stage that say the same, as one."""
    groups: dict[tuple[Any, ...], Json] = {}
    for told in found:
        number = str(told["job"])
        plain = re.sub(r"\S*\bslot\S+@\S+", "", told["cause"].replace(number, ""))
        key = (told["stage"], told["state"], plain)
        if key in groups:
            groups[key]["also"].append(number)
        else:
            groups[key] = {**told, "also": []}
    return list(groups.values())
