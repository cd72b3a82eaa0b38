"""The examples that are no part of the method: a sweep of 200 stages, and no machine learning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Condorctl
from tests.pool.conftest import Status

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_twelve_queens_without_a_line_of_python(
    pool: Path, project: Path, condorctl: Condorctl, wait: Callable[..., Status]
) -> None:
    shutil.copytree(EXAMPLES / "queens", project, dirs_exist_ok=True)
    assert condorctl("submit", "queens.yaml").returncode == 0
    view = wait("queens-1", lambda view: bool(view["finished"]))
    assert (view["state"], len(view["stages"])) == ("done", 13)
    total = project / "exp" / "runs" / "queens-1" / "total" / "total.txt"
    # The number that Bezzel's problem has for n = 12 (OEIS A000170).
    assert total.read_text() == "14200\n"


def test_a_sweep_of_200_stages(
    pool: Path, project: Path, condorctl: Condorctl, wait: Callable[..., Status]
) -> None:
    shutil.copytree(EXAMPLES / "sweep", project, dirs_exist_ok=True)
    assert condorctl("submit", "sweep.yaml").returncode == 0
    view = wait("sweep-1", lambda view: bool(view["finished"]), timeout=300)
    assert view["state"] == "done", view["counts"]
    assert view["counts"] == {"done": 200}
    rows = json.loads(condorctl("results", "--json").stdout)["results"]
    tried = {(row["rate"], row["penalty"], row["seed"]) for row in rows if row["model"] == "one"}
    assert len(tried) == len(rows) - 1 == 198
    [best] = [row for row in rows if row["model"] == "best"]
    assert best["of"] == 198
    assert best["validation"] == max(row["validation"] for row in rows)
    assert best["test"] > 0.9
    # Its costs fit on a screen: 199 stages of a kind are shown as one.
    [cost] = json.loads(condorctl("cost", "--json").stdout)["runs"]
    sizes = {group["group"]: len(group["stages"]) for group in cost["groups"]}
    assert sum(sizes.values()) == len(cost["stages"]) == 200
    shown = condorctl("cost").stdout
    assert len(shown.splitlines()) < 24
    assert all(name in shown for name in sizes)
    useful = sum(group["cpu_h"]["useful"] for group in cost["groups"])
    assert abs(useful - cost["cpu_h"]["useful"]) < 0.001 < useful
