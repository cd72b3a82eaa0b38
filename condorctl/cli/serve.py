"""Commands for the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli import complete
from condorctl.cli.app import Json, app
from condorctl.errors import printable

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@app.command()
def web(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run to begin with, else all; to export, else the latest.",
            autocompletion=complete.runs,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE.html", help="Write one run into a file instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show runs in a browser: stages, curves, results, holds, output, cost; Ctrl-C ends it.

    Only who has the whole address can look, and nothing can be changed. From elsewhere, have
    `ssh -L PORT:127.0.0.1:PORT` lead to it. An exported page is one run as it is now, in one file.
    """

    def ready(address: str) -> None:
        if as_json:
            terminal.print_json({"address": address})
            return
        print(address, flush=True)
        if host not in _LOOPBACK:
            terminal.complain(["whoever listens on the network can read along: this is not HTTPS"])

    written = api.web(run, port, host, export, ready)
    if export:
        if as_json:
            terminal.print_json(written)
        else:
            print(printable(f"{written['run']} is in {written['file']}"))
