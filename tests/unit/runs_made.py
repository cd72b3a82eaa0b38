"""Runs made up from states and moments, without a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condorctl.ledger import Job, JobState, Run, Stage, job_states


def job(*states: tuple[str, float], cluster: int = 1, attempt: int = 1, **values: Any) -> Job:
    """A job that entered these states at these moments, in seconds."""
    running = [time for state, time in states if state == "running"]
    ended = [time for state, time in states if state in job_states.ENDED]
    known: dict[str, Any] = {
        "schedd": "s", "cluster": cluster, "proc": 0, "attempt": attempt, "state": states[-1][0],
        "submitted": states[0][1], "started": running[-1] if running else None,
        "starts": len(running), "finished": ended[-1] if ended else None, "usage": {},
        "machine": {}, "host": "slot1_1@node.site.org" if running else None, "cpus": 1, "gpus": 0,
        "exit_code": {"completed": 0, "failed": 1}.get(states[-1][0]),
    }  # fmt: skip
    return Job(
        **{**known, **values},
        states=[JobState(state=state, time=time, detail="") for state, time in states],
    )


def a_run(name: str, folder: Path = Path("/nowhere"), owner: str = "someone") -> Run:
    """One that a ledger takes, of a single stage."""
    return Run(
        name=name, pipeline="p", folder=str(folder), dag_file=str(folder / "p.dag"), params={},
        owner=owner, schedd="s", submitted=1.0, stages=[Stage(name="one", position=0, needs=[])],
    )  # fmt: skip


def stage(name: str, *jobs: Job, **values: Any) -> Stage:
    known: dict[str, Any] = {"position": 0, "needs": [], "retries": 0, "final_exit_codes": []}
    return Stage(name=name, jobs=list(jobs), **{**known, **values})


def run(*stages: Stage, folder: Path = Path("/nowhere"), **values: Any) -> Run:
    known: dict[str, Any] = {
        "name": "p-1", "kind": "pipeline", "pipeline": "p", "owner": "me", "schedd": "s",
        "params": {}, "provenance": {}, "submitted": 0.0, "cluster": 9,
        "earlier": [], "state": "running",
    }  # fmt: skip
    return Run(folder=str(folder), stages=list(stages), **{**known, **values})


def progress(epochs: int, *starts: tuple[int, int, float, int, float]) -> dict[str, Any]:
    """What `Job.progress` holds: start, first epoch and its time, last epoch and its time."""
    keys = ("start", "first", "first_time", "last", "last_time")
    return {
        "epoch": starts[-1][3], "epochs": epochs, "metrics": {"loss": 0.5}, "time": starts[-1][4],
        "starts": [dict(zip(keys, start, strict=True)) for start in starts],
    }  # fmt: skip
