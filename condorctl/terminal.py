"""How the commands speak: tables to a console, progress and remarks to stderr, JSON to programs.

rich and json are imported inside: `condorctl --help` must not wait for them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from condorctl.errors import printable

# Called with what is going on, how much of it is done, and how much there is (0: not known).
Progress = Callable[[str, int, int], None]

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


def console() -> Console:
    """Standard output, for tables."""
    from rich.console import Console

    # A pipe has no width of its own, and a table cut to 80 columns loses what a program looks for.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool, bytes: bool = True) -> Iterator[Progress]:
    """A bar on a terminal, of bytes or of things; elsewhere a line for each kind that begins."""
    if quiet or not sys.stderr.isatty():
        told: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if what not in told and not quiet:
                told.add(what)
                print(f"{what} ...", file=sys.stderr, flush=True)

        yield tell
        return
    from rich import progress as bars
    from rich.console import Console

    count = bars.DownloadColumn() if bytes else bars.MofNCompleteColumn()
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), count)
    shown = bars.Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def draw(what: str, done: int, total: int) -> None:
        # Not before there is something to draw: the bars run a thread, and while root turns into
        # an ordinary user for the personal pool there may be only one.
        shown.start()
        if what not in tasks:
            tasks[what] = shown.add_task(what, total=None)
        shown.update(tasks[what], completed=done, total=total or None)

    try:
        yield draw
    finally:
        shown.stop()


def complain(lines: Iterable[str]) -> None:
    """What a program that reads the output must not find in it, a line each on stderr."""
    for line in lines:
        print(printable(line), file=sys.stderr)


def print_json(value: Any) -> None:
    """`value` on standard output, for programs."""
    import json

    print(json.dumps(value, indent=2))
