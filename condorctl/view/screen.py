"""How a run is drawn: as a table of all its stages, or as one screen that shows what matters now.

A screen never has more lines than there is room for: what needs its user or runs has a line of its
own as long as there are any left, the rest is folded by name (``train-1-0.1``, ``train-2-0.1``:
``train``) into counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from condorctl.errors import printable
from condorctl.ledger import job_states
from condorctl.units import age, duration, size
from condorctl.view import sweeps
from condorctl.view.status import troubles

Json = dict[str, Any]

COLOURS = {
    "done": "green", "completed": "green", "running": "cyan", "held": "bold red",
    "failed": "bold red", "removed": "red", "disconnected": "yellow", "suspended": "yellow",
    "retrying": "yellow",
}  # fmt: skip
# Who gets a line of its own first; the counts stand in the same order.
_ORDER = (
    "held", "failed", "retrying", "disconnected", "suspended", "running", "idle", "removed",
    "ready", "done", "waiting", "not run",
)  # fmt: skip
_ALONE = {"held", "failed", "retrying", "disconnected", "suspended", "running"}
_MOST_TROUBLES = 3


def table(view: Json, console: Console) -> Table:
    """The run as a table for `console`, with as many metrics as fit; 80 characters are enough."""
    for metrics, gap in ((3, 2), (2, 2), (1, 2), (1, 1), (0, 1)):
        grid = _grid(view, metrics, gap)
        if _width(grid, console) <= console.width:
            break
    return grid


def screen(view: Json, console: Console, notes: Sequence[str] = ()) -> RenderableType:
    """The run on one screen of `console`; `notes` stand below, after what needs the user."""
    # The last line stays free: a terminal scrolls when it is written to its end.
    room = max(8, console.height - 1)
    head = [_title(view), _summary(view)]
    below = [Text(printable(line), style="yellow") for line in _below(view, notes)]
    room -= len(head) + len(below)
    alone, groups, more = _folded(view["stages"], room)
    parts: list[RenderableType] = [*head]
    if alone:
        parts.append(_bars(alone, console))
    if groups:
        parts.append(_groups(groups))
    if more:
        parts.append(Text(more, style="dim", no_wrap=True, overflow="ellipsis"))
    for line in [*head, *below]:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*parts, *below)


def plain_grid(gap: int = 2) -> Table:
    """A table without lines."""
    return Table(box=None, header_style="dim", padding=(0, gap, 0, 0), pad_edge=False)


def text(value: str) -> Text:
    """Foreign text as it is, less what could drive the terminal."""
    return Text(printable(value))


def progress_text(stage: Json) -> str:
    """``epoch 3/10 loss=0.513``: what the job last said of itself."""
    if stage["epoch"] is None:
        return ""
    return " ".join([f"epoch {stage['epoch']}/{stage['epochs']}", *_numbers(stage)[:3]])


def _title(view: Json) -> Text:
    title = Text(f"{printable(view['run'])}  ")
    title.append(view["state"], style=COLOURS.get(view["state"], ""))
    title.append(f"  {duration(view['elapsed_s'])}")
    if view["eta_s"] is not None:
        title.append(f"  {duration(view['eta_s'])} left")
    if view["dag"]:
        title.append(f"  DAG job {view['dag'].partition('#')[2]}", style="dim")
    for key, name in (("cpu_h", "CPU"), ("gpu_h", "GPU")):
        if hours := view["cost"][key]["total"]:
            title.append(f"  {hours:.2f} {name} h", style="dim")
    return title


def _summary(view: Json) -> Text:
    line = state_counts(view["counts"])
    if view["finished"]:
        return line
    line.append("  ")
    when = f"{age(view['age_s'])} ago" if view["age_s"] is not None else ""
    if view["unreachable"]:
        known = f"as of {when}" if when else "its schedd has told nothing yet"
        line.append(f"last known state, {known}", style="bold yellow")
    elif when:
        line.append(f"as of {when}", style="dim")
    return line


def state_counts(counts: Mapping[str, int]) -> Text:
    """``done 150  running 8``, in colours."""
    line = Text()
    for state in sorted(counts, key=_rank):
        line.append("  " if line else "")
        line.append(f"{state} {counts[state]}", style=COLOURS.get(state, "dim"))
    return line


def _below(view: Json, notes: Sequence[str]) -> list[str]:
    found = troubles(view)
    shown = found[:_MOST_TROUBLES]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more: `condorctl status {view['run']}`")
    return [*([view["unreachable"]] if view["unreachable"] else []), *shown, *notes]


def _folded(
    stages: Sequence[Json], room: int
) -> tuple[list[Json], list[tuple[str, list[Json]]], str]:
    """Stages with a line each, groups by name, and what has no line at all, for `room` lines."""
    if len(stages) + 1 <= room:
        return list(stages), [], ""
    ranked = sorted(stages, key=lambda stage: _rank(stage["state"]))
    wanted = [stage for stage in ranked if stage["state"] in _ALONE]
    # A third of the screen for the whole at least, the rest for what goes on.
    every = {stage["stage"]: stage for stage in stages}
    stems = sweeps.grouped(list(every), room // 3)
    names = {stage["stage"] for stage in wanted[: room - min(len(stems), room // 3) - 1]}
    alone = [stage for stage in stages if stage["stage"] in names]
    folded = {key: [every[n] for n in members if n not in names] for key, members in stems.items()}
    groups = {key: members for key, members in folded.items() if members}
    left = room - (len(alone) + 1 if alone else 0)
    ranked_groups = sorted(groups, key=lambda key: min(_rank(s["state"]) for s in groups[key]))
    kept = set(ranked_groups if len(groups) <= left else ranked_groups[: left - 1])
    rest = [stage for key in groups if key not in kept for stage in groups[key]]
    counts = state_counts(Counter(stage["state"] for stage in rest)).plain
    more = f"{len(rest)} more stages: {counts}" if rest else ""
    return alone, [(key, members) for key, members in groups.items() if key in kept], more


def _bars(stages: Sequence[Json], console: Console) -> Table:
    for bar, metrics, host in (
        (24, 3, True), (16, 2, True), (10, 1, True), (10, 1, False), (6, 1, False), (6, 0, False),
    ):  # fmt: skip
        grid = _bar_grid(stages, bar, metrics, host)
        if _width(grid, console) <= console.width:
            break
    return grid


def _bar_grid(stages: Sequence[Json], bar: int, metrics: int, host: bool) -> Table:
    grid = plain_grid(gap=1)
    columns = ["stage", "state", "try", "", "epoch", "metrics", "pace", "left", "time", "seen"]
    for name in [*columns, *(["host"] if host else [])]:
        right = name in {"try", "epoch", "pace", "left", "time", "seen"}
        # A long name may be cut to make room, nothing else.
        grid.add_column(
            name, justify="right" if right else "left", no_wrap=True,
            min_width=None if name == "stage" else max(len(name), bar if not name else 0),
        )  # fmt: skip
    now = time.time()
    for stage in stages:
        there = stage["state"] in job_states.ON_NODE
        pace, left, sign = stage["s_per_epoch"], stage["eta_s"], stage["last_sign"]
        cells: list[RenderableType] = [
            text(stage["stage"]),
            _state(stage),
            str(stage["attempt"] or ""),
            _bar(stage, bar),
            "" if stage["epoch"] is None else f"{stage['epoch']}/{stage['epochs']}",
            Text(" ".join(_numbers(stage)[:metrics])),
            _pace(pace) if there and pace else "",
            "" if left is None else duration(left),
            "" if stage["elapsed_s"] is None else duration(stage["elapsed_s"]),
            age(max(0.0, now - sign)) if there and sign else "",
        ]
        grid.add_row(*cells, *([text(_machine(stage["host"]))] if host else []))
    return grid


def _groups(groups: Sequence[tuple[str, list[Json]]]) -> Table:
    grid = plain_grid(gap=1)
    for _ in range(3):
        grid.add_column(no_wrap=True)
    for stem, members in groups:
        counts = Counter(stage["state"] for stage in members)
        name = sweeps.label(stem, [stage["stage"] for stage in members])
        bar = ProgressBar(total=len(members), completed=counts["done"], width=10)
        grid.add_row(text(name), bar, state_counts(counts))
    grid.show_header = False
    return grid


def _state(stage: Json) -> Text:
    """The state, and of several processes how many are in it."""
    words, counts = stage["state"], stage["counts"]
    if sum(counts.values()) > 1:
        count = counts.get("completed" if words == "done" else words, 0)
        words += f" {count}/{sum(counts.values())}"
    return Text(words, style=COLOURS.get(stage["state"], "dim"))


def _bar(stage: Json, width: int) -> RenderableType:
    processes = sum(stage["counts"].values())
    if stage["state"] == "done":
        part = 1.0
    elif processes > 1:
        part = stage["counts"].get("completed", 0) / processes
    elif stage["epochs"]:
        part = stage["epoch"] / stage["epochs"]
    else:
        return ""
    return ProgressBar(total=1.0, completed=part, width=width)


def _pace(seconds: float) -> str:
    return f"{60 / seconds:.3g}/min" if seconds < 20 else f"{age(seconds)}/ep"


def _numbers(stage: Json) -> list[str]:
    metrics = stage["metrics"].items()
    return [f"{printable(k)}={v:.4g}" for k, v in metrics if isinstance(v, int | float)]


def _machine(host: str | None) -> str:
    """``node`` of ``slot1_1@node.site.org``; an address stays whole."""
    machine = (host or "").rpartition("@")[2]
    return machine.partition(".")[0] if "@" in (host or "") else machine


def _grid(view: Json, metrics: int, gap: int) -> Table:
    grid = plain_grid(gap)
    grid.title, grid.title_justify = _title(view), "left"
    for name in ("stage", "state", "job", "try", "host", "epoch", "metrics", "time", "checkpoint"):
        right = name in {"try", "epoch", "time"}
        grid.add_column(name, justify="right" if right else "left", no_wrap=True)
    for stage in view["stages"]:
        checkpoint, source = stage["checkpoint"], stage["reused_from"]
        grid.add_row(
            text(stage["stage"]),
            _state(stage),
            stage["job"] or "",
            str(stage["attempt"] or ""),
            text(f"from {source.partition('/')[0]}" if source else _machine(stage["host"])),
            "" if stage["epoch"] is None else f"{stage['epoch']}/{stage['epochs']}",
            Text(" ".join(_numbers(stage)[:metrics])),
            "" if stage["elapsed_s"] is None else duration(stage["elapsed_s"]),
            f"{checkpoint['epoch']}, {size(checkpoint['bytes'])}" if checkpoint else "",
        )
    return grid


def _width(grid: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return console.measure(grid, options=unbounded).maximum


def _rank(state: str) -> int:
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)
