"""The fault campaign's own words: the plan, the witnesses, the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.chaos import campaign, chain, table, workload

DOC = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_a_seed_draws_the_same_plan_each_kind_once_before_any_again() -> None:
    options = campaign.Options(seed=5, faults=60)
    first = campaign.plan(options)
    assert first == campaign.plan(options) != campaign.plan(campaign.Options(seed=6, faults=60))
    assert {one.kind for one in first[: len(campaign.KINDS)]} == set(campaign.KINDS)
    assert "vacate" not in {one.kind for one in campaign.plan(options, without=["vacate"])}


def test_work_that_is_done_again_is_counted_from_what_the_jobs_told(tmp_path: Path) -> None:
    told = ["start 1 0 100.0"] + [f"step 1 {n} {100 + n}.0" for n in range(1, 8)]
    told += ["start 2 5 200.0"] + [f"step 2 {n} {200 + n}.0" for n in range(6, 9)]
    # The first was out of reach, and goes on for a while.
    told += ["step 1 8 202.0", "start 3 5 300.0", "step 3 6 301.0", "step 3 7"]
    (tmp_path / "p-1.one").write_text("\n".join(told))
    found = workload.losses(tmp_path, "p-1", "one")
    told_of = [(loss.kept, loss.steps, loss.seconds) for loss in found]
    assert told_of == [(5, 2, 2.0), (0, 3, 8.0)]
    assert [(loss.last_step, loss.again) for loss in found] == [(107.0, 200.0), (208.0, 300.0)]
    assert workload.repeated(tmp_path) == (12, 4)
    assert workload.restarts(tmp_path) == (2, 2)


def test_a_chain_run_here_is_what_is_computed_and_a_changed_line_is_seen(tmp_path: Path) -> None:
    references = workload.chain_references(tmp_path, 20)
    assert set(references) == {(p, s) for p, made in workload.CHAINS.items() for s in made}
    folder = tmp_path / "pair" / "second"
    assert (folder / "chain.txt").read_text() == chain.final("second", 20, chain.final("first", 20))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    later = [json.dumps({**json.loads(line), "time": 1.0}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(later))
    assert workload.left("pair", folder) == references["pair", "second"]
    (folder / "metrics.jsonl").write_text("\n".join([*later, later[0]]))
    assert workload.left("pair", folder) != references["pair", "second"]


def test_the_table_names_all_that_does_not_hold() -> None:
    found = {
        "runs": {"p-1": "done", "p-2": "running"},
        "stages": [{"run": "p-1", "stage": "one", "final": False, "metrics": True, "losses": []}],
        "check": {"differences": [{"text": "a job is missing"}]},
        "unclear": ["12.0: condorctl status: KeyError"],
        "orphans": {"jobs": ["7"], "processes": [], "sandboxes": [], "files": []},
    }
    assert table.failures(found) == [
        "p-2 is running",
        "p-1/one: its final differs",
        "ledger: a job is missing",
        "no clear answer: 12.0: condorctl status: KeyError",
        "orphan (jobs): 7",
    ]


def test_each_kind_of_fault_has_a_row_that_names_tests_that_are_there() -> None:
    _, _, text = DOC.read_text(encoding="utf-8").partition("## Each kind of fault\n")
    rows = re.findall(r"(?m)^\| (.+?) +\| .+ \| (`.+`) \|$", text.partition("\n## ")[0])
    assert {kind for kind, _ in rows} == set(campaign.KINDS)
    for _, named in rows:
        for file, test in re.findall(r"`(\S+?)::(\w+)`", named):
            paths = Path(__file__).parents[1].glob(f"*/{file}")
            texts = [path.read_text(encoding="utf-8") for path in paths]
            assert any(f"def {test}(" in text for text in texts), f"{file}::{test}"
