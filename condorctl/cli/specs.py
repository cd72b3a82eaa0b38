"""Commands about specs and sites; nothing here needs a pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from condorctl import api, terminal
from condorctl.cli import complete, findings
from condorctl.cli.app import Json, PipelineName, Settings, SiteName, app, settings
from condorctl.errors import printable

site_app = typer.Typer(help="Profiles: what a site wants of every job.", no_args_is_help=True)
app.add_typer(site_app, name="site")


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to; else this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a small pipeline that works, to make your own of; overwrites nothing."""
    written = api.init(folder)
    if as_json:
        terminal.print_json(written)
        return
    for file in written["files"]:
        print(printable(file))
    where = f"cd {folder} && " if folder else ""
    print(printable(f"next: {where}condorctl lint && condorctl submit first --follow"))


@app.command()
def lint(
    pipelines: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PIPELINE",
            help="Names in jobs/, or YAML files; else all of jobs/.",
            autocompletion=complete.pipelines,
        ),
    ] = None,
    set_: Settings = None,
    site: SiteName = None,
    as_json: Json = False,
) -> None:
    """Say all that is wrong with pipelines, a line each; exits with 1 when there is anything."""
    found = api.lint(pipelines or [], settings(set_), site)
    if as_json:
        terminal.print_json(found)
    for file, problems in found["pipelines"].items():
        if not as_json:
            print("\n".join(problem["text"] for problem in problems) or f"{printable(file)}: good")
    if any(found["pipelines"].values()):
        raise typer.Exit(1)


@app.command()
def render(
    pipeline: PipelineName,
    to: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to: a new, empty folder.")
    ],
    set_: Settings = None,
    site: SiteName = None,
    as_json: Json = False,
) -> None:
    """Write the submit files and the DAG that submit would, and submit nothing."""
    written = api.render(pipeline, to, settings(set_), site)
    if as_json:
        terminal.print_json(written)
    else:
        print(printable(written["dag"]))


@app.command()
def schema(
    site: Annotated[bool, typer.Option("--site", help="That of a site's profile.")] = False,
) -> None:
    """Print the JSON Schema of a pipeline's spec, for editors and other tools."""
    terminal.print_json(api.schema(site))


@site_app.command("list")
def site_list(as_json: Json = False) -> None:
    """List the profiles of sites: name, description, file."""
    found = api.site_list()
    if as_json:
        terminal.print_json(found)
        return
    for site in found["sites"]:
        words = site["problem"] or f"{site['description']}  ({site['file']})".strip()
        print(printable(f"{site['name']}  {words}"))


@site_app.command("show")
def site_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A site's profile.")],
    as_json: Json = False,
) -> None:
    """Print a site's profile, the file that it is in, and what `site test` has learnt of it."""
    found = api.site_show(name)
    if as_json:
        terminal.print_json(found)
        return
    print(printable(f"# {found['file']}"))
    for line in Path(found["file"]).read_text(encoding="utf-8").splitlines():
        print(printable(line))
    if learnt := found["learnt"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(learnt["time"]))
        print(printable(f"\n# what `condorctl site test` has learnt, {when}, {learnt['schedd']}:"))
        findings.tell(learnt["checks"])


@site_app.command("test")
def site_test(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A site's profile; else the one of $CONDORCTL_SITE."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that all of it may take, waiting included.", min=1)
    ] = 300,
    as_json: Json = False,
) -> None:
    """Submit tiny jobs as a site wants them, say what works there, and remember it.

    They try file transfer both ways, ssh, chirp and a GPU. Exits with 1 when something keeps jobs
    from running. `site show` and `doctor` tell later what was learnt.
    """
    with terminal.progress(quiet=as_json) as progress:
        told = api.site_test(name, timeout, progress)
    if as_json:
        terminal.print_json(told)
    else:
        findings.tell(told["checks"])
        print(printable(f"written to {told['file']}"))
    if not told["ok"]:
        raise typer.Exit(1)
