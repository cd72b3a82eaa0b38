"""What the functions of every topic share: the ledger that they open, a run, progress."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from condorctl.errors import UserError
from condorctl.terminal import Progress

if TYPE_CHECKING:
    from condorctl.ledger import Ledger

__all__ = ["Json", "Progress", "describe", "open_ledger", "silent"]

Json = dict[str, Any]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def open_ledger() -> Ledger:
    """The user's ledger, after this process has found its pool, if there is one."""
    from condorctl import paths, pool
    from condorctl.ledger import Ledger

    # As root this changes who the process is, which only its first thread may do. What needs a
    # pool says so itself: a finished run can be looked at without one.
    with contextlib.suppress(UserError):
        pool.expect()
        pool.activate()
    return Ledger(paths.ledger())


def describe(ledger: Ledger, run: str | None) -> Json:
    """A run as `status` returns it, from the ledger as it is."""
    from condorctl.ledger import find
    from condorctl.view import status as statuses

    with ledger.session() as session:
        return statuses.describe(find.run(session, run))
