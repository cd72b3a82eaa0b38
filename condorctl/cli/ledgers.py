"""Commands about the ledger itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, app

ledger_app = typer.Typer(
    help="The ledger: made again from the runs' folders, compared with HTCondor.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(ledger_app, name="ledger")


@ledger_app.command("rebuild")
def ledger_rebuild(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folders of runs, or that hold such; else exp/runs and what is kept beside the "
            "ledger.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Enter runs that the ledger does not have, from what lies in their folders.

    A ledger that was lost comes back; what one has already is left as it is. Exits with 1 when a
    folder could not be read; the others are entered all the same.
    """
    with terminal.progress(quiet=as_json, bytes=False) as progress:
        found = api.ledger_rebuild(folders or [], progress)
    if as_json:
        terminal.print_json(found)
    else:
        added, known = len(found["added"]), len(found["known"])
        print(f"{added} run{'s' * (added != 1)} added, {known} known already, in {found['ledger']}")
        if found["kept"]:
            print(f"run.json written for {len(found['kept'])} that had none")
    terminal.complain([*found["remarks"], *found["problems"]])
    if found["problems"]:
        raise typer.Exit(1)


@ledger_app.command("check")
def ledger_check(as_json: Json = False) -> None:
    """Compare the ledger with HTCondor's queue and history, and with the runs' folders.

    A line for each difference, with its mend; exits with 1 when there is one. What the history has
    forgotten is said, and is none.
    """
    found = api.ledger_check()
    if as_json:
        terminal.print_json(found)
    else:
        for one in found["differences"]:
            print(f"{one['text']}: {one['mend']}")
        for line in found["remarks"]:
            print(line)
    if not found["ok"]:
        raise typer.Exit(1)
