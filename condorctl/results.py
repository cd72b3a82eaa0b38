"""Tables of final figures, from the rows that stages reported with `job.result`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import printable
from condorctl.ledger import Job, Result, Stage, find_run

Json = dict[str, Any]


def describe(session: Session, run: str | None) -> Json:
    """The run (the latest for None), its parameters and its result rows in the stages' order.

    Raises UserError when there is no such run.
    """
    found = find_run(session, run)
    query = (
        select(Stage.name, Result.values)
        .join(Job, Result.job_id == Job.id)
        .join(Stage, Job.stage_id == Stage.id)
        .where(Stage.run_id == found.id)
        .order_by(Stage.position, Job.attempt, Result.position)
    )
    rows = [{"stage": stage, **values} for stage, values in session.execute(query)]
    return {"run": found.name, "pipeline": found.pipeline, "params": found.params, "results": rows}


def table(view: Json, console: Console) -> Table:
    """The rows as a table for `console`; fractions between 0 and 1 are shown in percent."""
    wide = _grid(view, narrow=False)
    unbounded = console.options.update(max_width=10_000)
    fits = console.measure(wide, options=unbounded).maximum <= console.width
    return wide if fits else _grid(view, narrow=True)


def _grid(view: Json, narrow: bool) -> Table:
    rows = view["results"]
    title = f"{view['run']}: results"
    grid = Table(
        title=title, title_justify="left", box=None, header_style="dim", padding=(0, 2, 0, 0)
    )
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "stage"))
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        heading = escape(printable(column))
        grid.add_column(
            # A heading may take several lines; a figure is never cut.
            heading.replace(" ", "\n") if narrow else heading,
            justify="right" if numeric else "left",
            no_wrap=True,
        )
    for row in rows:
        grid.add_row(*(escape(_cell(row.get(column))) for column in columns))
    return grid


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"
    return "" if value is None else printable(str(value))
