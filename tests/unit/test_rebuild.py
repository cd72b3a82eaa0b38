"""A ledger from the folders of its runs: what comes back, what is named, what is left alone."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Run, Stage, events, find, rebuild, runfile
from condorctl.view import overview, show, status
from tests.unit.test_events import ENDED, EVICTED, EXECUTE, SUBMIT


@pytest.fixture
def ledger(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An empty one."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    return Ledger(paths.ledger())


@pytest.fixture
def lost(ledger: Ledger, project: Path, tmp_path: Path) -> Ledger:
    """Another one, with a run that was resumed, and one that took outputs of it over."""
    found = Ledger(tmp_path / "lost.sqlite")
    for number in (1, 2):
        folder = paths.runs() / f"p-{number}"
        (folder / "one").mkdir(parents=True)
        with found.session() as session:
            run = Run(
                name=f"p-{number}", pipeline="p", folder=str(folder), spooled=False,
                dag_file=str(folder / "p.dag"), params={"seed": number}, owner=getpass.getuser(),
                schedd="s", submitted=float(number), provenance={"why": {"one": "x"}},
                stages=[Stage(name="one", position=0, needs=[], fingerprint={"code": "ab"}),
                        Stage(name="two", position=1, needs=["one"])],
            )  # fmt: skip
            session.add(run)
            if number == 2:
                first = find.run(session, "p-1")
                run.stages[0].source = first.stages[0]
    one, two = paths.runs() / "p-1", paths.runs() / "p-2"
    line = {"kind": "progress", "epoch": 1, "epochs": 1, "metrics": {"loss": 0.5}, "time": 1.0}
    (one / "one" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (one / "p.dag.dagman.log").write_text(SUBMIT.format(7, "", 0) + ENDED.format(7, 1))
    evicted = EXECUTE.format(9, 1) + EVICTED.format(9) + EXECUTE.format(9, 5)
    (one / "p.dag.nodes.log").write_text(
        SUBMIT.format(8, "one", 1) + ENDED.format(8, 0)
        + SUBMIT.format(9, "two", 2) + evicted + ENDED.format(9, 3)
    )  # fmt: skip
    events.sync(found)
    with found.session() as session:
        # As `resume` does it; the job was heard to say something before it was evicted.
        run = find.run(session, "p-1")
        run.stages[1].jobs[0].progress = {"epoch": 4, "epochs": 9, "metrics": {}, "starts": []}
        run.earlier, run.cluster, run.state, run.finished = [7], None, "idle", None
    runfile.keep(found, "p-1")
    (one / "p.dag.nodes.log").rename(one / "p.dag.nodes.log.7")
    with (one / "p.dag.dagman.log").open("a") as log:
        log.write(SUBMIT.format(10, "", 5) + ENDED.format(10, 0))
    (one / "p.dag.nodes.log").write_text(SUBMIT.format(11, "two", 6) + ENDED.format(11, 0))
    (two / "p.dag.dagman.log").write_text(SUBMIT.format(12, "", 0) + ENDED.format(12, 0))
    (two / "p.dag.nodes.log").write_text(SUBMIT.format(13, "two", 1) + ENDED.format(13, 0))
    events.sync(found)
    for name in ("p-1", "p-2"):
        runfile.keep(found, name)
    return found


def views(ledger: Ledger) -> list[Any]:
    with ledger.session() as session:
        runs = list(session.scalars(select(Run).order_by(Run.id)))
        metrics = [
            (metric.epoch, metric.value)
            for job in session.scalars(select(Job).order_by(Job.cluster))
            for metric in job.metrics
        ]
        return [
            *(status.describe(run) for run in runs),
            *(show.show(session, run.name) for run in runs),
            metrics,
        ]


def again(ledger: Ledger, *folders: Path) -> rebuild.Rebuilt:
    return rebuild.rebuild(ledger, folders, lambda *_: None)


def test_all_that_the_folders_hold_comes_back(ledger: Ledger, lost: Ledger) -> None:
    before = views(lost)
    assert [view["state"] for view in before[:2]] == ["done", "done"]
    found = again(ledger)
    assert (found.added, found.problems, found.remarks) == (["p-1", "p-2"], [], [])
    assert views(ledger) == before
    # Once more, there is nothing to do.
    assert again(ledger).known == ["p-1", "p-2"]
    assert views(ledger) == before


def test_a_run_comes_without_the_one_it_stands_on_and_is_linked_later(
    ledger: Ledger, lost: Ledger
) -> None:
    before = views(lost)
    found = again(ledger, paths.runs() / "p-2")
    assert found.added == ["p-2"] and "p-2/one has the outputs of p-1/one" in found.remarks[0]
    assert views(ledger)[0]["state"] == "done"
    again(ledger)
    with ledger.session() as session:
        assert find.run(session, "p-2").stages[0].origin.run.name == "p-1"
        # The newest is the one submitted last, not the one entered last.
        assert find.run(session, None).name == "p-2"
        listed = overview.runs(session, None, None, 0.0)["runs"]
        assert [run["run"] for run in listed] == ["p-2", "p-1"]
    assert sorted(views(ledger)[:2], key=lambda view: view["run"]) == before[:2]


def test_a_run_of_that_name_is_left_alone_and_a_copy_is_named(
    ledger: Ledger, lost: Ledger, tmp_path: Path
) -> None:
    again(ledger)
    before = views(ledger)
    shutil.copytree(paths.runs() / "p-1", tmp_path / "copies" / "p-1")
    [problem] = again(ledger, tmp_path / "copies").problems
    assert "the ledger has another run p-1" in problem
    assert views(ledger) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is damaged"), ("[]", "is no record of a run"), ('{"condorctl": 2}', "newer"),
        ('{"condorctl": 1}', "is damaged: whole: Field required"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_and_the_others_come(
    ledger: Ledger, lost: Ledger, text: str, told: str
) -> None:
    (paths.runs() / "p-1" / "run.json").write_text(text)
    found = again(ledger)
    assert found.added == ["p-2"]
    [problem] = found.problems
    assert problem.startswith(f"{paths.runs()}/p-1/run.json: ") and told in problem


def test_a_folder_without_runs_is_a_mistake(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        again(ledger, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        again(ledger, tmp_path / "empty")
    assert again(ledger).added == []
