"""What runs of a pool, as /proc shows it: proc(5)."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")

# Programs of HTCondor's that a pool starts by itself, other than a user's condor_q or condor_wait.
_DAEMONS = re.compile(
    "condor_(master|procd|shared_port|collector|negotiator|startd|starter|schedd|shadow|dagman"
    "|gridmanager|preen|transferer|gpu_discovery)"
)


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one with the same pid by when it started."""

    pid: int
    started: int  # clock ticks after boot
    boot: str  # the boot's id

    def alive(self) -> bool:
        """Whether this very process runs: not a zombie, not another one with a recycled pid."""
        return find(self.pid) == self


def find(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none, or a zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and ")"
    if state in "ZX":
        return None
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return Process(pid, started=int(fields[18]), boot=boot)


def of_pool(config: Path, execute: Path) -> list[Process]:
    """The daemons, DAGMan, jobs and their sshd of the pool that is configured by `config`.

    A daemon is known by CONDOR_CONFIG in its environment and by its program, a job by its sandbox
    under `execute`. A user's own shell or condor_q is neither, nor is this process. What the kernel
    does not let this process look into, such as another user's, is left out.
    """
    pool = f"CONDOR_CONFIG={config}".encode()
    sandbox = f"_CONDOR_SCRATCH_DIR={execute}/".encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            program = (entry / "exe").readlink().name.removesuffix(" (deleted)")
        except OSError:
            continue  # gone meanwhile, or somebody else's
        daemon = pool in environment and _DAEMONS.fullmatch(program)
        job = any(variable.startswith(sandbox) for variable in environment)
        process = find(int(entry.name))
        if process and (daemon or job):
            found.append(process)
    return found


def kill(process: Process, number: signal.Signals) -> None:
    """Send a signal, unless the process is gone already."""
    if process.alive():
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return


def wait_gone(process: Process, seconds: float) -> bool:
    """Wait for the process to end, so many seconds at most; whether it has."""
    deadline = time.monotonic() + seconds
    while process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_collected(process: Process, seconds: float) -> None:
    """Wait until an ended process has left the process table too, so many seconds at most."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
