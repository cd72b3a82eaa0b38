"""What came of a campaign: the runs against those that nothing disturbed, and what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import workload
from tests.chaos.faults import Fault
from tests.chaos.world import World

Json = dict[str, Any]

# A sandbox is removed a while after its job has left.
_REMOVED_S = 30
# A fault may show in a job's steps before it is known to have been done.
_BEFORE_S = 5


@dataclass
class Injected:
    """A fault that was injected, to `what` (None: there was nothing), and the `effect` seen."""

    kind: str
    seed: int
    pause_s: float
    fault: Fault
    at: float  # seconds since the campaign began
    clock: float  # the same, Unix seconds
    what: str | None
    until: float = 0.0  # when it is to be undone, 0 when it was
    effect: str | None = None

    def as_json(self) -> Json:
        return {
            "kind": self.kind, "seed": self.seed, "pause_s": self.pause_s,
            "at_s": self.at, "what": self.what, "effect": self.effect,
        }  # fmt: skip


def of(
    world: World,
    references: Mapping[tuple[str, str], workload.Left],
    injected: Sequence[Injected],
) -> Json:
    """What `table` tells of a world in which all has settled. It is ended by that."""
    stages, runs = [], world.all_runs()
    for run in sorted(runs, key=lambda one: float(one["submitted"])):
        for stage in workload.stages(run["pipeline"]):
            left = workload.left(run["pipeline"], world.runs / run["run"] / stage)
            wanted = references.get((run["pipeline"], stage))
            losses = workload.losses(world.witness, run["run"], stage)
            stages.append({
                "run": run["run"], "stage": stage, "state": run["state"],
                "final": bool(left and wanted and left.sha256 == wanted.sha256),
                "metrics": bool(left and wanted and left.metrics == wanted.metrics),
                "losses": [_loss(loss, injected) for loss in losses],
            })  # fmt: skip
    total, again = workload.repeated(world.witness)
    restarts, went_on = workload.restarts(world.witness)
    return {
        "runs": {run["run"]: run["state"] for run in runs},
        "stages": stages,
        "steps": {"done": total, "again": again},
        "restarts": {"all": restarts, "went_on": went_on},
        "interval_s": workload.INTERVAL_S,
        "check": _check(world),
        "seconds": world.now,
        "orphans": _orphans(world),
        "unclear": world.unclear,
    }


def _check(world: World) -> Json | None:
    """What `condorctl ledger check` says, None when that cannot be known."""
    answer = world.condorctl("ledger", "check", "--json")
    try:
        found: Json = json.loads(answer.stdout)
    except ValueError:
        return None
    return found


def _loss(loss: workload.Loss, injected: Sequence[Injected]) -> Json:
    """A loss and the fault that it came of: of those before the next start the latest, and one
    that was meant for the stage rather than another.
    """
    about = [
        one for one in injected
        if one.what and loss.last_step - _BEFORE_S <= one.clock <= loss.again
    ]  # fmt: skip
    meant = [one for one in about if one.fault.target == (loss.run, loss.stage)]
    kind = (meant or about)[-1].kind if about else "unknown"
    seconds = round(loss.seconds, 1)
    return {"kept": loss.kept, "steps": loss.steps, "seconds": seconds, "kind": kind}


def _orphans(world: World) -> Json:
    """What is left in the queue, on the disks, and of processes once the pool is down."""
    queue = world.condorctl("pool", "run", "condor_q", "-allusers", "-af", "ClusterId").stdout
    nodes = [node.execute for node in world.pool.nodes if node.processes()]
    end = time.monotonic() + _REMOVED_S
    while (sandboxes := _sandboxes([world.pool.execute, *nodes])) and time.monotonic() < end:
        time.sleep(1)
    # What a command that was killed has left is removed by the next.
    world.condorctl("status", "--all")
    files = [path for path in world.disk.rglob("*") if _is_temporary(path.name)]
    world.end()
    return {
        "jobs": queue.split(),
        "sandboxes": [str(path.relative_to(world.folder)) for path in sandboxes],
        "files": [str(path.relative_to(world.folder)) for path in files],
        "processes": [str(one.pid) for one in world.pool.everything()],
    }


def _sandboxes(places: Sequence[Path]) -> list[Path]:
    return [path for place in places for path in place.glob("dir_*")]


def _is_temporary(name: str) -> bool:
    rescue = name.startswith(".") and ".rescue" in name
    return rescue or name.endswith((".partial", ".new")) or name.startswith((".new-", ".run.json-"))
