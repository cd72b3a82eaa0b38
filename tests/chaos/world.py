"""What a campaign lives in: a pool, a user's folder on a disk of its own, runs, and their eyes.

Everything is below one folder. All that is killed is found through the pool's own processes.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condorctl.pool import processes
from condorctl.pool.processes import Process
from tests.chaos.pool import Node, Pool, command, parent, program, variable

Json = dict[str, Any]
Answer = subprocess.CompletedProcess[str]

_COMMAND_S = 150
_FRESH_S = 2.0
_DISK = "size=400m,mode=0755"
_AD = re.compile(r'(?m)^(JobBatchName|DAGNodeName) = "(.*)"$')
# What a command that cannot do its work may exit with, its reason in one line.
_TRACEBACK = "Traceback (most recent call last)"

# One process looks all the time: to start Python for each look takes the cores from the jobs.
_EYES = """
import json, sys
from condorctl import api
from condorctl.errors import UserError
for line in sys.stdin:
    name, words = json.loads(line)
    try:
        answer = [getattr(api, name)(**words), None, None]
    except UserError as error:
        answer = [None, str(error), None]
    except Exception:
        import traceback
        answer = [None, "", traceback.format_exc()]
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Task:
    """A process of a job: what it runs, of which stage, on which node."""

    process: Process
    words: tuple[str, ...]
    run: str
    stage: str
    sandbox: Path

    @property
    def is_script(self) -> bool:
        return any(word.endswith("chain.py") or word == "robust" for word in self.words[1:4])

    @property
    def is_top(self) -> bool:
        above = processes.find(parent(self.process))
        return above is not None and program(above) == "condor_starter"


class World:
    """The pool, the user's project, and what happens there."""

    def __init__(self, folder: Path, cpus: int, lease_s: int = 60) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.project = self.disk / "project"
        self.ledger = self.disk / "ledger.sqlite"
        self.runs = self.project / "exp" / "runs"
        self.witness = folder / "witness"
        self.state = folder / "state"
        self.pool = Pool(self.state, cpus, lease_s)
        self.started = time.time()
        self.means: Counter[str] = Counter()
        self.unclear: list[str] = []
        # Of whom the campaign knows that it holds or cut them, until it undoes that.
        self.held: set[str] = set()
        self.mounts: list[Path] = []
        self._views: dict[str, tuple[float, Json]] = {}
        self._names = 1
        self._eyes: subprocess.Popen[str] | None = None
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("_CONDOR", "CONDOR"))},
            "XDG_STATE_HOME": str(self.state),
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "CONDORCTL_LEDGER": str(self.ledger),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TMPDIR": "/tmp",
        }

    # --- its beginning and its end ---

    def build(self) -> None:
        for folder in (self.disk, self.witness, self.folder / "config"):
            folder.mkdir(parents=True)
        self.pool.prepare()
        if can_mount(self.folder):
            for place in (self.disk, self.pool.execute):
                self._mount(place)
        self.project.mkdir()
        answer = self.condorctl("pool", "up", "--cpus", str(self.pool.cpus))
        assert answer.returncode == 0, answer
        self.join()

    def _mount(self, place: Path) -> None:
        words = ["mount", "-t", "tmpfs", "-o", _DISK, "tmpfs", str(place)]
        subprocess.run(words, check=True)
        self.mounts.append(place)

    def join(self) -> Node:
        """Another node joins the pool."""
        self._names += 1
        node = self.pool.new_node(self.folder / f"node{self._names}")
        if self.mounts:
            self._mount(node.execute)
        node.start(self.environment)
        return node

    def end(self) -> None:
        """Stop all of it; nothing stays but the files."""
        if self._eyes:
            assert self._eyes.stdin
            self._eyes.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._eyes.wait(30)
        for node in self.pool.nodes:
            node.vanish()
        self.condorctl("pool", "down")

    def remove(self) -> None:
        """Remove its files, too."""
        for place in reversed(self.mounts):
            subprocess.run(["umount", str(place)], check=True)
        self.mounts.clear()
        shutil.rmtree(self.folder)

    @property
    def now(self) -> float:
        """Seconds since the campaign began."""
        return round(time.time() - self.started, 1)

    # --- condorctl ---

    def condorctl(self, *words: str, timeout: float = _COMMAND_S) -> Answer:
        """Run the real command line as the user does; what is no clear answer is noted."""
        folder = self.project if self.project.is_dir() else self.folder
        try:
            answer = subprocess.run(
                [sys.executable, "-m", "condorctl", *words],
                cwd=folder, env=self.environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            self.unclear.append(f"{self.now}: condorctl {' '.join(words)}: silent for {timeout} s")
            return subprocess.CompletedProcess(words, 124, "", "")
        self.judge(words, answer.returncode, answer.stdout + answer.stderr)
        return answer

    def judge(self, words: tuple[str, ...], code: int, said: str) -> None:
        """Note an answer that no user should get."""
        lines = said.strip().splitlines()
        if _TRACEBACK in said or (code and not lines):
            last = lines[-1] if lines else f"exit code {code} without a word"
            self.unclear.append(f"{self.now}: condorctl {' '.join(words)}: {last}")

    def means_of(self, what: str, *words: str) -> Answer:
        """A documented means that a user's automation would use; counted when it did something."""
        answer = self.condorctl(*words)
        if answer.returncode == 0:
            self.means[what] += 1
        return answer

    def see(self, name: str, **words: Any) -> Any:
        """What `condorctl.api` answers, None when it says that it cannot."""
        if self._eyes is None or self._eyes.poll() is not None:
            self._eyes = subprocess.Popen(
                [sys.executable, "-c", _EYES], cwd=self.project, env=self.environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._eyes.stdin and self._eyes.stdout
        print(json.dumps([name, words]), file=self._eyes.stdin, flush=True)
        ready, _, _ = select.select([self._eyes.stdout], [], [], _COMMAND_S)
        line = self._eyes.stdout.readline() if ready else ""
        if not line:
            self.unclear.append(f"{self.now}: api.{name}: no answer")
            self._eyes.kill()
            self._eyes.wait()
            return None
        answer, _, trouble = json.loads(line)
        if trouble:
            self.unclear.append(f"{self.now}: api.{name}: {trouble.strip().splitlines()[-1]}")
            with (self.folder / "tracebacks").open("a") as file:
                print(trouble, file=file)
        return answer

    # --- runs and jobs ---

    def all_runs(self) -> list[Json]:
        """Every run of the ledger; none when the ledger cannot be read now."""
        found = self.see("status", all=True)
        return list(found["runs"]) if found else []

    def view(self, run: str) -> Json:
        """A run as `condorctl status` shows it, or as it did some seconds ago; {} if not."""
        when, known = self._views.get(run, (0.0, {}))
        if time.monotonic() - when > _FRESH_S:
            known = self.see("status", run=run) or {}
            self._views[run] = time.monotonic(), known
        return known

    def jobs(self, *states: str) -> list[Json]:
        """The jobs of unfinished runs in one of these states, each with its `run` and `stage`."""
        found = []
        for run in self.all_runs():
            if run["finished"]:
                continue
            for stage in self.view(run["run"]).get("stages", []):
                found += [
                    {**job, "run": run["run"], "stage": stage["stage"]}
                    for job in stage["jobs"][-1:]
                    if job["state"] in states
                ]
        return found

    # --- processes ---

    def daemons(self, name: str) -> list[Process]:
        """The first node's and the submit side's processes of a program of HTCondor's."""
        return [one for one in self.pool.processes() if program(one) == name]

    def everywhere(self, name: str) -> list[Process]:
        """The same on all nodes."""
        return [one for one in self.pool.everything() if program(one) == name]

    def tasks(self) -> list[Task]:
        """The processes of all jobs, DAGMan's not among them."""
        found = []
        for process in self.pool.everything():
            sandbox = variable(process, "_CONDOR_SCRATCH_DIR")
            if not sandbox or program(process).startswith("condor_"):
                continue
            with suppress(OSError):
                ad = dict(_AD.findall((Path(sandbox) / ".job.ad").read_text(errors="replace")))
                words = tuple(command(process))
                run, stage = ad.get("JobBatchName", ""), ad.get("DAGNodeName", "")
                found.append(Task(process, words, run, stage, Path(sandbox)))
        return found

    def starter_of(self, task: Task) -> Process | None:
        """The condor_starter that a job's process descends from."""
        one: Process | None = task.process
        while one and program(one) != "condor_starter":
            one = processes.find(parent(one))
        return one


def kill(process: Process) -> bool:
    """Kill with SIGKILL; whether it was there and is gone."""
    if not process.alive():
        return False
    processes.kill(process, signal.SIGKILL)
    return processes.wait_gone(process, 10)


def can_mount(folder: Path) -> bool:
    """Whether a small file system can be mounted below `folder`."""
    place = folder / "try"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        if subprocess.run(words, capture_output=True).returncode:
            return False
        subprocess.run(["umount", str(place)], check=True)
        return True
    except FileNotFoundError:
        return False
    finally:
        place.rmdir()
