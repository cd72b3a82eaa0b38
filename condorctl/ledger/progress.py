"""How far a job has come, start by start, and the pace that this gives.

`Job.progress` is what `job.progress` said last, and between which epochs each start of the job
went: {"epoch", "epochs", "metrics", "time", "starts": [{"start": 1, "first": 1, "first_time": ...,
"last": 4, "last_time": ...}]}. Times are Unix seconds of the execute node.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from condorctl.ledger import Job, executions

Json = dict[str, Any]


def parse(record: Json) -> Json | None:
    """Epoch, epochs, metrics and time of `record` where they are such, and nothing else of it."""
    epoch, epochs, metrics = (record.get(key) for key in ("epoch", "epochs", "metrics"))
    if not (is_count(epoch) and is_count(epochs) and isinstance(metrics, dict)):
        return None
    numbers = {
        name: number(value)
        for name, value in metrics.items()
        if value is None or number(value) is not None
    }
    return {
        "epoch": epoch,
        "epochs": epochs,
        "metrics": numbers,
        "time": number(record.get("time")),
    }


def heard(job: Job, record: Json) -> Json | None:
    """`Job.progress` after the running `job` has said `record`; None when that is no progress."""
    told = parse(record)
    if told is None:
        return None
    old = job.progress or {}
    if told["time"] is None:
        # A program that writes the attribute on its own; the moment is the one it was first seen.
        same = all(old.get(key) == told[key] for key in ("epoch", "epochs", "metrics"))
        told["time"] = old.get("time") if same else time.time()
    starts = [dict(span) for span in old.get("starts", ())]
    if not (starts and starts[-1]["last_time"] == told["time"]):
        # The attribute outlives an eviction: the new start has said nothing yet.
        points = [(told["epoch"], told["time"])]
        first = record.get("first")
        if isinstance(first, dict) and is_count(first.get("epoch")) and number(first.get("time")):
            points.append((first["epoch"], float(first["time"])))
        _extend(starts, _start(_begun(job), told["time"]), points)
    return {**told, "starts": starts}


def ended(job: Job, records: Iterable[Json]) -> Json | None:
    """`Job.progress` after `job` has ended and left `records`; as it was if they hold none."""
    told = [found for found in map(parse, records) if found]
    if not told:
        return job.progress
    begun = _begun(job)
    written: list[Json] = []
    for one in told:
        # What is older came with a checkpoint of an earlier attempt.
        if one["time"] is not None and not (begun and one["time"] < begun[0] <= told[-1]["time"]):
            _extend(written, _start(begun, one["time"]), [(one["epoch"], one["time"])])
    # What an evicted start wrote is lost where its files were not brought back.
    known = {span["start"] for span in written}
    kept = [span for span in (job.progress or {}).get("starts", ()) if span["start"] not in known]
    return {**told[-1], "starts": sorted([*kept, *written], key=lambda span: span["start"])}


def seconds_per_epoch(job: Job) -> float | None:
    """The mean over the epochs of the job's latest start; None until it has done two.

    The first one alone counts from the job's start on, when nothing better is known.
    """
    span = _span(job, job.starts)
    if not span:
        return None
    epochs, seconds = span["last"] - span["first"], span["last_time"] - span["first_time"]
    if epochs > 0 and seconds > 0:
        return float(seconds / epochs)
    waited: float = span["first_time"] - (job.started or span["first_time"])
    return waited if span["first"] == span["last"] == 1 and waited > 0 else None


def eta_s(job: Job, now: float) -> float | None:
    """Seconds until the running `job` has done its last epoch at its present pace."""
    pace, told = seconds_per_epoch(job), job.progress
    if pace is None or told is None or job.state != "running":
        return None
    # The node's clock may be another one: at most the epoch at hand is taken as passed.
    passed = min(max(0.0, now - told["time"]), pace) if told.get("time") else 0.0
    left: int = told["epochs"] - told["epoch"]
    return max(0.0, left * pace - passed)


def is_count(value: object) -> bool:
    """Whether it is a count that a database can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def number(value: object) -> float | None:
    """`value` as a finite float, None when it is no such thing."""
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _begun(job: Job) -> list[float]:
    return [execution.start for execution in executions.of(job, math.inf)]


def _start(begun: list[float], moment: float) -> int:
    """Which start of the job `moment` belongs to, from 1 on."""
    return max(1, sum(1 for start in begun if start <= moment))


def _span(job: Job, start: int) -> Json | None:
    spans = (job.progress or {}).get("starts", ())
    return next((span for span in spans if span["start"] == start), None)


def _extend(spans: list[Json], start: int, points: list[tuple[int, float]]) -> None:
    """Add what was done when, (epoch, time), to the span of that start."""
    if not spans or spans[-1]["start"] != start:
        epoch, when = points[0]
        spans.append(
            {"start": start, "first": epoch, "first_time": when, "last": epoch, "last_time": when}
        )
    span = spans[-1]
    for epoch, when in points:
        if when < span["first_time"]:
            span |= {"first": epoch, "first_time": when}
        if when >= span["last_time"]:
            span |= {"last": epoch, "last_time": when}
