"""The state of a stage: that of its jobs, as DAGMan judges them.

To the states of jobs (`job_states`) come: "done"; "waiting", for stages that it needs, and "ready",
when it needs none any more; "retrying", between two attempts; "not run", when it never will.
"""

from __future__ import annotations

from collections.abc import Sequence

from condorctl.ledger import Job, Run, Stage, job_states

# Of several jobs, the first of these that one of them is in is the state of all.
_STATES = (
    "held", "running", "disconnected", "suspended", "idle", "unknown", "failed", "removed",
    "completed",
)  # fmt: skip


def of(run: Run) -> dict[str, str]:
    """The state of each stage by its name."""
    states: dict[str, str] = {}
    for stage in run.stages:
        needs = [states.get(need, "waiting") for need in stage.needs]
        states[stage.name] = _state(run, stage, needs)
    return states


def _state(run: Run, stage: Stage, needs: Sequence[str]) -> str:
    if stage.source:
        return "done"
    jobs = stage.current
    if not run.finished and all(_ended_before(job, run.resumed) for job in jobs):
        jobs = []  # DAGMan will run it again
    state = min((job.state for job in jobs), key=_STATES.index, default=None)
    if stage.outcome and state not in job_states.OPEN:
        return stage.outcome
    if state is None:
        if run.finished or any(need in {"failed", "removed", "not run"} for need in needs):
            return "not run"
        return "ready" if all(need == "done" for need in needs) else "waiting"
    if state == "completed":
        return "done"
    if state in job_states.OPEN or run.finished:
        return state
    final = any(job.exit_code in stage.final_exit_codes for job in jobs)
    attempts = {job.attempt for job in stage.jobs if not _ended_before(job, run.resumed)}
    return state if final or len(attempts) > stage.retries else "retrying"


def _ended_before(job: Job, resumed: float | None) -> bool:
    """Whether it had come to nothing before its run was resumed."""
    return bool(resumed and job.finished and job.finished <= resumed and job.state != "completed")
