"""A shell on a slot as one of a pipeline's stages would have it: image, environment, code, inputs.

The job is the stage's own, but for the program: it waits for a session and lasts as long as that
does, as `condor_submit -interactive` has it (HTCondor manual, "Interactive Jobs"). It is in no run
and in no ledger, and nothing that it writes comes back.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from condorctl import paths, secrets
from condorctl.condor import cluster, submit_language
from condorctl.condor.codes import JobStatus
from condorctl.errors import UserError, suggest
from condorctl.files import session
from condorctl.job.folder import FOLDER as CHECKPOINTS
from condorctl.ledger import Ledger, find
from condorctl.pool import elsewhere
from condorctl.spec import pipeline as specs
from condorctl.spec import reader
from condorctl.spec.pipeline import Pipeline, Stage
from condorctl.spec.venv import is_venv
from condorctl.submit import render, snapshot, submission, venvs

# How long one waits for a slot, and then to be let in.
_SLOT_S = 600.0
_ENTER_S = 60.0
_GONE_S = 20.0
_SUBMIT_S = 120.0

# HTCondor ends an interactive job with its session. One that nobody comes to ends by itself; that
# folder is there while there is a session.
_WAIT = "sleep 100; while test -d .condor_ssh_to_job_1; do sleep 3; done"


def run(
    ledger: Ledger,
    name: str,
    stage: str,
    settings: Mapping[str, str],
    site: str | None = None,
    reuse: str | None = None,
    command: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Open a shell, or run the line `command`, on a slot as `stage` of the pipeline `name` has it.

    Files of earlier stages are taken from the run `reuse`. Returns the exit status; the job is gone
    afterwards. Raises UserError for what `submit` refuses, for a file that is missing, without a
    terminal or a command, and when no slot is to be had within ten minutes.
    """
    if not command:
        session.check_terminal("-c COMMAND runs one command instead")
    if elsewhere.schedd():
        raise UserError("--interactive: works with the pool's own schedd, not with one elsewhere")
    pipeline = reader.load(paths.spec(name), settings, site)
    if stage not in pipeline.stages:
        raise UserError(
            f"{name} has no stage {stage!r}{suggest(stage, pipeline.stages)}: "
            "--interactive STAGE names one"
        )
    one = pipeline.stages[stage]
    cluster.schedd_name()
    with _folder() as folder, _ends_well():
        (folder / one.name / CHECKPOINTS).mkdir(parents=True)
        _bring_inputs(ledger, one, pipeline, folder, reuse)
        snapshot.code(pipeline, folder / "code")
        secrets.write(one, folder)
        unpack = _unpacking(one, tell)
        text = render.submit_file(
            pipeline, one, f"{pipeline.name}-interactive", submission.python()
        )
        (folder / "interactive.sub").write_text(
            _waiting(text, "" if command else unpack), encoding="utf-8"
        )
        with _job(folder) as number:
            tell(f"job {number} waits for a slot; the stage's own command: {' '.join(one.command)}")
            _wait_for_slot(number)
            if command:
                # Its environment must be there first, and the job ends with its first session.
                line = unpack + (secrets.SHELL if one.secrets else "") + command
                return session.run(number, [line], session.to_stdout, _ENTER_S)
            if one.secrets:
                tell(f"its secrets: {secrets.SHELL}")
            return session.shell(number, _ENTER_S)


def _unpacking(stage: Stage, tell: Callable[[str], None]) -> str:
    """What a shell runs before all else for the stage's `venv`; empty without."""
    if not stage.venv:
        return ""
    file = stage.venv
    if not specs.is_url(file) and is_venv(Path(file)):
        file = venvs.pack(Path(file), tell=tell)["file"]
    words = shlex.join(["sh", "code/condorctl/venv.sh", posixpath.basename(file), venvs.FOLDER])
    return f"{words} && PATH=$PWD/{venvs.FOLDER}/bin:$PATH && export PATH; "


def _bring_inputs(
    ledger: Ledger, stage: Stage, pipeline: Pipeline, folder: Path, reuse: str | None
) -> None:
    """Copy what earlier stages wrote to where the stage's submit file names it."""
    for text in stage.inputs:
        maker, path = specs.split_input(text)
        if maker not in pipeline.stages:
            continue
        if reuse is None:
            raise UserError(
                f"stage {stage.name!r} needs {text}: --reuse RUN takes it from a run that has it"
            )
        with ledger.session() as rows:
            run = find.run(rows, reuse)
            known = {one.name: one for one in run.stages}
            if maker not in known:
                raise UserError(f"--reuse {reuse}: it has no stage {maker!r} to take {text} from")
            source = known[maker].origin.folder / path
        target = folder / maker / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy2(source, target)
        else:
            raise UserError(f"--reuse {reuse}: {source} is missing, which {stage.name!r} needs")


def _waiting(text: str, before: str) -> str:
    """The stage's submit file with a program that waits for a session, and no output.

    It runs the line `before` first.
    """
    lines = [
        "executable = /bin/sh",
        "transfer_executable = false",
        f"arguments = {submit_language.arguments(['-c', before + _WAIT])}",
        'transfer_output_files = ""',
        'transfer_output_remaps = ""',
        "when_to_transfer_output = ON_EXIT",
        "output = /dev/null",
        "error = /dev/null",
        "log = interactive.log",
        # A site may have slots, or limits, for these.
        "+InteractiveJob = true",
        "queue",
    ]
    # The last word on a key counts, and a site's own lines may come before any of these.
    return re.sub(r"^queue\b.*\Z", "", text, flags=re.MULTILINE | re.DOTALL) + "\n".join(lines)


@contextmanager
def _job(folder: Path) -> Iterator[str]:
    """Submit the job; it is removed at the end, whatever happens."""
    words = ["condor_submit", "-terse", "interactive.sub"]
    try:
        answer = subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SUBMIT_S,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError("condor_submit is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise cluster.Unreachable("the schedd does not answer to condor_submit", 3) from None
    number = answer.stdout.decode(errors="replace").partition(" ")[0].strip()
    if answer.returncode or not number:
        raise UserError(f"HTCondor refuses the job: {answer.stderr.decode(errors='replace')}")
    try:
        yield number
    finally:
        _remove(number)


def _remove(number: str) -> None:
    """Have the job gone from the queue before its folder is."""
    constraint = f"ClusterId == {int(number.partition('.')[0])}"
    cluster.act("remove", constraint, "its session has ended")
    end = time.monotonic() + _GONE_S
    while _state(number)[1] and time.monotonic() < end:
        time.sleep(0.2)


def _wait_for_slot(number: str) -> None:
    end = time.monotonic() + _SLOT_S
    while True:
        ad, queued = _state(number)
        status = ad.get("JobStatus")
        if status == JobStatus.RUNNING:
            return
        if status == JobStatus.HELD:
            raise UserError(f"job {number} is held: {ad.get('HoldReason')}", 1)
        if not queued:
            raise UserError(f"job {number} was removed before it started", 1)
        if time.monotonic() > end:
            raise UserError(
                f"no slot for it in {_SLOT_S / 60:.0f} min: `condorctl doctor` and "
                "`condor_q -better-analyze` tell what the pool has",
                1,
            )
        time.sleep(0.5)


def _state(number: str) -> tuple[cluster.Ad, bool]:
    one, _, proc = number.partition(".")
    return cluster.job_ad(int(one), int(proc), ["JobStatus", "HoldReason"]) or ({}, False)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder beside those of runs, for as long as the job needs it."""
    runs = paths.runs()
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".interactive-", dir=runs) as folder:
        yield Path(folder)


@contextmanager
def _ends_well() -> Iterator[None]:
    """A signal that ends this process takes its job along."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
