"""Commands that show what runs do and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal, units
from condorctl.cli.app import Json, RunName, RunNames, app
from condorctl.errors import UserError

# How many runs `status --all` shows unless it is told otherwise.
_RUNS = 20


@app.command()
def follow(run: RunName = None, as_json: Json = False) -> None:
    """Show a run's progress until it ends: on a screen, or line by line without a terminal.

    Exits with 1 when the run failed or is stuck.
    """
    watch(run, as_json)


def watch(run: str | None, as_json: bool) -> None:
    """`follow`, for commands that start a run, too."""
    from condorctl.view import follow as following
    from condorctl.view import status as statuses

    ledger = api.open_ledger()
    run = api.describe(ledger, run)["run"]
    try:
        view = following.follow(ledger, run, terminal.console(), quiet=as_json)
    except (KeyboardInterrupt, following.Left) as left:
        terminal.complain([f"{run} goes on; `condorctl follow {run}` shows it again"])
        raise typer.Exit(130) from left
    if as_json:
        terminal.print_json(view)
    terminal.complain(statuses.troubles(view))
    if view["state"] != "done":
        raise typer.Exit(1)


@app.command()
def status(
    run: RunName = None,
    live: Annotated[
        bool, typer.Option("--watch", help="One screen, drawn anew every second; q leaves.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every run in the ledger.")] = False,
    users: Annotated[
        bool, typer.Option("--users", help="What is in the schedd's queue now, of all users.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="With --all: so many runs; else 20.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the stages of a run: state, job, progress, checkpoint; works after the run, too.

    Where the schedd does not answer it is the last known state, and its age is told.
    """
    from condorctl.view import listings, screen
    from condorctl.view import status as statuses

    _one_of(live=live, all=every, users=users)
    if live:
        _watch(run, as_json)
        return
    if run and (every or users):
        raise UserError(f"--{'all' if every else 'users'} goes without a RUN")
    if limit and not every:
        raise UserError("--limit goes with --all")
    found = api.status(run, every, users, limit if as_json else limit or _RUNS)
    if as_json:
        terminal.print_json(found)
        return
    console = terminal.console()
    if users:
        if found["work"]:
            console.print(listings.work(found))
        else:
            terminal.complain([f"nothing is in the queue of {found['schedd']}"])
        return
    if every:
        console.print(listings.runs(found))
        if found["total"] > len(found["runs"]):
            terminal.complain(
                [f"{len(found['runs'])} of {found['total']} runs: --limit shows more"]
            )
        terminal.complain([f"?: last known state: {found['note']}"] if found["note"] else [])
        return
    console.print(screen.table(found, console))
    terminal.complain(statuses.troubles(found))
    if found["unreachable"]:
        age = found["age_s"]
        when = "no schedd has told" if age is None else f"as of {units.age(age)} ago"
        terminal.complain([f"last known state, {when}: {found['note']}"])
    elif found["note"]:
        terminal.complain([found["note"]])


def _watch(run: str | None, as_json: bool) -> None:
    import sys

    from condorctl.view import follow as following
    from condorctl.view import screen
    from condorctl.view import status as statuses

    if as_json or not sys.stdout.isatty():
        raise UserError("--watch needs a terminal: `condorctl follow` tells each change in a line")
    ledger = api.open_ledger()
    run = api.describe(ledger, run)["run"]
    console = terminal.console()
    try:
        view = following.watch(ledger, run, console)
    except (KeyboardInterrupt, following.Left):
        terminal.complain([f"{run} goes on"])
        return
    console.print(screen.table(view, console))
    terminal.complain(statuses.troubles(view))


@app.command()
def checkpoints(run: RunName = None, as_json: Json = False) -> None:
    """List the checkpoints of a run: epoch, bytes, SHA-256, where they are; newest first, marked.

    A stage that is done keeps its outputs alone. `condorctl fetch JOB PATH` brings one.
    """
    from condorctl.view import listings

    found = api.checkpoints(run)
    if as_json:
        terminal.print_json(found)
        return
    if not found["checkpoints"]:
        raise UserError(
            f"{found['run']} has no checkpoints: {found['note'] or 'none was told of'}", 1
        )
    terminal.console().print(listings.checkpoints(found))
    terminal.complain([found["note"]] if found["note"] else [])


@app.command()
def cost(
    runs: RunNames = None,
    every: Annotated[bool, typer.Option("--all", help="Every run in the ledger.")] = False,
    as_json: Json = False,
) -> None:
    """Show what runs took: CPU- and GPU-hours, useful, repeated after evictions, wasted.

    Hours are those of the cores and GPUs that HTCondor kept for the jobs, used or not. Repeated is
    what an eviction undid; wasted is what ended in a failure, a removal or a hold.
    """
    from condorctl.view import listings

    if runs and every:
        raise UserError("--all goes without a RUN")
    found = api.cost(runs or [], every)
    if as_json:
        terminal.print_json(found)
        return
    console = terminal.console()
    for part in listings.costs(found):
        console.print(part)
    terminal.complain([f"last known state: {found['note']}"] if found["note"] else [])


@app.command()
def results(
    runs: RunNames = None,
    every: Annotated[bool, typer.Option("--all", help="All rows below the tables.")] = False,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="The metrics of every epoch, of running jobs, too.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write a JSON file a result.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Read what --save wrote, not the ledger."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="WORDS", help="Only tables whose title has these words."),
    ] = None,
) -> None:
    """Print the final figures of runs: the tables that their pipeline declares, else all rows."""
    from condorctl.view import results as rows
    from condorctl.view import tables

    _one_of(json=as_json, markdown=as_markdown, csv=as_csv)
    _one_of(table=table, all=every)
    _one_of(table=table, csv=as_csv)
    _one_of(table=table, save=save)
    if metrics:
        _one_of(metrics=metrics, save=save, table=table, **{"from": source})
        _metrics(runs or [], as_json, as_markdown, as_csv)
        return
    found = rows.load(api.open_ledger, runs or [], source, traced=save is not None)
    if not found.records and (save or as_csv or not (as_json or found.tables)):
        where = source or f"{found.names}: `condorctl status` shows what is done"
        raise UserError(f"no results yet in {where}", 1)
    found = found if table is None else rows.titled(found, table)
    if save:
        rows.save(found, save)
        terminal.complain([f"{len(found.records)} results saved in {save}"])
    if as_json:
        terminal.print_json(rows.as_json(found))
    elif as_csv or as_markdown:
        print(tables.as_csv(found) if as_csv else tables.as_markdown(found, every), end="")
    else:
        console = terminal.console()
        for part in tables.renderables(found, every, console):
            console.print(part)


def _metrics(runs: list[str], as_json: bool, as_markdown: bool, as_csv: bool) -> None:
    from condorctl.view import metrics, tables

    found = metrics.load(api.open_ledger(), runs)
    if not (found.rows or as_json):
        raise UserError(f"no metrics yet in {found.names}: `condorctl status` shows what runs", 1)
    if as_json:
        terminal.print_json(metrics.as_json(found))
    elif as_csv:
        print(tables.metrics_csv(found), end="")
    elif as_markdown:
        print(tables.metrics_markdown(found), end="")
    else:
        console = terminal.console()
        for part in tables.metrics_renderables(found, console):
            console.print(part)


def _one_of(**options: object) -> None:
    """Raises UserError when more than one of the options is given."""
    given = [f"--{name}" for name, value in options.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: name one of them")
