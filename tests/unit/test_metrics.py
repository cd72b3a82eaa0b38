"""Metrics of every epoch and results, across stages, attempts and runs; the ledger at a glance."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Metric, Result, find
from condorctl.view import metrics, overview, results, tables
from tests.conftest import Condorctl, one_error_line
from tests.unit.runs_made import job, run, stage


def losses(of: Job, *epochs: int, by: float = 1.0) -> list[Metric]:
    return [
        Metric(job_id=of.id, epoch=epoch, name="loss", value=by / epoch, time=float(epoch))
        for epoch in epochs
    ]


@pytest.fixture
def ledger(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Two runs that differ in lr; the first one's training was retried, the second reuses it."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    ledger = Ledger(paths.ledger())
    now = time.time()
    first = job(("idle", 0), ("running", 5), ("failed", 9), cluster=3)
    second = job(("idle", 10), ("running", 15), ("completed", 19), cluster=4, attempt=2)
    train = stage("train", first, second, retries=1)
    evaluate = job(("idle", 0), ("running", 5), ("completed", 3605), cluster=5, gpus=1)
    live = job(("idle", now - 50), ("running", now - 40), cluster=6)
    live.progress = {"epoch": 7, "epochs": 9, "metrics": {"loss": 0.7}, "time": 70.0, "starts": []}
    with ledger.session() as session:
        session.add(
            run(train, stage("eval", evaluate, position=1), finished=4000.0, state="done",
                params={"lr": 0.1, "seeds": [0], "same": 1}, folder=project)
        )  # fmt: skip
        again = run(
            stage("train", source=train), stage("eval", live, position=1), name="p-2",
            params={"lr": 0.01, "seeds": [0, 1], "same": 1}, folder=project, submitted=now - 60,
            owner="other",
        )  # fmt: skip
        session.add(again)
        session.flush()
        session.add_all([*losses(first, 1, 2, 3), *losses(second, 3, 4, by=2.0)])
        session.add(Result(job_id=second.id, position=0, values={"model": "m", "clean": 0.5}))
        session.add(Result(job_id=evaluate.id, position=0, values={"model": "e", "clean": 0.7}))
    return ledger


def test_a_retry_that_went_on_replaces_what_it_did_again(ledger: Ledger) -> None:
    rows = metrics.load(ledger, ["p-1"]).rows
    assert [(row.epoch, row.attempt, row.job, row.values["loss"]) for row in rows] == [
        (1, 1, "3.0", 1.0), (2, 1, "3.0", 0.5), (3, 2, "4.0", 2 / 3), (4, 2, "4.0", 0.5),
    ]  # fmt: skip


def test_runs_are_told_apart_by_the_parameters_that_differ(ledger: Ledger) -> None:
    found = metrics.load(ledger, ["p-1", "p-2"])
    assert found.params == ["lr", "seeds"]
    # The second run's training is the first one's; of its evaluation only the last epoch is known.
    assert [(row.run, row.stage, row.epoch) for row in found.rows[4:]] == [
        *(("p-2", "train", epoch) for epoch in (1, 2, 3, 4)), ("p-2", "eval", 7),
    ]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(tables.metrics_csv(found))))
    assert lines[0] == {
        "run": "p-1", "lr": "0.1", "seeds": "[0]", "stage": "train", "job": "3.0", "attempt": "1",
        "epoch": "1", "time": "1.0", "loss": "1.0",
    }  # fmt: skip
    assert lines[-1]["loss"] == "0.7"
    head = tables.metrics_markdown(found).splitlines()[2]
    assert head == "| run | lr | seeds | stage | epoch | loss |"
    with ledger.session() as session:
        rows = results.from_ledger(session, ["p-1", "p-2"])
    assert [(r.run, r.stage, r.job) for r in rows.records] == [
        ("p-1", "train", "4.0"), ("p-1", "eval", "5.0"), ("p-2", "train", "4.0"),
    ]  # fmt: skip
    assert tables.as_csv(rows).splitlines()[:2] == [
        "run,lr,seeds,stage,job,attempt,model,clean", "p-1,0.1,[0],train,4.0,2,m,0.5",
    ]  # fmt: skip
    assert "| run | lr | seeds | stage | model | clean |" in tables.as_markdown(rows, every=True)
    assert results.as_json(rows)["differing"] == ["lr", "seeds"]


def test_one_run_alone_has_no_column_for_its_parameters(ledger: Ledger) -> None:
    found = metrics.load(ledger, ["p-1"])
    assert tables.metrics_markdown(found).splitlines()[2] == "| stage | epoch | loss |"
    with ledger.session() as session:
        rows = results.from_ledger(session, ["p-1"])
    assert tables.as_csv(rows).startswith("run,stage,job,attempt,model,clean\n")


def test_the_ledgers_runs_the_newest_first(ledger: Ledger) -> None:
    with ledger.session() as session:
        found = overview.runs(session, None, "no answer", time.time())
        second, first = found["runs"]
        assert overview.runs(session, 1, None, 0.0)["runs"][0]["run"] == "p-2"
    assert (first["run"], first["state"], first["stages"]) == (
        "p-1", "done", {"done": 2, "total": 2},
    )  # fmt: skip
    assert (second["state"], second["stages"]) == ("running", {"done": 1, "total": 2})
    assert (second["jobs"], second["unreachable"]) == ({"running": 1}, "no answer")
    assert first["unreachable"] is None
    assert found["total"] == 2


def test_costs_are_summed_over_runs_and_by_their_owners(ledger: Ledger) -> None:
    with ledger.session() as session:
        every = overview.costs(session, None, None, time.time())
        named = overview.costs(session, ["p-1"], None, time.time())
        find.run(session, "p-2").seen = time.time() - 30
        past = overview.costs(session, ["p-2"], "no answer", time.time())["total"]["cpu_h"]
    assert every["users"]["me"]["gpu_h"]["useful"] == 1.0
    assert every["users"]["other"]["saved"]["cpu_h"] == round(4 / 3600, 6)
    total = every["total"]["cpu_h"]["total"]
    assert total == pytest.approx(sum(r["cpu_h"]["total"] for r in every["runs"]), abs=2e-6)
    assert "stages" not in every["runs"][0]
    (of,) = named["runs"]
    assert [s["stage"] for s in of["stages"]] == ["train", "eval"]
    assert of["stages"][0]["cpu_h"]["wasted"] == round(4 / 3600, 6)
    # Forty seconds have passed since its start, ten of them are known.
    assert past["open"] == pytest.approx(10 / 3600, abs=2 / 3600)


def test_the_commands_print_all_of_it(ledger: Ledger, condorctl: Condorctl) -> None:
    def told(*words: str) -> Any:
        answer = condorctl(*words, "--json")
        assert answer.returncode == 0, answer
        return json.loads(answer.stdout)

    assert [r["run"] for r in told("status", "--all")["runs"]] == ["p-2", "p-1"]
    limited = condorctl("status", "--all", "--limit", "1")
    assert "1 of 2 runs" in limited.stderr
    assert "p-1" not in limited.stdout
    assert "running?" in limited.stdout
    assert "last known state" in limited.stderr
    view = told("status", "p-2")
    assert (view["state"], view["as_of"]) == ("running", None)
    assert view["unreachable"]
    plain = condorctl("status", "p-2")
    assert "last known state" in plain.stderr
    assert "fail" not in plain.stdout
    assert told("cost", "--all")["users"].keys() == {"me", "other"}
    assert "useful" in condorctl("cost", "p-1").stdout
    assert len(told("results", "p-1", "--metrics")["metrics"]) == 4
    assert condorctl("results", "p-1", "--metrics").stdout.count("train") == 4
    assert condorctl("status", "--users").returncode == 3
    for words, expected in [
        (["status", "--watch"], "needs a terminal"),
        (["status", "--all", "--users"], "--all and --users: name one of them"),
        (["status", "p-1", "--all"], "goes without a RUN"),
        (["status", "--limit", "3"], "--limit goes with --all"),
        (["cost", "p-1", "--all"], "goes without a RUN"),
        (["cost", "p-9"], "no run 'p-9'"),
        (["results", "--metrics", "--csv", "--json"], "name one of them"),
        (["results", "--metrics", "--save", "x"], "name one of them"),
    ]:
        assert expected in one_error_line(condorctl(*words))
    with pytest.raises(UserError, match="no run 'x'"):
        metrics.load(ledger, ["x"])
