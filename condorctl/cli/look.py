"""Commands that show what runs do and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, RunName, app
from condorctl.errors import UserError


@app.command()
def follow(run: RunName = None, as_json: Json = False) -> None:
    """Show a run's progress until it ends.

    Exits with 1 when the run failed or is stuck.
    """
    watch(run, as_json)


def watch(run: str | None, as_json: bool) -> None:
    """`follow`, for commands that start a run, too."""
    from condorctl import follow as following
    from condorctl import status as statuses

    ledger = api.open_ledger()
    run = api.describe(ledger, run)["run"]
    try:
        view = following.follow(ledger, run, terminal.console(), quiet=as_json)
    except KeyboardInterrupt:
        terminal.complain([f"{run} goes on; `condorctl follow {run}` shows it again"])
        raise
    if as_json:
        terminal.print_json(view)
    terminal.complain(statuses.troubles(view))
    if view["state"] != "done":
        raise typer.Exit(1)


@app.command()
def status(run: RunName = None, as_json: Json = False) -> None:
    """Show the stages of a run: state, job, progress, checkpoint; works after the run, too."""
    from condorctl import status as statuses

    view = api.status(run)
    if as_json:
        terminal.print_json(view)
        return
    console = terminal.console()
    console.print(statuses.table(view, console))
    note = view["note"]
    terminal.complain([*statuses.troubles(view), *([f"last known state: {note}"] if note else [])])


@app.command()
def results(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs; else the latest.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All rows below the tables.")] = False,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write a JSON file a result.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Read what --save wrote, not the ledger."),
    ] = None,
) -> None:
    """Print the final figures of runs: the tables that their pipeline declares, else all rows."""
    from condorctl import results as rows
    from condorctl import tables

    if as_json + as_markdown + as_csv > 1:
        raise UserError("--json, --markdown and --csv: name one of them")
    found = rows.load(api.open_ledger, runs or [], source)
    if not found.records and (save or as_csv or not (as_json or found.tables)):
        where = source or f"{found.names}: `condorctl status` shows what is done"
        raise UserError(f"no results yet in {where}", 1)
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
