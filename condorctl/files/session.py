"""A shell, or one command, beside a running job, through condor_ssh_to_job.

Into a container the exit status is lost on the way, so a command's comes in-band, after its output.
One session is all it takes: a job of `condor_submit -interactive` ends with the first.
"""

from __future__ import annotations

import grp
import os
import secrets
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from condorctl import paths, pool
from condorctl.errors import UserError
from condorctl.files import locate, sandbox
from condorctl.ledger import Ledger, events

_CHUNK = 1 << 20
_LOST = 255

_RUN = r"""
printf '%s' "$2"; code=$(printf '%b.' "$1"); sh -c "${code%.}"; printf '%s%d\0' "$2" $?
"""
# `script` gives a shell a terminal of its own where sshd cannot.
_SHELL = r"""
command -v script >/dev/null || { echo "no program called script on this node" >&2; exit 127; };
TERM=$1; export TERM;
exec script -qec "stty rows $2 cols $3; exec ${SHELL:-/bin/sh}" /dev/null
"""


def enter(ledger: Ledger, job: str, command: Sequence[str], timeout: float) -> int:
    """Run `command` beside the job that `job` names, or a shell, at this process's terminal.

    A single word is a line for the shell there, several are a program and its arguments. Returns
    the exit status. Raises UserError when the job does not run, or cannot be reached within
    `timeout` seconds, and when there is neither a command nor a terminal.
    """
    if not command:
        check_terminal("name a command to run beside the job")
    number = running(ledger, job)
    return run(number, command, to_stdout, timeout) if command else shell(number, timeout)


def sftp(
    number: str, commands: Sequence[str], timeout: float, quiet: bool = False
) -> tuple[int, str]:
    """An sftp session in the sandbox of the job ``cluster.proc``; its exit status and output.

    It runs the lines `commands`, else those of standard input; the first that fails ends it. At a
    terminal, without any, it prompts. What it says comes out at ours unless it is `quiet`, and only
    then is the output returned. Raises UserError when the job cannot be entered within `timeout`
    seconds, and where the far side has no sftp-server.
    """
    # Until it can be entered; sftp's own complaints are for the user to see. A container has its
    # image's server, not the node's, and it need not be where the node's configuration looks.
    found: list[bytes] = []
    look = f"ls {' '.join(paths.SFTP_SERVERS)} 2>/dev/null; true"
    run(number, [look], found.append, timeout, listens=False)
    servers = b"".join(found).decode().split()
    prompts = sys.stdin.isatty() and not commands
    program = ["sftp", *([] if prompts else ["-b", "-"]), *(["-s", servers[0]] if servers else [])]
    words = ["condor_ssh_to_job", "-ssh", " ".join(program), number]
    answer = subprocess.run(
        words,
        input="".join(f"{line}\n" for line in commands) if commands else None,
        stdout=subprocess.PIPE if quiet else None,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if answer.returncode == _LOST:
        raise UserError(
            f"job {number}: no sftp session: its node, or its image, may have no sftp-server; "
            "`condorctl fetch` and `condorctl ssh` need none",
            1,
        )
    return answer.returncode, answer.stdout or ""


def check_terminal(mend: str) -> None:
    """Raise UserError unless a human is at standard input and output."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"there is no terminal for a shell: {mend}")


def running(ledger: Ledger, job: str) -> str:
    """The number of the job that `job` names, which runs; raises UserError when it does not."""
    events.sync(ledger)
    found = locate.targets(ledger, job)
    if len(found) > 1:
        raise UserError(f"{job} has {len(found)} processes: name one, as {found[0].number}")
    target = found[0]
    if target.row is None:
        raise UserError(f"{target.label}: it runs on the submit machine, and has no sandbox", 1)
    if target.state != "running":
        why = target.why_not or f"it is {target.state}"
        raise UserError(f"{target.label}: one can only enter a job that runs: {why}", 1)
    locate.check_schedd(target)
    return target.number


def run(
    number: str,
    command: Sequence[str],
    write: Callable[[bytes], object],
    timeout: float,
    listens: bool = True,
) -> int:
    """Run a command in the sandbox of the job ``cluster.proc``; return its exit status.

    Its output is written as it comes. Standard input is passed on when it `listens`, unless that is
    a terminal; its standard error comes out at ours. Raises UserError when the job cannot be
    entered within `timeout` seconds, and when the connection is lost.
    """
    line = command[0] if len(command) == 1 else shlex.join(command)
    mark = secrets.token_hex(16)
    remote = sandbox.command(_RUN, [sandbox.encode(line), mark])
    # In a session of its own it could not read from this terminal, but would be stopped for trying.
    stdin = None if listens and not sys.stdin.isatty() else subprocess.DEVNULL
    end = time.monotonic() + timeout
    while True:
        try:
            with sandbox.tool(
                ["condor_ssh_to_job", number, remote], subprocess.PIPE, stdin
            ) as process:
                begun, status, complaint = _listen(process, mark.encode(), write)
        except sandbox.NoSsh as error:
            raise UserError(f"job {number} cannot be entered: {error}", 1) from None
        if status is not None:
            return status
        if begun:
            raise UserError(f"job {number}: the connection was lost, or the job has ended", _LOST)
        _again(number, complaint, end)


def _listen(
    process: subprocess.Popen[bytes], mark: bytes, write: Callable[[bytes], object]
) -> tuple[bool, int | None, bytes]:
    """Whether the command began, its exit status if it ended, what was said before it began."""
    assert process.stdout is not None and process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    begun, held, complaint, going = False, b"", b"", {out, err}
    while out in going:
        ready, _, _ = select.select(list(going), [], [])
        for source in ready:
            chunk = os.read(source, _CHUNK)
            if not chunk:
                going.discard(source)
            elif source == err and begun:
                os.write(sys.stderr.fileno(), chunk)
            elif source == err:
                complaint += chunk
            else:
                held += chunk
        if not begun and held.startswith(mark):
            begun, held = True, held[len(mark) :]
        if begun:
            output, found, status = held.partition(mark)
            if found and status.endswith(b"\0"):
                write(output)
                return True, int(status[:-1]), complaint
            if not found:
                # The mark may have come in part.
                keep = len(mark) - 1
                write(held[:-keep])
                held = held[-keep:]
    if begun:
        write(held)
    return begun, None, complaint


def shell(number: str, timeout: float) -> int:
    """A shell in the sandbox of the job ``cluster.proc`` at this terminal; returns its exit status.

    Raises UserError when the job cannot be entered within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while True:
        with tempfile.TemporaryFile() as stderr:
            # What the shell there writes comes through its terminal, and never here.
            open_one = _native if _sshd_gives_terminal() else _by_script
            code = open_one(number, stderr.fileno())
            stderr.seek(0)
            complaint = stderr.read()
        if code and sandbox.NOT_YET.search(complaint.decode(errors="replace")):
            _again(number, complaint, end)
            continue
        if code == _LOST or b"no program called script" in complaint:
            raise UserError(f"job {number}: {_last_line(complaint) or 'the session was cut'}", 1)
        return code


def _again(number: str, complaint: bytes, end: float) -> None:
    """Wait for the next try. Raises UserError when there is no point in it."""
    words = complaint.decode(errors="replace")
    if not sandbox.NOT_YET.search(words) or time.monotonic() > end:
        why = _last_line(complaint) or "condor_ssh_to_job ended without a word"
        raise UserError(f"job {number} cannot be entered: {why}", 1)
    time.sleep(1.0)


def _last_line(complaint: bytes) -> str:
    lines = complaint.decode(errors="replace").strip().splitlines()
    told = [line for line in lines if not line.startswith("(")]
    return (told or lines or [""])[-1]


def _sshd_gives_terminal() -> bool:
    """Whether the node's sshd can: it gives up where it may not hand one to the group `tty`.

    A personal pool of root's is in a user namespace, which does not have that group.
    """
    found = pool.find()
    if not found or found.where != "personal":
        return True
    with suppress(KeyError, OSError, ValueError):
        group = grp.getgrnam("tty").gr_gid
        for line in Path("/proc/self/gid_map").read_text().splitlines():
            first, _, count = map(int, line.split())
            if first <= group < first + count:
                return True
        return False
    return True


def _native(number: str, stderr: int) -> int:
    return subprocess.run(["condor_ssh_to_job", number], stderr=stderr, check=False).returncode


def _by_script(number: str, stderr: int) -> int:
    size = shutil.get_terminal_size()
    words = [os.environ.get("TERM", "dumb"), str(size.lines), str(size.columns)]
    remote = sandbox.command(_SHELL, words)
    before = termios.tcgetattr(sys.stdin)
    try:
        # Every key is the far side's affair, Ctrl-C too.
        tty.setraw(sys.stdin)
        answer = subprocess.run(["condor_ssh_to_job", number, remote], stderr=stderr, check=False)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return answer.returncode


def to_stdout(text: bytes) -> None:
    """Write what a command says as it comes."""
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
