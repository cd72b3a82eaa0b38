"""A run that ended early goes on, in the same folder, with its history."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status, until

Submit = Callable[..., str]
Wait = Callable[..., Status]


def ended(view: Status) -> bool:
    return bool(view["finished"])


def is_running(stage: str) -> Callable[[Status], bool]:
    return lambda view: view["stages"][stage]["state"] == "running"


def as_json(condorctl: Condorctl, *words: str) -> Any:
    answer = condorctl(*words, "--json")
    assert answer.returncode == 0, answer
    return json.loads(answer.stdout)


def test_a_run_goes_on_after_failing_after_removal_and_after_dagman_was_killed(
    submit: Submit, wait: Wait, status: Callable[[str], Status], condorctl: Condorctl,
    condor: Callable[..., str], project: Path, tmp_path: Path,
) -> None:  # fmt: skip
    mended, quick = tmp_path / "mended", tmp_path / "quick"
    name = submit(
        f"""
        defaults: {{request_memory: 64 MB, request_disk: 50 MB}}
        stages:
          a: {{command: [sh, -c, "echo a > a.txt"], outputs: [a.txt]}}
          b:
            command: [sh, -c, "cp a/a.txt b.txt; test -e '{mended}' || (sleep 5; exit 5)"]
            inputs: [a/a.txt]
            outputs: [b.txt]
            retries: 1
            final_exit_codes: [4, 5]
          c: {{command: [sh, -c, "test -e '{quick}' || sleep 300"], needs: [b]}}
        """
    )
    assert "still in the queue" in one_error_line(condorctl("resume", name))
    first = wait(name, ended)
    assert first["state"] == "failed"
    # DAGMan was told 4, the first of the final codes, and did not try again; the real one was 5.
    b = first["stages"]["b"]
    assert (b["attempt"], b["ended_with"], b["jobs"][0]["exit_code"]) == (1, "exit code 5", 5)

    again = as_json(condorctl, "resume", name)
    assert (again["kept"], again["left"]) == (["a"], ["b", "c"])
    assert "still in the queue" in one_error_line(condorctl("resume", name))
    view = wait(name, ended)
    assert (view["state"], view["stages"]["b"]["attempt"]) == ("failed", 2)
    assert view["earlier"] == [first["dag"]]

    mended.touch()
    as_json(condorctl, "resume", name)
    view = wait(name, is_running("c"))
    assert (view["stages"]["a"]["attempt"], view["stages"]["b"]["attempt"]) == (1, 3)
    dag = view["dag"]

    # Killed, DAGMan is started again by the schedd, and there is nothing to resume.
    folder = project / "exp" / "runs" / name
    pids = re.findall(r"\*\* PID = (\d+)", (folder / "test.dag.dagman.out").read_text())
    starts = (folder / "test.dag.dagman.out").read_text().count("STARTING UP")
    os.kill(int(pids[-1]), signal.SIGKILL)
    assert "still in the queue" in one_error_line(condorctl("resume", name))
    wait(
        name,
        lambda _: (folder / "test.dag.dagman.out").read_text().count("STARTING UP") > starts,
    )
    view = wait(name, is_running("c"))
    assert view["dag"] == dag

    # Held as a whole: DAGMan and its job.
    assert as_json(condorctl, "hold", name) == {"what": name, "jobs": 2}
    assert wait(name, lambda v: v["stages"]["c"]["state"] == "held")["state"] == "held"
    assert f"condorctl release {name}" in one_error_line(condorctl("resume", name))
    assert as_json(condorctl, "release", name)["jobs"] == 2
    wait(name, is_running("c"))

    # DAGMan may be about to start again and then writes no rescue file.
    assert as_json(condorctl, "cancel", name)["state"] == "removed"
    assert "nothing to cancel" in one_error_line(condorctl("cancel", name))
    assert status(name)["stages"]["c"]["state"] == "removed"

    assert as_json(condorctl, "resume", name)["kept"] == ["a", "b"]
    assert status(name)["stages"]["c"]["state"] in {"ready", "idle", "running"}
    c = wait(name, is_running("c"))["stages"]["c"]
    assert f"condorctl cancel {name}" in one_error_line(condorctl("rm", status(name)["dag"]))
    assert as_json(condorctl, "rm", f"{name}/c") == {"what": f"{name}/c ({c['job']})", "jobs": 1}
    assert wait(name, ended)["state"] == "failed"
    assert "has ended" in one_error_line(condorctl("hold", c["job"]))

    # Without a word of DAGMan's the ledger tells what is done.
    for rescue in folder.glob("*.rescue*"):
        rescue.unlink()
    quick.touch()
    assert as_json(condorctl, "resume", name)["kept"] == ["a", "b"]
    assert condorctl("follow", name).returncode == 0
    last = status(name)
    assert [len(stage["jobs"]) for stage in last["stages"].values()] == [1, 3, 3]
    assert [one["attempt"] for one in last["stages"]["c"]["jobs"]] == [1, 2, 3]
    assert len(last["earlier"]) == 4
    assert "nothing to resume" in one_error_line(condorctl("resume", name))
    told = condor("condor_history", "-const", f'Iwd == "{folder}"', "-af:j", "DAGNodeName")
    nodes = [line.split() for line in told.splitlines()]
    known = {job["job"] for stage in last["stages"].values() for job in stage["jobs"]}
    assert {job for job, node in nodes if node != "undefined"} == known

    cleaned = as_json(condorctl, "clean", name)
    assert cleaned["bytes"] > 0
    assert not folder.exists()
    assert status(name)["stages"]["b"]["state"] == "done"


def test_what_cannot_be_resumed_is_one_line(
    submit: Submit, wait: Wait, condorctl: Condorctl, project: Path
) -> None:
    go = project / "go"
    name = submit(f"stages: {{one: {{command: {until(go, 'false')}, request_memory: 64 MB}}}}")
    assert "still going" in one_error_line(condorctl("clean", name))
    go.touch()
    wait(name, ended)
    assert "no run 'x'" in one_error_line(condorctl("resume", "x"))
    moved = project / "exp" / "runs" / name
    moved.rename(project / "elsewhere")
    assert "test.dag is gone: submit test anew" in one_error_line(condorctl("resume", name))
    assert as_json(condorctl, "clean", name)["bytes"] == 0
    assert "cleaned away" in one_error_line(condorctl("resume", name))
