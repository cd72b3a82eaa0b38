"""What runs took: CPU- and GPU-hours, by what became of them.

An hour is an hour of one core (one GPU) that HTCondor kept for a job, used or not: the seconds of
an *execution*, from the job's start on a machine to its leaving it (`executions`), times the cores
and GPUs of its slot. Sending files before the start is not in it. Each second is of one kind:

useful      the execution ended with exit code 0, and DAGMan did not judge otherwise.
repeated    it ended in an eviction, or was lost with its machine: its work is done again.
wasted      it ended in a failure, a removal or a hold (a failed transfer of files is one), or in an
            eviction after which the job was removed.
open        it has not ended, so nobody knows yet.
suspended   the job sat in its slot and was not let run.

Where a later start of a stage's job, or of its retry, went on from epoch e > 1 instead of from the
first one, the executions before it are split: what they did up to epoch e - 1 has the kind of the
last execution (open, while it waits to start again), the rest is as above. Between the epochs that
are known the time is interpolated; where none are, it is taken from the pace of the later start.

An execution whose end nobody saw (the machine never answered again) ends with the last contact.
Cores and GPUs are those that the slot had, else those that the submit file asks for, else 1 and 0.
A stage that stands in for another run's (`Stage.source`) costs nothing; it saved the useful hours
of that one.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from condorctl.ledger import Job, Run, Stage, executions
from condorctl.ledger.executions import Execution

Json = dict[str, Any]

KINDS = ("useful", "repeated", "wasted", "open", "suspended")
_KIND_BY_ENDING = {
    "completed": "useful", "evicted": "repeated", "lost": "repeated", "failed": "wasted",
    "removed": "wasted", "held": "wasted", "running": "open",
}  # fmt: skip
_REQUEST = r"(?im)^\s*request_{}\s*=\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$"
_MB = {"": 1.0, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024}
_HOUR_S = 3600.0


@dataclass
class Cost:
    """Sums over jobs. Seconds; those of `cpu_s` and `gpu_s` by kind, times cores or GPUs."""

    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    gpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    saved_cpu_s: float = 0.0
    saved_gpu_s: float = 0.0
    first_start: float | None = None
    last_end: float | None = None
    on_machines_s: float = 0.0
    queue_s: float = 0.0
    held_s: float = 0.0
    # Of the jobs whose use is known: what they used, and what they had.
    used_cpu_s: float = 0.0
    used_of_cpu_s: float = 0.0
    used_gpu_s: float = 0.0
    used_of_gpu_s: float = 0.0
    gpu_memory_peak_mb: float | None = None
    memory_peak_mb: float | None = None
    memory_request_mb: float | None = None

    def add(self, other: Cost) -> None:
        """Add what `other` took; the spans of time are joined, not added."""
        for kind in KINDS:
            self.cpu_s[kind] += other.cpu_s[kind]
            self.gpu_s[kind] += other.gpu_s[kind]
        for name in (
            "saved_cpu_s", "saved_gpu_s", "on_machines_s", "queue_s", "held_s", "used_cpu_s",
            "used_of_cpu_s", "used_gpu_s", "used_of_gpu_s",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_start = _known(min, self.first_start, other.first_start)
        self.last_end = _known(max, self.last_end, other.last_end)
        self.memory_peak_mb = _known(max, self.memory_peak_mb, other.memory_peak_mb)
        self.gpu_memory_peak_mb = _known(max, self.gpu_memory_peak_mb, other.gpu_memory_peak_mb)
        self.memory_request_mb = _known(max, self.memory_request_mb, other.memory_request_mb)

    def as_json(self) -> Json:
        """Hours and seconds as `condorctl cost --json` prints them; null where nothing is known.

        `wall_s` is the time from the first start to the last end, `on_machines_s` the sum over all
        executions, `queue_s` and `held_s` the sums over all jobs of their time in these states.
        `cpu_efficiency` is the CPU time that the ended jobs used, by that which they had;
        `gpu_efficiency` is how much of their time GPUs were busy in the jobs that tell it,
        `gpu_memory_peak_mb` the most memory that one of them had in use.
        """
        wall = None
        if self.first_start is not None and self.last_end is not None:
            wall = round(self.last_end - self.first_start, 1)
        used = self.used_cpu_s / self.used_of_cpu_s if self.used_of_cpu_s else None
        busy = self.used_gpu_s / self.used_of_gpu_s if self.used_of_gpu_s else None
        return {
            "cpu_h": _hours(self.cpu_s),
            "gpu_h": _hours(self.gpu_s),
            "saved": {
                "cpu_h": _round(self.saved_cpu_s / _HOUR_S),
                "gpu_h": _round(self.saved_gpu_s / _HOUR_S),
            },
            "wall_s": wall,
            "on_machines_s": round(self.on_machines_s, 1),
            "queue_s": round(self.queue_s, 1),
            "held_s": round(self.held_s, 1),
            "cpu_efficiency": None if used is None else round(used, 4),
            "gpu_efficiency": None if busy is None else round(busy, 4),
            "gpu_memory_peak_mb": self.gpu_memory_peak_mb,
            "memory_peak_mb": self.memory_peak_mb,
            "memory_request_mb": self.memory_request_mb,
        }


@dataclass(frozen=True)
class _Part:
    """An execution of `job`, its kind, and between which epochs it went, if it told."""

    job: Job
    execution: Execution
    kind: str
    span: Json | None


def of_run(run: Run, now: float | None = None) -> Cost:
    """The sum over the stages of `run`; `now` is as in `of_stage`."""
    return total(of_stage(stage, now) for stage in run.stages)


def of_stage(stage: Stage, now: float | None = None) -> Cost:
    """What the jobs of `stage` took up to `now`, the moment for which their states are known."""
    now = stage.run.finished or now or time.time()
    if stage.source:
        of = of_stage(stage.origin, now)
        return Cost(saved_cpu_s=of.cpu_s["useful"], saved_gpu_s=of.gpu_s["useful"])
    request = _request(stage.folder / "stage.sub")
    found = Cost(memory_request_mb=request.get("memory"))
    processes: dict[int, list[Job]] = defaultdict(list)
    for job in stage.jobs:
        processes[job.proc].append(job)
    last = max((job.attempt for job in stage.jobs), default=0)
    for jobs in processes.values():
        chain = [
            _verdict(stage, job, last, execution)
            for job in jobs
            for execution in executions.of(job, now)
        ]
        _add_process(found, jobs, chain, request, now)
    return found


def total(costs: Iterable[Cost]) -> Cost:
    """Their sum."""
    found = Cost()
    for one in costs:
        found.add(one)
    return found


def _verdict(stage: Stage, job: Job, last: int, execution: Execution) -> _Part:
    """The execution and its kind: what DAGMan makes of a job stands above its exit code."""
    kind = _KIND_BY_ENDING[execution.ending]
    if execution.ending in {"completed", "failed"}:
        if job.attempt < last or stage.outcome == "failed":
            kind = "wasted"
        elif stage.outcome == "done":
            kind = "useful"
    return _Part(job, execution, kind, _span(job, execution))


def _add_process(
    found: Cost, jobs: Sequence[Job], chain: Sequence[_Part], request: dict[str, float], now: float
) -> None:
    """Add the attempts of one process, in their order: a later one may go on from an earlier."""
    for part, kinds in zip(chain, _kinds(chain), strict=True):
        execution, (cpus, gpus) = part.execution, _slot(part.job, request)
        for kind, seconds in kinds.items():
            found.cpu_s[kind] += seconds * cpus
            found.gpu_s[kind] += seconds * gpus
        found.on_machines_s += execution.end - execution.start
        found.first_start = _known(min, found.first_start, execution.start)
        found.last_end = _known(max, found.last_end, execution.end)
    for job in jobs:
        found.queue_s += executions.waited(job, "idle", now)
        found.held_s += executions.waited(job, "held", now)
        used, had = (job.usage or {}).get("cpu_s"), executions.of(job, now)
        if isinstance(used, int | float) and job.finished and had:
            found.used_cpu_s += used
            found.used_of_cpu_s += sum(e.end - e.start for e in had) * _slot(job, request)[0]
        busy = (job.usage or {}).get("gpu_busy")
        if isinstance(busy, int | float) and job.finished and had:
            # It is told of the last time on a machine alone.
            gpu_s = (had[-1].end - had[-1].start) * _slot(job, request)[1]
            found.used_gpu_s += busy * gpu_s
            found.used_of_gpu_s += gpu_s
        if isinstance(peak := (job.usage or {}).get("gpu_memory_mb"), int | float):
            found.gpu_memory_peak_mb = _known(max, found.gpu_memory_peak_mb, float(peak))
        memory = (job.usage or {}).get("memory_mb")
        if isinstance(memory, int | float):
            found.memory_peak_mb = _known(max, found.memory_peak_mb, float(memory))


def _kinds(chain: Sequence[_Part]) -> list[dict[str, float]]:
    """The seconds of each execution of one process by kind."""
    result: list[dict[str, float]] = []
    done = 0
    for index, part in enumerate(chain):
        seconds = dict.fromkeys(KINDS, 0.0)
        # What no later start did again, counted in epochs.
        later = [other.span for other in chain[index + 1 :] if other.span]
        kept = min((span["first"] for span in later), default=1) - 1
        kept_s = 0.0
        if kept > done:
            kept_s, done = _time_of(part, later[0], done, kept)
        fate = "open" if chain[-1].kind == "repeated" else chain[-1].kind
        seconds[fate] += kept_s
        seconds[part.kind] += part.execution.seconds - kept_s
        seconds["suspended"] = part.execution.suspended_s
        result.append(seconds)
    return result


def _time_of(part: _Part, later: Json, done: int, kept: int) -> tuple[float, int]:
    """How long the execution took for what is kept of it; and the epochs that are done then."""
    execution, span = part.execution, part.span
    if span is None:
        epochs, seconds = later["last"] - later["first"], later["last_time"] - later["first_time"]
        known = seconds / epochs * (kept - done) if epochs > 0 else 0.0
        return min(execution.seconds, max(0.0, known)), kept
    reached = min(kept, span["last"])
    if reached < span["first"]:
        return 0.0, done
    epochs, seconds = span["last"] - span["first"], span["last_time"] - span["first_time"]
    share = (reached - span["first"]) / epochs if epochs > 0 else 0.0
    return execution.computed_until(span["first_time"] + share * seconds), reached


def _span(job: Job, execution: Execution) -> Json | None:
    spans = (job.progress or {}).get("starts", ())
    return next((span for span in spans if span["start"] == execution.number), None)


def _slot(job: Job, request: dict[str, float]) -> tuple[float, float]:
    """The cores and GPUs of the job's slot."""
    cpus = job.cpus if job.cpus is not None else request.get("cpus", 1.0)
    gpus = job.gpus if job.gpus is not None else request.get("gpus", 0.0)
    return float(cpus), float(gpus)


@cache
def _request(submit_file: Path) -> dict[str, float]:
    """Cores, GPUs and memory in MB that the submit file asks for by plain numbers."""
    try:
        text = submit_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for name in ("cpus", "gpus", "memory"):
        if matches := re.findall(_REQUEST.format(name), text):
            value, unit = matches[-1]
            found[name] = float(value) * (_MB[unit.lower()] if name == "memory" else 1.0)
    return found


def _hours(seconds: dict[str, float]) -> Json:
    hours = {kind: _round(value / _HOUR_S) for kind, value in seconds.items()}
    return {**hours, "total": _round(sum(seconds.values()) / _HOUR_S)}


def _round(hours: float) -> float:
    return round(hours, 6)


def _known(choose: Any, *values: float | None) -> float | None:
    """The least or greatest of the values that there are."""
    return choose((value for value in values if value is not None), default=None)  # type: ignore[no-any-return]
