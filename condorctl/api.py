"""The commands as functions: the same names, the same parameters, plain data back.

    from condorctl import api

    run = api.submit("pipeline", {"seed": "1"})["run"]
    api.follow(run)
    print(api.results([run])["tables"])

Each returns what its command prints with ``--json``. What goes wrong raises
`condorctl.errors.UserError`, one line for a human. Call them from the main thread: the first call
settles which pool this process talks to (`pool.activate`).

Modules are imported inside: `condorctl --help` must not wait for SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condorctl.errors import UserError

if TYPE_CHECKING:
    from condorctl.ledger import Ledger

Json = dict[str, Any]
# Called with what is going on, how much of it is done, and how much there is (0: not known).
Progress = Callable[[str, int, int], None]


def open_ledger() -> Ledger:
    """The user's ledger, after this process has found its pool, if there is one."""
    from condorctl import paths, pool
    from condorctl.ledger import Ledger

    # As root this changes who the process is, which only its first thread may do. What needs a
    # pool says so itself: a finished run can be looked at without one.
    with contextlib.suppress(UserError):
        pool.activate()
    return Ledger(paths.ledger())


def describe(ledger: Ledger, run: str | None) -> Json:
    """A run as `status` returns it, from the ledger as it is."""
    from condorctl import find
    from condorctl import status as statuses

    with ledger.session() as session:
        return statuses.describe(find.run(session, run))


# --- submitting ---


def submit(pipeline: str, set: Mapping[str, str] | None = None) -> Json:
    """Submit a pipeline as a DAG; return the run as `status` does."""
    from condorctl import submit as submission

    ledger = open_ledger()
    return describe(ledger, submission.submit(ledger, pipeline, set or {}))


# --- looking ---


def status(run: str | None = None) -> Json:
    """The stages of a run: state, job, progress, checkpoint; `note` says what is not known."""
    from condorctl import events

    ledger = open_ledger()
    note = str(events.sync(ledger))
    return {**describe(ledger, run), "note": note or None}


def follow(run: str | None = None) -> Json:
    """Wait until a run has ended or is stuck; return it as `status` does."""
    from condorctl import follow as following
    from condorctl import terminal

    ledger = open_ledger()
    name = describe(ledger, run)["run"]
    return following.follow(ledger, name, terminal.console(), quiet=True)


def results(runs: Sequence[str] = (), source: Path | None = None) -> Json:
    """The final figures of runs, from the ledger or from a folder that `results --save` wrote."""
    from condorctl import results as rows

    return rows.as_json(rows.load(open_ledger, runs, source))


# --- files ---


def fetch(
    job: str,
    path: Sequence[str] = (),
    to: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Json:
    """Bring files back from a job: its output, errors and event log, or the paths you name."""
    from condorctl import events, remote

    ledger = open_ledger()
    events.sync(ledger)
    return {"job": job, "files": remote.fetch(ledger, job, path, to, progress)}


# --- the pool ---


def pool_up(cpus: int | None = None, progress: Progress = lambda *_: None) -> Json:
    """Use the pool that is there; else fetch HTCondor and start a personal one, without root."""
    from condorctl import pool

    return dataclasses.asdict(pool.up(cpus, progress))


def pool_down() -> Json:
    """Stop the personal pool; leaves no process."""
    from condorctl import pool

    return dataclasses.asdict(pool.down())


def pool_status() -> Json:
    """Which pool there is and what it does; its `state` is "down" when none answers."""
    from condorctl import pool

    return dataclasses.asdict(pool.status())
