"""Rows of results and a table over them, for the tests of both."""

from __future__ import annotations

from typing import Any

from condorctl.spec.reader import Table
from condorctl.view.results import Record, Results

TABLE: dict[str, Any] = {
    "title": "Clean and robust",
    "columns": {"Clean Acc": "clean", "Robust Acc": "PGD-10", "Loss": "loss"},
    "reference": "study",
    "rows": [
        {"label": "ours", "match": {"model": "ours"}, "reference": {"Clean Acc": 76.66}},
        {"label": "theirs", "match": {"model": "theirs"}, "reference": {"Robust Acc": 18.8}},
    ],
}
OURS = [
    {"model": "ours", "seed": 0, "clean": 0.5, "PGD-10": 0.25, "loss": 1.5},
    {"model": "ours", "seed": 1, "clean": 0.6, "loss": 2.5, "details": {"config": [1, {"a": "é"}]}},
    {"model": "ours", "seed": 2, "clean": 0.7, "loss": True},
]


def made(
    *rows: dict[str, Any], run: str = "p-1", stages: str = "", table: dict[str, Any] | None = None
) -> Results:
    """The results of one run; `stages` has a letter a row, the name of its stage."""
    letters = stages or "s" * len(rows)
    records = [
        Record(
            run=run, pipeline="p", params={}, stage=stage, order=order, job="1.0", attempt=1,
            submitted=1.0, started=None, finished=None, host=None, values=values,
        )
        for order, (values, stage) in enumerate(zip(rows, letters, strict=True))
    ]  # fmt: skip
    tables = [Table.model_validate(table)] if table else []
    return Results([{"run": run, "pipeline": "p", "params": {}}], tables, records)
