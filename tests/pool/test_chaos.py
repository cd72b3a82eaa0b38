"""A small fault campaign: faults of most kinds on two nodes, and nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.chaos import campaign, table
from tests.chaos.world import World

# A kill of each side, evictions, a damaged checkpoint, a log; no disk, which needs root, and no
# master, which costs a minute of leases.
_KINDS = [
    "kill -9: the job's process", "kill -9: condor_starter", "kill -9: condor_shadow",
    "kill -9: condor_startd", "kill -9: condor_schedd", "kill -9: condor_dagman",
    "kill -9: condorctl, in a write", "vacate", "vacate -fast",
    "hold and release", "a node vanishes and stays away", "checkpoint with a flipped bit",
    "ssh cut during a fetch", "event log rotated",
]  # fmt: skip

# Nothing of the job comes back by HTCondor's own means.
_ONLY_COPIES = {
    "kill -9: condor_starter", "kill -9: condor_shadow", "kill -9: condor_startd",
    "vacate -fast", "hold and release", "a node vanishes and stays away",
}  # fmt: skip


def _checkpoints_itself(stage: dict[str, Any]) -> bool:
    return stage["run"].startswith("three-") and stage["stage"] == "second"


def test_a_small_campaign_loses_nothing() -> None:
    options = campaign.Options(
        seed=7, faults=len(_KINDS), pause_s=1.5, going=3, robust=0, steps=75, most_s=110,
        settle_s=400, kinds=tuple(_KINDS),
    )  # fmt: skip
    world = World(Path(tempfile.mkdtemp(prefix="chaos-")), options.cpus, lease_s=20)
    try:
        world.build()
        found = campaign.Campaign(world, options, print).run()
    finally:
        world.end()
        world.remove()
    print(table.text(found))
    assert table.failures(found) == []
    # Without a checkpoint that was sent to the submit side these would have begun anew.
    began_anew = [
        loss["seconds"] for stage in found["stages"] for loss in stage["losses"]
        if loss["kind"] in _ONLY_COPIES and not _checkpoints_itself(stage) and not loss["kept"]
    ]  # fmt: skip
    assert max(began_anew, default=0.0) < 3 * found["interval_s"]
    injected = [one for one in found["faults"] if one["what"]]
    assert len(injected) >= 6
    assert sum(bool(one["effect"]) for one in injected) >= len(injected) / 2
