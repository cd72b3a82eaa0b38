"""Containers that cannot be started: HTCondor would try for ever; condorctl says so and holds.

What the node takes for Apptainer and Docker are scripts that fail as these do, in their words, or
run the command as it is: what HTCondor makes of that is real.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl
from tests.pool.conftest import Configure, Status

REFUSED = "FATAL:   container creation failed: while mounting image: failed to find loop device"
MISSING = "FATAL:   could not open image /gone.sif: failed to retrieve path for /gone.sif"
# HTCondor asks for the version, tries two of its own images, the job's image, then runs that.
APPTAINER = f"""#!/bin/sh
case "$*" in
    --version) echo apptainer version 1.4.0 ;;
    */exit_37) exit 37 ;;
    */get_user_ns) ;;
    *" test "*/refused) echo '{REFUSED}' >&2; exit 255 ;;
    *" test "*) ;;
    */missing\\ *) echo '{MISSING}' >&2; exit 255 ;;
    *) until [ "${{1##*/}}" = good ]; do shift; done; shift; exec "$@" ;;
esac
"""
# It makes containers, and then knows nothing of them.
DOCKER = """#!/bin/sh
case "$*" in
    -v) echo Docker version 24.0.7 ;;
    *ContainerId*) echo Error: no such object >&2; exit 1 ;;
    *Architecture*) echo amd64 ;;
esac
"""
CONFIG = """
SINGULARITY = {folder}/apptainer
DOCKER = {folder}/docker
DOCKER_PERFORM_TEST = False
# The pool's own rest between two tries, and its looks at a job's policy, but sooner.
SYSTEM_ON_VACATE_COOL_DOWN = ($(SYSTEM_ON_VACATE_COOL_DOWN)) / 5
PERIODIC_EXPR_INTERVAL = 2
"""
SPEC = """
defaults: {{universe: container, container_tries: 2, request_memory: 50 MB, request_disk: 50 MB}}
stages:
  refused: {{image: {folder}/refused/, command: ["true"]}}
  missing: {{image: {folder}/missing/, command: ["true"]}}
  lost: {{universe: docker, image: x, container_tries: 1, command: ["true"]}}
  evicted: {{image: {folder}/good/, container_tries: 1, command: [sleep, "600"]}}
  after: {{universe: vanilla, needs: [refused], command: ["true"]}}
"""


@pytest.fixture
def containers(pool: Path, condor: Callable[..., str], configure: Configure) -> Path:
    """The pool's node with what it takes for Apptainer and Docker, and images."""
    folder = pool / "containers"
    for name in ("refused", "missing", "good"):
        (folder / name).mkdir(parents=True)
    for name, text in (("apptainer", APPTAINER), ("docker", DOCKER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    configure(CONFIG.format(folder=folder), restart=True)
    offers = condor(
        "condor_status", "-const", "PartitionableSlot", "-af", "HasDocker", "HasSingularity"
    )
    assert offers.split() == ["true", "true"]
    return folder


def test_what_cannot_be_started_is_told_and_then_held_and_an_eviction_is_neither(
    containers: Path,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    condorctl: Condorctl,
    pool: Path,
) -> None:
    run = submit(SPEC.format(folder=containers))

    def explain(stage: str) -> Status:
        told: Status = json.loads(condorctl("explain", f"{run}/{stage}", "--json").stdout)
        return told

    def seen(told: Status) -> str:
        lines = [
            Path(one["file"]).read_text().splitlines()[one["line"] - 1] for one in told["evidence"]
        ]
        assert lines == [one["text"] for one in told["evidence"]]
        return "\n".join(lines)

    view = wait(run, lambda view: view["stages"]["refused"]["sent_back"] is not None)
    refused = explain("refused")
    assert refused["state"] in {"idle", "running"} and refused["analysis"]["sent_back"] == 1
    assert "sent back once: slot1_" in refused["cause"]
    assert "does not let Apptainer make a container (loop device)" in refused["cause"]
    assert REFUSED in seen(refused) and 'Machine != "' in refused["mend"]

    # An eviction is no failed start, however often it comes.
    evicted = view["stages"]["evicted"]["job"]
    for starts in (1, 2):
        wait(run, lambda view, n=starts: _runs(view["stages"]["evicted"], n))  # type: ignore[misc]
        condor("condor_vacate_job", "-fast", evicted)
    wait(run, lambda view: _runs(view["stages"]["evicted"], 3))

    view = wait(run, lambda view: _states(view, "refused", "missing", "lost") == {"held"})
    for name, starts in (("refused", 2), ("missing", 1), ("lost", 1)):
        assert view["stages"][name]["starts"] == starts, view["stages"][name]
    told = {
        one["stage"]: one for one in json.loads(condorctl("explain", run, "--json").stdout)["jobs"]
    }
    assert told.keys() == {"refused", "missing", "lost"}
    refused, lost = told["refused"], told["lost"]
    assert refused["analysis"]["code"] == 3 and refused["analysis"]["subcode"] == 45
    assert "so often that it is not tried any more: slot1_" in refused["cause"]
    assert "could not be started 2 times; Error from slot1_" in seen(refused)
    assert "has lost its container" in lost["cause"]
    assert told["missing"]["cause"] == (
        "the stage was never started: Apptainer could not start its container: could not open "
        "image /gone.sif: failed to retrieve path for /gone.sif"
    )
    assert MISSING in seen(told["missing"])
    words = condorctl("status", run)
    assert f"refused ({refused['job']}) is held: its container could not be started" in words.stderr

    # Released, it is not held again before it was tried again.
    condorctl("release", refused["job"])
    view = wait(run, lambda view: view["stages"]["refused"]["sent_back"] is not None)
    assert view["stages"]["refused"]["starts"] == 3
    assert _runs(view["stages"]["evicted"], 3)
    assert condorctl("cancel", run).returncode == 0


def _runs(stage: Status, start: int) -> bool:
    return bool(stage["state"] == "running" and stage["starts"] == start)


def _states(view: Status, *stages: str) -> set[str]:
    return {view["stages"][name]["state"] for name in stages}
