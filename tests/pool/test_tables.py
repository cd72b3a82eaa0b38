"""The study's tables: every method as one DAG on a real pool, each cell filled."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Condorctl
from tests.pool.conftest import Status

ROOT = Path(__file__).parents[2]

# All that costs time cut to next to nothing: this is about the rows, not about their figures.
_SMALLER = {
    "widths": "[4, 8]",
    "blocks": "[1, 1]",
    "epochs": "1",
    "steps": "1",
    "projector_hidden": "8",
    "projector_out": "8",
    "batch_size": "512",
    "pgd_steps": "[10, 20]",
    "pgd_restarts": "[1, 1]",
}


def own_package(project: Path) -> None:
    """A copy of robust in the user's folder, with a preset of the user's own in it."""
    shutil.copytree(ROOT / "robust", project / "robust")
    smoke = (project / "robust/presets/smoke.toml").read_text(encoding="utf-8")
    for key, value in _SMALLER.items():
        smoke, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", smoke, flags=re.MULTILINE)
        assert found, key
    (project / "robust/presets/mine.toml").write_text(smoke, encoding="utf-8")


def test_tables_fills_both_tables(
    pool: Path, project: Path, condorctl: Condorctl, wait: Callable[..., Status]
) -> None:
    own_package(project)
    answer = condorctl("submit", "tables", "--set", "preset=mine", "--set", "seeds=0")
    assert answer.returncode == 0, answer
    view = wait("tables-1", lambda view: view["state"] in ("done", "failed"), timeout=900)
    assert {stage["state"] for stage in view["stages"].values()} == {"done"}, view
    # What the methods have in common runs once.
    assert [name for name in view["stages"] if name.startswith("pretrain")] == ["pretrain-0"]

    shown = json.loads(condorctl("results", "--json").stdout)
    white, black, everything = shown["tables"]
    for table in (white, black, everything):
        for row in table["rows"]:
            for heading, cell in row["cells"].items():
                # Nobody has asked for AutoAttack here.
                assert cell["n"] == (heading != "AutoAttack"), (row["label"], heading)
                assert not cell["n"] or 0 <= cell["mean"] <= 100
    ours = white["rows"][2]["cells"]
    assert (ours["Clean Acc"]["reference"], ours["Robust Acc"]["reference"]) == (76.66, 48.68)
    assert [row["cells"]["Robust Acc"]["reference"] for row in black["rows"]] == [
        10.01,
        16.83,
        13.08,
        17.99,
        18.80,
    ]

    # One JSON a result, and the same tables from those alone.
    assert condorctl("results", "--save", "exp/mine").returncode == 0
    saved = list((project / "exp/mine").glob("tables-1.*.json"))
    assert len(saved) == len(shown["results"])
    details = json.loads(saved[0].read_text(encoding="utf-8"))["values"]["details"]
    assert details["config"]["model"]["widths"] == [4, 8]
    assert len(details["data"]["fingerprint"]) == 64
    ledger, files = (
        condorctl("results", *words, "--markdown").stdout for words in ([], ["--from", "exp/mine"])
    )
    assert ledger == files
    assert "| Our method (90 % pruned) |" in files
