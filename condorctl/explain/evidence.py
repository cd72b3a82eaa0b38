"""What shows why a job is as it is: the lines of its event logs, and where its output is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from condorctl.explain import traces
from condorctl.explain.traces import Line, Peak
from condorctl.ledger import Job


def event(job: Job, kinds: Collection[int]) -> tuple[int, list[Line]] | None:
    """Number and lines of the job's last event of these kinds; None where no log has one."""
    return traces.event(_logs(job), job.cluster, job.proc, kinds)


def memory(job: Job) -> Peak:
    """The most memory that its event logs tell of."""
    return traces.memory(_logs(job), job.cluster, job.proc)


def _logs(job: Job) -> list[Path]:
    """The event logs that may tell of the job, the one with the most to tell first."""
    run = job.stage.run
    wanted = [Path(job.log) if job.log else None, job.stage.folder / "events.log"]
    if run.dag_file:
        wanted += [Path(f"{run.dag_file}.nodes.log")]
        wanted += [Path(f"{run.dag_file}.nodes.log.{number}") for number in run.earlier]
    return list(dict.fromkeys(path for path in wanted if path))


def output(job: Job, told: str | None, kind: str) -> Path:
    """Where what the job wrote is: `kind` is out or err, `told` what the submit file says of it."""
    path = Path(told) if told else job.stage.folder / f"{job.cluster}.{kind}"
    return path if path.is_absolute() else job.folder / path


def lines(seen: tuple[int, list[Line]] | None, most: int = 3) -> list[dict[str, Any]]:
    """The first lines of what `traces.event` has found, as evidence."""
    return [line.as_json() for line in seen[1][:most]] if seen else []
