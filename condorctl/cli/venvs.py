"""Commands about Python environments that travel with jobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli.app import Json, app
from condorctl.errors import printable

venv_app = typer.Typer(
    help="Python environments that travel with jobs, without a container.", no_args_is_help=True
)
app.add_typer(venv_app, name="venv")


@venv_app.command("pack")
def venv_pack(
    venv: Annotated[
        Path | None, typer.Argument(metavar="[VENV]", help="Its folder; else .venv.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.pex", help="Put it there, too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack a virtual environment into one file that a stage's `venv` takes along.

    A stage can name the folder itself: then `submit` packs it. The file is for a web server or
    OSDF, whose URL a stage can name instead. What has not changed is not packed again.
    """
    with terminal.progress(quiet=as_json) as progress:
        found = api.venv_pack(venv, output, progress)
    if as_json:
        terminal.print_json(found)
        return
    size = f"{found['bytes'] / 1e6:.1f} MB"
    needs = f"needs Python {found['python']} on the nodes"
    print(printable(f"{found['file']}  {size}, sha256 {found['sha256'][:12]}, {needs}"))


@venv_app.command("list")
def venv_list(as_json: Json = False) -> None:
    """List the packed environments in the cache, and the runs that take them along."""
    from condorctl.units import size

    found = api.venv_list()
    if as_json:
        terminal.print_json(found)
        return
    for one in found["environments"]:
        print(_environment(one))
    print(printable(f"{size(found['bytes'])} in {found['folder']}"))


@venv_app.command("clean")
def venv_clean(
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Only what was last used so long ago."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what a run that is going needs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove packed environments that no run needs; a submission packs them again. Asks nothing.

    Needed are those of runs that are going, or that `resume` could take up again.
    """
    from condorctl.units import size

    found = api.venv_clean(older_than, dry_run, force)
    if as_json:
        terminal.print_json(found)
        return
    for one in found["removed"]:
        print(_environment(one))
    for one in found["kept"]:
        if one["needed_by"]:
            print(f"kept for {', '.join(one['needed_by'])}: {_environment(one)}")
    print(f"{size(found['bytes'])} {'would be' if dry_run else ''} freed".replace("  ", " "))


def _environment(one: dict[str, Any]) -> str:
    from condorctl.units import age, size

    of = ", ".join(one["venvs"]) or "no run's"
    runs = f", {len(one['runs'])} run{'' if len(one['runs']) == 1 else 's'}" if one["runs"] else ""
    used = f"used {age(max(0.0, time.time() - one['used']))} ago"
    return printable(f"{Path(one['file']).name}  {size(one['bytes'])}  {of}{runs}, {used}")
