"""A shell, or one command, beside a running job, through condor_ssh_to_job.

Into a container the exit status is lost on the way, so a command's comes in-band, after its output.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Sequence

from condorctl import events, locate, sandbox
from condorctl.errors import UserError
from condorctl.ledger import Ledger
from condorctl.sandbox import Deadline

_CHUNK = 1 << 20
_LOST = 255
# A session that ends sooner than this has never begun.
_AT_ONCE_S = 5.0

_RUN = r"""
code=$(printf '%b.' "$1"); sh -c "${code%.}"; printf '%s%d\0' "$2" $?
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
    wait(number, timeout)
    return run(number, command, to_stdout) if command else shell(number)


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


def wait(number: str, timeout: float) -> None:
    """Return as soon as the job ``cluster.proc`` can be entered.

    Raises UserError when it cannot be within `timeout` seconds.
    """
    try:
        sandbox.wait_for_start(number, Deadline(), timeout)
    except (sandbox.NotRunning, sandbox.NoSsh, sandbox.Broken) as error:
        raise UserError(f"job {number} cannot be entered: {error}", 1) from None


def run(number: str, command: Sequence[str], write: Callable[[bytes], object]) -> int:
    """Run a command in the sandbox of the job ``cluster.proc``; return its exit status.

    Its output is written as it comes. Standard input is passed on unless it is a terminal; its
    standard error comes out at ours.
    Raises UserError when the connection is lost.
    """
    line = command[0] if len(command) == 1 else shlex.join(command)
    mark = secrets.token_hex(16).encode()
    remote = sandbox.command(_RUN, [sandbox.encode(line), mark.decode()])
    # In a session of its own it could not read from this terminal, but would be stopped for trying.
    stdin = subprocess.DEVNULL if sys.stdin.isatty() else None
    with sandbox.tool(["condor_ssh_to_job", number, remote], None, stdin) as process:
        assert process.stdout is not None
        held = b""
        while chunk := os.read(process.stdout.fileno(), _CHUNK):
            held += chunk
            output, found, status = held.partition(mark)
            if found and status.endswith(b"\0"):
                write(output)
                return int(status[:-1])
            if not found:
                # The mark may have come in part.
                keep = len(mark) - 1
                write(held[:-keep])
                held = held[-keep:]
        write(held)
    raise UserError(f"job {number}: the connection was lost, or the job has ended", _LOST)


def shell(number: str) -> int:
    """A shell in the sandbox of the job ``cluster.proc`` at this terminal; returns its exit status.

    Raises UserError when the node does not give it a terminal.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as stderr:
        answer = subprocess.run(["condor_ssh_to_job", number], stderr=stderr, check=False)
        stderr.seek(0)
        words = stderr.read().decode(errors="replace").strip()
    if answer.returncode != _LOST or time.monotonic() - began > _AT_ONCE_S:
        return answer.returncode
    if "closed by remote host" not in words:
        raise UserError(f"job {number}: {words.splitlines()[-1] if words else 'no shell'}", 1)
    # sshd gives up where it may not hand the terminal to the group `tty`: a personal pool of
    # root's is in a user namespace, which does not have that group.
    return _shell_by_script(number)


def _shell_by_script(number: str) -> int:
    size = shutil.get_terminal_size()
    words = [os.environ.get("TERM", "dumb"), str(size.lines), str(size.columns)]
    remote = sandbox.command(_SHELL, words)
    before = termios.tcgetattr(sys.stdin)
    try:
        # Every key is the far side's affair, Ctrl-C too.
        tty.setraw(sys.stdin)
        answer = subprocess.run(["condor_ssh_to_job", number, remote], check=False)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return answer.returncode


def to_stdout(text: bytes) -> None:
    """Write what a command says as it comes."""
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
