"""The screen of `status --watch`, drawn to text: it fits, and shows what matters."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from condorctl.ledger import Run, Stage
from condorctl.view import follow, listings, screen, status
from tests.unit.runs_made import job, progress, run, stage

SIZES = [(80, 24), (60, 12), (120, 40), (200, 60), (80, 9)]


def drawn(view: status.Json, width: int = 80, height: int = 24, *notes: str) -> list[str]:
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None
    )
    with console.capture() as text:
        console.print(screen.screen(view, console, notes))
    return text.get().splitlines()


def sweep(count: int, running: int, held: int = 0) -> Run:
    """A sweep of `count` stages, a third of them done, and a stage that gathers them."""
    now = time.time()
    stages: list[Stage] = []
    for index in range(count):
        begun = [("idle", now - 200), ("running", now - 100)]
        name = f"train-0.{index // 20}-{index}"
        if index < count // 3:
            made = job(*begun, ("completed", now - 10), cluster=index + 1)
        elif index < count // 3 + running:
            made = job(*begun, cluster=index + 1, host=f"slot1_{index}@gpu{index}.site.org")
            made.progress = progress(20, (1, 1, now - 90, 10, now - 3))
        elif index < count // 3 + running + held:
            made = job(
                *begun, ("held", now - 5), cluster=index + 1, hold_code=34, hold_subcode=102,
                hold_reason="memory",
            )  # fmt: skip
        else:
            made = job(("idle", now - 200), cluster=index + 1)
        stages.append(stage(name, made))
    names = [one.name for one in stages]
    return run(*stages, stage("gather", needs=names), submitted=now - 200, seen=now - 2)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(("count", "active", "held"), [(200, 8, 0), (200, 120, 60), (3, 1, 0)])
def test_it_fits_the_terminal_whatever_the_run(
    width: int, height: int, count: int, active: int, held: int
) -> None:
    view = status.describe(sweep(count, active, held))
    lines = drawn(view, width, height, "a note", "another " * 40)
    assert len(lines) <= height - 1 or height < 12
    assert all(len(line) <= width for line in lines)


def test_a_sweep_of_two_hundred_shows_what_runs_and_counts_the_rest() -> None:
    lines = drawn(status.describe(sweep(200, 8)))
    assert lines[1].split("  ")[:4] == ["running 8", "idle 126", "done 66", "waiting 1"]
    assert re.search(r"as of \d+ s ago", lines[1])
    alone = [line for line in lines if line.startswith("train-0.")]
    assert len(alone) == 8
    assert all(
        word in alone[0] for word in ("running", "10/20", "loss=0.5", "6.21/min", "1:33", "3 s")
    )
    (folded,) = [line for line in lines if line.startswith("train*")]
    assert "(192)" in folded
    assert "idle 126  done 66" in folded


def test_what_is_held_comes_before_what_runs() -> None:
    lines = drawn(status.describe(sweep(200, 100, 4)))
    assert sum("held" in line and line.startswith("train-") for line in lines[2:]) >= 4
    assert any("memory" in line for line in lines)
    assert any("and 1 more: `condorctl status p-1`" in line for line in lines)


def test_stages_of_all_kinds_of_names_lose_none_in_the_counts() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    stages = [stage(f"{a}{b}-x", position=0) for a in letters for b in letters[:2]][:50]
    lines = drawn(status.describe(run(*stages)))
    (more,) = [line for line in lines if "more stages: ready" in line]
    folded = [line for line in lines if line[2:4] == "-x"]
    assert int(more.split()[0]) + len(folded) == 50
    assert lines[1].startswith("ready 50")


def test_the_last_known_state_says_so() -> None:
    view = status.describe(sweep(3, 1), "the schedd does not answer")
    view["age_s"] = 190.0
    text = "\n".join(drawn(view))
    assert "last known state, as of 3 min ago" in text
    assert "the schedd does not answer" in text
    assert "failed" not in text


def test_what_a_job_says_does_not_drive_the_terminal() -> None:
    of = job(("idle", 0), ("running", 1), host="slot1@\x1b[2Jx")
    of.progress = {"epoch": 1, "epochs": 2, "metrics": {"\x1b]0;x\x07[red]": 0.5}, "time": None}
    view = status.describe(run(stage("one", of)))
    console = Console(width=160, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as table:
        console.print(screen.table(view, console))
    for text in ["".join(drawn(view, 160)), table.get()]:
        assert not {"\x1b", "\x07"} & set(text)
        assert "[red]=0.5" in text


def test_an_idle_job_is_told_of_once_it_has_waited_long() -> None:
    now = time.time()
    of = [stage(f"s{n}", job(("idle", now - 400 + n), cluster=n + 1)) for n in range(3)]
    assert follow.notices(status.describe(run(*of))) == [
        "s0 (1.0) and 2 more idle for 6 min: `condorctl explain 1.0`"
    ]
    assert follow.notices(status.describe(run(stage("a", job(("idle", now - 20)))))) == []
    # What is not known may have started long ago.
    assert follow.notices(status.describe(run(*of), "no answer")) == []


def test_costs_have_a_column_for_what_there_is() -> None:
    row: dict[str, Any] = {
        "cpu_h": dict.fromkeys(["useful", "wasted", "open", "suspended"], 0.0)
        | {"repeated": 0.5, "total": 0.5},
        "gpu_h": dict.fromkeys(["useful", "repeated", "wasted", "open", "suspended", "total"], 0.0),
        "saved": {"cpu_h": 2.0, "gpu_h": 0.0}, "wall_s": 60.0, "on_machines_s": 90.0,
        "queue_s": 5.0, "held_s": 0.0, "cpu_efficiency": 0.5, "gpu_efficiency": None,
        "memory_peak_mb": 300.0, "memory_request_mb": 2048.0,
    }  # fmt: skip
    one = {"run": "p-1", "stages": [{"stage": "a", "reused_from": "p-0/a", **row}], **row}
    console = Console(width=160, file=io.StringIO())
    with console.capture() as text:
        for part in listings.costs({"runs": [one], "users": {"me": row}, "total": row}):
            console.print(part)
    shown = text.get()
    assert "a (from p-0/a)" in shown
    assert "50 %" in shown
    assert "300/2048 MB" in shown
    assert "repeated" in shown
    assert not {"wasted", "GPU"} & set(shown.split())
