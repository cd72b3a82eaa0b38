"""Commands that start, steer and end runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from condorctl import api, terminal
from condorctl.cli import complete
from condorctl.cli.adopted import jobs_of
from condorctl.cli.app import (
    JobName,
    Json,
    PipelineName,
    RunName,
    Settings,
    SiteName,
    app,
    settings,
)
from condorctl.cli.look import watch
from condorctl.errors import UserError, printable

Target = Annotated[
    str,
    typer.Argument(
        metavar="JOB|RUN", help="A job as for `fetch`, or a run.", autocompletion=complete.runs
    ),
]


@app.command()
def submit(
    pipeline: PipelineName,
    set_: Settings = None,
    site: SiteName = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="STAGE", help="Start at this stage; a name or a glob."),
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            "--reuse",
            metavar="RUN",
            help="With --from: the run that the earlier stages are taken from; else the latest.",
            autocompletion=complete.runs,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run every stage, also those that have not changed.")
    ] = False,
    interactive: Annotated[
        str | None,
        typer.Option(
            "--interactive",
            metavar="STAGE",
            help="Open a shell on a slot as this stage has it, instead; files of earlier stages "
            "come from --reuse RUN.",
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option("--command", "-c", help="With --interactive: run this line, no shell."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress to the end.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a pipeline as a DAG; print the run's name and the DAG's job id.

    A path to a DAG or a submit file of your own is submitted as HTCondor's tools would, from this
    folder; what the submit language runs while it is read (include command) is run.

    A stage whose command, code, inputs, environment and image are those of a stage that is done
    is not run again: its outputs are taken over, once their hashes have been checked. With --from
    that is decided by you.

    With --follow, exits with 1 when the run failed or is stuck.
    """
    if interactive:
        _enter(pipeline, interactive, settings(set_), site, reuse, command)
    if command:
        raise UserError("-c goes with --interactive STAGE")
    with terminal.progress(quiet=as_json) as progress:
        view = api.submit(pipeline, settings(set_), site, start or [], reuse, force, progress)
    terminal.complain(view["remarks"])
    if as_json and not follow:
        terminal.print_json(view)
    elif not as_json:
        what = f"DAG job {view['dag']}" if view["dag"] else f"jobs {jobs_of(view)}"
        print(f"{view['run']}: {what}, folder {printable(view['folder'])}", flush=True)
    if follow:
        watch(view["run"], as_json)


def _enter(
    pipeline: str,
    stage: str,
    set_: dict[str, str],
    site: str | None,
    reuse: str | None,
    command: str | None,
) -> None:
    from condorctl.files import interactive

    def tell(line: str) -> None:
        terminal.complain([line])

    ledger = api.open_ledger()
    raise typer.Exit(interactive.run(ledger, pipeline, stage, set_, site, reuse, command, tell))


@app.command()
def resume(
    run: RunName = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress to the end.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that failed or was removed: stages that are done are not run again.

    The run keeps its name, its folder and its code. With --follow as `submit`.
    """
    found = api.resume(run)
    if as_json and not follow:
        terminal.print_json(found)
    elif not as_json:
        kept, left = len(found["kept"]), len(found["left"])
        print(f"{found['run']}: DAG job {found['dag']}.0, {kept} stages kept, {left} to run")
    if follow:
        watch(found["run"], as_json)


@app.command()
def cancel(run: RunName = None, as_json: Json = False) -> None:
    """Remove a run and its jobs from the queue; `condorctl resume` can go on with it."""
    found = api.cancel(run)
    if as_json:
        terminal.print_json(found)
    else:
        print(f"{found['run']}: {found['state']}; `condorctl resume {found['run']}` goes on")


@app.command()
def hold(target: Target, as_json: Json = False) -> None:
    """Hold a job, or a run with all its jobs: what runs is stopped, nothing starts."""
    _tell(api.hold(target), "held", as_json)


@app.command()
def release(target: Target, as_json: Json = False) -> None:
    """Release a job that is held, or all of a run."""
    _tell(api.release(target), "released", as_json)


@app.command()
def rm(job: JobName, as_json: Json = False) -> None:
    """Remove one job from the queue. To its DAG it has failed, and may be tried again."""
    _tell(api.rm(job), "removed", as_json)


@app.command()
def clean(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs to clean.", autocompletion=complete.runs),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="All that ended so long ago."),
    ] = None,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Leave the stages' outputs where they are.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what a run that is going reads.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the files of runs that have ended, and say how much space that frees.

    The ledger keeps their results, metrics, costs and provenance. Asks nothing.
    """
    from condorctl.units import size

    found = api.clean(runs or [], older_than, keep_outputs, dry_run, force)
    if as_json:
        terminal.print_json(found)
        return
    for one in found["runs"]:
        print(f"{one['run']}  {size(one['bytes'])}  {printable(one['folder'])}")
    print(f"{size(found['bytes'])} {'would be freed' if dry_run else 'freed'}")


@app.command()
def show(run: RunName = None, as_json: Json = False) -> None:
    """Show where a run comes from: commit, code, inputs, versions, machines, outputs."""
    from condorctl.view import show as provenance

    view = api.show(run)
    if as_json:
        terminal.print_json(view)
        return
    print("\n".join(provenance.as_lines(view)))


@app.command()
def diff(
    left: Annotated[
        str, typer.Argument(metavar="RUN", autocompletion=complete.runs, help="A run.")
    ],
    right: Annotated[
        str,
        typer.Argument(
            metavar="RUN", autocompletion=complete.runs, help="The run to compare it with."
        ),
    ],
    code: Annotated[bool, typer.Option("--code", help="Print the diff of their code.")] = False,
    as_json: Json = False,
) -> None:
    """Show what tells two runs apart: parameters, code, versions, stages, figures."""
    from condorctl.view import compare

    found = api.diff(left, right, code)
    if as_json:
        terminal.print_json(found)
        return
    print("\n".join(compare.as_lines(found)))


def _tell(found: dict[str, Any], done: str, as_json: bool) -> None:
    if as_json:
        terminal.print_json(found)
    else:
        jobs = f"{found['jobs']} job{'s' * (found['jobs'] > 1)}"
        print(f"{printable(found['what'])}: {jobs} {done}")
