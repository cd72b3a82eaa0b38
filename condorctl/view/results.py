"""Final figures: the rows that stages reported with `job.result`, and the tables a spec declares.

They come from the ledger, or from a folder into which `save` wrote them; all else is the same then.
An accuracy is a fraction in 0..1 in a row, and in percent wherever a table shows it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import job
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Result, Run, events, find
from condorctl.spec.reader import Table
from condorctl.spec.yaml_text import Scalar, Value
from condorctl.view import lineage
from condorctl.view.lineage import Lineage, Step

Json = dict[str, Any]
# The name of a run or a stage is a part of a file's name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")]

_TABLES_FILE = "tables.json"
# A row of 64 KB, each of its items on a line of its own.
_MOST_BYTES = 4 << 20
_LARGEST = 1e300


class Record(BaseModel):
    """One row of results, and where it comes from. Times are Unix seconds.

    ``commit`` and ``dirty`` say what its run was submitted from; ``lineage`` has the stage and all
    that it needs, in the order of the run, where it was asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    run: Name
    pipeline: Name
    params: dict[str, Value]
    stage: Name
    order: int = Field(ge=0, description="the row's place among those of its run")
    job: str = Field(description="cluster.proc")
    attempt: int = Field(ge=1)
    submitted: float
    started: float | None
    finished: float | None
    host: str | None
    commit: str | None = None
    dirty: bool = False
    lineage: list[Step] = Field(default_factory=list)
    values: dict[str, Any]

    @field_validator("values")
    @classmethod
    def _check(cls, values: Json) -> Json:
        job.check_result(values)
        return values


@dataclass(frozen=True)
class Results:
    """The rows of some runs, in the order of the runs and their stages, and the runs' tables.

    Of a stage that DAGMan ran again there are the rows of the last attempt that reported any.
    """

    runs: list[Json]
    tables: list[Table]
    records: list[Record]

    @property
    def names(self) -> str:
        return ", ".join(run["run"] for run in self.runs)


def load(
    ledger: Callable[[], Ledger], names: Sequence[str], folder: Path | None, traced: bool = False
) -> Results:
    """The results of the runs called `names`, from `folder` when there is one, else the ledger.

    With `traced` those of the ledger have their lineage, which `save` keeps. Raises UserError as
    `from_ledger` and `from_folder` do.
    """
    if folder:
        return from_folder(folder, names)
    opened = ledger()
    events.sync(opened)
    with opened.session() as session:
        return from_ledger(session, names, traced)


def from_ledger(session: Session, names: Sequence[str], traced: bool = False) -> Results:
    """The results of the runs called `names`, of the latest one if there is no name.

    With `traced`, each with its lineage. Raises UserError when there is no such run.
    """
    runs = [find.run(session, name) for name in dict.fromkeys(names) or [None]]
    # Runs of one pipeline declare the same table: it is shown once, over the rows of all.
    tables: list[Table] = []
    for table in (Table.model_validate(table) for run in runs for table in run.tables):
        if table not in tables:
            tables.append(table)
    return Results(
        [{"run": run.name, "pipeline": run.pipeline, "params": run.params} for run in runs],
        tables,
        _last_attempts(record for run in runs for record in _records(session, run, traced)),
    )


def _records(session: Session, run: Run, traced: bool) -> Iterator[Record]:
    # A stage that was reused has its rows from the stage that stands in for it.
    stages = {stage.origin.id: stage for stage in run.stages}
    query = (
        select(Result, Job)
        .join(Job, Result.job_id == Job.id)
        .where(Job.stage_id.in_(stages))
        .order_by(Job.attempt, Job.proc, Result.position)
    )
    found = session.execute(query).all()
    found = sorted(found, key=lambda pair: stages[pair[1].stage_id].position)
    commit, dirty = lineage.commit(run)
    steps = Lineage(session, run) if traced else None
    for order, (row, by) in enumerate(found):
        yield Record(
            run=run.name, pipeline=run.pipeline, params=run.params,
            stage=stages[by.stage_id].name, order=order,
            job=by.number, attempt=by.attempt, submitted=by.submitted, started=by.started,
            finished=by.finished, host=by.host, commit=commit, dirty=dirty,
            lineage=steps.of(stages[by.stage_id]) if steps else [], values=row.values,
        )  # fmt: skip


def from_folder(folder: Path, names: Sequence[str]) -> Results:
    """The results that were saved in `folder`: those of the runs called `names`, else all.

    Raises UserError for a JSON file that `save` cannot have written, and for an unknown run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    tables: list[Table] = []
    files: dict[tuple[object, ...], Path] = {}
    runs: dict[str, list[Record]] = {}
    for file in sorted(folder.glob("*.json")):
        if file.name == _TABLES_FILE:
            tables = _read(file, TypeAdapter(list[Table]))
            continue
        record = _read(file, TypeAdapter(Record))
        key = (record.run, record.stage, record.attempt, record.order)
        other = files.setdefault(key, file)
        if other is not file:
            raise UserError(f"{file}: the same result as {other.name}: move one away")
        runs.setdefault(record.run, []).append(record)
    for name in names:
        if name not in runs:
            known = ", ".join(sorted(runs, key=_natural)) or "none"
            raise UserError(f"{folder}: no results of a run {name!r}; there is {known}")
    chosen = [runs[name] for name in dict.fromkeys(names) or sorted(runs, key=_natural)]
    return Results(
        [{k: getattr(of_run[0], k) for k in ("run", "pipeline", "params")} for of_run in chosen],
        tables,
        _last_attempts(r for of_run in chosen for r in sorted(of_run, key=lambda r: r.order)),
    )


def titled(results: Results, words: str) -> Results:
    """`results` with those of the tables alone whose title has `words` in it, in any case.

    Raises UserError when there is none.
    """
    tables = [table for table in results.tables if words.casefold() in table.title.casefold()]
    if not tables:
        there = "; ".join(repr(table.title) for table in results.tables) or "none"
        raise UserError(f"--table {words!r}: no table's title has this in it; there is {there}")
    return dataclasses.replace(results, tables=tables)


def save(results: Results, folder: Path) -> None:
    """Write a JSON file a row, ``<run>.<stage>[.<n>].json`` (n from 2 on), and ``tables.json``.

    A file is whole or not there. Files of the same names are replaced; in ``tables.json`` only
    tables of the same title. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _TABLES_FILE
    before = _read(file, TypeAdapter(list[Table])) if file.exists() else []
    titles = {table.title for table in results.tables}
    count: Counter[str] = Counter()
    for record in results.records:
        name = f"{record.run}.{record.stage}"
        count[name] += 1
        number = f".{count[name]}" if count[name] > 1 else ""
        _write(folder / f"{name}{number}.json", record.model_dump())
    tables = [*(table for table in before if table.title not in titles), *results.tables]
    _write(file, [table.model_dump() for table in tables])


def differing(runs: Sequence[Json]) -> list[str]:
    """The parameters that are not the same in all of `runs`, in the order they are declared."""
    names = dict.fromkeys(name for run in runs for name in run["params"])
    absent, params = object(), [run["params"] for run in runs]
    return [
        name
        for name in names
        if any(of.get(name, absent) != params[0].get(name, absent) for of in params)
    ]


def as_json(results: Results) -> Json:
    """What ``--json`` prints: the runs, the tables with their figures, the rows.

    `differing` names the parameters that tell the runs apart.
    """
    return {
        "runs": results.runs,
        "differing": differing(results.runs),
        "tables": [summary(table, results.records) for table in results.tables],
        "results": [{"run": r.run, "stage": r.stage, **r.values} for r in results.records],
    }


def summary(table: Table, records: Sequence[Record]) -> Json:
    """A declared table with its figures, as ``--json`` prints it.

    A cell has ``mean``, ``sd`` (the sample's; null for fewer than two results), ``n`` and
    ``reference``; the first two are in the ``unit`` of their column, reference is in percent.
    """
    found = [[r.values for r in records if _matches(r.values, row.match)] for row in table.rows]
    columns: Json = {}
    rows: list[Json] = [{"label": row.label, "match": row.match, "cells": {}} for row in table.rows]
    for heading, key in table.columns.items():
        raw = [value for values in found for value in (v.get(key) for v in values)]
        percent = _are_fractions(raw)
        columns[heading] = {"key": key, "unit": "%" if percent else ""}
        for row, declared, values in zip(rows, table.rows, found, strict=True):
            figures = [
                figure * (100 if percent else 1)
                for figure in (_figure(v.get(key)) for v in values)
                if figure is not None
            ]
            row["cells"][heading] = {
                "mean": statistics.fmean(figures) if figures else None,
                "sd": statistics.stdev(figures) if len(figures) > 1 else None,
                "n": len(figures),
                "reference": declared.reference.get(heading),
            }
    return {"title": table.title, "reference": table.reference, "columns": columns, "rows": rows}


def _read(file: Path, kind: TypeAdapter[Any]) -> Any:
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{file}: no file that `condorctl results --save` wrote: move it away")
        return kind.validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = "".join(f"{part}: " for part in first["loc"])
        raise UserError(
            f"{file}: {at}{first['msg']}: no file that `condorctl results --save` wrote"
        ) from None


def _write(file: Path, value: object) -> None:
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _last_attempts(records: Iterable[Record]) -> list[Record]:
    # What a failed attempt reported would count twice in a mean.
    found = list(records)
    last: dict[tuple[str, str], int] = {}
    for one in found:
        last[one.run, one.stage] = max(one.attempt, last.get((one.run, one.stage), 0))
    return [one for one in found if one.attempt == last[one.run, one.stage]]


def _natural(run: str) -> tuple[str, int]:
    stem, _, number = run.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (run, 0)


def _matches(values: Json, wanted: dict[str, Scalar]) -> bool:
    # To Python, true is 1.
    return all(
        key in values
        and values[key] == value
        and isinstance(values[key], bool) == isinstance(value, bool)
        for key, value in wanted.items()
    )


def _figure(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A number beyond a float's range is no figure that could be averaged.
    return float(value) if abs(value) < _LARGEST else None


def _are_fractions(values: Iterable[object]) -> bool:
    """Whether a column is one of accuracies, to be shown in percent; without values it is."""
    figures = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    fractions = all(0 <= figure <= 1 for figure in figures)
    return fractions and (not figures or any(isinstance(figure, float) for figure in figures))
