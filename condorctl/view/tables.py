"""How results are shown: in the tables that a spec declares, row by row, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from condorctl.errors import printable
from condorctl.spec import yaml_text
from condorctl.view.metrics import Metrics
from condorctl.view.results import Json, Record, Results, differing, summary

_NOTHING = "\N{EM DASH}"


def as_csv(results: Results) -> str:
    """The rows with their plain values, nested ones left out; those of several runs with the
    parameters that differ.
    """
    keys, params = _columns(results.records), _params(results)
    return _csv(
        ["run", *params, "stage", "job", "attempt", *keys],
        (
            [record.run, *(record.params.get(name) for name in params), record.stage, record.job,
             record.attempt, *(record.values.get(key) for key in keys)]
            for record in results.records
        ),
    )  # fmt: skip


def as_markdown(results: Results, every: bool) -> str:
    """The declared tables, and the rows if there is no such table or `every` is wanted."""
    return "\n".join(_markdown(sheet) for sheet in _sheets(results, every))


def renderables(results: Results, every: bool, console: Console) -> Iterator[RenderableType]:
    """The same for `console`: a table that is too wide goes on below, and no figure is cut."""
    for index, sheet in enumerate(_sheets(results, every)):
        if index:
            yield ""
        yield Text(printable(sheet.title), style="italic")
        for part, grid in enumerate(_fitting(sheet, console)):
            if part:
                yield ""
            yield grid
        if sheet.note:
            yield Text(printable(sheet.note), style="dim")


def metrics_csv(metrics: Metrics) -> str:
    """A line an epoch, with the time it ended; of several runs with the parameters that differ."""
    params, names = metrics.params, metrics.columns
    return _csv(
        ["run", *params, "stage", "job", "attempt", "epoch", "time", *names],
        (
            [row.run, *(row.params.get(name) for name in params), row.stage, row.job, row.attempt,
             row.epoch, row.time, *(row.values.get(name) for name in names)]
            for row in metrics.rows
        ),
    )  # fmt: skip


def metrics_markdown(metrics: Metrics) -> str:
    """The metrics of every epoch."""
    return _markdown(_epochs(metrics))


def metrics_renderables(metrics: Metrics, console: Console) -> Iterator[RenderableType]:
    """The same for `console`."""
    sheet = _epochs(metrics)
    yield Text(printable(sheet.title), style="italic")
    yield from _fitting(sheet, console)


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: list[str]


@dataclass(frozen=True)
class _Sheet:
    """A table to show. The columns of one group of figures stay side by side."""

    title: str
    labels: list[_Column]
    figures: list[list[_Column]]
    note: str = ""


def _sheets(results: Results, every: bool) -> list[_Sheet]:
    declared = [_declared(summary(table, results.records)) for table in results.tables]
    listed = bool(results.records) and (every or not declared)
    return [*declared, _listing(results)] if listed else declared


def _declared(table: Json) -> _Sheet:
    figures = []
    several = False
    for heading, column in table["columns"].items():
        cells = [row["cells"][heading] for row in table["rows"]]
        if not any(cell["n"] or cell["reference"] is not None for cell in cells):
            # An attack that nobody has asked for in this run.
            continue
        unit = " (%)" if column["unit"] and "%" not in heading else ""
        group = [_Column(heading + unit, [_mean(cell) for cell in cells])]
        if any(cell["reference"] is not None for cell in cells):
            group.append(_Column("ref.", [_reference(cell) for cell in cells]))
        figures.append(group)
        several = several or any(cell["n"] > 1 for cell in cells)
    label = _Column("", [row["label"] for row in table["rows"]])
    notes = ["mean ± standard deviation (results)"] if several else []
    notes += [f"ref.: {table['reference']}"] if table["reference"] else []
    return _Sheet(table["title"], [label], figures, "; ".join(notes))


def _mean(cell: Json) -> str:
    if not cell["n"]:
        return _NOTHING
    spread = f" ± {_number(cell['sd'])} ({cell['n']})" if cell["n"] > 1 else ""
    return f"{_number(cell['mean'])}{spread}"


def _reference(cell: Json) -> str:
    return _NOTHING if cell["reference"] is None else f"{cell['reference']:.2f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.4g}"


def _listing(results: Results) -> _Sheet:
    records = results.records
    labels, figures = [], []
    for key in _columns(records):
        column = _Column(key, [_cell(record.values.get(key)) for record in records])
        values = [record.values.get(key) for record in records]
        if any(isinstance(value, int | float) for value in values):
            figures.append([column])
        else:
            labels.append(column)
    if len(set(zip(*(column.cells for column in labels), strict=True))) < len(records):
        # The stage tells apart what the rows themselves do not.
        labels.insert(0, _Column("stage", [record.stage for record in records]))
    if len(results.runs) > 1:
        params = [
            _Column(name, [_plain(record.params.get(name)) for record in records])
            for name in _params(results)
        ]
        labels = [_Column("run", [record.run for record in records]), *params, *labels]
    return _Sheet(f"{results.names}: results", labels, figures)


def _epochs(metrics: Metrics) -> _Sheet:
    rows = metrics.rows
    labels = [_Column("stage", [row.stage for row in rows])]
    attempts = {(row.run, row.stage, row.attempt): row.job for row in rows}
    if any(row.job != attempts[row.run, row.stage, row.attempt] for row in rows):
        labels.append(_Column("job", [row.job for row in rows]))
    labels.append(_Column("epoch", [str(row.epoch) for row in rows]))
    if len(metrics.runs) > 1:
        params = [
            _Column(name, [_plain(row.params.get(name)) for row in rows]) for name in metrics.params
        ]
        labels = [_Column("run", [row.run for row in rows]), *params, *labels]
    figures = [
        [_Column(name, [_plain(row.values.get(name)) for row in rows])] for name in metrics.columns
    ]
    return _Sheet(f"{metrics.names}: metrics", labels, figures)


def _params(results: Results) -> list[str]:
    """The parameters that tell the runs apart and that the rows do not hold themselves."""
    held = {key for record in results.records for key in record.values}
    return [name for name in differing(results.runs) if name not in held]


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(printable, head))
    for row in rows:
        cells = (yaml_text.text(cell) for cell in row)
        writer.writerow("" if cell is None else printable(str(cell)) for cell in cells)
    return stream.getvalue()


def _columns(records: Iterable[Record]) -> list[str]:
    """The keys of the rows, in the order they were first reported, less those of nested values."""
    items = [item for record in records for item in record.values.items()]
    nested = {key for key, value in items if isinstance(value, dict | list)}
    return [key for key in dict.fromkeys(key for key, _ in items) if key not in nested]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"
    return "" if value is None else str(yaml_text.text(value))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(yaml_text.text(value))


def _fitting(sheet: _Sheet, console: Console) -> list[Grid]:
    """The sheet as one grid, or as several that the console has room for, the labels in each."""
    whole = _grid(sheet.labels, sheet.figures)
    if _fits(whole, console):
        return [whole]
    count = max(1, len(sheet.labels))
    most = console.width // (count + 1)
    splits = []
    for share in (console.width // part // count for part in (2, 3, 4)):
        # A label takes more lines before a column goes below, but it is not cut within a word.
        widths = [max(share, min(_longest_word(label), most)) for label in sheet.labels]
        splits.append(_parts(sheet, widths, console))
    return min(splits, key=len)


def _parts(sheet: _Sheet, widths: list[int], console: Console) -> list[Grid]:
    parts: list[list[list[_Column]]] = [[]]
    for group in sheet.figures:
        grid = _grid(sheet.labels, [*parts[-1], group], widths)
        if parts[-1] and not _fits(grid, console):
            parts.append([])
        parts[-1].append(group)
    return [_grid(sheet.labels, part, widths) for part in parts]


def _fits(grid: Grid, console: Console) -> bool:
    unbounded = console.options.update(max_width=100_000)
    return console.measure(grid, options=unbounded).maximum <= console.width


def _longest_word(column: _Column) -> int:
    return max(cell_len(word) for text in ["", *column.cells] for word in text.split() or [""])


def _grid(
    labels: list[_Column], figures: list[list[_Column]], widths: list[int] | None = None
) -> Grid:
    """The columns side by side; `widths` are those of the labels when there is too little room."""
    grid = Grid(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    columns = [*labels, *(column for group in figures for column in group)]
    for index, column in enumerate(columns):
        heading = printable(column.heading)
        if index < len(labels):
            width = widths[index] if widths else None
            grid.add_column(Text(heading), max_width=width, overflow="fold")
            continue
        if widths:
            # No wider than the figures below it, if its words let it.
            lines = textwrap.wrap(
                heading,
                max(map(cell_len, column.cells), default=0) or 1,
                break_long_words=False,
                break_on_hyphens=False,
            )
            heading = "\n".join(lines)
        grid.add_column(Text(heading), justify="right", overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        grid.add_row(*(Text(printable(cell)) for cell in row))
    return grid


def _markdown(sheet: _Sheet) -> str:
    figures = [column for group in sheet.figures for column in group]
    columns = [*sheet.labels, *figures]
    rule = ["---"] * len(sheet.labels) + ["---:"] * len(figures)
    lines = [[_escaped(column.heading) for column in columns], rule]
    lines += [list(map(_escaped, row)) for row in zip(*(c.cells for c in columns), strict=True)]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = f"\n{_escaped(sheet.note)}\n" if sheet.note else ""
    return f"### {_escaped(sheet.title)}\n\n{body}{note}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<*`\[\]])", r"\\\1", printable(text))
