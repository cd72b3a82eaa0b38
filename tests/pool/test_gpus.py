"""Jobs that ask for GPUs, on a pool whose node says that it has two.

HTCondor's own discovery simulates them; what a job is given, and what it is charged, is real.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Condorctl
from tests.pool.conftest import Status

SMALL = "request_memory: 64 MB, request_disk: 50 MB"


@pytest.fixture
def two_gpus(pool: Path, condor: Callable[..., str]) -> Iterator[None]:
    """The pool's node with two GPUs of 1.5 GB; as before at the end."""
    config = pool / "condor_config"
    before = config.read_text()
    config.write_text(f"{before}\nGPU_DISCOVERY_EXTRA = -simulate:1,2\n")
    _restart(condor, "2")
    yield
    config.write_text(before)
    _restart(condor, "0")


def _restart(condor: Callable[..., str], gpus: str) -> None:
    condor("condor_restart", "-startd")
    deadline = time.monotonic() + 240
    while condor("condor_status", "-const", "PartitionableSlot", "-af", "GPUs").split() != [gpus]:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_job_gets_the_gpus_it_asks_for_and_is_charged_for_them(
    two_gpus: None,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    condorctl: Condorctl,
    project: Path,
) -> None:
    name = submit(
        f"""
        defaults: {{{SMALL}}}
        stages:
          one:
            command: [sh, -c, "sleep 3; echo $CUDA_VISIBLE_DEVICES > given.txt"]
            outputs: [given.txt]
            request_gpus: 1
          three: {{command: ['true'], request_gpus: 3}}
        """
    )
    view = wait(name, lambda view: view["stages"]["one"]["state"] == "done")
    given = (project / "exp" / "runs" / name / "one" / "given.txt").read_text()
    assert given.startswith("GPU-") and "," not in given

    cost = json.loads(condorctl("cost", name, "--json").stdout)
    [run] = cost["runs"]
    by_stage = {stage["stage"]: stage for stage in run["stages"]}
    assert 2.9 / 3600 <= by_stage["one"]["gpu_h"]["useful"] < 60 / 3600
    assert by_stage["three"]["gpu_h"]["useful"] == 0

    # Nothing here has three: that is what `explain` says of a pool, not "wait".
    three = view["stages"]["three"]
    assert three["state"] == "idle"
    explained = condorctl("explain", three["job"])
    assert "GPU" in explained.stdout, explained
    assert "2" in explained.stdout
    condor("condor_rm", view["dag"].split("#")[1])
