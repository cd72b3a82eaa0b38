"""Commands about the images that stages run in; nothing here needs a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli import complete
from condorctl.cli.app import Json, app, settings
from condorctl.errors import printable

image_app = typer.Typer(
    help="Images that stages run in: build, push, check.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(image_app, name="image")

Engine = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="docker or podman; else the first that answers."),
]


@image_app.command("build")
def image_build(
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTION...", help="Further options of the engine's own build."),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", "-t", metavar="NAME", help="Its name; else this folder's."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="A Dockerfile; else this folder's, else the shipped."),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of the Dockerfile; repeatable."),
    ] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Build an image for stages to run in, and note it in exp/images.json."""
    built = api.image_build(tag, file, settings(arg, "--arg"), options or [], engine, _tell)
    _print(built, as_json, f"{built['tag']}  {built['id'][:19]}")
    if not as_json:
        print("next: condorctl image check; condorctl image push --to HOST/NAME:TAG")


@image_app.command("push")
def image_push(
    tag: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="What to push; else the last built.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="HOST/NAME:TAG", help="Where to; else its own name.")
    ] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Push an image to a registry and note its digest: stages without an image take this one."""
    pushed = api.image_push(tag, to, engine, _tell)
    _print(pushed, as_json, pushed["image"])


@image_app.command("check")
def image_check(
    image: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="Which; else the last pushed or built.")
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="For the stages of this pipeline; else of all in jobs/. Repeatable.",
            autocompletion=complete.pipelines,
        ),
    ] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Start an image as a job would, import what the stages import; exits with 1 for a problem."""
    found = api.image_check(image, pipeline or [], engine, _tell)
    if as_json:
        terminal.print_json(found)
    else:
        print(printable(found["image"]))
        for one in found["findings"]:
            mend = f"  → {one['mend']}" if one["mend"] else ""
            print(printable(f"{one['state']:<8} {one['name']:<12} {one['text']}{mend}"))
    if any(one["state"] == "problem" for one in found["findings"]):
        raise typer.Exit(1)


def _tell(line: str) -> None:
    terminal.complain([line])


def _print(found: dict[str, Any], as_json: bool, line: str) -> None:
    if as_json:
        terminal.print_json(found)
    else:
        print(printable(line))
