"""The metrics of every epoch, of several stages, sweeps and runs, as one table.

Of an epoch that was done again, after an eviction or in a retry, the later figures count. Of a job
that still runs only the epoch it last told is known; the others come with its ``metrics.jsonl``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.ledger import Job, Ledger, Metric, Run, events, find
from condorctl.view import results

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One epoch of one job; `time` in Unix seconds of its node, None where it was not told."""

    run: str
    params: Json
    stage: str
    job: str
    attempt: int
    epoch: int
    time: float | None
    values: dict[str, float | None]


@dataclass(frozen=True)
class Metrics:
    """Rows in the order of the runs, their stages and epochs, and the runs they are of."""

    runs: list[Json]
    rows: list[Row]

    @property
    def names(self) -> str:
        return ", ".join(run["run"] for run in self.runs)

    @property
    def columns(self) -> list[str]:
        """The metrics, in the order they were first told."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def params(self) -> list[str]:
        """The parameters that tell the runs apart, less those that are called as a metric."""
        return [name for name in results.differing(self.runs) if name not in self.columns]


def load(ledger: Ledger, names: Sequence[str]) -> Metrics:
    """The metrics of the runs called `names`, of the latest one if there is no name.

    Raises UserError when there is no such run.
    """
    events.sync(ledger)
    with ledger.session() as session:
        return from_ledger(session, names)


def from_ledger(session: Session, names: Sequence[str]) -> Metrics:
    """The same from the ledger as it is. Raises UserError as `load`."""
    runs = [find.run(session, name) for name in dict.fromkeys(names) or [None]]
    return Metrics(
        [{"run": run.name, "pipeline": run.pipeline, "params": run.params} for run in runs],
        [row for run in runs for row in _rows(session, run)],
    )


def as_json(metrics: Metrics) -> Json:
    """What ``--json`` prints: the runs, and a row an epoch."""
    keys = ("run", "stage", "job", "attempt", "epoch", "time")
    return {
        "runs": metrics.runs,
        "differing": metrics.params,
        "metrics": [
            {**{key: getattr(row, key) for key in keys}, "values": row.values}
            for row in metrics.rows
        ],
    }


def _rows(session: Session, run: Run) -> Iterator[Row]:
    for stage in run.stages:
        told: dict[int, dict[int, Row]] = defaultdict(dict)
        for job in stage.origin.jobs:
            epochs = _epochs(session, job)
            rows = told[job.proc]
            for epoch in [epoch for epoch in rows if epoch >= min(epochs, default=epoch + 1)]:
                del rows[epoch]
            for epoch, (when, values) in epochs.items():
                rows[epoch] = Row(
                    run.name, run.params, stage.name, job.number, job.attempt, epoch, when, values
                )
        for proc in sorted(told):
            yield from (told[proc][epoch] for epoch in sorted(told[proc]))


def _epochs(session: Session, job: Job) -> dict[int, tuple[float | None, dict[str, float | None]]]:
    found: dict[int, tuple[float | None, dict[str, float | None]]] = {}
    for metric in session.scalars(
        select(Metric).where(Metric.job_id == job.id).order_by(Metric.epoch, Metric.id)
    ):
        found.setdefault(metric.epoch, (metric.time, {}))[1][metric.name] = metric.value
    last = job.progress
    if last and last["metrics"] and last["epoch"] not in found:
        found[last["epoch"]] = (last.get("time"), last["metrics"])
    return found
