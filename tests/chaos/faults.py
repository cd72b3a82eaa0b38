"""Faults: processes killed, jobs evicted and held, nodes that vanish.

A fault is drawn by its `kind`; `inject` does it and says to what, `effect` says what was seen to
come of it, `undo` takes back what does not end by itself. One that finds nothing to hurt says None.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from condorctl.pool.processes import Process
from tests.chaos import workload
from tests.chaos.pool import Node, command
from tests.chaos.world import Task, World, kill

Json = dict[str, Any]
Draw = random.Random
T = TypeVar("T")


class Fault(ABC):
    """One fault; `draw` makes every choice in it."""

    kind: ClassVar[str]
    # How often it is drawn, beside the others.
    weight: ClassVar[int] = 4
    # Whether it needs a file system of its own, to fill it.
    needs_disk: ClassVar[bool] = False

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        # Seconds after which it is undone; drawn here, so that the rest depends on the pool alone.
        self.lasts_s = 0.0
        self.at = 0.0
        # The run and the stage that it is about, where it is about one.
        self.target: tuple[str, str] | None = None

    @abstractmethod
    def inject(self, world: World) -> str | None:
        """Do it; what it was done to, None when there was nothing."""

    @abstractmethod
    def effect(self, world: World) -> str | None:
        """What has come of it, None as long as nothing is seen."""

    def undo(self, world: World) -> None:  # noqa: B027 (most end by themselves)
        """Take it back."""

    # What several have in common.

    def _choose(self, found: Sequence[T]) -> T | None:
        return self.draw.choice(found) if found else None

    def _started_again(self, world: World) -> str | None:
        """Whether the stage has started anew since, or was done meanwhile."""
        assert self.target
        run, stage = self.target
        if any(one.time > self.at for one in workload.starts(world.witness, run, stage)):
            return "started again"
        for one in world.view(run).get("stages", []):
            if one["stage"] != stage:
                continue
            if any(job["started"] and job["started"] > self.at for job in one["jobs"]):
                return "started again"
            if one["state"] in ("done", "failed"):
                return f"the stage is {one['state']}"
        return None


# --- processes ---


class _KillTask(Fault):
    """A process of a running job."""

    def _choose_task(self, tasks: list[Task]) -> Task | None:
        found = self._choose(sorted(tasks, key=lambda one: (one.run, one.stage, one.process.pid)))
        if found:
            self.target = (found.run, found.stage)
        return found

    def effect(self, world: World) -> str | None:
        return self._started_again(world)


class KillJob(_KillTask):
    """The training script, or the shell around it that HTCondor knows."""

    kind = "kill -9: the job's process"
    weight = 6

    def inject(self, world: World) -> str | None:
        script = self.draw.random() < 0.7
        every = world.tasks()
        task = self._choose_task(
            [one for one in every if (one.is_script if script else one.is_top)]
        )
        if not (task and kill(task.process)):
            return None
        return f"{task.run}/{task.stage}: {'its script' if script else 'stage.sh'}"


class KillStarter(_KillTask):
    kind = "kill -9: condor_starter"

    def inject(self, world: World) -> str | None:
        task = self._choose_task([one for one in world.tasks() if one.is_top])
        starter = world.starter_of(task) if task else None
        if not (task and starter and kill(starter)):
            return None
        return f"{task.run}/{task.stage}"


class KillShadow(Fault):
    kind = "kill -9: condor_shadow"

    def inject(self, world: World) -> str | None:
        shadows = sorted(world.daemons("condor_shadow"), key=lambda one: one.pid)
        jobs = {job["job"]: job for job in world.jobs("running")}
        found = []
        for one in shadows:
            words = [word for word in command(one) if word in jobs]
            found += [(one, jobs[word]) for word in words]
        chosen = self._choose(found)
        if not chosen or not kill(chosen[0]):
            return None
        job = chosen[1]
        self.target = (job["run"], job["stage"])
        return f"{job['run']}/{job['stage']}"

    def effect(self, world: World) -> str | None:
        return self._started_again(world)


class _KillDaemon(Fault):
    """A daemon that its master, or the schedd, starts again."""

    program: ClassVar[str]

    def _there(self, world: World) -> list[Process]:
        return world.daemons(self.program)

    def inject(self, world: World) -> str | None:
        self._before = {one.pid for one in self._there(world)}
        found = self._choose(sorted(self._there(world), key=lambda one: one.pid))
        return self._words(found) if found and kill(found) else None

    def _words(self, process: Process) -> str:
        return self.program

    def effect(self, world: World) -> str | None:
        new = {one.pid for one in self._there(world)} - self._before
        return "another one runs" if new else None


class KillStartd(_KillDaemon):
    kind = "kill -9: condor_startd"
    program = "condor_startd"

    def _there(self, world: World) -> list[Process]:
        return world.everywhere(self.program)


class KillSchedd(_KillDaemon):
    kind = "kill -9: condor_schedd"
    program = "condor_schedd"


class KillDagman(_KillDaemon):
    kind = "kill -9: condor_dagman"
    program = "condor_dagman"


class KillMaster(Fault):
    """`condorctl pool up` starts the pool again; whatever still runs of it is killed by that."""

    kind = "kill -9: condor_master"
    weight = 2

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.lasts_s = draw.uniform(0, 8)

    def inject(self, world: World) -> str | None:
        found = world.daemons("condor_master")
        if not found or not kill(found[0]):
            return None
        world.held.add("pool")
        return f"the pool's, `pool up` {self.lasts_s:.0f} s later"

    def undo(self, world: World) -> None:
        world.held.discard("pool")
        raise_pool(world)

    def effect(self, world: World) -> str | None:
        return "the pool is up again" if world.daemons("condor_schedd") else None


def raise_pool(world: World) -> None:
    """What a user does whose pool is gone."""
    world.means_of("pool up", "pool", "up", "--cpus", str(world.pool.cpus))


# --- jobs ---


class Vacate(Fault):
    """The job must leave its slot, and may save a checkpoint first."""

    kind = "vacate"
    weight = 7
    how: ClassVar[tuple[str, ...]] = ()

    def inject(self, world: World) -> str | None:
        jobs = sorted(world.jobs("running"), key=lambda job: (job["run"], job["stage"]))
        job = self._choose(jobs)
        if not job:
            return None
        words = ("pool", "run", "condor_vacate_job", *self.how, job["job"])
        if world.condorctl(*words).returncode:
            return None
        self.target = (job["run"], job["stage"])
        return f"{job['run']}/{job['stage']}"

    def effect(self, world: World) -> str | None:
        return self._started_again(world)


class VacateFast(Vacate):
    """It is killed at once."""

    kind = "vacate -fast"
    how = ("-fast",)


class HoldRelease(Fault):
    """By the user, and released by them."""

    kind = "hold and release"
    weight = 5

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.lasts_s = draw.uniform(1, 10)
        self.whole = draw.random() < 0.3

    def inject(self, world: World) -> str | None:
        jobs = sorted(world.jobs("running", "idle"), key=lambda job: (job["run"], job["stage"]))
        job = self._choose(jobs)
        if not job:
            return None
        self._word = job["run"] if self.whole else f"{job['run']}/{job['stage']}"
        if world.condorctl("hold", self._word).returncode:
            return None
        world.held.add(job["run"])
        self.target = (job["run"], job["stage"])
        return f"{self._word}, released {self.lasts_s:.0f} s later"

    def undo(self, world: World) -> None:
        assert self.target
        world.held.discard(self.target[0])
        world.condorctl("release", self._word)

    def effect(self, world: World) -> str | None:
        return self._started_again(world)


# --- nodes ---


class NodeVanishes(Fault):
    """A node is gone with all its processes, and stays away; later another one joins."""

    kind = "a node vanishes and stays away"
    weight = 2

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.lasts_s = draw.uniform(20, 60)
        self._node: Node | None = None

    def inject(self, world: World) -> str | None:
        there = [node for node in world.pool.nodes if node.processes()]
        if not there:
            return None
        self._node = there[0]
        jobs = [one for one in world.tasks() if one.sandbox.is_relative_to(self._node.execute)]
        self._lost = sorted({(one.run, one.stage) for one in jobs})
        killed = self._node.vanish()
        self.target = self._lost[0] if self._lost else None
        names = ", ".join("/".join(one) for one in self._lost) or "no job"
        return f"{self._node.name} with {killed} processes, {names}"

    def undo(self, world: World) -> None:
        world.join()

    def effect(self, world: World) -> str | None:
        if self.target:
            return self._started_again(world)
        assert self._node
        return "gone" if not self._node.processes() else None
