"""Kill a command with SIGKILL at any of its system calls that change something outside of it.

strace (Debian's package) delivers the signal as the call is entered, so the call does not happen:

    for point in crash.some(crash.points(command, folder), every=20):
        crash.kill(command, folder, point)
        ...  # what is left, and does the same command end well now?
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Files and folders, and what is said to daemons.
CALLS = (
    "write,pwrite64,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,fsync,fdatasync,"
    "ftruncate,link,linkat,symlink,sendto,sendmsg,utimensat,chmod,fchmod"
)
_LINE = re.compile(r"^(?P<pid>\d+) +(?P<call>\w+)\(", re.MULTILINE)
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Point:
    """The `number`-th `call` of a process, counted from 1."""

    call: str
    number: int


@cache
def can_kill() -> bool:
    """Whether there is a strace here, and it may trace."""
    if not shutil.which("strace"):
        return False
    probe = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=write", "-o", os.devnull, "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def condorctl(*words: str) -> list[str]:
    """The command line, for `points` and `kill`."""
    return [sys.executable, "-m", "condorctl", *words]


def points(command: Sequence[str], folder: Path) -> list[Point]:
    """Run `command` undisturbed; all calls at which it can be killed, in their order."""
    with tempfile.NamedTemporaryFile() as log:
        # Without the filter in the kernel it takes twice as long; with it nothing is injected.
        words = ["-f", "--seccomp-bpf", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log.name]
        answer = _strace(words, command, folder)
        assert answer.returncode == 0, answer
        lines = list(_LINE.finditer(Path(log.name).read_text(errors="replace")))
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        # The command's own, not those of programs that it starts.
        if line["pid"] == lines[0]["pid"]:
            seen[line["call"]] += 1
            found.append(Point(line["call"], seen[line["call"]]))
    return found


def some(found: Sequence[Point], every: int) -> list[Point]:
    """Each `every`-th of the points, and the last one."""
    return list(dict.fromkeys([*found[every // 2 :: every], found[-1]]))


def kill(command: Sequence[str], folder: Path, point: Point) -> bool:
    """Run `command` up to `point`; whether it was killed there, and had not ended before."""
    words = ["-e", f"inject={point.call}:signal=KILL:when={point.number}", "-o", os.devnull]
    answer = _strace([*words, "-e", f"trace={point.call}"], command, folder)
    return answer.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _strace(
    words: Sequence[str], command: Sequence[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-qq", *words, *command], cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S,
    )  # fmt: skip


def assert_whole(ledger: Path, runs: Path) -> None:
    """The ledger's file is sound, and each folder in `runs` has all that its run was given."""
    with closing(sqlite3.connect(ledger)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
    for folder in runs.glob("[!.]*"):
        there = {path.name for path in folder.iterdir()}
        [dag] = folder.glob("*.dag")
        assert {"run.json", "spec.yaml", "dagman.config", "code"} <= there, there
        nodes = re.findall(r"(?m)^JOB \S+ (\S+)", dag.read_text())
        assert nodes and all((folder / node).is_file() for node in nodes)
