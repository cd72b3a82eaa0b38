"""The command line's root, and what its commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

import typer

from condorctl import __version__
from condorctl.cli import complete
from condorctl.errors import UserError

app = typer.Typer(
    help="Training pipelines on HTCondor: submit, follow, fetch; one ledger for all of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run; else the latest.", autocompletion=complete.runs),
]
RunNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", help="Runs; else the latest.", autocompletion=complete.runs),
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="CLUSTER[.PROC], a full id, a STAGE or RUN/STAGE.",
        autocompletion=complete.jobs,
    ),
]
PipelineName = Annotated[
    str,
    typer.Argument(
        help="A name in jobs/, a YAML file, or a DAG or submit file.",
        autocompletion=complete.pipelines,
    ),
]
SiteName = Annotated[
    str | None,
    typer.Option(
        "--site", metavar="NAME", help="A site's profile; else $CONDORCTL_SITE, else the spec's."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a parameter; repeatable."),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    schedd: Annotated[
        str | None,
        typer.Option(help="A schedd on another machine; else $CONDORCTL_SCHEDD.", metavar="NAME"),
    ] = None,
    collector: Annotated[
        str | None,
        typer.Option(help="The host that knows it; else $CONDORCTL_COLLECTOR.", metavar="HOST"),
    ] = None,
) -> None:
    # Everything that this command starts is to talk to the same one.
    if schedd:
        os.environ["CONDORCTL_SCHEDD"] = schedd
    if collector:
        os.environ["CONDORCTL_COLLECTOR"] = collector
    if version:
        print(__version__)
        raise typer.Exit


def settings(words: Iterable[str] | None, option: str = "--set") -> dict[str, str]:
    """What several ``--set KEY=VALUE`` mean; raises UserError for one that is none."""
    found = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {word}: write it as KEY=VALUE")
        found[key] = value
    return found
