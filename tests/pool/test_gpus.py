"""Jobs that ask for GPUs, on a pool whose node says that it has two.

HTCondor's own discovery simulates them; what a job is given, and what it is charged, is real. How
busy they are nobody can tell of simulated ones: in place of HTCondor's monitor, and in place of
nvidia-smi, the node has a script that says numbers in their form. What reads them is real.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl
from tests.pool.conftest import Configure, Status

SMALL = "request_memory: 64 MB, request_disk: 50 MB"
# What condor_gpu_utilization prints of each of its GPUs (its strings): the seconds of use since it
# last did, of which there are two here, and the most memory.
MONITOR = """#!/bin/sh
for gpu in a0223334 b1223334; do
    echo "SlotMergeConstraint = StringListMember(\\"GPU-$gpu\\", AssignedGPUs)"
    echo "UptimeGPUsSeconds = 0.4"
    echo "UptimeGPUsMemoryPeakUsage = 1200"
    echo "- GPUsSlot$gpu"
done
"""
# In the form of its real answers to the two questions that a job asks (csv,noheader,nounits).
NVIDIA_SMI = """#!/bin/sh
first="0, GPU-a0223334-4445-5667-899a-abbccddeeff0"
second="1, GPU-b1223334-4445-5667-899a-abbccddeeff0"
case $* in
    *memory.total*) rest="NVIDIA A100-SXM4-40GB, 40960, 535.104.05" ;;
    *memory.used*) rest="40, 10307" ;;
esac
echo "$first, $rest"
echo "$second, $rest"
"""
TWO_GPUS = """
GPU_DISCOVERY_EXTRA = -simulate:1,2
GPU_MONITOR = {monitor}
STARTD_CRON_GPUs_MONITOR_MODE = Periodic
STARTD_CRON_GPUs_MONITOR_PERIOD = 2s
"""


@pytest.fixture
def two_gpus(pool: Path, configure: Configure) -> None:
    """The pool's node with two GPUs of 1.5 GB."""
    monitor = pool / "gpu_monitor.sh"
    monitor.write_text(MONITOR)
    monitor.chmod(0o755)
    configure(TWO_GPUS.format(monitor=monitor), restart=True)


def test_what_a_job_gets_of_the_gpus_it_asks_for_and_what_it_is_charged(
    two_gpus: None,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    condorctl: Condorctl,
    project: Path,
    pool: Path,
    tmp_path: Path,
) -> None:
    name = submit(
        f"""
        defaults: {{{SMALL}}}
        stages:
          one:
            command: [sh, -c, "sleep 8; echo $CUDA_VISIBLE_DEVICES > given.txt"]
            outputs: [given.txt]
            request_gpus: 1
            gpus_minimum_memory: 1 GB
            gpus_minimum_capability: 2.0
          both: {{command: [sleep, 1], request_gpus: 2, needs: [one]}}
          three: {{command: ['true'], request_gpus: 3}}
          large: {{command: ['true'], request_gpus: 1, gpus_minimum_memory: 40 GB}}
          either:
            command: [sh, -c, "sleep 5; echo $CUDA_VISIBLE_DEVICES > given.txt"]
            outputs: [given.txt]
            request_gpus: 1
            gpus_minimum_memory: 40 GB
            cpu_after: 12 s
        """
    )
    run = project / "exp" / "runs" / name

    # Nothing here has three: that is what `explain` says of a pool, not "wait".
    view = wait(name, lambda view: view["stages"]["either"]["state"] == "idle")
    told = json.loads(condorctl("explain", view["stages"]["either"]["job"], "--json").stdout)
    assert told["mend"].startswith("from ") and "cpu_after" in told["mend"], told
    assert told["analysis"]["cpu_at"] > time.time() - 60, told
    told = json.loads(condorctl("explain", name, "--json").stdout)
    assert {one["stage"] for one in told["jobs"]} == {"three", "large"}, told
    explained = condorctl("explain", view["stages"]["three"]["job"])
    assert "it asks for 3 GPUs; the largest slot has 2" in explained.stdout, explained
    explained = condorctl("explain", view["stages"]["large"]["job"])
    assert "no GPU meets" in explained.stdout and "GeForce GTX 480" in explained.stdout, explained

    view = wait(name, lambda v: all(v["stages"][s]["state"] == "done" for s in ("both", "either")))
    given = (run / "one" / "given.txt").read_text()
    assert given.startswith("GPU-") and "," not in given
    # When its time for a GPU was over, it did without.
    assert (run / "either" / "given.txt").read_text().strip() == "10000"
    assert view["stages"]["three"]["state"] == view["stages"]["large"]["state"] == "idle"

    shown = json.loads(condorctl("show", name, "--json").stdout)["stages"]
    by_name = {stage["stage"]: stage for stage in shown}
    gtx = {"name": "GeForce GTX 480", "memory_mb": 1536, "capability": 2.0}
    assert by_name["one"]["machine"]["gpus"] == [gtx]
    assert by_name["both"]["machine"]["gpus"] == [gtx, gtx]
    assert "gpus" not in by_name["either"]["machine"]
    # By HTCondor's own account: the monitor says a fifth of the time.
    assert by_name["one"]["usage"]["gpu_memory_mb"] == 1200
    assert 0.05 < by_name["one"]["usage"]["gpu_busy"] < 0.4
    assert "GPU" in condorctl("show", name).stdout

    cost = json.loads(condorctl("cost", name, "--json").stdout)
    by_stage = {stage["stage"]: stage for stage in cost["runs"][0]["stages"]}
    assert 7.9 / 3600 <= by_stage["one"]["gpu_h"]["useful"] < 60 / 3600
    assert by_stage["three"]["gpu_h"]["useful"] == by_stage["either"]["gpu_h"]["useful"] == 0
    assert by_stage["one"]["gpu_memory_peak_mb"] == 1200
    assert "one: the GPU waited" in condorctl("cost", name).stdout
    condor("condor_rm", view["dag"].split("#")[1])

    # Where HTCondor does not look, the job does.
    (pool / "gpu_monitor.sh").write_text("#!/bin/sh\n")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    name = submit(
        f"""
        stages:
          one: {{command: [sleep, 4], request_gpus: 1, {SMALL}, environment: {{PATH: "{path}"}}}}
        """
    )
    wait(name, lambda view: view["state"] == "done")
    [stage] = json.loads(condorctl("show", name, "--json").stdout)["stages"]
    assert stage["usage"]["gpu_busy"] == 0.4 and stage["usage"]["gpu_memory_mb"] == 10307
    assert stage["machine"]["driver"] == "535.104.05"
    [gpu] = stage["machine"]["gpus"]
    assert gpu == {"name": "NVIDIA A100-SXM4-40GB", "memory_mb": 40960, "capability": 2.0}


def test_a_slot_that_knows_of_no_gpus_takes_a_job_that_does_without(
    configure: Configure,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    condorctl: Condorctl,
) -> None:
    # As all nodes were before they looked for GPUs by themselves.
    configure("STARTD_DETECT_GPUS =\n", without="use FEATURE: GPUs\n", restart=True)
    ask = ("condor_status", "-const", "PartitionableSlot", "-af", "GPUs")
    assert condor(*ask).split() == ["undefined"]
    name = submit(
        f"""
        defaults: {{command: ['true'], {SMALL}, request_gpus: 1, cpu_after: 4 s}}
        stages:
          any: {{}}
          large: {{gpus_minimum_memory: 40 GB}}
          never: {{cpu_after: 9 h}}
        """
    )
    view = wait(name, lambda v: [v["stages"][s]["state"] for s in ("any", "large")] == ["done"] * 2)
    explained = condorctl("explain", view["stages"]["never"]["job"])
    assert "it asks for a GPU; no slot has any" in explained.stdout, explained
    condor("condor_rm", view["dag"].split("#")[1])
