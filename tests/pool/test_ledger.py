"""A ledger that was deleted comes back from the runs' folders, and agrees with HTCondor."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

SPEC = """
defaults: {{request_memory: 64 MB, request_disk: 50 MB}}
params: {{seed: 0}}
stages:
  a: {{command: [python, work.py, "2"], inputs: [work.py], outputs: [model.pt, metrics.jsonl]}}
  b:
    command: [sh, -c, "python3 work.py 1 && test -e '{mended}' || exit 5"]
    inputs: [work.py, a/model.pt]
    outputs: [metrics.jsonl]
    retries: 1
  c: {{command: [sh, -c, "echo {{{{ seed }}}}"], needs: [b]}}
"""


def test_a_deleted_ledger_comes_back_and_agrees_with_htcondor(
    submit: Callable[..., str], wait: Callable[..., Status], condorctl: Condorctl, project: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    def told(*words: str) -> Any:
        answer = condorctl(*words, "--json")
        assert answer.returncode == 0, answer
        return json.loads(answer.stdout)

    def ended(view: Status) -> bool:
        return bool(view["finished"])

    # A run whose second stage fails twice and is resumed; one that takes its outputs over; one
    # that is cleaned; a cluster of the user's own.
    mended = tmp_path / "mended"
    spec = SPEC.format(mended=mended)
    one = submit(spec)
    (project / "by hand.sub").write_text(
        "executable = /bin/sh\narguments = \"-c 'exit $(Process)'\"\nlog = x.log\n"
        "request_memory = 64\nqueue 2\n"
    )
    jobs = told("submit", "./by hand.sub")["run"]
    wait(one, ended)
    mended.touch()
    told("resume", one)
    wait(one, ended)
    two = submit(spec, "--set", "seed=1")
    gone = submit(spec, "--set", "seed=2", "--force")
    for name in (two, gone, jobs):
        wait(name, ended)
    told("clean", gone)
    names = [one, two, gone, jobs]
    assert [job["exit_code"] for job in told("status", jobs)["stages"][0]["jobs"]] == [0, 1]

    def everything() -> list[Any]:
        views = [told(what, name) for what in ("status", "show", "cost") for name in names]
        views += [told("results", name) for name in (one, two, gone)]
        return [*views, told("cost", "--all"), told("results", one, two, gone, "--metrics")]

    before = everything()
    attempts = [job["attempt"] for job in before[0]["stages"][1]["jobs"]]
    assert (attempts, len(before[0]["earlier"])) == ([1, 2, 3], 1)
    assert before[1]["stages"][0]["reused_from"] == f"{one}/a"
    checked = told("ledger", "check")
    assert checked["ok"] and checked["checked"]["jobs"] >= 10, checked

    for file in tmp_path.glob("ledger.sqlite*"):
        file.unlink()
    assert "no run in the ledger" in one_error_line(condorctl("status"))
    rebuilt = told("ledger", "rebuild")
    assert (sorted(rebuilt["added"]), rebuilt["problems"]) == (sorted(names), [])
    assert everything() == before
    assert told("ledger", "check")["ok"]

    # What is there is left as it is; what is damaged is named, and the others come all the same.
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE job SET exit_code = 7 WHERE state = 'completed' AND id IN "
                       "(SELECT min(id) FROM job WHERE state = 'completed')")  # fmt: skip
        ledger.execute("UPDATE job SET finished = finished + 60 WHERE id IN "
                       "(SELECT max(id) FROM job)")  # fmt: skip
    runs = project / "exp" / "runs"
    shutil.copytree(runs / two, runs / "test-9")
    record = json.loads((runs / "test-9" / "run.json").read_text())
    record["run"]["submitted"] = "yesterday"
    (runs / "test-9" / "run.json").write_text(json.dumps(record))
    (runs / "mine").mkdir()
    (runs / ".new-left").mkdir()
    answer = condorctl("ledger", "rebuild", "exp/runs")
    assert answer.returncode == 1
    assert "0 runs added, 2 known already" in answer.stdout
    assert "test-9/run.json: is damaged: run.submitted" in answer.stderr
    answer = condorctl("ledger", "check")
    assert answer.returncode == 1
    for line in (
        "ended with exit code 7; HTCondor says exit code 0: `condorctl status",
        "ended 60 s later than HTCondor says",
        "mine: is no run's",
        "test-9: its run is not in the ledger: `condorctl ledger rebuild",
        ".new-left: was left by a condorctl that was stopped",
    ):
        assert line in answer.stdout, answer.stdout
    shutil.rmtree(runs / two)
    assert f"{two}: its folder" in condorctl("ledger", "check").stdout


def test_a_ledger_of_an_older_layout_is_brought_up_to_date_and_goes_on(
    submit: Callable[..., str], wait: Callable[..., Status], condorctl: Condorctl, tmp_path: Path
) -> None:
    name = submit("stages: {one: {command: ['true'], request_memory: 64 MB}}")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger, ledger:
        # As the third layout had it.
        for index in ("ix_job_stage_id", "ix_fetched_job_id", "ix_stage_source_id"):
            ledger.execute(f"DROP INDEX {index}")
        ledger.execute("ALTER TABLE run DROP COLUMN unkept")
        ledger.execute("UPDATE alembic_version SET version_num = '3'")
    assert wait(name, lambda view: bool(view["finished"]))["state"] == "done"
    assert (tmp_path / "ledger.sqlite.layout-3").is_file()
    assert condorctl("ledger", "check").returncode == 0
