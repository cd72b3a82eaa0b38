"""condorctl is killed at its system calls, and loses nothing.

CONDORCTL_CRASH_EVERY=1 kills at each of them instead of at some: half an hour.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from condorctl.condor import cluster
from tests import crash
from tests.conftest import Condorctl

pytestmark = pytest.mark.skipif(
    not crash.can_kill(), reason="needs strace: apt-get install strace (make test does, as root)"
)

SPEC = """\
defaults: {request_memory: 64 MB, request_disk: 50 MB}
stages:
  one: {command: [python, work.py, "1"], inputs: [work.py], outputs: [model.pt, metrics.jsonl]}
  two: {command: [sh, -c, "exit 3"], needs: [one]}
"""

ONE = "stages: {one: {command: [sh, -c, 'echo > x'], outputs: [x], request_memory: 64 MB}}"

# Dies in a moment that no count of calls may hit: before one of its requests to the schedd, or with
# the answer to it.
DIES = """
import os, sys
from condorctl import cli, pool
pool.activate()
import htcondor2
when, name, *sys.argv[1:] = sys.argv[1:]
asks = getattr(htcondor2.Schedd, name)
dies = lambda *_: os.kill(os.getpid(), 9)
setattr(htcondor2.Schedd, name, dies if when == "before" else lambda *words: dies(asks(*words)))
cli.main()
"""


@pytest.fixture
def ledger(project: Path) -> Path:
    return Path(os.environ["CONDORCTL_LEDGER"])


@pytest.fixture
def ended(
    pool: Path, project: Path, condorctl: Condorctl, ledger: Path, tmp_path: Path
) -> Callable[[], None]:
    """A run whose second stage has failed; called, all is as it was before anybody looked."""
    (project / "jobs" / "test.yaml").write_text(SPEC)
    assert condorctl("submit", "test").returncode == 0
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copytree(ledger.parent, kept / "ledger", ignore=lambda *_: ["kept", "a project"])
    with (project / "exp/runs/test-1/test.dag.dagman.log").open() as log:
        deadline = time.monotonic() + 120
        while "005 (" not in log.read():
            assert time.monotonic() < deadline
            time.sleep(0.5)
            log.seek(0)
    shutil.copytree(project / "exp", kept / "exp", symlinks=True)

    def restore() -> None:
        shutil.rmtree(project / "exp")
        shutil.copytree(kept / "exp", project / "exp", symlinks=True)
        for path in ledger.parent.glob("ledger*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(kept / "ledger", ledger.parent, dirs_exist_ok=True)

    return restore


def chosen(
    command: list[str], project: Path, every: int, always: Sequence[str] = ()
) -> Iterator[crash.Point]:
    """The points at which `command` is killed, after it was run once undisturbed.

    Each `every`-th of them, and all of the calls in `always`.
    """
    every = int(os.environ.get("CONDORCTL_CRASH_EVERY", every))
    found = crash.points(command, project)
    some = crash.some(found, every)
    for point in (point for point in found if point in some or point.call in always):
        print(point, flush=True)
        yield point


def dies(project: Path, when: str, request: str, *words: str) -> bool:
    """Run condorctl to its end "before" or "after" the first `request`; True."""
    command = [sys.executable, "-c", DIES, when, request, *words]
    assert subprocess.run(command, cwd=project).returncode == -signal.SIGKILL
    return True


def told(condorctl: Condorctl, *words: str) -> Any:
    answer = condorctl(*words, "--json")
    assert answer.returncode == 0, answer
    return json.loads(answer.stdout)


def dags(condor: Callable[..., str], project: Path) -> list[tuple[str, int]]:
    """The DAGs that came into the queue: the run's folder and the number of each."""
    wanted = ("-const", "JobUniverse == 7", "-af:t", "Iwd", "ClusterId")
    lines = (condor("condor_q", *wanted) + condor("condor_history", *wanted)).splitlines()
    found = [line.split("\t") for line in lines]
    return sorted({(f, int(n)) for f, n in found if f.startswith(str(project))}, key=lambda d: d[1])


def test_a_submission_that_is_killed_is_whole_or_was_none(
    pool: Path, project: Path, condorctl: Condorctl, condor: Callable[..., str], ledger: Path
) -> None:
    (project / "jobs" / "test.yaml").write_text(ONE)
    # Done once, it is taken over from then on: a DAG without a job, which ends at once.
    assert condorctl("submit", "test", "--follow").returncode == 0
    runs, killed = project / "exp" / "runs", 0
    command = crash.condorctl("submit", "test", "--json")
    for point in chosen(command, project, every=24):
        killed += crash.kill(command, project, point)
        crash.assert_whole(ledger, runs)
        left = {run["run"] for run in told(condorctl, "status", "--all")["runs"]}
        assert left == {path.name for path in runs.glob("[!.]*")}, point
        assert told(condorctl, "submit", "test")["dag"]
        crash.assert_whole(ledger, runs)
        assert list(runs.glob(".*")) == []
    assert killed > 1
    told(condorctl, "status", "--all")
    with closing(sqlite3.connect(ledger)) as file:
        known = file.execute("SELECT folder, cluster, state, problem FROM run").fetchall()
    # Each DAG that HTCondor was given is known, once, and no run waits for one that is not there.
    came = sorted((folder, number) for folder, number, *_ in known if number is not None)
    assert came == sorted(dags(condor, project))
    assert len({folder for folder, _ in came}) == len(came)
    lost = [(state, problem) for _, number, state, problem in known if number is None]
    assert all(state == "failed" and "`condorctl resume" in told for state, told in lost), lost


def test_a_submission_elsewhere_that_is_killed_comes_there_once_or_not_at_all(
    pool: Path, project: Path, condorctl: Condorctl, condor: Callable[..., str], ledger: Path,
    remote: str, token: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    token()
    (project / "jobs" / "test.yaml").write_text(ONE)
    assert condorctl("submit", "test", "--follow").returncode == 0
    monkeypatch.setenv("CONDORCTL_SCHEDD", remote)
    runs, killed = project / "exp" / "runs", 0
    command = crash.condorctl("submit", "test", "--json")
    for point in chosen(command, project, every=100):
        killed += crash.kill(command, project, point)
        crash.assert_whole(ledger, runs)
        left = {run["run"] for run in told(condorctl, "status", "--all")["runs"]}
        assert left == {path.name for path in runs.glob("[!.]*")}, point
    assert killed > 1

    def all_ended() -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while True:
            views = {view["run"]: view for view in told(condorctl, "status", "--all")["runs"]}
            if not (going := [view for view in views.values() if not view["finished"]]):
                return views
            assert time.monotonic() < deadline, going
            time.sleep(1)

    all_ended()
    for moment, state in (("spool", "failed"), ("edit", "done")):
        dies(project, "before", moment, "submit", "test")
        # What came there has ended and was brought back; what did not says what to do.
        ended = all_ended()
        [new] = ended.keys() - left
        assert ended[new]["state"] == state
        left.add(new)
    for name in (name for name, view in ended.items() if view["state"] == "failed"):
        assert "`condorctl resume" in told(condorctl, "status", name)["problem"]
    # The schedd removes a job whose files break off; here it can even write that into its log.
    assert {view["state"] for view in ended.values()} <= {"failed", "done", "removed"}
    [*_, unsent] = [name for name, view in ended.items() if view["state"] == "failed"]
    assert condorctl("resume", unsent).returncode == 0
    assert all_ended()[unsent]["state"] == "done"
    # What was brought back leaves the queue some time later.
    wanted = ("-const", "JobStatus != 3", "-af:t", cluster.FOLDER, "ClusterId")
    history = ("-file", str(pool / "remote" / "spool" / "history"))
    lines = condor("condor_q", "-name", remote, "-allusers", *wanted).splitlines()
    lines += condor("condor_history", *history, *wanted).splitlines()
    told_of = {(folder, int(number)) for folder, number in (line.split("\t") for line in lines)}
    came = sorted(one for one in told_of if one[0].startswith(str(project)))
    with closing(sqlite3.connect(ledger)) as file:
        rows = file.execute("SELECT folder, cluster FROM run WHERE spooled AND state = 'done'")
        assert sorted(rows) == came
    assert len({folder for folder, _ in came}) == len(came)


def test_a_look_that_is_killed_has_seen_nothing_or_all_of_it(
    project: Path, condorctl: Condorctl, ledger: Path, ended: Callable[[], None]
) -> None:
    command, killed = crash.condorctl("status", "--json"), 0
    found = chosen(command, project, every=14)
    point = next(found)
    view, results = told(condorctl, "status"), told(condorctl, "results")
    record = json.loads((project / "exp/runs/test-1/run.json").read_text())
    assert [job["exit_code"] for stage in record["stages"] for job in stage["jobs"]] == [3]
    while point:
        ended()
        killed += crash.kill(command, project, point)
        crash.assert_whole(ledger, project / "exp" / "runs")
        assert (told(condorctl, "status"), told(condorctl, "results")) == (view, results), point
        assert json.loads((project / "exp/runs/test-1/run.json").read_text()) == record
        point = next(found, None)
    assert killed > 1


def test_a_fetch_that_is_killed_is_done_by_the_next(
    project: Path, condorctl: Condorctl, ledger: Path, ended: Callable[[], None]
) -> None:
    words = ("fetch", "test-1/one", "model.pt", "metrics.jsonl", "--to", "back")
    command, killed = crash.condorctl(*words, "--json"), 0
    # A file is made, and gets its name.
    for point in chosen(command, project, every=24, always=("ftruncate", "rename")):
        shutil.rmtree(project / "back")
        killed += crash.kill(command, project, point)
        crash.assert_whole(ledger, project / "exp" / "runs")
        there = project / "back" / "model.pt"
        assert not there.exists() or there.read_text() == "1"
        assert condorctl(*words).returncode == 0
        assert there.read_text() == "1"
        assert sorted(p.name for p in there.parent.iterdir()) == ["metrics.jsonl", "model.pt"]
    assert killed > 1


def test_a_clean_that_is_killed_has_left_the_folder_whole_or_none(
    project: Path, condorctl: Condorctl, ledger: Path, ended: Callable[[], None]
) -> None:
    results = told(condorctl, "results")
    command, killed = crash.condorctl("clean", "test-1", "--json"), 0
    for point in chosen(command, project, every=14):
        ended()
        killed += crash.kill(command, project, point)
        crash.assert_whole(ledger, project / "exp" / "runs")
        assert told(condorctl, "clean", "test-1")
        assert list((project / "exp" / "runs").iterdir()) == []
        assert told(condorctl, "results") == results
        assert told(condorctl, "status")["stages"][1]["state"] == "failed"
    assert killed > 1


def test_a_resume_that_is_killed_can_be_done_again(
    project: Path, condorctl: Condorctl, condor: Callable[..., str], ledger: Path,
    ended: Callable[[], None],
) -> None:  # fmt: skip
    command = crash.condorctl("resume", "test-1", "--json")
    killed = 0
    kills = [partial(crash.kill, command, project, p) for p in chosen(command, project, every=40)]
    for kill in (*kills, partial(dies, project, "after", "submit", "resume", "test-1")):
        condorctl("cancel", "test-1")
        killed += kill()
        crash.assert_whole(ledger, project / "exp" / "runs")
        again = condorctl("resume", "test-1")
        assert again.returncode == 0 or "still in the queue" in again.stderr, again
        view = told(condorctl, "status", "test-1")
        assert len({view["dag"], *view["earlier"]}) == len(dags(condor, project)), kill
        assert view["stages"][0]["state"] == "done"
    assert killed > 2
