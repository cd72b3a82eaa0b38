"""Watching a run, on a screen or line by line: to its end, or as long as one likes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.live import Live

from condorctl import terminal, units
from condorctl.condor import cluster
from condorctl.ledger import Ledger, events, find
from condorctl.view import screen, status

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]

INTERVAL_S = 1.0
# Held for this long with nothing else to do: nobody is going to release it while we watch.
STUCK_S = 10.0
UNREACHABLE_S = 300.0
IDLE_S = 300.0


class Left(Exception):
    """The user has seen enough; the run goes on."""


def follow(ledger: Ledger, run: str, console: Console, quiet: bool = False) -> Json:
    """Show the run until it ends or is stuck on a hold; return its last `status.describe`.

    At a terminal it is a screen; elsewhere a line tells each change of a stage. What one should
    know besides, such as jobs that nothing starts, goes to stderr, once each.
    Raises Unreachable when the schedd has not answered for five minutes, Left when the user leaves.
    """
    stuck_since: float | None = None
    answered = time.monotonic()
    drawn = console.is_terminal and not quiet
    lines = _Lines(console, quiet)
    with _Pauses() as pauses, _Screen(console) if drawn else contextlib.nullcontext() as shown:
        while True:
            view = look(ledger, run)
            if shown:
                shown.draw(view)
            else:
                lines.tell(view)
            if view["finished"] or view["state"] == "unknown":
                break
            now = time.monotonic()
            stuck_since = (stuck_since or now) if status.is_stuck(view) else None
            if stuck_since and now - stuck_since > STUCK_S:
                break
            answered = answered if view["unreachable"] else now
            if now - answered > UNREACHABLE_S:
                raise cluster.Unreachable(f"{run}: {view['unreachable']}", 3)
            pauses.wait(bool(shown and shown.keys))
    if drawn:
        console.print(screen.table(view, console))
    return view


def watch(ledger: Ledger, run: str, console: Console) -> Json:
    """Show the run on one screen of a terminal until it ends; return its last `status.describe`.

    A schedd that does not answer is waited for. Raises Left when the user leaves.
    """
    with _Pauses() as pauses, _Screen(console) as shown:
        while True:
            view = look(ledger, run)
            if view["finished"] or view["state"] == "unknown":
                return view
            shown.draw(view)
            pauses.wait(shown.keys)


def look(ledger: Ledger, run: str | None) -> Json:
    """A run, or the latest, after another reading of logs and queue, as `status.describe` gives it.

    With `note`, which says why not all that could be known is there.
    """
    since = time.time()
    unknown = events.sync(ledger)
    with ledger.session() as session:
        found = find.run(session, run)
        view = status.describe(found, status.doubt(found, unknown.unreachable, since))
    notes = [*unknown.damaged, *([view["unreachable"]] if view["unreachable"] else [])]
    return {**view, "note": "; ".join(notes) or None}


def notices(view: Json) -> list[str]:
    """What else to look at: jobs that wait for a machine as if none would ever come."""
    now = time.time()
    waiting = []
    for stage in view["stages"]:
        for job in stage["jobs"]:
            since = job["states"][-1]["time"] if job["states"] else job["submitted"]
            if job["state"] == "idle" and now - since >= IDLE_S:
                waiting.append((now - since, stage["stage"], job["job"]))
    if not waiting or view["unreachable"]:
        return []
    longest, stage, number = max(waiting)
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return [f"{stage} ({number}){more} idle for {units.age(longest)}: `condorctl explain {number}`"]


class _Screen:
    """One screen, drawn anew; `keys` tells whether the terminal gives single keys meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, screen=True)
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> _Screen:
        self.keys = self._restore.enter_context(_keys())
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._restore.close()

    def draw(self, view: Json) -> None:
        leave = "q leaves, the run goes on" if self.keys else "Ctrl-C leaves, the run goes on"
        self._live.update(screen.screen(view, self._console, [*notices(view), leave]), refresh=True)


class _Pauses:
    """The time between two looks, in which Ctrl-C and the key q end the watching.

    Elsewhere the first Ctrl-C is kept until the next pause: HTCondor's bindings may crash when it
    comes while they talk to a daemon. A second one ends that, too.
    """

    def __enter__(self) -> _Pauses:
        self._pausing = self._interrupted = False
        self._before = signal.getsignal(signal.SIGINT)
        # Where it is ignored, or in another thread than the main one, nothing is to be done.
        self._ours = self._before is signal.default_int_handler
        with contextlib.suppress(ValueError):
            if self._ours:
                signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):
            if self._ours:
                signal.signal(signal.SIGINT, self._before)

    def wait(self, keys: bool) -> None:
        """Wait; with `keys`, read the terminal meanwhile. Raises Left, KeyboardInterrupt."""
        deadline = time.monotonic() + INTERVAL_S
        self._pausing = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            while (left := deadline - time.monotonic()) > 0:
                if not keys:
                    time.sleep(left)
                elif select.select([sys.stdin], [], [], left)[0]:
                    key = os.read(sys.stdin.fileno(), 64)
                    if b"q" in key.lower() or not key:
                        raise Left
        finally:
            self._pausing = False

    def _interrupt(self, *_: object) -> None:
        if self._pausing or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True


@contextlib.contextmanager
def _keys() -> Iterator[bool]:
    """Whether single keys can be read from the terminal; if so, they are not echoed meanwhile."""
    import termios
    import tty

    try:
        terminal_in = sys.stdin.fileno()
        # A process in the background that touched its terminal would be stopped.
        ours = os.isatty(terminal_in) and os.tcgetpgrp(terminal_in) == os.getpgrp()
        before = termios.tcgetattr(terminal_in) if ours else None
    except (OSError, ValueError, termios.error):
        before = None
    if before is None:
        yield False
        return
    try:
        tty.setcbreak(terminal_in)
        yield True
    finally:
        termios.tcsetattr(terminal_in, termios.TCSADRAIN, before)


@dataclass
class _Lines:
    """A run told line by line: what changed on stdout, what to know besides on stderr."""

    console: Console
    quiet: bool
    _told: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    _noticed: bool = False
    _unreachable: bool = False

    def tell(self, view: Json) -> None:
        if view["unreachable"] and not self._unreachable:
            when = f"as of {units.age(view['age_s'])} ago" if view["age_s"] is not None else "none"
            terminal.complain([f"last known state: {when}: {view['unreachable']}"])
        elif self._unreachable and not view["unreachable"]:
            terminal.complain(["the schedd answers again"])
        self._unreachable = bool(view["unreachable"])
        if not self._noticed and (found := notices(view)):
            self._noticed = True
            terminal.complain(found)
        if self.quiet:
            return
        for stage in view["stages"]:
            seen = (stage["state"], stage["epoch"])
            if self._told.get(stage["stage"], ("waiting", None)) == seen:
                continue
            self._told[stage["stage"]] = seen
            parts = [
                units.duration(view["elapsed_s"]),
                stage["stage"],
                stage["state"],
                stage["job"] or "",
                screen.progress_text(stage),
            ]
            self.console.print("  ".join(filter(None, parts)), markup=False)
