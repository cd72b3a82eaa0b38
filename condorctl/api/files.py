"""Reaching into jobs: files, what they say, a command beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from condorctl.api.base import Json, Progress, open_ledger, silent


def fetch(
    job: str,
    path: Sequence[str] = (),
    to: Path | None = None,
    follow: bool = False,
    timeout: float | None = None,
    progress: Progress = silent,
) -> Json:
    """Bring files back from a job: its output, errors and event log, or the paths you name.

    Of a run, what its finished stages have written. Returns `files` (`files.fetching`), `remarks`
    on what a human should know of them, and `problems` where several jobs were meant and not all
    had what was wanted.
    """
    from condorctl.files import fetching
    from condorctl.ledger import events

    ledger = open_ledger()
    events.sync(ledger)
    brought = fetching.fetch(ledger, job, path, to, progress, timeout, follow)
    return {"job": job, **dataclasses.asdict(brought)}


def logs(job: str, err: bool = False, events: bool = False, lines: int | None = None) -> Json:
    """What a job has said so far: its output, its errors, or HTCondor's events in words.

    Returns `jobs`, one for each that is meant, with `job`, `id`, `state` and `text`, of which only
    the last `lines` lines if so many are named. Bytes that are no UTF-8 become replacement signs.
    """
    from condorctl.files import logs as said

    what = said.choose(err, events)
    found = []
    for target, chunks in said.read(open_ledger(), job, what, lines):
        text = b"".join(chunks).decode(errors="replace")
        found.append({"job": target.number, "id": target.id, "state": target.state, "text": text})
    return {"jobs": found}


def ssh(job: str, command: Sequence[str], timeout: float = 60.0) -> Json:
    """Run a command beside a running job; returns its `output` and `exit_code`.

    A single word is a line for the shell there. `timeout` limits how long the job may be starting.
    """
    from condorctl.files import session

    number = session.running(open_ledger(), job)
    output: list[bytes] = []
    code = session.run(number, command, output.append, timeout)
    return {"job": number, "exit_code": code, "output": b"".join(output).decode(errors="replace")}


def sftp(job: str, command: Sequence[str], timeout: float = 60.0) -> Json:
    """Run sftp's commands in a running job's sandbox, until one fails.

    Returns `job`, `exit_code` and `output`. `timeout` limits how long the job may be starting.
    """
    from condorctl.files import session

    number = session.running(open_ledger(), job)
    code, output = session.sftp(number, command, timeout, quiet=True)
    return {"job": number, "exit_code": code, "output": output}
