"""Commands that start, steer and end runs."""

from __future__ import annotations

from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, Settings, app, settings
from condorctl.cli.look import watch


@app.command()
def submit(
    pipeline: Annotated[str, typer.Argument(help="A name in jobs/, or a YAML file.")],
    set_: Settings = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress to the end.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a pipeline as a DAG; print the run's name and the DAG's job id.

    With --follow, exits with 1 when the run failed or is stuck.
    """
    view = api.submit(pipeline, settings(set_))
    if as_json and not follow:
        terminal.print_json(view)
    elif not as_json:
        print(f"{view['run']}: DAG job {view['dag']}, folder {view['folder']}", flush=True)
    if follow:
        watch(view["run"], as_json)
