"""Results: rows from the ledger or a saved folder, and the means over them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Output, Result, Run, Stage
from condorctl.view import results, tables
from condorctl.view.results import Results
from tests.conftest import Condorctl, one_error_line
from tests.unit.result_rows import OURS, TABLE, made
from tests.unit.runs_made import job, run


def add_run(ledger: Ledger, name: str, rows: dict[str, list[list[dict[str, Any]]]]) -> None:
    """A run with the table; by stage, the rows of each attempt."""
    with ledger.session() as session:
        stages = [
            Stage(name=stage, position=position, needs=[], retries=1)
            for position, stage in enumerate(rows)
        ]
        session.add(
            Run(
                name=name, pipeline="p", folder="/nowhere", params={"seeds": [0, 1]}, owner="me",
                tables=[TABLE], schedd="s", submitted=1.0, finished=9.0, state="done",
                stages=stages,
            )
        )  # fmt: skip
        session.flush()
        for stage in stages:
            for attempt, attempt_rows in enumerate(rows[stage.name], 1):
                job = Job(
                    stage=stage, schedd="s", cluster=stage.id * 10 + attempt, proc=0,
                    attempt=attempt, state="completed", submitted=2.0, started=3.0, finished=4.5,
                    host="slot1@node",
                )  # fmt: skip
                session.add(job)
                session.flush()
                for position, values in enumerate(attempt_rows):
                    session.add(Result(job_id=job.id, position=position, values=values))


@pytest.fixture
def ledger(project: Path) -> Ledger:
    ledger = Ledger(paths.ledger())
    add_run(ledger, "p-1", {"z": [OURS[:1]], "a": [OURS[1:2], OURS[1:]]})
    return ledger


def read(ledger: Ledger, *names: str) -> Results:
    with ledger.session() as session:
        return results.from_ledger(session, names, traced=True)


def test_a_cell_is_mean_and_sample_deviation_of_what_matches(ledger: Ledger) -> None:
    [table] = results.as_json(read(ledger))["tables"]
    ours, theirs = (row["cells"] for row in table["rows"])
    assert {heading: column["unit"] for heading, column in table["columns"].items()} == {
        "Clean Acc": "%", "Robust Acc": "%", "Loss": "",
    }  # fmt: skip
    # 50, 60 and 70: the squares of the deviations are 100, 0, 100, by n - 1 = 2.
    assert ours["Clean Acc"] == {
        "mean": pytest.approx(60), "sd": pytest.approx(10), "n": 3, "reference": 76.66,
    }  # fmt: skip
    assert ours["Robust Acc"] == {"mean": 25.0, "sd": None, "n": 1, "reference": None}
    # 1.5 and 2.5; what is neither number nor fraction stays out, and as it is.
    assert ours["Loss"] == {"mean": 2.0, "sd": pytest.approx(0.5**0.5), "n": 2, "reference": None}
    assert theirs["Robust Acc"] == {"mean": None, "sd": None, "n": 0, "reference": 18.8}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_means_agree_with_sums_by_hand(figures: list[float]) -> None:
    rows = [{"model": "ours", "clean": figure} for figure in figures]
    [table] = results.as_json(made(*rows, {"model": "x", "clean": 1.0}, table=TABLE))["tables"]
    cell = table["rows"][0]["cells"]["Clean Acc"]
    mean = sum(figures) / len(figures)
    variance = sum((figure - mean) ** 2 for figure in figures) / (len(figures) - 1)
    assert cell["mean"] == pytest.approx(100 * mean, abs=1e-9)
    assert cell["sd"] == pytest.approx(100 * math.sqrt(variance), abs=1e-6)
    assert cell["n"] == len(figures)


def test_a_match_tells_true_from_one_and_missing_from_null() -> None:
    table = {**TABLE, "rows": [{"label": "l", "match": {"on": 1}}]}
    rows = [{"on": on, "clean": 0.5} for on in (1, 1.0, True, "1", None)] + [{"clean": 0.5}]
    [found] = results.as_json(made(*rows, table=table))["tables"]
    assert found["rows"][0]["cells"]["Clean Acc"]["n"] == 2


def test_the_last_attempt_that_reported_replaces_the_earlier_ones(ledger: Ledger) -> None:
    assert [(r.stage, r.attempt, r.values["seed"]) for r in read(ledger).records] == [
        ("z", 1, 0), ("a", 2, 1), ("a", 2, 2),
    ]  # fmt: skip


def test_several_runs_share_a_table(ledger: Ledger) -> None:
    add_run(ledger, "p-2", {"z": [[{"model": "ours", "clean": 0.9}]]})
    assert read(ledger).names == "p-2"
    both = results.as_json(read(ledger, "p-2", "p-1", "p-2"))
    [table] = both["tables"]
    # (90 + 50 + 60 + 70) / 4
    assert table["rows"][0]["cells"]["Clean Acc"]["mean"] == pytest.approx(67.5)
    assert [run["run"] for run in both["runs"]] == ["p-2", "p-1"]
    assert both["results"][0] == {"run": "p-2", "stage": "z", "model": "ours", "clean": 0.9}
    assert both["results"][1] == {"run": "p-1", "stage": "z", **OURS[0]}
    with pytest.raises(UserError, match="no run 'p-3'"):
        read(ledger, "p-1", "p-3")


def test_what_is_saved_is_read_again_the_same(ledger: Ledger, project: Path) -> None:
    add_run(ledger, "p-10", {"z": [[{"model": "ours", "clean": 0.9}]]})
    found = read(ledger, "p-1", "p-10")
    for _ in range(2):
        results.save(found, Path("new/saved"))
        assert sorted(file.name for file in Path("new/saved").iterdir()) == [
            "p-1.a.2.json", "p-1.a.json", "p-1.z.json", "p-10.z.json", "tables.json",
        ]  # fmt: skip
        assert results.from_folder(Path("new/saved"), []) == found
    assert results.from_folder(Path("new/saved"), ["p-10"]) == read(ledger, "p-10")
    text = Path("new/saved/p-1.a.json").read_bytes().decode("utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    row = json.loads(text)
    assert isinstance(row.pop("job"), str)
    assert row == {
        "run": "p-1", "pipeline": "p", "params": {"seeds": [0, 1]}, "stage": "a", "order": 2,
        "attempt": 2, "submitted": 2.0, "started": 3.0, "finished": 4.5, "host": "slot1@node",
        "commit": None, "dirty": False, "lineage": row["lineage"], "values": OURS[1],
    }  # fmt: skip
    assert json.loads(Path("new/saved/tables.json").read_text("utf-8")) == [TABLE]
    with pytest.raises(UserError, match=r"new/saved: no results of a run 'x'; there is p-1, p-10"):
        results.from_folder(Path("new/saved"), ["x"])


def test_a_record_names_what_it_rests_on(project: Path) -> None:
    def stage(name: str, cluster: int, needs: list[str], **values: Any) -> Stage:
        one = job(("running", 3600.0), ("completed", 7200.0), cluster=cluster, cpus=2)
        one.written = [Output(path=f"{name}.pt", bytes=1, sha256=name * 64)]
        return Stage(name=name, needs=needs, jobs=[one], command=["make", name], **values)

    git = {"commit": "c0ffee", "dirty": True}
    other = run(
        stage("a", 1, [], position=0), name="p-1", params={}, provenance={"git": git},
    )  # fmt: skip
    mine = run(
        Stage(name="a", needs=[], source=other.stages[0], command=["make", "a"], position=0),
        stage("b", 3, ["a"], position=1), stage("c", 2, [], position=2),
        stage("d", 4, ["b"], position=3), name="p-2", params={},
        provenance={"git": {"commit": "decade"}},
    )  # fmt: skip
    with Ledger(paths.ledger()).session() as session:
        session.add_all([other, mine])
        session.flush()
        [last] = mine.stages[3].jobs
        session.add(Result(job_id=last.id, position=0, values={"clean": 0.5}))
    [record] = read(Ledger(paths.ledger()), "p-2").records
    assert (record.commit, record.dirty) == ("decade", False)
    assert [(s.stage, s.run, s.job, s.commit, s.dirty) for s in record.lineage] == [
        ("a", "p-1", "1.0", "c0ffee", True), ("b", "p-2", "3.0", "decade", False),
        ("d", "p-2", "4.0", "decade", False),
    ]  # fmt: skip
    assert record.lineage[1].command == ["make", "b"]
    assert record.lineage[1].outputs == {"b.pt": "b" * 64}
    # An hour on a slot of two cores.
    assert [(step.cpu_h, step.gpu_h) for step in record.lineage] == [(2.0, 0.0)] * 3


def test_saving_replaces_tables_of_its_titles_only_and_old_attempts_do_not_count(
    project: Path,
) -> None:
    folder = Path("saved")
    results.save(made({"clean": 0.1}, {"clean": 0.2}, table={**TABLE, "title": "other"}), folder)
    results.save(made({"clean": 0.1}, {"clean": 0.2}, table=TABLE), folder)
    again = made({"clean": 0.3}, table={**TABLE, "reference": "newer"})
    again.records[0] = again.records[0].model_copy(update={"attempt": 2})
    results.save(again, folder)
    found = results.from_folder(folder, [])
    assert [(t.title, t.reference) for t in found.tables] == [
        ("other", "study"), ("Clean and robust", "newer"),
    ]  # fmt: skip
    assert [record.values for record in found.records] == [{"clean": 0.3}]


GOOD = made({"clean": 0.5}).records[0].model_dump()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", "{", "x.json: Invalid JSON"),
        ("x.json", "[]", "x.json: Input should be an object"),
        ("x.json", "\xff", "x.json: "),
        ("x.json", "[" * 100_000, "x.json: Invalid JSON"),
        ("x.json", json.dumps({**GOOD, "run": "../../x"}), "x.json: run: String should match"),
        ("x.json", json.dumps({**GOOD, "stage": "a/b"}), "x.json: stage: String should match"),
        ("x.json", json.dumps({**GOOD, "attempt": "1"}), "x.json: attempt: "),
        ("x.json", json.dumps({**GOOD, "more": 1}), "x.json: more: Extra inputs"),
        ("x.json", json.dumps({**GOOD, "values": {"a": math.nan}}), "x.json: values: "),
        ("x.json", json.dumps({**GOOD, "values": {"a": "é" * 40_000}}), "at most 65536 are kept"),
        ("x.json", json.dumps({**GOOD, "values": {"a": "\ud800"}}), "x.json: Invalid JSON"),
        ("x.json", json.dumps({**GOOD, "submitted": math.inf}), "x.json: submitted: "),
        ("x.json", json.dumps(GOOD), "x.json: the same result as p-1.s.json"),
        ("x.json", " " * (5 << 20), "x.json: no file that"),
        ("tables.json", '[{"title": "t"}]', "tables.json: 0: columns: Field required"),
        ("\x1b[2J.json", "{", "\ufffd[2J.json: Invalid JSON"),
    ],
)  # fmt: skip
def test_a_foreign_file_among_the_saved_ones_is_named_in_one_line(
    project: Path, name: str, content: str, expected: str
) -> None:
    results.save(made({"clean": 0.5}), Path("saved"))
    (Path("saved") / "README.md").write_text("Not JSON, and not looked at.")
    assert len(results.from_folder(Path("saved"), []).records) == 1
    (Path("saved") / name).write_text(content, encoding="latin-1" if "\xff" in content else "utf-8")
    with pytest.raises(UserError) as caught:
        results.from_folder(Path("saved"), [])
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_pipe_among_the_saved_files_is_not_waited_for(project: Path) -> None:
    os.mkfifo("x.json")
    with pytest.raises(UserError, match=r"x\.json: no file that"):
        results.from_folder(Path(), [])
    with pytest.raises(UserError, match="none: no such folder"):
        results.from_folder(Path("none"), [])


def test_the_command_prints_saves_and_converts(
    ledger: Ledger, project: Path, condorctl: Condorctl
) -> None:
    saved = condorctl("results", "p-1", "--save", "saved", "--json")
    assert saved.returncode == 0, saved
    assert saved.stderr == "3 results saved in saved\n"
    assert json.loads(saved.stdout) == results.as_json(read(ledger))
    folder = condorctl("results", "--from", "saved", "--csv")
    assert folder.stdout == tables.as_csv(read(ledger))
    assert "one of them" in one_error_line(condorctl("results", "--json", "--markdown"))


def test_one_table_alone(project: Path, condorctl: Condorctl) -> None:
    for title in ("White-box", "Black-box (transfer)"):
        results.save(made(*OURS, table={**TABLE, "title": title}), Path("saved"))
    both = condorctl("results", "--from", "saved", "--json")
    assert [table["title"] for table in json.loads(both.stdout)["tables"]] == [
        "White-box", "Black-box (transfer)"
    ]  # fmt: skip
    one = condorctl("results", "--from", "saved", "--table", "black-BOX (", "--markdown").stdout
    assert "### Black-box (transfer)" in one and "White-box" not in one
    missing = condorctl("results", "--from", "saved", "--table", "grey")
    assert "there is 'White-box'; 'Black-box (transfer)'" in one_error_line(missing)
    for other in ("--all", "--csv", "--metrics", "--save=x"):
        line = one_error_line(condorctl("results", "--table", "x", other))
        assert "--table" in line and line.endswith("name one of them"), line


def test_a_run_without_results_shows_its_tables_and_has_nothing_to_save(
    ledger: Ledger, project: Path, condorctl: Condorctl
) -> None:
    add_run(ledger, "p-2", {"z": []})
    table = condorctl("results").stdout
    assert "76.66" in table
    assert "—" in table
    assert "no results yet in p-2" in one_error_line(condorctl("results", "--save", "saved"))
    assert not Path("saved").exists()
