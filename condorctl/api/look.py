"""Looking at runs, compared, in a browser, and in a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from condorctl.api.base import Json, describe, open_ledger
from condorctl.errors import UserError


def status(
    run: str | None = None, all: bool = False, users: bool = False, limit: int | None = None
) -> Json:
    """A run with its stages and their jobs (`view.status`); `note` says what is not known.

    With `all`, every run of the ledger, the newest `limit` of them (`overview.runs`). With `users`,
    what the schedd has to do now for everybody (`overview.users`).
    """
    from condorctl.ledger import events
    from condorctl.view import follow as following
    from condorctl.view import overview

    ledger = open_ledger()
    if not (all or users):
        return following.look(ledger, run)
    since = time.time()
    unknown = events.sync(ledger)
    with ledger.session() as session:
        if users:
            return overview.users(session)
        found = overview.runs(session, limit, unknown.unreachable, since)
    return {**found, "note": str(unknown) or None}


def follow(run: str | None = None) -> Json:
    """Wait until a run has ended or is stuck; return it as `status` does."""
    from condorctl import terminal
    from condorctl.view import follow as following

    ledger = open_ledger()
    name = describe(ledger, run)["run"]
    return following.follow(ledger, name, terminal.console(), quiet=True)


def checkpoints(run: str | None = None) -> Json:
    """What the stages of a run have left to go on from, and where it is (`view.checkpoints`).

    Returns `run`, and `checkpoints`, each with `stage`, `job`, `path`, `epoch`, `number`, `bytes`,
    `sha256`, `places`, and whether it is the `newest` of its stage.
    """
    from condorctl.view import checkpoints as kept

    return kept.load(open_ledger(), run)


def cost(runs: Sequence[str] = (), all: bool = False) -> Json:
    """CPU- and GPU-hours of runs, the latest one if none is named: useful, repeated, wasted.

    Returns `runs` (with their `stages`, unless `all` of the ledger's runs are wanted), `users` by
    owner, and the `total`; see `view.cost` and `overview.costs`.
    """
    from condorctl.ledger import events
    from condorctl.view import overview

    ledger = open_ledger()
    since = time.time()
    unknown = events.sync(ledger)
    with ledger.session() as session:
        found = overview.costs(session, None if all else runs, unknown.unreachable, since)
    return {**found, "note": str(unknown) or None}


def results(
    runs: Sequence[str] = (),
    source: Path | None = None,
    metrics: bool = False,
    table: str | None = None,
) -> Json:
    """The final figures of runs, from the ledger or from a folder that `results --save` wrote.

    With `metrics`, those of every epoch, of jobs that run, too (`view.metrics`); with `table`, only
    the tables whose title has these words.
    """
    from condorctl.view import metrics as epochs
    from condorctl.view import results as rows

    if metrics:
        return epochs.as_json(epochs.load(open_ledger(), runs))
    found = rows.load(open_ledger, runs, source)
    return rows.as_json(found if table is None else rows.titled(found, table))


def show(run: str | None = None) -> Json:
    """Where a run comes from, and what its stages left (`view.show`, `provenance`)."""
    from condorctl.ledger import events
    from condorctl.view import show as provenance

    ledger = open_ledger()
    events.sync(ledger)
    with ledger.session() as session:
        return provenance.show(session, run)


def diff(left: str, right: str, code: bool = False) -> Json:
    """What tells two runs apart (`compare.diff`); with `code`, the unified diff of their code."""
    from condorctl.ledger import events
    from condorctl.view import compare

    ledger = open_ledger()
    events.sync(ledger)
    with ledger.session() as session:
        return compare.diff(session, left, right, code)


def notify(
    run: str | None = None,
    dag_status: int | None = None,
    stage: str | None = None,
    test: bool = False,
) -> Json:
    """Send a message about a run to the addresses in the user's notify.conf.

    Of a run that has ended: with `dag_status`, DAGMan's word on it, if it is just about to. Of a
    held job: with its `stage`. With `test`, of nothing. Returns `event`, `title` and `sent`, the
    number of addresses.
    """
    from condorctl import notify as messages
    from condorctl.view import results as rows
    from condorctl.view import tables
    from condorctl.view.status import troubles

    if test:
        return messages.test()
    view = status(run)
    state = {None: view["state"], 0: "done"}.get(dag_status, "failed")
    found = rows.load(open_ledger, [view["run"]], None)
    figures = tables.as_markdown(found, every=False) if found.records else ""
    return messages.send(view, "held" if stage else state, troubles(view), figures)


def web(
    run: str | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    export: Path | None = None,
    ready: Callable[[str], None] = print,
) -> Json:
    """Serve the page about runs until SIGINT or SIGTERM; `ready` is called with its address.

    It begins with `run`, else with all of them. With `export` the page of one run is written into
    that file instead. Returns `run`, and the `file` that was written, or null.
    """
    ledger = open_ledger()
    if export:
        from condorctl.web import page, views

        seen = views.Views(ledger).everything(run)
        export.write_text(page.export(views.encoded(seen)), encoding="utf-8")
        return {"run": seen["run"]["run"], "file": str(export)}
    run = describe(ledger, run)["run"] if run else None
    try:
        from condorctl.web import server
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'condorctl[web]'") from None
    server.serve(ledger, run, host, port, ready)
    return {"run": run, "file": None}
