"""What a job depends on is killed under it, and it goes on from what had come to the submit side.

On a pool of this test's own, with a second node, which vanishes.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from condorctl.job.folder import Folder
from condorctl.pool.processes import Process
from tests.chaos.pool import command, parent
from tests.chaos.world import Task, World, kill
from tests.pool.test_checkpoints import lines

# Counts slowly and tells where it begins; once its leave to end is there, fast.
COUNT = """
import json, os, sys, time
from condorctl.job import checkpoint, progress, save

told, go = sys.argv[1:]
state = checkpoint.load(read=lambda path: json.load(open(path))) or {"step": 0, "sum": 0}
with open(told, "a") as file:
    print(state["step"], file=file)
while state["step"] < 900:
    time.sleep(0 if os.path.exists(go) else 0.2)
    state["step"] += 1
    state["sum"] = (state["sum"] * 31 + state["step"]) % 1000003
    if state["step"] % 100 == 0:
        progress(epoch=state["step"] // 100, epochs=9, sum=state["sum"])
    if checkpoint.due():
        checkpoint.save(lambda path: json.dump(state, open(path, "w")), epoch=state["step"])
save("out.txt", lambda path: open(path, "w").write(str(state["sum"])), epoch=9)
"""
SPEC = """
defaults:
  inputs: [count.py]
  outputs: [out.txt, metrics.jsonl]
  request_memory: 64 MB
  request_disk: 50 MB
  checkpoint_copy_interval: 1 s
stages:
"""
STAGE = """\
  {name}:
    command: [python, count.py, "{witness}/{name}", "{witness}/{name}.go"]
    {line}
"""
# The node that vanishes has one job, which may run elsewhere afterwards.
HERE = """requirements: '!regexp("node2", TARGET.Name)'"""
THERE = """requirements: 'regexp("node2", TARGET.Name) || (NumJobStarts ?: 0) > 0'"""
WHERE = {"starter": HERE, "shadow": HERE, "hold": HERE, "startd": HERE, "node": THERE}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Not below pytest's folder: the path of a Unix socket holds some hundred characters.
    made = World(Path(tempfile.mkdtemp(prefix="daemons-")), cpus=5, lease_s=20)
    try:
        made.build()
        (made.project / "jobs").mkdir()
        (made.project / "count.py").write_text(COUNT)
        yield made
    finally:
        made.end()
        made.remove()


@pytest.fixture(autouse=True)
def nothing_left_behind(world: World) -> Iterator[None]:
    """A test that fails half-way must not keep the cores from those after it."""
    yield
    world.condorctl("pool", "run", "condor_rm", "-all")


def eventually(condition: Callable[[], Any], seconds: float = 180, what: str = "it") -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come to pass"
        time.sleep(0.3)
    return value


def daemon(world: World, name: str, is_it: Callable[[Process], bool] = lambda _: True) -> Process:
    """The one daemon of that name; a child it has forked, to copy files, still bears its name."""
    found = [one for one in world.daemons(name) if is_it(one)]
    pids = {one.pid for one in found}
    [only] = [one for one in found if parent(one) not in pids]
    return only


def submit(world: World, stages: Mapping[str, str]) -> str:
    """Submit these stages, each with a line of its own; the run's name."""
    text = SPEC + "".join(
        STAGE.format(name=name, witness=world.witness, line=line) for name, line in stages.items()
    )
    (world.project / "jobs" / "count.yaml").write_text(text)
    answer = world.condorctl("submit", "count", "--json", "--force")
    assert answer.returncode == 0, answer
    return str(json.loads(answer.stdout)["run"])


def starts_of(world: World, stage: str) -> list[int]:
    """The step that each start of the stage's job began after."""
    file = world.witness / stage
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def newest(world: World, run: str, stage: str) -> int:
    """The step of the newest checkpoint on the submit side, 0 as long as there is none."""
    kept = Folder(world.runs / run / stage / "checkpoints").checkpoints()
    return kept[0].epoch if kept else 0


def assert_ends_well(world: World, run: str, stages: Iterable[str]) -> None:
    """Each stage has left what an undisturbed one does, and no checkpoint is left."""
    assert world.condorctl("follow", run).returncode == 0
    total = 0
    for step in range(1, 901):
        total = (total * 31 + step) % 1000003
    for folder in (world.runs / run / stage for stage in stages):
        assert (folder / "out.txt").read_text() == str(total)
        told = [line["epoch"] for line in lines(folder) if line["kind"] == "progress"]
        assert told == list(range(1, 10))
        assert Folder(folder / "checkpoints").checkpoints() == []
    assert world.unclear == []


def test_whatever_dies_under_a_job_it_goes_on_from_what_it_had_sent(world: World) -> None:
    nodes = ("pool", "run", "condor_status", "-af", "Name")
    eventually(lambda: "node2" in world.condorctl(*nodes).stdout)
    run = submit(world, WHERE)

    def starts(stage: str) -> list[int]:
        return starts_of(world, stage)

    def sent(stage: str) -> int:
        return newest(world, run, stage)

    def task(stage: str) -> Task:
        """The job's first process."""
        [found] = [one for one in world.tasks() if one.stage == stage and one.is_top]
        return found

    def goes_on(before: dict[str, int]) -> None:
        """Each has begun again, not before the step that was on the submit side."""
        for stage, step in before.items():
            eventually(lambda stage=stage: len(starts(stage)) > 1, what=f"{stage}'s second start")
            first, *later = starts(stage)
            assert (first, min(later) >= step > 0) == (0, True), (stage, step, later)
            (world.witness / f"{stage}.go").touch()

    eventually(lambda: all(map(sent, WHERE)))

    # --- one job each ---
    before = {stage: sent(stage) for stage in ("starter", "shadow", "hold")}
    starter = world.starter_of(task("starter"))
    assert starter and kill(starter)
    job = {one["stage"]: one["job"] for one in world.jobs("running")}["shadow"]
    assert kill(daemon(world, "condor_shadow", lambda one: job in command(one)))
    for what in ("hold", "release"):
        assert world.condorctl(what, f"{run}/hold").returncode == 0
    goes_on(before)

    # --- all of a node: the one that comes back, and the one that does not ---
    before = {stage: sent(stage) for stage in ("startd", "node")}
    [node] = world.pool.nodes
    assert task("node").sandbox.is_relative_to(node.execute)
    assert kill(daemon(world, "condor_startd"))
    assert node.vanish()
    goes_on(before)

    assert_ends_well(world, run, WHERE)


def test_a_stage_that_is_done_and_runs_again_goes_on_from_its_last_checkpoint(world: World) -> None:
    """DAGMan loses the log that says it was done, as on a full disk."""
    run = submit(world, {"first": "", "second": "needs: [first]"})
    eventually(lambda: newest(world, run, "first"))
    (world.witness / "first.go").touch()
    eventually(lambda: newest(world, run, "second"))

    def running() -> list[str]:
        jobs = [one for one in world.jobs("running") if one["run"] == run]
        return [one["job"] for one in jobs if one["stage"] == "second"]

    eventually(running)
    kept = newest(world, run, "first")

    # That of an earlier run may still be about to end.
    folder = world.runs / run
    dagman = daemon(
        world, "condor_dagman", lambda one: Path(f"/proc/{one.pid}/cwd").resolve() == folder
    )
    os.kill(dagman.pid, signal.SIGSTOP)
    [second] = running()
    assert world.condorctl("pool", "run", "condor_rm", second).returncode == 0
    log = world.runs / run / "count.dag.nodes.log"
    eventually(lambda: "\n009 (" in log.read_text())
    os.truncate(log, 0)
    assert kill(dagman)
    eventually(lambda: len(starts_of(world, "first")) > 1)
    assert starts_of(world, "first")[1] >= kept > 0
    (world.witness / "second.go").touch()
    assert_ends_well(world, run, ("first", "second"))


def test_a_job_that_is_released_before_it_has_left_its_slot_starts_again(world: World) -> None:
    """The schedd forgets a job that is released while its shadow is there; `release` waits."""
    run = submit(world, {"early": HERE})
    eventually(lambda: newest(world, run, "early") and world.jobs("running"))
    # The shadow goes once the startd has answered it.
    startd = daemon(world, "condor_startd")
    os.kill(startd.pid, signal.SIGSTOP)
    try:
        assert world.condorctl("hold", f"{run}/early").returncode == 0
        with futures.ThreadPoolExecutor() as threads:
            released = threads.submit(world.condorctl, "release", f"{run}/early")
            futures.wait([released], timeout=10)
            os.kill(startd.pid, signal.SIGCONT)
    finally:
        os.kill(startd.pid, signal.SIGCONT)
    assert released.result().returncode == 0
    eventually(lambda: len(starts_of(world, "early")) > 1, what="its second start")
    (world.witness / "early.go").touch()
    assert_ends_well(world, run, ("early",))
