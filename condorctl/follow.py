"""Watching a run to its end, at a terminal or in a log file."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from rich.live import Live

from condorctl import cluster, events, find, status
from condorctl.ledger import Ledger

if TYPE_CHECKING:
    from rich.console import Console

_INTERVAL_S = 1.0
# Held for this long with nothing else to do: nobody is going to release it while we watch.
_STUCK_S = 10.0
_UNREACHABLE_S = 300.0


def follow(ledger: Ledger, run: str, console: Console, quiet: bool = False) -> dict[str, Any]:
    """Show the run until it ends or is stuck on a hold; return its last `status.describe`.

    At a terminal the table is drawn anew in place; elsewhere a line tells each change of a stage.
    Raises Unreachable when the schedd has not answered for five minutes.
    """
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None
    told: dict[str, tuple[str, int | None]] = {}
    stuck_since: float | None = None
    answered = time.monotonic()
    with live or contextlib.nullcontext():
        while True:
            unreachable = events.sync(ledger).unreachable
            with ledger.session() as session:
                view = status.describe(find.run(session, run))
            if live:
                live.update(status.table(view, console), refresh=True)
            elif not quiet:
                _tell(view, told, console)
            if view["finished"]:
                return view
            now = time.monotonic()
            stuck_since = (stuck_since or now) if status.is_stuck(view) else None
            if stuck_since and now - stuck_since > _STUCK_S:
                return view
            answered = answered if unreachable else now
            if now - answered > _UNREACHABLE_S:
                raise cluster.Unreachable(f"{run}: {unreachable}", 3)
            time.sleep(_INTERVAL_S)


def _tell(view: dict[str, Any], told: dict[str, tuple[str, int | None]], console: Console) -> None:
    for stage in view["stages"]:
        seen = (stage["state"], stage["epoch"])
        if told.get(stage["stage"], ("waiting", None)) != seen:
            told[stage["stage"]] = seen
            parts = [
                status.duration(view["elapsed_s"]),
                stage["stage"],
                stage["state"],
                stage["job"] or "",
                status.progress_text(stage),
            ]
            console.print("  ".join(filter(None, parts)), markup=False)
