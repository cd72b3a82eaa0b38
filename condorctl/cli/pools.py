"""Commands about the pool itself."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, app
from condorctl.errors import UserError

pool_app = typer.Typer(
    help="The HTCondor pool: the one that is there, or one of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(pool_app, name="pool")


@pool_app.command("up")
def pool_up(
    cpus: Annotated[int | None, typer.Option(help="Cores to offer; else all.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Use the pool that is there; else fetch HTCondor and start a personal one, without root."""
    with terminal.progress(quiet=as_json) as progress:
        _print(api.pool_up(cpus, progress), as_json)


@pool_app.command("down")
def pool_down(as_json: Json = False) -> None:
    """Stop the personal pool; leaves no process. Its queue is there again at the next `up`."""
    _print(api.pool_down(), as_json)


@pool_app.command("status")
def pool_status(as_json: Json = False) -> None:
    """Show which pool there is and what it does; exits with 3 when none answers."""
    state = api.pool_status()
    _print(state, as_json)
    if state["state"] == "down":
        raise typer.Exit(3)


@pool_app.command(
    "run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
def pool_run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="E.g. condor_q.")],
) -> None:
    """Run one of HTCondor's own tools on this pool: `condorctl pool run condor_q -nobatch`."""
    from condorctl import pool

    pool.activate()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}", 127) from None


def _print(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.print_json(state)
        return
    words = [f"{state['where']} pool {state['state']}"]
    if state["state"] == "up":
        words += [
            f"HTCondor {state['version']}",
            f"schedd {state['schedd']}",
            f"{state['cpus']} cores",
            f"jobs: {state['running']} running, {state['idle']} idle, {state['held']} held",
        ]
    print(", ".join(words))
