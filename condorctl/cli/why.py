"""Commands that say what is wrong, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli import complete, findings
from condorctl.cli.app import Json, app
from condorctl.errors import printable

# Of a line of a log; the whole of it is in --json.
_LONGEST = 600


@app.command()
def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB|RUN",
            help="CLUSTER[.PROC], a full id, a STAGE or RUN/STAGE; or a RUN; else the latest run.",
            autocompletion=complete.jobs,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why a job waits, is held or failed, show the line that proves it, and what mends it.

    Of a run, says so of each job that needs its user.
    """
    told = api.explain(what)
    if as_json:
        terminal.print_json(told)
        return
    jobs = told.get("jobs")
    for one in [told] if jobs is None else jobs:
        print("\n".join(_explanation(one)))
    if jobs == []:
        print(f"{told['run']}: {told['state']}; nothing in it needs you")
    terminal.complain([told["note"]] if told["note"] else [])


def _explanation(told: dict[str, Any]) -> Iterator[str]:
    name = f"{told['run']}/{told['stage']}" if told["stage"] else told["run"]
    if told["job"]:
        name += f"  job {told['job']}"
    if others := told.get("also"):
        name += f" and {len(others)} more ({', '.join(others[:3])}{', …' * (len(others) > 3)})"
    yield printable(f"{name}  {told['state']}")
    yield from _wrapped("why", told["cause"])
    yield from _wrapped("mend", told["mend"])
    place = None
    for line in told["evidence"]:
        if place is None or (line["file"], line["line"] - 1) != place:
            yield f"  seen  {printable(line['file'])}:{line['line']}"
        place = line["file"], line["line"]
        text = printable(line["text"].strip().replace("\t", " "))
        if len(text) > _LONGEST:
            text = text[:_LONGEST] + " …"
        yield from _wrapped("", text, indent=4)


def _wrapped(label: str, text: str, indent: int = 0) -> Iterator[str]:
    """`text` beside its label, no command in it broken: it must be fit for copying."""
    yield from findings.filled(f"  {label:<5}" + " " * max(0, indent - 1), text)


@app.command()
def doctor(
    job: Annotated[
        bool, typer.Option("--job", help="Submit a tiny job, too, and time what it can do.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that the job may take, waiting included.", min=1)
    ] = 120,
    as_json: Json = False,
) -> None:
    """Say what works here and what does not, and what mends it.

    With --job, a job tries file transfer, chirp and ssh on a slot. Exits with 1 when there is a
    problem that keeps jobs from being submitted or from running.
    """
    with terminal.progress(quiet=True) as progress:
        told = api.doctor(job, timeout, progress)
    if as_json:
        terminal.print_json(told)
    else:
        findings.tell(told["checks"])
    if not told["ok"]:
        raise typer.Exit(1)
