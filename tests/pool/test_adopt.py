"""HTCondor work that was not written here, submitted, adopted, and followed to its end."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

Condor = Callable[..., str]
Wait = Callable[..., Status]

FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture(autouse=True)
def foreign(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own DAGs and submit files, in the folder that is the current one."""
    shutil.copytree(FOREIGN, project, dirs_exist_ok=True)
    # DAGMan refuses to work below /tmp, where the tests' folders are.
    monkeypatch.setenv("_CONDOR_DAGMAN_USE_STRICT", "0")
    return project


@pytest.fixture
def submit_dag(condor: Condor) -> Callable[[str], str]:
    """Submit a DAG with HTCondor's own tool; return its cluster."""

    def run(file: str) -> str:
        answer = condor("condor_submit_dag", file)
        return answer.partition("submitted to cluster ")[2].split(".")[0]

    return run


def ended(view: Status) -> bool:
    return bool(view["finished"])


def run_of(answer: Any) -> dict[str, Any]:
    assert answer.returncode == 0, answer
    view: dict[str, Any] = json.loads(answer.stdout)
    return view


def test_every_kind_of_node_is_told_as_dagman_tells_it(
    pool: Path, submit_dag: Callable[[str], str], condorctl: Condorctl, condor: Condor,
    wait: Wait, project: Path,
) -> None:  # fmt: skip
    number = submit_dag("everything.dag")
    view = run_of(condorctl("adopt", number, "--json"))
    name = view["run"]
    assert (name, view["kind"], view["dag"].partition("#")[2]) == (
        "everything-1",
        "dag",
        f"{number}.0",
    )
    stages = {stage["stage"]: stage for stage in view["stages"]}
    assert stages["Many"]["needs"] == ["Below", "Part+Second"]
    assert stages["Part+First"]["needs"] == ["Start"]
    assert stages["Before"]["state"] == "done"
    assert f"is in the ledger already: it is {name}" in one_error_line(condorctl("adopt", number))

    view = wait(name, ended)
    # DAGMan has ended with 0, since its FINAL node has succeeded.
    metrics = json.loads((project / "everything.dag.metrics").read_text())
    assert (metrics["exitcode"], view["exit_code"], view["state"]) == (0, 0, "failed")
    states = {stage: told["state"] for stage, told in view["stages"].items()}
    wrong = {"Unready": "failed", "Ruined": "failed", "After": "not run"}
    assert states == {stage: wrong.get(stage, "done") for stage in states}
    kinds = ("nodes", "dag_nodes")
    # The FINAL node has succeeded, too, and a node that is DONE before has not run.
    assert sum(metrics[f"{kind}_succeeded"] for kind in kinds) == list(states.values()).count(
        "done"
    )
    assert sum(metrics[f"{kind}_failed"] for kind in kinds) == 2
    again = view["stages"]["Again"]
    assert [(job["attempt"], job["state"]) for job in again["jobs"]] == [
        (1, "failed"),
        (2, "failed"),
    ]
    assert view["stages"]["Inline"]["ended_with"] == "exit code 3"
    assert view["stages"]["Many"]["counts"] == {"completed": 3}
    assert view["stages"]["Below"]["jobs"][0]["cpus"] == 0
    _compare_with_history(view, number, condor)

    job = view["stages"]["Start"]["job"]
    assert condorctl("fetch", job).returncode == 0
    out = f"Start.{job}.out"
    assert (project / "fetched" / job / out).read_text() == "Start says hello\n"
    many = condorctl("fetch", f"{name}/Many", "--to", "many")
    assert many.returncode == 0, many
    assert len(list((project / "many").rglob("Many.*.out"))) == 3
    cost = json.loads(condorctl("cost", name, "--json").stdout)["total"]["cpu_h"]
    assert cost["useful"] > 0
    assert cost["wasted"] > 0

    # Mended and submitted again: the same run goes on, from DAGMan's rescue file.
    (project / "mended").write_text("0\n")
    later = submit_dag("everything.dag")
    assert run_of(condorctl("adopt", later, "--json"))["run"] == name
    view = wait(name, ended)
    assert (view["state"], view["dag"].partition("#")[2]) == ("done", f"{later}.0")
    assert {told["state"] for told in view["stages"].values()} == {"done"}
    assert [id_.partition("#")[2] for id_ in view["earlier"]] == [f"{number}.0"]
    assert [job["state"] for job in view["stages"]["Ruined"]["jobs"]] == ["completed", "completed"]
    assert view["stages"]["Start"]["job"] == job

    # What somebody adopts who knows nothing of it yet: the same, from the history.
    os.environ["CONDORCTL_LEDGER"] = str(project / "other.sqlite")
    other = run_of(condorctl("adopt", "everything.dag", "--name", "whole", "--json"))
    assert (other["run"], other["state"]) == ("whole", "done")
    jobs = {job["job"]: job["attempt"] for told in other["stages"] for job in told["jobs"]}
    assert jobs == {
        job["job"]: job["attempt"] for t in view["stages"].values() for job in t["jobs"]
    }


def _compare_with_history(view: Status, dag: str, condor: Condor) -> None:
    """Each job of the run is one of condor_history, with the same node and exit code."""
    answer = condor(
        "condor_history", "-const", f"DAGManJobId == {dag}", "-af:j", "DAGNodeName", "ExitCode"
    )
    told = {tuple(line.split()) for line in answer.splitlines()}
    assert told == {
        (job["job"], stage, str(job["exit_code"]))
        for stage, of in view["stages"].items()
        for job in of["jobs"]
    }


def test_files_of_ones_own_are_submitted_as_htcondor_does_it(
    pool: Path, condorctl: Condorctl, condor: Condor, wait: Wait, project: Path
) -> None:
    # A DAG by its content, with line ends of another system and another name.
    diamond = run_of(condorctl("submit", "diamond.sub", "--json"))
    assert (diamond["run"], diamond["kind"]) == ("diamond-1", "dag")
    items = condorctl("submit", "items.cmd")
    assert items.returncode == 0
    assert items.stdout.startswith("items-1: jobs ")
    for letter in "ab":
        (project / f"{letter}.txt").write_text(letter)
    matching = run_of(condorctl("submit", "./matching.jdl", "--json"))
    three = run_of(condorctl("submit", "three.sub", "--json"))
    assert [len(told["jobs"]) for told in three["stages"]] == [3]

    for file, words, expected in [
        ("twice.submit", [], "Extra data found after queue statement"),
        ("items.cmd", ["--set", "a=1"], "are for pipelines"),
        ("pre.sh", [], "is neither a DAG nor a submit file"),
        ("items", [], "no pipeline 'items'"),
        ("none.sub", [], "none.sub"),
    ]:
        assert expected in one_error_line(condorctl("submit", file, *words))
    for text, expected in [
        ("JOB A node.sub\nPARENT A CHILD B\n", "line 2"),
        ("JOB A node.sub\nJOB B node.sub\nPARENT A CHILD B\nPARENT B CHILD A\n", "cycle"),
        ("JOB A\n", "line 1"),
    ]:
        (project / "bad.dag").write_text(text)
        assert expected in one_error_line(condorctl("submit", "bad.dag"))
    assert not list(project.glob("bad.dag.*"))

    assert condorctl("follow", "items-1").returncode == 0
    view = wait("items-1", ended)
    assert view["state"] == "done"
    [stage] = view["stages"].values()
    assert stage["counts"] == {"completed": 2}
    assert all(job["started"] and job["cpus"] == 1 for job in stage["jobs"])
    got = condorctl("fetch", stage["jobs"][1]["job"])
    assert got.returncode == 0, got
    assert (project / "fetched" / stage["jobs"][1]["job"] / "pear.1.out").read_text() == "pear 2\n"
    # Without an event log there is the queue, and then the history.
    view = wait(matching["run"], ended)
    assert (view["state"], len(view["stages"]["matching"]["jobs"])) == ("done", 2)
    assert (project / "b.txt.copy").read_text() == "b"
    assert wait(three["run"], ended)["state"] == "done"
    view = wait("diamond-1", ended)
    assert (view["state"], list(view["stages"])) == ("done", ["A", "B", "C", "D"])
    assert view["stages"]["D"]["needs"] == ["B", "C"]


def test_an_exit_code_of_zero_with_nodes_that_never_ran_is_no_success(
    pool: Path, condorctl: Condorctl, wait: Wait, project: Path
) -> None:
    view = wait(run_of(condorctl("submit", "abort.dag", "--json"))["run"], ended)
    assert json.loads((project / "abort.dag.metrics").read_text())["exitcode"] == 0
    assert (view["state"], view["exit_code"]) == ("failed", 0)
    assert [told["state"] for told in view["stages"].values()] == ["done", "not run"]


def test_clusters_are_adopted_as_they_are(
    pool: Path, condorctl: Condorctl, condor: Condor, wait: Wait, project: Path
) -> None:
    (project / "sleep.sub").write_text(
        "executable = /bin/sleep\narguments = 300\nrequest_memory = 32 MB\n"
        "request_disk = 10 MB\nbatch_name = my batch\nqueue 2\n"
    )
    told = condor("condor_submit", "-terse", "sleep.sub")
    number = told.split(".")[0]
    one = run_of(condorctl("adopt", f"{number}.1", "--json"))
    assert (one["run"], one["kind"], one["dag"]) == ("my-batch-1", "jobs", None)
    assert [job["job"] for job in one["stages"][0]["jobs"]] == [f"{number}.1"]
    refused = one_error_line(condorctl("adopt", f"{number}.1"))
    assert "is in the ledger already: my-batch-1/my-batch" in refused
    assert "is in the ledger already" in one_error_line(condorctl("adopt", number))
    assert "neither the queue nor the history" in one_error_line(condorctl("adopt", "99999"))
    assert "no such file" in one_error_line(condorctl("adopt", "nothing"))
    assert "has not run here" in one_error_line(condorctl("adopt", "abort.dag"))
    assert "--name" in one_error_line(condorctl("adopt", number, "--name", "7"))

    name = one["run"]
    wait(name, lambda view: view["state"] == "running")
    condor("condor_hold", "-reason", "a look", f"{number}.1")
    view = wait(name, lambda view: view["state"] == "held")
    [job] = view["stages"]["my-batch"]["jobs"]
    assert job["hold"]["reason"].startswith("a look")
    condor("condor_rm", f"{number}.1")
    view = wait(name, ended)
    assert (view["state"], view["stages"]["my-batch"]["state"]) == ("removed", "removed")
    assert [one["state"] for one in view["stages"]["my-batch"]["jobs"][0]["states"]] == [
        "idle", "running", "held", "removed",
    ]  # fmt: skip
    condor("condor_rm", number)


def test_what_no_schedd_knows_is_unknown_and_not_running(
    pool: Path, condorctl: Condorctl, condor: Condor, wait: Wait, status: Callable[[str], Status],
    project: Path,
) -> None:  # fmt: skip
    """As after a pool was wiped: nothing tells how the work ended."""
    (project / "long.sub").write_text(
        "executable = /bin/sleep\narguments = 300\nrequest_memory = 32 MB\nrequest_disk = 10 MB\n"
    )
    (project / "long.dag").write_text("JOB A long.sub\n")
    runs = [run_of(condorctl("submit", f"long.{kind}", "--json")) for kind in ("dag", "sub")]
    names = [run["run"] for run in runs]
    for name in names:
        view = wait(name, lambda view: bool(view["counts"].get("running")))
    logs = [project / f"long.dag.{log}.log" for log in ("dagman", "nodes")]
    early = [log.read_text() for log in logs]
    number = runs[0]["dag"].partition("#")[2]
    for job in (number, view["stages"]["long"]["job"]):
        condor("condor_rm", job)
    history = pool / "spool" / "history"
    deadline = time.monotonic() + 120
    while condor("condor_q", "-af", "ClusterId").strip():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    late = [log.read_text() for log in logs]
    for log, text in zip(logs, early, strict=True):
        log.write_text(text)
    aside = history.rename(history.with_name("aside"))
    try:
        with sqlite3.connect(os.environ["CONDORCTL_LEDGER"]) as ledger:
            # As if all of it had been a while ago.
            ledger.execute("update run set submitted = submitted - 100, seen = seen - 100")
            ledger.execute("update job_state set time = time - 100")
        for name in names:
            view = status(name)
            assert (view["state"], view["finished"]) == ("unknown", None), view
            assert "neither" in view["problem"]
            assert {told["state"] for told in view["stages"].values()} == {"unknown"}
    finally:
        aside.rename(history)
    assert condorctl("follow", names[0]).returncode == 1
    # Where a log turns up that tells more, it is believed.
    for log, text in zip(logs, late, strict=True):
        log.write_text(text)
    view = status(names[0])
    assert (view["state"], view["problem"]) == ("removed", None)
    assert [told["state"] for told in view["stages"].values()] == ["removed"]
