"""How results are shown: at every width, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from condorctl.view import tables
from condorctl.view.results import Results
from tests.unit.result_rows import OURS, TABLE, made


def shown(found: Results, width: int, every: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for part in tables.renderables(found, every, console):
        console.print(part)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def together(*found: Results) -> Results:
    runs = [run for one in found for run in one.runs]
    return Results(runs, [], [record for one in found for record in one.records])


def test_a_table_stands_first_with_the_reference_beside_it() -> None:
    for width in (80, 200):
        assert [line.rstrip() for line in shown(made(*OURS, table=TABLE), width)] == [
            "Clean and robust",
            "            Clean Acc (%)   ref.  Robust Acc (%)   ref.             Loss",
            "ours    60.00 ± 10.00 (3)  76.66           25.00      —  2.00 ± 0.71 (2)",
            "theirs                  —      —               —  18.80                —",
            "mean ± standard deviation (results); ref.: study",
        ]


def test_with_all_the_rows_follow_and_a_stage_tells_equal_ones_apart() -> None:
    lines = shown(made(*OURS, stages="zaa", table=TABLE), 80, every=True)
    rows = lines[lines.index("p-1: results") + 1 :]
    assert [line.split() for line in rows] == [
        ["stage", "model", "seed", "clean", "PGD-10", "loss"],
        ["z", "ours", "0", "50.0", "%", "25.0", "%", "1.5"],
        ["a", "ours", "1", "60.0", "%", "2.5"],
        ["a", "ours", "2", "70.0", "%", "true"],
    ]


WORDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=7), min_size=1, max_size=6)


@settings(deadline=None, max_examples=20)
@given(
    width=st.integers(40, 200),
    headings=st.lists(WORDS.map(" ".join), min_size=1, max_size=9, unique=True),
    labels=st.lists(WORDS.map(" ".join), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
def test_no_figure_is_ever_cut(
    width: int, headings: list[str], labels: list[str], data: st.DataObject
) -> None:
    figure = st.floats(0, 1) | st.floats(2, 1e9) | st.integers(0, 10**6)
    rows: list[dict[str, Any]] = [
        {"model": label, **{f"{heading}.": data.draw(figure) for heading in headings}}
        for label in labels
        for _ in range(2)
    ]
    reference = {heading: data.draw(st.floats(0, 100)) for heading in headings}
    table = {
        "title": "t",
        "columns": {heading: f"{heading}." for heading in headings},
        "reference": "study",
        "rows": [{"label": x, "match": {"model": x}, "reference": reference} for x in labels],
    }
    lines = shown(made(*rows, table=table), width, every=True)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for row in rows:
        for value in (row[f"{heading}."] for heading in headings):
            if isinstance(value, int):
                assert str(value) in words
            elif value <= 1:
                assert f"{100 * value:.1f}" in words
    for value in reference.values():
        assert words.count(f"{value:.2f}") >= len(labels)


def test_the_rows_of_several_runs_are_told_apart() -> None:
    both = together(made({"model": "ours", "clean": 0.9}, run="p-2"), made(*OURS, stages="zaa"))
    lines = shown(both, 80)
    assert lines[0] == "p-2, p-1: results"
    assert lines[1].split()[:3] == ["run", "stage", "model"]
    assert [line.split()[0] for line in lines[2:]] == ["p-2", "p-1", "p-1", "p-1"]


def test_markdown_says_the_same_and_foreign_text_stays_text() -> None:
    row = {"model": "a|b <i>`c`\n[x]", "clean": 0.5}
    assert tables.as_markdown(made(row), False) == (
        "### p-1: results\n\n"
        "| model | clean |\n"
        "| --- | ---: |\n"
        "| a\\|b \\<i>\\`c\\`\ufffd\\[x\\] | 50.0 % |\n"
    )
    table = {**TABLE, "rows": [{**TABLE["rows"][0], "label": "a|b"}, *TABLE["rows"][1:]]}
    lines = tables.as_markdown(made({"model": "ours", "clean": 0.5}, table=table), False)
    assert "| a\\|b | 50.00 | 76.66 | — | — |" in lines
    assert "p-1: results" not in lines


def test_a_column_that_nobody_measured_is_left_out() -> None:
    table = {**TABLE, "rows": [{**TABLE["rows"][0], "reference": {}}]}
    lines = tables.as_markdown(made({"model": "ours", "clean": 0.5}, table=table), False)
    assert "|  | Clean Acc (%) |\n" in lines


def test_csv_holds_plain_values_and_no_nested_ones() -> None:
    other = made({"model": 'a, "b"', "on": False, "clean": 1 / 3}, run="p-2")
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(together(other, made(*OURS))))))
    assert rows[0] == {
        "run": "p-2", "stage": "s", "job": "1.0", "attempt": "1", "model": 'a, "b"', "on": "false",
        "clean": "0.3333333333333333", "seed": "", "PGD-10": "", "loss": "",
    }  # fmt: skip
    assert [row["loss"] for row in rows] == ["", "1.5", "2.5", "true"]


def test_what_a_job_wrote_does_not_drive_the_terminal() -> None:
    lines = shown(made({"model": "\x1b[2J[red]:100:", "a\x07": 1.5}), 80)
    assert [line.split() for line in lines[1:]] == [
        ["model", "a\ufffd"],
        ["\ufffd[2J[red]:100:", "1.5"],
    ]
