"""Commands that reach into jobs: their files, their logs, a shell beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import JobName, Json, app
from condorctl.errors import printable


@app.command()
def fetch(
    job: JobName,
    path: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files in the job's folder.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to; else ./fetched/JOB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring files back from a job: its output, errors and event log, or the paths you name."""
    with terminal.progress(quiet=as_json or not sys.stderr.isatty()) as progress:
        fetched = api.fetch(job, path or [], to, progress)
    if as_json:
        terminal.print_json(fetched)
        return
    for file in fetched["files"]:
        print(f"{printable(file['target'])}  {file['bytes']} bytes  sha256 {file['sha256'][:12]}")
