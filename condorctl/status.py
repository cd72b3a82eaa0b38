"""A run as its user sees it: one row per stage, from the ledger alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from condorctl import holds
from condorctl.errors import printable
from condorctl.ledger import Job, Run, Stage

Json = dict[str, Any]

_COLOURS = {
    "done": "green", "running": "cyan", "held": "bold red", "failed": "bold red",
    "removed": "red", "disconnected": "yellow", "suspended": "yellow", "retrying": "yellow",
}  # fmt: skip
# What stage.sh and the shell in it mean by these; above 128 they report a signal.
_EXIT_CODES = {
    74: "an output was not written",
    126: "the command cannot be executed",
    127: "the command was not found",
}
_OPEN = {"idle", "running", "held", "suspended", "disconnected"}


def describe(run: Run) -> Json:
    """The run and its stages as plain data: the ``--json`` output of ``status``.

    Times are Unix seconds, durations seconds; what is not known is null.
    """
    end = run.finished or time.time()
    states = _stage_states(run)
    return {
        "run": run.name,
        "pipeline": run.pipeline,
        "state": run.state,
        "dag": _full_id(run.schedd, f"{run.cluster}.0") if run.cluster is not None else None,
        "folder": run.folder,
        "params": run.params,
        "submitted": run.submitted,
        "finished": run.finished,
        "elapsed_s": round(end - run.submitted, 1),
        "exit_code": run.exit_code,
        "problem": run.problem,
        "stages": [_stage(stage, states[stage.name]) for stage in run.stages],
    }


def is_stuck(view: Json) -> bool:
    """Whether nothing will move again before somebody releases a held job."""
    states = {stage["state"] for stage in view["stages"]}
    if view["state"] == "held":
        return True
    return "held" in states and not states & {
        "idle",
        "running",
        "suspended",
        "disconnected",
        "ready",
        "retrying",
    }


def table(view: Json, console: Console) -> Table:
    """The run as a table for `console`, with as many metrics as fit; 80 characters are enough."""
    unbounded = console.options.update(max_width=10_000)
    for metrics, gap in ((3, 2), (2, 2), (1, 2), (1, 1), (0, 1)):
        grid = _grid(view, metrics, gap)
        if console.measure(grid, options=unbounded).maximum <= console.width:
            break
    return grid


def _grid(view: Json, metrics: int, gap: int) -> Table:
    title = f"{view['run']}  {view['state']}  {duration(view['elapsed_s'])}"
    if view["dag"]:
        title += f"  DAG job {view['dag'].partition('#')[2]}"
    grid = Table(
        title=title, title_justify="left", box=None, header_style="dim", padding=(0, gap, 0, 0)
    )
    for name in ("stage", "state", "job", "try", "host", "epoch", "metrics", "time", "checkpoint"):
        grid.add_column(
            name, justify="right" if name in {"try", "epoch", "time"} else "left", no_wrap=True
        )
    for stage in view["stages"]:
        checkpoint = stage["checkpoint"]
        grid.add_row(
            stage["stage"],
            Text(stage["state"], style=_COLOURS.get(stage["state"], "dim")),
            stage["job"] or "",
            str(stage["attempt"] or ""),
            escape(printable(_machine(stage["host"]))),
            "" if stage["epoch"] is None else f"{stage['epoch']}/{stage['epochs']}",
            escape(" ".join(_numbers(stage)[:metrics])),
            duration(stage["elapsed_s"]) if stage["elapsed_s"] is not None else "",
            f"{checkpoint['epoch']}, {size(checkpoint['bytes'])}" if checkpoint else "",
        )
    return grid


def troubles(view: Json) -> list[str]:
    """One line for each stage, or the run itself, that needs its user."""
    lines = []
    if view["problem"]:
        lines.append(f"{view['run']}: DAGMan is {view['state']}: {view['problem']}")
    for stage in view["stages"]:
        hold, name = stage["hold"], f"{stage['stage']} ({stage['job']})"
        if hold:
            lines.append(
                f"{name} is held: {hold['cause']}; {hold['mend']}. HTCondor says: {hold['reason']}"
            )
        elif stage["state"] == "failed" and stage["job"]:
            lines.append(
                f"{name} failed with {stage['ended_with']}; "
                f"`condorctl fetch {stage['job']}` brings its output"
            )
    return lines


def progress_text(stage: Json) -> str:
    """``epoch 3/10 loss=0.513``: what the job last said of itself."""
    if stage["epoch"] is None:
        return ""
    return " ".join([f"epoch {stage['epoch']}/{stage['epochs']}", *_numbers(stage)[:3]])


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(count: int) -> str:
    """Bytes in decimal units, as disk and network makers count."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _numbers(stage: Json) -> list[str]:
    metrics = stage["metrics"].items()
    return [f"{printable(k)}={v:.4g}" for k, v in metrics if isinstance(v, int | float)]


def _machine(host: str | None) -> str:
    """``node`` of ``slot1_1@node.site.org``; an address stays whole."""
    machine = (host or "").rpartition("@")[2]
    return machine.partition(".")[0] if "@" in (host or "") else machine


def _stage_states(run: Run) -> dict[str, str]:
    states: dict[str, str] = {}
    for stage in run.stages:
        states[stage.name] = _stage_state(run, stage, [states[need] for need in stage.needs])
    return states


def _stage_state(run: Run, stage: Stage, needs: Sequence[str]) -> str:
    if not stage.jobs:
        if run.finished or any(need in {"failed", "removed", "not run"} for need in needs):
            return "not run"
        return "ready" if all(need == "done" for need in needs) else "waiting"
    job = stage.jobs[-1]
    if job.state == "completed":
        return "done"
    if job.state in _OPEN or run.finished:
        return job.state
    final = job.exit_code in stage.final_exit_codes
    return job.state if final or job.attempt > stage.retries else "retrying"


def _stage(stage: Stage, state: str) -> Json:
    job = stage.jobs[-1] if stage.jobs else None
    row: Json = {"stage": stage.name, "state": state, "needs": stage.needs}
    progress = (job.progress if job else None) or {}
    metrics = progress.get("metrics")
    row |= {
        "job": job.number if job else None,
        "id": _full_id(job.schedd, job.number) if job else None,
        "attempt": job.attempt if job else None,
        "starts": job.starts if job else 0,
        "host": job.host if job else None,
        "epoch": progress.get("epoch"),
        "epochs": progress.get("epochs"),
        "metrics": metrics if isinstance(metrics, dict) else {},
        "elapsed_s": _elapsed(job) if job else None,
        "ended_with": _ended_with(job) if job else None,
        "hold": _hold(job) if job and job.state == "held" else None,
        "checkpoint": None,
    }
    if job and job.checkpoints:
        last = job.checkpoints[-1]
        row["checkpoint"] = {
            "path": last.path,
            "epoch": last.epoch,
            "bytes": last.bytes,
            "sha256": last.sha256,
            "place": last.place,
        }
    return row


def _elapsed(job: Job) -> float | None:
    if job.started is None:
        return None
    end = job.finished or (time.time() if job.state in _OPEN - {"idle", "held"} else None)
    return round(end - job.started, 1) if end else None


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


def _full_id(schedd: str, number: str) -> str:
    return f"{schedd}#{number}"
