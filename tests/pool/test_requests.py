"""Requests that grow, and a site's wishes, on a pool that holds its jobs to what they asked for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from condorctl.submit import requests
from tests.conftest import Condorctl
from tests.pool.conftest import Configure, Status

Condor = Callable[..., str]

# 300 MB of each; 128 MB are asked for. A slot with less stops it, sooner or later.
HOG = """
import os, re, sys, time
if sys.argv[1] == "memory":
    held = bytearray(300 << 20)
    held[::4096] = b"x" * len(held[::4096])
    row, least = "Memory", 300
else:
    open("big", "wb").write(b"x" * (300 << 20))
    row, least = "Disk", 300 << 10
given = re.search(rf"(?m)^{row} = (\\d+)", open(os.environ["_CONDOR_MACHINE_AD"]).read())
time.sleep(6 if int(given[1]) > least else 300)
"""
SPEC = """
defaults: {inputs: [hog.py], request_memory: 128 MB, request_disk: 128 MB}
stages:
  memory: {command: [python, hog.py, memory], max_memory: 2 GB}
  # What it has written is in the kernel's cache, which counts as its memory.
  disk: {command: [python, hog.py, disk], max_disk: 2 GB, request_memory: 1 GB}
  little: {command: [python, hog.py, memory], max_memory: 200 MB}
"""


@pytest.fixture
def strict(configure: Configure) -> None:
    """The pool with the policy that most real ones have: what uses too much is stopped.

    A claim is for one job: else a job may come into the larger slot that another one has left, and
    end well there before its own request has grown.
    """
    configure(
        "use POLICY : HOLD_IF_MEMORY_EXCEEDED\nuse POLICY : HOLD_IF_DISK_EXCEEDED\n"
        "PERIODIC_EXPR_INTERVAL = 3\nCLAIM_WORKLIFE = 0\n"
    )


def test_a_request_grows_to_its_limit_with_this_htcondor_and_with_an_older_one(
    strict: None, condorctl: Condorctl, condor: Condor, project: Path
) -> None:
    (project / "hog.py").write_text(HOG)
    (project / "jobs" / "hog.yaml").write_text(SPEC)
    run = json.loads(condorctl("submit", "hog", "--json").stdout)
    # The other branch of the same submit files, which an HTCondor before 25.10 takes.
    assert condorctl("render", "hog", "-o", "old").returncode == 0
    for file in (project / "old").glob("*/stage.sub"):
        text = file.read_text()
        assert text.count(requests.RAISES_BY_ITSELF) == 1
        file.write_text(text.replace(requests.RAISES_BY_ITSELF, "99.0.0"))
    condor("env", "-C", str(project / "old"), "condor_submit_dag", "hog.dag")

    def logs() -> dict[str, str]:
        found = {}
        for folder in (Path(run["folder"]), project / "old"):
            for stage in ("memory", "disk", "little"):
                log = folder / stage / "events.log"
                name = f"{stage} {'old' if folder.name == 'old' else 'new'}"
                found[name] = log.read_text() if log.exists() else ""
        return found

    def over(name: str, log: str) -> bool:
        # A little one is held for good, by an older HTCondor for the second time.
        return log.count("\n012 ") == 1 + ("old" in name) if "little" in name else "\n005 " in log

    deadline = time.monotonic() + 400
    while not all(over(name, log) for name, log in logs().items()):
        assert time.monotonic() < deadline, logs()
        time.sleep(1)

    kinds = {"memory": (r"Memory \(MB\) +:", "102"), "disk": (r"Disk \(KB\) +:", "104")}
    for name, log in logs().items():
        kind = "disk" if "disk" in name else "memory"
        row, subcode = kinds[kind]
        asked = [int(n) for n in re.findall(rf"{row} +\d+ +(\d+) +\d+ *$", log, re.MULTILINE)]
        mb = asked if kind == "memory" else [n // 1024 for n in asked]
        assert f"Code 21 Subcode {subcode}" in log
        if "little" in name:
            # At its limit it is held as any other job is.
            assert (mb[0], mb[-1]) == (128, 200)
            assert "\n005 " not in log
        else:
            assert (mb[0], mb[-1]) == (128, 512)
            assert "Normal termination (return value 0)" in log
            assert ("\n012 " in log) == ("old" in name)
    condor("condor_rm", "-all")


SITE = """
requirements: Cpus > 0 && OpSys == "LINUX"
submit: {+WantGPUHomeMounted: true, +Project: "it's \\"ours\\"", +Later: "= 1 + 1"}
defaults: {request_memory: 64 MB, request_disk: 50 MB, environment: {WHERE: the lab}}
python: [/usr/bin/env, SAID=by the profile, python3]
"""


def test_a_sites_wishes_are_in_the_job_and_the_starter_runs_there(
    pool: Path, condorctl: Condorctl, condor: Condor, project: Path,
    wait: Callable[..., Status], tmp_path: Path,
) -> None:  # fmt: skip
    assert condorctl("init").returncode == 0
    (project / "sites").mkdir()
    (project / "sites" / "lab.yaml").write_text(SITE)
    (project / "jobs" / "ask.yaml").write_text(
        """
        site: lab
        stages:
          a:
            command: [python, -c, 'import os; print(os.environ["WHERE"], os.environ["SAID"])']
            requirements: Arch == "X86_64"
            priority: 3
            submit: {+Mine: 2}
        """
    )
    assert condorctl("lint").returncode == 0
    first = json.loads(condorctl("submit", "first", "--set", "epochs=20", "--json").stdout)
    ask = json.loads(condorctl("submit", "ask", "--json").stdout)
    view = wait(ask["run"], lambda view: bool(view["finished"]))
    assert view["state"] == "done", view
    [out] = (Path(ask["folder"]) / "a").glob("*.out")
    assert out.read_text() == "the lab by the profile\n"
    assert (Path(ask["folder"]) / "site.yaml").read_text() == SITE
    job = view["stages"]["a"]["job"]
    told = condor(
        "condor_history", job, "-af", "WantGPUHomeMounted", "Project", "Later", "Mine", "JobPrio",
        "RequestMemory",
    )  # fmt: skip
    assert told.strip() == 'true it\'s "ours" 2 2 3 64'
    wanted = condor("condor_history", job, "-af:r", "Requirements")
    assert 'OpSys == "LINUX"' in wanted
    assert 'Arch == "X86_64"' in wanted

    view = wait(first["run"], lambda view: bool(view["finished"]))
    assert view["state"] == "done", view
    assert list(view["stages"])[-1] == "best"
    assert "Accuracy on points" in condorctl("results", first["run"]).stdout
