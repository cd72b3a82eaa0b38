"""Many runs at a glance: the ledger's runs, what a schedd has to do, what it all took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from condorctl.ledger import gpus
from condorctl.units import age, duration, size
from condorctl.view.cost import KINDS
from condorctl.view.screen import COLOURS, plain_grid, text

Json = dict[str, Any]

# More than these do not fit on a screen: those of a sweep are shown as one.
_MOST_STAGES = 40


def runs(overview: Json) -> Table:
    """The runs of `overview.runs` as a table, newest first."""
    several = len({run["owner"] for run in overview["runs"]}) > 1
    grid = plain_grid()
    owner = ["owner"] if several else []
    for name in ("run", *owner, "pipeline", "state", "stages", "running", "held", "age", "CPU h",
                 "GPU h"):  # fmt: skip
        right = name in {"stages", "running", "held", "age", "CPU h", "GPU h"}
        grid.add_column(name, justify="right" if right else "left", no_wrap=True)
    for run in overview["runs"]:
        jobs = run["jobs"]
        state = run["state"] + ("?" if run["unreachable"] else "")
        grid.add_row(
            text(run["run"]),
            *([text(run["owner"])] if several else []),
            text(run["pipeline"] if run["kind"] == "pipeline" else run["kind"]),
            Text(state, style=COLOURS.get(run["state"], "dim")),
            f"{run['stages']['done']}/{run['stages']['total']}",
            str(jobs.get("running", "")),
            Text(str(jobs.get("held", "")), style="bold red"),
            age(run["age_s"]),
            f"{run['cost']['cpu_h']['total']:.2f}",
            f"{run['cost']['gpu_h']['total']:.2f}",
        )
    return grid


def work(queue: Json) -> Table:
    """What is on a schedd (`overview.users`) as a table."""
    grid = plain_grid()
    for name in ("user", "job", "batch", "state", "nodes", "running", "idle", "held", "age", "run"):
        right = name in {"nodes", "running", "idle", "held", "age"}
        grid.add_column(name, justify="right" if right else "left", no_wrap=name != "batch")
    for one in queue["work"]:
        nodes = one["nodes"]
        grid.add_row(
            text(one["user"]),
            one["job"].partition("#")[2],
            text(one["batch"] or ""),
            Text(one["state"], style=COLOURS.get(one["state"], "dim")),
            f"{nodes['done']}/{nodes['total']}" if nodes and nodes["total"] is not None else "",
            *(str(one["jobs"].get(state, "")) for state in ("running", "idle", "held")),
            age(one["age_s"]),
            text(one["run"] or ""),
        )
    return grid


def checkpoints(found: Json) -> Table:
    """What `api.checkpoints` returns as a table; `>` marks the newest of a stage."""
    grid = plain_grid()
    for name in ("", "stage", "job", "epoch", "size", "sha256", "path", "place"):
        right = name in {"epoch", "size"}
        grid.add_column(name, justify="right" if right else "left", no_wrap=name != "place")
    for one in found["checkpoints"]:
        grid.add_row(
            ">" if one["newest"] else "",
            text(one["stage"]),
            text(one["job"] or ""),
            str(one["epoch"]),
            size(one["bytes"]),
            text(one["sha256"][:12]),
            text(one["path"]),
            text(", ".join(one["places"])),
        )
    return grid


def costs(found: Json) -> list[RenderableType]:
    """What `api.cost` returns, as tables: the stages of one run, or the runs and their owners."""
    parts: list[RenderableType] = []
    alone = found["runs"][0] if len(found["runs"]) == 1 else None
    if alone:
        folded = len(alone["stages"]) > _MOST_STAGES
        rows = [(_stage_label(stage), stage) for stage in alone["stages"]]
        if folded:
            rows = [(group["group"], group) for group in alone["groups"]]
        parts.append(_cost_grid("stage", [*rows, (alone["run"], alone)]))
    else:
        rows = [(run["run"], run) for run in found["runs"]]
        parts.append(_cost_grid("run", [*rows, ("total", found["total"])]))
        if len(found["users"]) > 1:
            parts += ["", _cost_grid("owner", list(found["users"].items()))]
    note = _cost_note(found["total"])
    if alone and folded:
        note += "; --json has each stage"
    parts.append(Text(note, style="dim"))
    for label, row in [(s["stage"], s) for s in alone["stages"]] if alone else []:
        if hint := gpus.hint({"gpu_busy": row["gpu_efficiency"]}):
            parts.append(Text(f"{label}: {hint}", style="yellow"))
    return parts


def _cost_grid(first: str, rows: Sequence[tuple[str, Json]]) -> Table:
    with_gpus = any(row["gpu_h"]["total"] or row["saved"]["gpu_h"] for _, row in rows)
    kinds = [k for k in KINDS if k == "useful" or any(
        row[unit][k] for _, row in rows for unit in ("cpu_h", "gpu_h"))]  # fmt: skip
    units = [("cpu_h", "CPU h"), ("gpu_h", "GPU h")] if with_gpus else [("cpu_h", "CPU h")]
    grid = plain_grid()
    grid.add_column(first, no_wrap=True)
    for _, unit in units:
        for heading in [unit, *kinds]:
            grid.add_column(heading, justify="right")
    use = ["CPU used", "GPU used"] if with_gpus else ["CPU used"]
    for heading in ("saved", "wall", "summed", "queue", *use, "memory"):
        grid.add_column(heading, justify="right")
    for label, row in rows:
        saved = row["saved"]["gpu_h" if with_gpus else "cpu_h"]
        peak, request = row["memory_peak_mb"], row["memory_request_mb"]
        used = [row["cpu_efficiency"], row["gpu_efficiency"]][: len(use)]
        grid.add_row(
            text(label),
            *(_hours(row[key][kind]) for key, _ in units for kind in ("total", *kinds)),
            _hours(saved) if saved else "",
            "" if row["wall_s"] is None else duration(row["wall_s"]),
            duration(row["on_machines_s"]),
            duration(row["queue_s"]),
            *("" if share is None else f"{100 * share:.0f} %" for share in used),
            "" if peak is None else f"{peak:.0f}{f'/{request:.0f}' if request else ''} MB",
        )
    return grid


def _cost_note(total: Json) -> str:
    note = "hours of allocated cores and GPUs; wall: first start to last end"
    if total["saved"]["cpu_h"]:
        note += "; saved: useful hours of the stages that were reused"
    return note


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 1 or not hours else f"{hours:.4f}"


def _stage_label(stage: Json) -> str:
    source = stage["reused_from"]
    return f"{stage['stage']} (from {source})" if source else str(stage["stage"])
