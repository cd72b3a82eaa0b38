"""The command for HTCondor work that was not written here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, app
from condorctl.errors import printable


@app.command()
def adopt(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CLUSTER[.PROC]|FILE.dag",
            help="A cluster of yours, queued or ended, or a DAG that has run here.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The run's name; else one is made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Enter HTCondor work of your own into the ledger; status, fetch and cost then work for it.

    A DAGMan job brings its whole DAG. Work is adopted once; a DAG that was submitted again after a
    failure goes on as the same run.
    """
    view = api.adopt(what, name)
    if as_json:
        terminal.print_json(view)
        return
    found = f"DAG job {view['dag']}" if view["dag"] else f"jobs {jobs_of(view)}"
    folder = printable(view["folder"])
    print(f"{view['run']}: {found}, {view['state']}, {len(view['stages'])} stages, folder {folder}")


def jobs_of(view: dict[str, Any]) -> str:
    """``12.0 - 12.4``: the first and the last job of a run without a DAG."""
    numbers = [job["job"] for stage in view["stages"] for job in stage["jobs"]]
    return " - ".join(dict.fromkeys([numbers[0], numbers[-1]])) if numbers else "none"
