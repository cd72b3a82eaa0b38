"""Faults of condorctl itself: killed in the midst of it, two at once, cut off from a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from condorctl.pool.processes import find
from tests import crash
from tests.chaos import chain, workload
from tests.chaos.faults import Draw, Fault
from tests.chaos.pool import command, parent
from tests.chaos.world import World, kill

_CUT_S = 20
_SILENT_S = 150


class CondorctlKilled(Fault):
    """At one of its system calls that change something; the same command is given again then."""

    kind = "kill -9: condorctl, in a write"
    weight = 8

    def inject(self, world: World) -> str | None:
        command_ = self._words(world)
        if command_ is None:
            return None
        call = self.draw.choice(
            ["write", "pwrite64", "rename", "fsync", "unlink", "sendto", "mkdir"]
        )
        number = 1 + int(self.draw.paretovariate(0.5)) % 60
        self._again = command_
        point = crash.Point(call, number)
        if not _kill(world, command_, point):
            return None  # it had ended before
        words = " ".join(command_).replace(str(world.folder), "")
        return f"condorctl {words} at {call} {number}"

    def _words(self, world: World) -> list[str] | None:
        which = self.draw.choice(["status", "status", "submit", "fetch", "resume", "check"])
        if which == "submit":
            # What does not come into the queue is resumed by the user's automation.
            return [
                "submit",
                self.draw.choice(sorted(workload.CHAINS)),
                *submitted(world),
                "--json",
            ]
        chains = [run for run in world.all_runs() if run["pipeline"] in workload.CHAINS]
        runs = sorted(run["run"] for run in chains)
        run = self._choose(runs)
        if run is None:
            return None
        if which == "fetch":
            return [
                "fetch",
                f"{run}/first",
                "metrics.jsonl",
                "--to",
                str(world.folder / "back"),
                "--timeout",
                "20",
            ]
        if which == "resume":
            return ["resume", run]
        return ["ledger", "check"] if which == "check" else ["status", "--all", "--json"]

    def effect(self, world: World) -> str | None:
        if self._again[0] == "submit":
            return "killed; its run is judged with the others"
        answer = world.condorctl(*self._again)
        return f"killed; the next one answers {answer.returncode}"


def submitted(world: World) -> list[str]:
    """What a chain's submission is given."""
    return ["--force", "--set", f"witness={world.witness}"]


def _kill(world: World, words: list[str], point: crash.Point) -> bool:
    """Whether condorctl, told `words`, was killed at that point."""
    ours = [f"{k}={v}" for k, v in world.environment.items() if os.environ.get(k) != v]
    try:
        return crash.kill(["env", *ours, *crash.condorctl(*words)], world.project, point)
    except subprocess.TimeoutExpired:
        return False


class TwoAtOnce(Fault):
    """Several condorctl on one ledger, in the same moment."""

    kind = "two condorctl on one ledger"
    weight = 4

    def inject(self, world: World) -> str | None:
        words = [["status", "--all", "--json"], ["ledger", "check", "--json"]]
        words += [
            ["submit", self.draw.choice(sorted(workload.CHAINS)), *submitted(world), "--json"]
        ]
        words += [["status", "--json"]]
        self._words = self.draw.sample(words, self.draw.randint(2, 3))
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "condorctl", *one], cwd=world.project, text=True,
                env=world.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for one in self._words
        ]  # fmt: skip
        self._codes = []
        for one, process in zip(self._words, started, strict=True):
            try:
                said, _ = process.communicate(timeout=_SILENT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
                world.unclear.append(f"{world.now}: condorctl {' '.join(one)}: silent")
            self._codes.append(process.returncode)
            world.judge(tuple(one), process.returncode, said)
        return " and ".join(one[0] for one in self._words)

    def effect(self, world: World) -> str | None:
        return f"exit codes {', '.join(map(str, self._codes))}"


class CutFetch(Fault):
    """The ssh of a fetch is killed in mid-transfer; the fetch goes on from there."""

    kind = "ssh cut during a fetch"
    weight = 3

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.cuts = draw.randint(1, 3)

    def inject(self, world: World) -> str | None:
        there = [one for one in world.tasks() if (one.sandbox / chain.BALLAST).is_file()]
        self.target = self._choose(sorted({(one.run, one.stage) for one in there}))
        if not self.target:
            return None
        name, to = "/".join(self.target), world.folder / "cut"
        shutil.rmtree(to, ignore_errors=True)
        words = [sys.executable, "-m", "condorctl", "fetch", name, chain.BALLAST, "--to", str(to)]
        fetch = subprocess.Popen(
            [*words, "--timeout", "40", "--json"], cwd=world.project, env=world.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._seen: list[int] = []
        self._killed = 0
        end = time.monotonic() + _CUT_S
        while fetch.poll() is None and self._killed < self.cuts and time.monotonic() < end:
            self._cut(fetch.pid, to)
            time.sleep(0.003)
        out, said = fetch.communicate(timeout=90)
        world.judge(("fetch", name), fetch.returncode, said)
        self._code, self._said = fetch.returncode, said.strip()[-200:]
        self._whole = False
        if fetch.returncode == 0:
            [file] = json.loads(out)["files"]
            self._whole = (to / chain.BALLAST).read_bytes() == chain.ballast()
            if not self._whole:
                world.unclear.append(f"{world.now}: fetch {name} brought another file: {file}")
        shutil.rmtree(to, ignore_errors=True)
        return f"{name}: {self._killed} cuts, after {self._seen} bytes" if self._killed else None

    def _cut(self, pid: int, to: Path) -> None:
        have = sum(file.stat().st_size for file in _files(to))
        if have <= (self._seen[-1] if self._seen else 0):
            return
        for process in descendants(pid):
            if Path(command(process)[0] if command(process) else "").name == "ssh":
                self._killed += kill(process)
                self._seen.append(have)
                return

    def effect(self, world: World) -> str | None:
        if self._code == 0:
            return "the file is whole" if self._whole else None
        return f"says: {self._said}"


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []


def descendants(pid: int) -> list[Any]:
    """The processes that a process has started, and those that they have."""
    every = [find(int(e.name)) for e in Path("/proc").iterdir() if e.name.isdecimal()]
    parents = {one.pid: (one, parent(one)) for one in every if one}
    found, wanted = [], {pid}
    while wanted:
        below = [one for one, above in parents.values() if above in wanted]
        found += below
        wanted = {one.pid for one in below}
    return found
