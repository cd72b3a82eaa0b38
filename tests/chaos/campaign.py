"""A campaign: what the seed draws, and its execution beside the pipelines.

    python -m tests.chaos --seed 1 --faults 200 --json chaos.json

Each fault, the pause before it and every choice in it are drawn from the seed. What it hits depends
on what runs in that moment, so two campaigns of one seed are alike, and not equal; the JSON says
what was done when, and to what. Bounded in faults and in time.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import crash
from tests.chaos import commands, damage, faults, outcome, workload
from tests.chaos.faults import Fault
from tests.chaos.outcome import Injected
from tests.chaos.world import World

Json = dict[str, Any]
Tell = Callable[[str], None]

KINDS: dict[str, type[Fault]] = {
    one.kind: one
    for one in (
        faults.KillJob, faults.KillStarter, faults.KillShadow, faults.KillStartd,
        faults.KillSchedd, faults.KillDagman, faults.KillMaster, commands.CondorctlKilled,
        faults.Vacate, faults.VacateFast, faults.HoldRelease, faults.NodeVanishes,
        damage.FullSubmitDisk, damage.FullExecuteDisk, damage.Truncated, damage.BitFlipped,
        commands.CutFetch, damage.RotatedLog, commands.TwoAtOnce,
    )
}  # fmt: skip

_LOOK_S = 4.0
# How long what has come of a fault may take to be seen: a lease of a minute is the longest wait.
_SEEN_S = 150.0
# Nothing is done for a run for that long after something was.
_PATIENCE_S = 5.0
# A fault waits for something that it can hurt.
_TARGET_S = 10.0


@dataclass(frozen=True)
class Options:
    """`faults` in all, `pause_s` between two on average, `going` runs at a time."""

    seed: int = 1
    faults: int = 200
    pause_s: float = 1.5
    going: int = 5
    robust: int = 2  # runs of the method's own stages
    steps: int = 100
    pace: float = 0.2
    cpus: int = 3
    most_s: float = 2400.0  # for the faults; no more are injected afterwards
    settle_s: float = 420.0  # for what is left of the runs
    kinds: tuple[str, ...] = ()  # none but these


@dataclass(frozen=True)
class Planned:
    """A fault of the plan: its kind, the pause before it, the seed of its choices."""

    kind: str
    pause_s: float
    seed: int


def plan(options: Options, without: Sequence[str] = ()) -> list[Planned]:
    """What the seed draws: each kind once before any comes again, then by weight."""
    draw = random.Random(options.seed)
    kinds = [kind for kind in options.kinds or KINDS if kind not in without]
    first = draw.sample(kinds, len(kinds))
    rest = draw.choices(kinds, [KINDS[kind].weight for kind in kinds], k=options.faults)
    return [
        Planned(kind, round(draw.uniform(0.2, 1.8) * options.pause_s, 1), draw.getrandbits(32))
        for kind in [*first, *rest][: options.faults]
    ]


class Campaign:
    """One campaign in a world of its own."""

    def __init__(self, world: World, options: Options, tell: Tell) -> None:
        self.world, self.options, self._tell = world, options, tell
        self.injected: list[Injected] = []
        self.references: dict[tuple[str, str], workload.Left] = {}
        self._wanted: list[str] = []
        self._robust = 0
        self._looked = 0.0
        self._cared: dict[str, float] = {}
        self.holds: Counter[str] = Counter()
        self.without: list[str] = []

    def run(self) -> Json:
        """Do all of it; what came of it, as `table` prints it."""
        options, world = self.options, self.world
        if not world.mounts:
            self.without += [kind for kind, one in KINDS.items() if one.needs_disk]
        if not crash.can_kill():
            self.without.append(commands.CondorctlKilled.kind)
        workload.write(world.project, options.steps, options.pace)
        self.references = workload.chain_references(world.folder / "reference", options.steps)
        if options.robust:
            self._undisturbed()
        world.started = time.time()
        end = world.started + options.most_s
        for number, planned in enumerate(plan(options, self.without), 1):
            if time.time() > end:
                self._tell(f"time is over after {number - 1} faults")
                break
            self._wait(planned.pause_s)
            self._inject(planned, number)
        faults_s = world.now
        self._settle()
        return {
            "options": vars(options),
            "without": self.without,
            "faults": [one.as_json() for one in self.injected],
            "faults_s": faults_s,
            "means": dict(world.means),
            "holds": dict(self.holds),
            **outcome.of(world, self.references, self.injected),
        }

    def _undisturbed(self) -> None:
        """The method's stages once, before anything happens."""
        self._tell("an undisturbed run of the method's stages")
        answer = self.world.condorctl("submit", workload.ROBUST, "--follow", timeout=600)
        assert answer.returncode == 0, answer
        for stage in workload.stages(workload.ROBUST):
            folder = self.world.runs / f"{workload.ROBUST}-1" / stage
            one = workload.left(workload.ROBUST, folder)
            assert one
            self.references[workload.ROBUST, stage] = one

    # --- faults ---

    def _inject(self, planned: Planned, number: int) -> None:
        fault = KINDS[planned.kind](random.Random(planned.seed))
        end = time.monotonic() + _TARGET_S
        while True:
            fault.at = clock = time.time()
            at = self.world.now
            what = fault.inject(self.world)
            if what is not None or time.monotonic() > end:
                break
            self._wait(1.0)
        one = Injected(planned.kind, planned.seed, planned.pause_s, fault, at, clock, what)
        if what is None:
            one.effect = "nothing was there"
        elif fault.lasts_s:
            one.until = time.time() + fault.lasts_s
        self.injected.append(one)
        self._tell(f"{at:7.1f}  {number:3}  {planned.kind}: {what or 'nothing to hurt'}")

    def _wait(self, seconds: float) -> None:
        """Let time pass, in which runs are cared for."""
        end = time.monotonic() + seconds
        while True:
            self._tick()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.5))

    def _tick(self, submit: bool = True) -> None:
        now = time.time()
        for one in self.injected:
            if one.until and now >= one.until:
                one.until = 0.0
                if one.effect is None:
                    one.effect = one.fault.effect(self.world)
                one.fault.undo(self.world)
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        for one in self.injected:
            if one.effect is None and now - one.clock < _SEEN_S:
                one.effect = one.fault.effect(self.world)
        self._care(submit)

    # --- what a user's automation does ---

    def _care(self, submit: bool) -> None:
        world = self.world
        if "pool" not in world.held and not world.daemons("condor_master"):
            faults.raise_pool(world)
        runs = world.all_runs()
        for run in runs:
            name = run["run"]
            if name in world.held or time.time() - self._cared.get(name, 0) < _PATIENCE_S:
                continue
            if run["finished"] and run["state"] != "done":
                self._cared[name] = time.time()
                world.means_of("resume", "resume", name)
            elif not run["finished"] and (run["jobs"].get("held") or run["state"] == "held"):
                self._release(name)
        going = sum(not run["finished"] for run in runs)
        if submit and going < self.options.going and "pool" not in world.held:
            self._submit()

    def _release(self, name: str) -> None:
        view = self.world.view(name)
        if not view:
            return
        self._cared[name] = time.time()
        reasons = [job["hold"] for stage in view["stages"] for job in stage["jobs"][-1:]]
        if self.world.means_of("release", "release", name).returncode == 0:
            for hold in filter(None, reasons):
                self.holds[f"{hold.get('code')}/{hold.get('subcode')}"] += 1

    def _submit(self) -> None:
        if not self._wanted:
            self._wanted = sorted(workload.CHAINS)
            if self._robust < self.options.robust:
                self._robust += 1
                self._wanted.insert(0, workload.ROBUST)
        name = self._wanted.pop(0)
        words = commands.submitted(self.world) if name in workload.CHAINS else ["--force"]
        self.world.condorctl("submit", name, *words)

    # --- the end ---

    def _settle(self) -> None:
        """No more faults: what is left of the runs comes to its end."""
        self._tell(f"{self.world.now:7.1f}  no more faults")
        end = time.monotonic() + self.options.settle_s
        while time.monotonic() < end:
            self._tick(submit=False)
            pending = any(one.until for one in self.injected)
            runs = self.world.all_runs()
            if runs and not pending and all(run["state"] == "done" for run in runs):
                break
            time.sleep(1)
        self._tell(f"{self.world.now:7.1f}  the runs have settled")


def save(found: Json, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
