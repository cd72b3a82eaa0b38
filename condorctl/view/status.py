"""A run as its user sees it: the run, its stages, their jobs, from the ledger alone.

`describe` gives the tree that ``condorctl status --json`` prints. Its keys:

run     run, kind ("pipeline", "dag", "jobs"), pipeline, owner, schedd, dag (full id of the DAGMan
        job), earlier (those before it), folder, params, state, problem, submitted, finished,
        elapsed_s, exit_code, counts (stages by state), eta_s (null unless every stage that is left
        has one), cost (`cost.Cost.as_json`), as_of (when the schedd last told), age_s (how long
        ago), unreachable (why the state may be another one by now; null when it is the present
        one), stages
stage   stage, state, needs, reused_from ("run/stage" whose outputs stand in for this one's), counts
        (jobs of the latest attempt by state), s_per_epoch, eta_s, last_sign (when anything was last
        heard of it), jobs, and of the job that needs the user most: job (cluster.proc), id
        (schedd#cluster.proc), attempt, starts, host, epoch, epochs, metrics, elapsed_s, ended_with,
        hold, sent_back (times in a row that its nodes gave it back with an error, cause, mend),
        checkpoint
job     job, id, cluster, proc, attempt, state, submitted, started (the latest start), starts,
        finished, host, cpus, gpus, usage, exit_code, signal, ended_with, hold, progress (epoch,
        epochs, metrics, time), checkpoints (path, epoch, bytes, sha256, place), machine,
        states (state, time, detail)

Stages come in the order of the run, jobs by attempt and process. Times are Unix seconds, durations
seconds; what is not known is null.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import object_session, selectinload

from condorctl.condor import holds, starts
from condorctl.ledger import (
    Checkpoint,
    Job,
    Run,
    Stage,
    executions,
    job_states,
    progress,
    stage_states,
)
from condorctl.view import cost

Json = dict[str, Any]

# What stage.sh and the shell in it mean by these; above 128 they report a signal.
_EXIT_CODES = {
    74: "an output was not written",
    126: "the command cannot be executed",
    127: "the command was not found",
}
# Of several jobs, the one in the first of these states is the one to show.
_NEEDS_USER = (
    "held", "failed", "unknown", "removed", "disconnected", "suspended", "running", "idle",
    "completed",
)  # fmt: skip
_MOVES = {"idle", "running", "suspended", "disconnected", "ready", "retrying"}


def describe(run: Run, unreachable: str | None = None) -> Json:
    """The run and its stages as plain data, as the module says.

    `unreachable` tells why the schedd could not be asked just now.
    """
    _load(run)
    now = time.time()
    unreachable = None if run.finished else unreachable
    as_of = run.finished or run.seen
    known_until = run.finished or (as_of if unreachable and as_of else now)
    states = stage_states.of(run)
    stages = [_stage(stage, states[stage.name], known_until) for stage in run.stages]
    return {
        **heading(run),
        "dag": _full_id(run.schedd, run.cluster) if run.cluster is not None else None,
        "earlier": [_full_id(run.schedd, number) for number in run.earlier],
        "folder": run.folder,
        "params": run.params,
        "submitted": run.submitted,
        "finished": run.finished,
        "elapsed_s": round(known_until - run.submitted, 1),
        "exit_code": run.exit_code,
        "problem": run.problem,
        "as_of": as_of,
        "age_s": round(max(0.0, now - as_of), 1) if as_of and not run.finished else None,
        "unreachable": unreachable,
        "counts": dict(Counter(states.values())),
        "eta_s": _eta_of_all(stages),
        "cost": cost.of_run(run, known_until).as_json(),
        "stages": stages,
    }


def heading(run: Run) -> Json:
    """What every listing says of a run first."""
    return {
        "run": run.name,
        "kind": run.kind,
        "pipeline": run.pipeline,
        "owner": run.owner,
        "schedd": run.schedd,
        "state": run.state,
    }


def doubt(run: Run, unreachable: str | None, since: float) -> str | None:
    """Why the state of `run` may be another one by now, after a reading that began at `since`.

    None when its schedd has just told, and for a run that has ended.
    """
    if run.finished or (run.seen is not None and run.seen >= since):
        return None
    other = f"schedd {run.schedd} of {run.owner}, on {run.host}, was not asked from here"
    return unreachable or other


def reused_from(stage: Stage) -> str | None:
    """``run/stage`` whose outputs stand in for those of `stage`."""
    of = stage.origin
    return f"{of.run.name}/{of.name}" if of is not stage else None


def is_stuck(view: Json) -> bool:
    """Whether nothing will move again before somebody releases a held job."""
    if view["state"] == "held":
        return True
    states = {stage["state"] for stage in view["stages"]}
    states |= {state for stage in view["stages"] for state in stage["counts"]}
    return "held" in states and not states & _MOVES


def troubles(view: Json) -> list[str]:
    """One line for each stage, or the run itself, that needs its user."""
    lines = []
    if view["problem"]:
        lines.append(f"{view['run']}: DAGMan is {view['state']}: {view['problem']}")
    for stage in view["stages"]:
        hold, name = stage["hold"], f"{stage['stage']} ({stage['job']})"
        if (count := stage["counts"].get("held" if hold else "failed", 0)) > 1:
            name = f"{stage['stage']} ({stage['job']} and {count - 1} more)"
        if hold:
            lines.append(
                f"{name} is held: {hold['cause']}; {hold['mend']}. HTCondor says: {hold['reason']}"
            )
        elif (back := stage["sent_back"]) and back["times"] >= executions.OFTEN:
            lines.append(
                f"{name} was sent back {back['times']} times in a row: {back['cause']}; "
                f"`condorctl explain {stage['job']}`"
            )
        elif stage["state"] == "failed" and stage["job"] and stage["ended_with"]:
            lines.append(
                f"{name} failed with {stage['ended_with']}; "
                f"`condorctl fetch {stage['job']}` brings its output"
            )
    return lines


def _load(run: Run) -> None:
    """Read what `describe` needs in a few queries, not in some for each of a sweep's stages."""
    session = object_session(run)
    if session:
        jobs = selectinload(Stage.jobs)
        query = select(Stage).where(Stage.run_id == run.id)
        session.scalars(
            query.options(jobs.selectinload(Job.states), jobs.selectinload(Job.checkpoints))
        ).all()


def _stage(stage: Stage, state: str, now: float) -> Json:
    current = stage.origin.current
    job = min(current, key=lambda job: (_NEEDS_USER.index(job.state), job.proc), default=None)
    told = (job.progress if job else None) or {}
    signs = [sign for one in current for sign in _signs(one)]
    return {
        "stage": stage.name,
        "state": state,
        "needs": stage.needs,
        "reused_from": reused_from(stage),
        "counts": dict(Counter(one.state for one in current)),
        "job": job.number if job else None,
        "id": job.id_text if job else None,
        "attempt": job.attempt if job else None,
        "starts": job.starts if job else 0,
        "host": job.host if job else None,
        "epoch": told.get("epoch"),
        "epochs": told.get("epochs"),
        "metrics": _metrics(told),
        "s_per_epoch": progress.seconds_per_epoch(job) if job else None,
        "eta_s": _eta(current, now),
        "elapsed_s": _elapsed(job, now) if job else None,
        "last_sign": max(signs, default=None),
        "ended_with": _ended_with(job) if job else None,
        "hold": _hold(job) if job and job.state == "held" else None,
        "sent_back": _sent_back(job, now) if job else None,
        "checkpoint": _checkpoint(job.checkpoints[-1]) if job and job.checkpoints else None,
        "jobs": [_job(one) for one in stage.jobs],
    }


def _job(job: Job) -> Json:
    told = job.progress
    keys = ("epoch", "epochs", "time")
    return {
        "job": job.number,
        "id": job.id_text,
        "cluster": job.cluster,
        "proc": job.proc,
        "attempt": job.attempt,
        "state": job.state,
        "submitted": job.submitted,
        "started": job.started,
        "starts": job.starts,
        "finished": job.finished,
        "host": job.host,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "usage": job.usage or {},
        "exit_code": job.exit_code,
        "signal": job.signal,
        "ended_with": _ended_with(job),
        "hold": _hold(job) if job.state == "held" else None,
        "progress": {key: told.get(key) for key in keys} | {"metrics": _metrics(told)}
        if told
        else None,
        "checkpoints": [_checkpoint(one) for one in job.checkpoints],
        "machine": job.machine or {},
        "states": [{"state": s.state, "time": s.time, "detail": s.detail} for s in job.states],
    }


def _metrics(told: Json) -> Json:
    metrics = told.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _checkpoint(checkpoint: Checkpoint) -> Json:
    return {
        "path": checkpoint.path,
        "epoch": checkpoint.epoch,
        "bytes": checkpoint.bytes,
        "sha256": checkpoint.sha256,
        "place": checkpoint.place,
    }


def _signs(job: Job) -> Iterable[float]:
    """When it was heard of."""
    yield job.states[-1].time if job.states else job.submitted
    if job.progress and job.progress.get("time"):
        yield job.progress["time"]


def _eta(jobs: Sequence[Job], now: float) -> float | None:
    """When the last of the jobs will have ended; None while one of them cannot tell."""
    return _latest(progress.eta_s(job, now) for job in jobs if job.state != "completed")


def _eta_of_all(stages: Sequence[Json]) -> float | None:
    return _latest(stage["eta_s"] for stage in stages if stage["state"] != "done")


def _latest(etas: Iterable[float | None]) -> float | None:
    found = list(etas)
    known = [eta for eta in found if eta is not None]
    return round(max(known), 1) if known and len(known) == len(found) else None


def _elapsed(job: Job, now: float) -> float | None:
    if job.started is None:
        return None
    end = job.finished or (now if job.state in job_states.ON_NODE else None)
    return round(max(0.0, end - job.started), 1) if end else None


def _ended_with(job: Job) -> str | None:
    if job.signal is not None:
        return f"signal {job.signal}"
    code = job.exit_code
    if code is None:
        return None
    meaning = _EXIT_CODES.get(code) or (f"signal {code - 128}" if 128 < code < 193 else "")
    return f"exit code {code}{f': {meaning}' if meaning else ''}"


def _hold(job: Job) -> Json:
    hold = holds.explain(job.hold_code, job.hold_subcode, job.number)
    return {
        "code": job.hold_code,
        "subcode": job.hold_subcode,
        "cause": hold.cause,
        "mend": hold.mend,
        "reason": job.hold_reason or "",
    }


def _sent_back(job: Job, now: float) -> Json | None:
    times, reason = executions.given_back(job, now)
    if not times:
        return None
    cause, mend = starts.explain(reason)
    return {"times": times, "cause": cause, "mend": mend}


def _full_id(schedd: str, cluster: int) -> str:
    return f"{schedd}#{cluster}.0"
