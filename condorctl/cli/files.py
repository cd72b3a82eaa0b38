"""Commands that reach into jobs: their files, their logs, a shell beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condorctl import api, terminal
from condorctl.cli.app import JobName, Json, app
from condorctl.errors import UserError, printable

if TYPE_CHECKING:
    from condorctl.files.locate import Target


@app.command()
def fetch(
    job: JobName,
    path: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Files, folders, '*.pt' or 'ckpt/**' of the job."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to; else ./fetched/JOB.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep files that grow coming until the job ends.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.1, help="Give up then; what has come is kept."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring files back from a job: its output, errors and event log, or the paths you name.

    From the job's node while it runs, from HTCondor's spool when it was evicted or held with its
    files, else from where they are here. A RUN stands for the outputs of its finished stages. A
    fetch that was interrupted goes on where it stopped, and what is here already does not come
    again. Exits with 124 after --timeout.
    """
    with terminal.progress(quiet=as_json or not sys.stderr.isatty()) as progress:
        # Rich reads brackets in what it shows, and the job has chosen the name.
        def shown(what: str, done: int, total: int) -> None:
            progress(printable(what).replace("[", "("), done, total)

        fetched = api.fetch(job, path or [], to, follow, timeout, shown)
    if as_json:
        terminal.print_json(fetched)
    else:
        for file in fetched["files"]:
            size, digest = file["bytes"], file["sha256"][:12]
            print(f"{printable(file['target'])}  {size} bytes  sha256 {digest}")
    terminal.complain([*fetched["remarks"], *fetched["problems"]])
    if fetched["problems"]:
        raise typer.Exit(1)


@app.command()
def logs(
    job: JobName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job, or the stage, has ended.")
    ] = False,
    err: Annotated[bool, typer.Option("--err", help="Its standard error.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="What HTCondor says of it: starts, holds, the end.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="The last N lines only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a job has said, in whatever state it is; with -f, what it says from now on, too.

    A terminal gets lines without colours and other control characters, a pipe or file the very
    bytes. With -f a STAGE means all its attempts; it exits with 1 when the end was a failure.
    """
    from condorctl.files import logs as said

    what = said.choose(err, events)
    if as_json:
        if follow:
            raise UserError("--json goes without --follow")
        terminal.print_json(api.logs(job, err, events, lines))
        return
    shown = said.Lines(sys.stdout.write) if sys.stdout.isatty() else None

    def write(text: bytes) -> None:
        if shown:
            shown(text)
            sys.stdout.flush()
        else:
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()

    end = None
    try:
        if follow:
            ledger = api.open_ledger()
            end = said.follow(ledger, job, what, write, lambda s: terminal.complain([s]), lines)
        else:
            _print_all(said.read(api.open_ledger(), job, what, lines), write)
    finally:
        if shown:
            shown.close()
    if end and not end.well:
        terminal.complain([f"{job}: {end.state}"])
        raise typer.Exit(1)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    job: JobName,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND...", help="One word: a line for the shell there."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="Wait so long while it is starting.")
    ] = 60.0,
) -> None:
    """Open a shell in a running job's sandbox, or run COMMAND there; its exit status is ours."""
    from condorctl.files import session

    raise typer.Exit(session.enter(api.open_ledger(), job, command or [], timeout))


@app.command()
def sftp(
    job: JobName,
    command: Annotated[
        list[str] | None,
        typer.Option("--command", "-c", metavar="LINE", help="Run this, no prompt; repeatable."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="Wait so long while it is starting.")
    ] = 60.0,
) -> None:
    """Open an sftp session in a running job's sandbox, to look around and to move files both ways.

    Without a terminal it reads commands such as `get model.pt` from standard input. The first that
    fails ends it, with an exit code other than 0.
    """
    from condorctl.files import session

    number = session.running(api.open_ledger(), job)
    raise typer.Exit(session.sftp(number, command or [], timeout)[0])


def _print_all(
    found: Iterable[tuple[Target, Iterator[bytes]]], write: Callable[[bytes], None]
) -> None:
    parts = list(found)
    for target, chunks in parts:
        if len(parts) > 1:
            write(f"==> {target.number} <==\n".encode())
        for chunk in chunks:
            write(chunk)
