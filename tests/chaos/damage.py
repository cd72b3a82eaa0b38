"""Faults of disks and files: full disks, damaged checkpoints, rotated event logs."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from condorctl.job.folder import Checkpoint, Folder
from tests.chaos import chain, workload
from tests.chaos.faults import Draw, Fault
from tests.chaos.world import World

_FILLER = "filler"
_BLOCK = 1 << 20


def fill(place: Path) -> int:
    """Leave no byte free on the disk of `place`; how many were."""
    filled = 0
    with (place / _FILLER).open("ab", buffering=0) as file:
        for size in (_BLOCK, 4096, 1):
            try:
                while True:
                    filled += os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    return filled


class _FullDisk(Fault):
    needs_disk = True
    weight = 3

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.lasts_s = draw.uniform(3, 12)
        self._place: Path | None = None
        self._full = False

    def _fill(self, world: World, place: Path, name: str) -> str | None:
        if (place / _FILLER).exists():
            return None
        self._place = place
        filled = fill(place)
        self._full = os.statvfs(place).f_bavail == 0
        return f"{name}, {filled >> 20} MB, for {self.lasts_s:.0f} s"

    def undo(self, world: World) -> None:
        assert self._place
        (self._place / _FILLER).unlink(missing_ok=True)

    def effect(self, world: World) -> str | None:
        return "not a byte was free" if self._full else None


class FullSubmitDisk(_FullDisk):
    """Where the runs and the ledger are."""

    kind = "full disk: submit side"

    def inject(self, world: World) -> str | None:
        return self._fill(world, world.disk, "runs and ledger")


class FullExecuteDisk(_FullDisk):
    """Where the sandboxes of a node are."""

    kind = "full disk: execute side"

    def inject(self, world: World) -> str | None:
        there = [node.execute for node in world.pool.nodes if node.processes()]
        place = self._choose([world.pool.execute, *there])
        return self._fill(world, place, "the submit machine's node" if place == world.pool.execute
                          else place.parent.name)  # fmt: skip


# --- checkpoints ---


class _Damage(Fault):
    """The newest checkpoint in a run's folder is damaged, and then its job must start again."""

    weight = 5
    damage: ClassVar[str]
    _damaged: Checkpoint

    def inject(self, world: World) -> str | None:
        found = []
        for job in world.jobs("running"):
            stage = world.runs / job["run"] / job["stage"]
            kept = Folder(stage / "checkpoints").checkpoints()
            if kept and workload.starts(world.witness, job["run"], job["stage"]):
                found.append((job, stage / "checkpoints" / kept[0].state.name, kept[0]))
        chosen = self._choose(sorted(found, key=lambda one: (one[0]["run"], one[0]["stage"])))
        if not chosen:
            return None
        job, file, checkpoint = chosen
        self.target = (job["run"], job["stage"])
        self._damaged = checkpoint
        try:
            self._do(file)
        except OSError:
            return None  # a newer one has just taken its place
        self.at = time.time()
        world.condorctl("pool", "run", "condor_vacate_job", "-fast", job["job"])
        return f"{job['run']}/{job['stage']}: checkpoint {checkpoint.number} ({self.damage})"

    @abstractmethod
    def _do(self, file: Path) -> None:
        """Damage the file."""

    def effect(self, world: World) -> str | None:
        assert self.target
        run, stage = self.target
        later = [one for one in workload.starts(world.witness, run, stage) if one.time > self.at]
        if not later:
            return None
        step = later[0].step
        if step < self._damaged.epoch * chain.EPOCH:
            return f"not used: went on from step {step}"
        return f"a newer one came first: went on from step {step}"


class Truncated(_Damage):
    kind = "checkpoint truncated"
    damage = "half of it is gone"

    def _do(self, file: Path) -> None:
        os.truncate(file, file.stat().st_size // 2)


class BitFlipped(_Damage):
    kind = "checkpoint with a flipped bit"
    damage = "one bit is another"

    def _do(self, file: Path) -> None:
        held = bytearray(file.read_bytes())
        bit = self.draw.randrange(len(held) * 8)
        held[bit // 8] ^= 1 << bit % 8
        with file.open("r+b") as stream:
            stream.write(held)


# --- logs ---


class RotatedLog(Fault):
    """An event log is rotated as logrotate does it: renamed, or copied and truncated."""

    kind = "event log rotated"
    weight = 4

    def inject(self, world: World) -> str | None:
        by_copy = self.draw.random() < 0.5
        which = self.draw.choice(["*.nodes.log", "*.dagman.log", "*/events.log"])
        going = [job["run"] for job in world.jobs("running")]
        if which == "*/events.log":
            going = [f"{job['run']}/{job['stage']}" for job in world.jobs("running")]
            which = "events.log"
        found = sorted({file for run in going for file in (world.runs / run).glob(which)})
        file = self._choose([file for file in found if file.stat().st_size])
        if file is None:
            return None
        aside = file.with_name(f"{file.name}.{time.time_ns()}")
        self._file = file
        try:
            if by_copy:
                aside.write_bytes(file.read_bytes())
                os.truncate(file, 0)
            else:
                file.rename(aside)
        except OSError:
            aside.unlink(missing_ok=True)
            return None  # its disk is full just now
        how = "copied and truncated" if by_copy else "renamed"
        self._run = file.relative_to(world.runs).parts[0]
        return f"{file.relative_to(world.runs)}: {how}"

    def effect(self, world: World) -> str | None:
        if self._file.exists() and self._file.stat().st_size:
            return "it is written on"
        ended = [run for run in world.all_runs() if run["run"] == self._run and run["finished"]]
        return f"the run is {ended[0]['state']}" if ended else None
