"""Commands that tell others: messages when a run ends."""

from __future__ import annotations

from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, RunName, app


@app.command()
def notify(
    run: RunName = None,
    dag_status: Annotated[
        int | None, typer.Option(help="DAGMan's word on a run that is about to end.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="The stage whose job is held.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a message about nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Send a message about a run, to the addresses in ~/.config/condorctl/notify.conf.

    Runs that are submitted while that file is there do so themselves, when they end and when one
    of their jobs is held.
    """
    sent = api.notify(run, dag_status, stage, test)
    if as_json:
        terminal.print_json(sent)
    else:
        print(f"{sent['title']}: sent to {sent['sent']} addresses")
