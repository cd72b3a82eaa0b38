"""Work that was not written here: what its files are, and what DAGMan's files tell of its nodes."""

from __future__ import annotations

import getpass
import json
import os
import time
from pathlib import Path

import pytest

from condorctl import paths
from condorctl.condor import dagman
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, Stage, events, find
from condorctl.steer import adopt
from condorctl.view import status
from tests.unit.test_events import ENDED, EXECUTE, SUBMIT

POST = """\
016 ({0:03}.000.000) 2026-03-01 10:09:01 POST Script terminated.
\t(1) Normal termination (return value {2})
    DAG Node: {1}
...
"""
NOOP = """\
000 (000.2147483647.002) 2026-03-01 10:00:00 Job submitted from host: <dummy-submit-for-noop-job>
    DAG Node: {0}
...
"""
PRE_SKIP = """\
034 (000.2147483647.001) 2026-03-01 10:00:00 PRE script return value is PRE_SKIP value
    DAG Node: {0}
...
"""
SLOT = """\
001 (008.000.000) 2026-03-01 10:01:00 Job executing on host: <127.0.0.1:9618?addrs=x>
\tSlotName: slot1_1@node
\tCpus = 4
\tDisk = 10240
\tGPUs = 2
\tMemory = 128
...
"""
USED = """\
005 (008.000.000) 2026-03-01 10:09:00 Job terminated.
\t(1) Normal termination (return value 0)
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage
\t\tUsr 1 01:02:03, Sys 0 00:00:04  -  Total Remote Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Local Usage
\t0  -  Run Bytes Sent By Job
\t0  -  Run Bytes Received By Job
\t0  -  Total Bytes Sent By Job
\t0  -  Total Bytes Received By Job
\tPartitionable Resources :    Usage  Request Allocated
\t   Cpus                 :        0        4         4
\t   Disk (KB)            :      125    10240     10240
\t   GPUs                 :                           2
\t   Memory (MB)          :       77       32       128
...
"""


@pytest.fixture
def ledger(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger with a foreign DAG of two nodes whose graph is known; no pool answers."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    ledger = Ledger(paths.ledger())
    with ledger.session() as session:
        session.add(
            Run(
                name="p-1", kind="dag", pipeline="p", folder=str(project),
                dag_file=str(project / "p.dag"), params={}, owner=getpass.getuser(), schedd="s",
                submitted=time.time(), cluster=7,
                stages=[
                    Stage(name="one", position=0, needs=[], retries=1),
                    Stage(name="S+two", position=1, needs=["one"]),
                ],
            )
        )  # fmt: skip
    return ledger


def write(project: Path, log: str, text: str) -> None:
    with (project / f"p.dag.{log}").open("a") as file:
        file.write(text)


def view(ledger: Ledger) -> status.Json:
    events.sync(ledger)
    with ledger.session() as session:
        return status.describe(find.run(session, None))


def states(ledger: Ledger) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in view(ledger)["stages"]}


@pytest.mark.parametrize(
    ("text", "dag"),
    [
        ("JOB A a.sub\n", True),
        ("# a comment\r\n\r\n  Subdag EXTERNAL x y.dag\r\n", True),
        ("INCLUDE other.dag\n", True),
        ("SUBMIT-DESCRIPTION x {\n executable = y\n}\n", True),
        ("executable = /bin/true\nqueue\n", False),
        ("\n#x\njob = 5\nexecutable=$(job)\nqueue", False),
        ("include : common.sub\n", False),
        ("include command into x : gen.sh\n", False),
        ("use feature : GPUs\n", False),
        ("+Project = \"x\"\nqueue 3\n", False),
        ("Queue\n", False),
    ],
)  # fmt: skip
def test_a_file_is_what_its_content_says(project: Path, text: str, dag: bool) -> None:
    (project / "file.any").write_bytes(text.encode())
    assert adopt.is_dag(project / "file.any") is dag


@pytest.mark.parametrize("text", ["", "stages:\n  one: {}\n", "#!/bin/sh\necho\n", "\0\1", "JOB\n"])
def test_other_files_are_neither(project: Path, text: str) -> None:
    (project / "x.txt").write_text(text)
    with pytest.raises(UserError, match="neither a DAG nor a submit file"):
        adopt.is_dag(project / "x.txt")


def test_the_name_of_a_pipeline_is_never_taken_for_a_file(project: Path) -> None:
    for name in ("train", "train.sub", "train.yaml"):
        (project / name).write_text("executable = /bin/true\nqueue\n")
    assert adopt.foreign_file("train") is None
    assert adopt.foreign_file("train.yaml") is None
    assert adopt.foreign_file("none.sub") is None
    assert adopt.foreign_file("./train") == Path("train")
    assert adopt.foreign_file("train.sub") == Path("train.sub")


def test_dagmans_arguments_name_its_files() -> None:
    told = (
        "-f -l . -Lockfile a.lock -Dag 'my'' dag.dag' -Dag b.dag -CsdVersion $X:' '1' '$ -UseDagDir"
    )
    assert dagman.dag_files(told) == ["my' dag.dag", "b.dag"]
    assert dagman.uses_dag_dir(told)
    assert not dagman.uses_dag_dir("-Dag x-usedagdir.dag")


def test_nodes_come_after_those_they_wait_for() -> None:
    needs = {"c": ["b"], "x": [], "b": ["a"], "a": []}
    assert dagman.ordered(needs) == ["x", "a", "b", "c"]
    deep = {str(number): [str(number + 1)] for number in range(20_000)} | {"20000": []}
    assert dagman.ordered(deep)[:2] == ["20000", "19999"]


def test_what_dagman_left_is_its_verdict(project: Path) -> None:
    dag, now = project / "p.dag", time.time()

    def ended(**told: int) -> dagman.Verdict:
        metrics = {"exitcode": 0, "DagStatus": 0, "end_time": now, "nodes": 3, "dag_nodes": 1}
        text = json.dumps({**metrics, "nodes_succeeded": 3, "dag_nodes_succeeded": 1, **told})
        (project / "p.dag.metrics").write_text(text)
        return dagman.verdict(dag, now)

    assert ended() == dagman.Verdict(True)
    assert not ended(nodes_succeeded=2).all_done
    assert not ended(DagStatus=2).all_done
    assert not ended(exitcode=1).all_done
    # Of the run before: it says nothing about this one.
    assert not ended(end_time=int(now) - 50).all_done
    rescue = project / "p.dag.rescue002"
    (project / "p.dag.rescue001").write_text("DONE old\n")
    rescue.write_text(
        "# Total number of Nodes: 4\n# Nodes premarked DONE: 1\n# Nodes that failed: 2\n"
        "#   x,y,<ENDLIST>\n\nDONE S+two\nRETRY x 1\n"
    )
    told = ended(exitcode=1)
    assert (told.done, told.failed) == ({"S+two"}, {"x", "y"})
    os.utime(rescue, (now - 50, now - 50))
    os.utime(project / "p.dag.rescue001", (now - 60, now - 60))
    assert ended(exitcode=1) == dagman.Verdict(False)
    (project / "p.dag.metrics").write_text("{")
    assert dagman.verdict(dag, now) == dagman.Verdict(False)


def test_a_script_judges_a_node_and_not_its_job(ledger: Ledger, project: Path) -> None:
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 0))
    assert states(ledger) == {"one": "done", "S+two": "ready"}
    write(project, "nodes.log", POST.format(8, "one", 1))
    assert states(ledger)["one"] == "failed"
    # Tried again, its verdict is open, until the script repairs it.
    write(project, "nodes.log", SUBMIT.format(9, "one", 2))
    assert states(ledger)["one"] == "idle"
    write(project, "nodes.log", ENDED.format(9, 3) + POST.format(9, "one", 0))
    assert states(ledger) == {"one": "done", "S+two": "ready"}
    assert [job["attempt"] for job in view(ledger)["stages"][0]["jobs"]] == [1, 2]


def test_nodes_without_a_job_are_done_or_failed(ledger: Ledger, project: Path) -> None:
    write(project, "nodes.log", NOOP.format("one") + PRE_SKIP.format("S+two"))
    assert set(states(ledger).values()) == {"done"}
    assert view(ledger)["stages"][0]["jobs"] == []
    write(project, "dagman.out", "03/01/26 10:00:00 PRE Script of Node three failed with status 1")
    assert "three" not in states(ledger)
    write(project, "dagman.out", "\n")
    assert states(ledger)["three"] == "failed"


def test_every_process_of_a_cluster_is_a_job_of_one_attempt(ledger: Ledger, project: Path) -> None:
    text = SUBMIT.format(8, "one", 1)
    write(project, "nodes.log", text + text.replace("(008.000", "(008.001"))
    write(project, "nodes.log", ENDED.format(8, 0))
    one = view(ledger)["stages"][0]
    assert one["counts"] == {"completed": 1, "idle": 1}
    assert one["state"] == "idle"
    write(project, "nodes.log", ENDED.format(8, 4).replace("(008.000", "(008.001"))
    one = view(ledger)["stages"][0]
    assert [(job["proc"], job["attempt"]) for job in one["jobs"]] == [(0, 1), (1, 1)]
    assert (one["state"], one["ended_with"]) == ("retrying", "exit code 4")


def test_what_its_slot_gave_a_job_and_what_it_used(ledger: Ledger, project: Path) -> None:
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + SLOT)
    [job] = view(ledger)["stages"][0]["jobs"]
    assert (job["cpus"], job["gpus"]) == (4, 2)
    write(project, "nodes.log", USED)
    [job] = view(ledger)["stages"][0]["jobs"]
    seconds = ((24 + 1) * 60 + 2) * 60 + 3 + 4
    assert job["usage"] == {"memory_mb": 77, "disk_kb": 125, "cpu_s": seconds}


def test_a_dag_that_is_submitted_again_empties_its_log_and_goes_on(
    ledger: Ledger, project: Path
) -> None:
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + EXECUTE.format(7, 0))
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 0))
    assert states(ledger) == {"one": "done", "S+two": "ready"}
    write(project, "dagman.log", SUBMIT.format(17, "", 3) + EXECUTE.format(17, 4))
    # The same file, and longer than what was read of it before.
    text = SUBMIT.format(18, "S+two", 5) + EXECUTE.format(18, 6)
    with (project / "p.dag.nodes.log").open("r+") as log:
        log.truncate()
        log.write(text + ENDED.format(18, 0))
    told = view(ledger)
    assert (told["dag"], told["earlier"]) == ("s#17.0", ["s#7.0"])
    assert {stage["state"] for stage in told["stages"]} == {"done"}
    assert [stage["job"] for stage in told["stages"]] == ["8.0", "18.0"]
