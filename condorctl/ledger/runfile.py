"""``run.json``: what of a run only condorctl knows, kept with its files.

From it, and from what HTCondor and the jobs left beside it, a ledger that is lost is made again
(`rebuild`). It is in the run's folder before the run is in the queue. Of jobs it holds what is
found nowhere else later: those that were evicted, held, removed, or failed and were tried again.

Work whose files lie elsewhere, or are gone, has a record beside the ledger's own file that holds
all of it: adopted runs, and those that `condorctl clean` took the files of.

    {"condorctl": 1, "whole": false, "run": {...}, "stages": [{..., "source": {"run", "stage"},
     "jobs": [{..., "states", "checkpoints", "written", "fetched", "metrics", "results"}]}]}

The keys are the names of the ledger's columns.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import sqlalchemy as sa
from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import UserError
from condorctl.ledger import (
    Base,
    Checkpoint,
    Fetched,
    Job,
    JobState,
    Ledger,
    Metric,
    Output,
    Result,
    Run,
    Stage,
)
from condorctl.ledger.database import MOST_AT_ONCE, as_json

Json = dict[str, Any]

FILE = "run.json"
_FORMAT = 1
_MOST_BYTES = 1 << 30
# The record of a run whose jobs end all the time is not written each time.
_INTERVAL_S = 60
_PLAIN = re.compile(r"[^\s/\x00-\x1f]{1,200}")

# What belongs to a ledger, or to a machine, and not to the run.
_OURS = {"id", "run_id", "stage_id", "job_id", "source_id", "inode", "unkept"}
# What HTCondor's logs tell better than what was once known.
_LOGGED = _OURS | {"state", "finished", "exit_code", "problem", "seen", "outcome"}
# Jobs in these states may be tried again, and another writes over what they left.
_UNDONE = ("failed", "removed", "held", "unknown")
PARTS: dict[str, type[Base]] = {
    "states": JobState,
    "checkpoints": Checkpoint,
    "written": Output,
    "fetched": Fetched,
    "metrics": Metric,
    "results": Result,
}


def of(session: Session, run: Run, whole: bool = False) -> Json:
    """What is to be kept of `run`: with `whole`, all that the ledger has of it."""
    without = _OURS if whole else _LOGGED
    jobs = _jobs(session, run, whole)
    return {
        "condorctl": _FORMAT,
        "whole": whole,
        "run": _values(run, without),
        "stages": [
            {
                **_values(stage, without),
                "source": _name(stage.source),
                "jobs": jobs.get(stage.id, []),
            }
            for stage in run.stages
        ],
    }


def _jobs(session: Session, run: Run, whole: bool) -> dict[int, list[Json]]:
    """The jobs that are kept, by the ledger's number of their stage."""
    query = select(Job).join(Stage).where(Stage.run_id == run.id).order_by(Job.id)
    if not whole:
        query = query.where((Job.starts > 1) | Job.state.in_(_UNDONE))
    by_stage: dict[int, list[Json]] = {}
    by_number: dict[int, Json] = {}
    for job in session.scalars(query):
        by_number[job.id] = {**_values(job, _OURS), **{part: [] for part in PARTS}}
        by_stage.setdefault(job.stage_id, []).append(by_number[job.id])
    numbers = list(by_number)
    for start in range(0, len(numbers), MOST_AT_ONCE):
        for part, table in PARTS.items():
            column = sa.inspect(table).columns
            rows = select(table).where(column.job_id.in_(numbers[start : start + MOST_AT_ONCE]))
            for row in session.scalars(rows.order_by(column.id)):
                by_number[getattr(row, "job_id")][part].append(_values(row, _OURS))  # noqa: B009
    return by_stage


def _values(row: Base, without: Iterable[str]) -> Json:
    keys = [attribute.key for attribute in sa.inspect(type(row)).column_attrs]
    return {key: getattr(row, key) for key in keys if key not in without}


def _name(source: Stage | None) -> Json | None:
    return {"run": source.run.name, "stage": source.name} if source else None


def write(file: Path, kept: Json) -> None:
    """Put `kept` into `file`, which holds all of it or what it held. Raises OSError."""
    sweep(file)
    number, draft = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write(as_json(kept))
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def sweep(file: Path) -> None:
    """Remove what somebody who was killed while writing `file` has left. Raises OSError."""
    for left in file.parent.glob(f".{file.name}-*"):
        if time.time() - left.stat().st_mtime > _INTERVAL_S:
            left.unlink(missing_ok=True)


def place(ledger: Ledger, run: Run) -> Path:
    """The file that holds what is kept of `run`: in its folder, or beside the ledger."""
    if run.kind == "pipeline" and run.cleaned is None:
        return run.path / FILE
    return ledger.records / f"{run.name}.json"


def is_ours_to_keep(run: Run) -> bool:
    """Whether this user, on this machine, keeps the record of `run`."""
    return run.owner == getpass.getuser() and run.host == socket.gethostname()


def keep(ledger: Ledger, name: str) -> bool:
    """Write what is to be kept of the run called `name`; whether there is a folder to do so.

    Raises OSError.
    """
    with ledger.session() as session:
        run = session.scalars(select(Run).where(Run.name == name)).one()
        file = place(ledger, run)
        in_folder = file.name == FILE
        if in_folder and not run.path.is_dir():
            return False
        kept = of(session, run, whole=not in_folder)
    if not in_folder:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write(file, kept)
    return True


def learnt(job: Job) -> None:
    """Note that `job` has come into a state that the record of its run should tell of."""
    run = job.stage.run
    lost = job.state in _UNDONE or job.starts > 1
    if lost or (run.kind != "pipeline" and job.finished is not None):
        run.unkept = (run.unkept or 0) + 1


def keep_learnt(ledger: Ledger) -> list[str]:
    """Bring the records up to date of runs of which more was learnt; what could not be, in lines.

    Of a run that is another user's, its owner does that.
    """
    with ledger.session() as session:
        runs = session.scalars(select(Run).where(Run.unkept != 0))
        due = [(run.name, run.unkept) for run in runs if _is_due(ledger, run)]
    problems = []
    for name, count in due:
        try:
            keep(ledger, name)
        except OSError as error:
            problems.append(f"{name}: its record cannot be written: {error.strerror}")
            continue
        with ledger.session() as session:
            # Unless somebody has learnt more meanwhile.
            same = (Run.name == name) & (Run.unkept == count)
            session.execute(sa.update(Run).where(same).values(unkept=0))
    return problems


def _is_due(ledger: Ledger, run: Run) -> bool:
    if not is_ours_to_keep(run):
        return False
    if run.kind == "pipeline" or run.finished is not None:
        return True
    with suppress(OSError):
        last = place(ledger, run).stat().st_mtime
        return time.time() - last > _INTERVAL_S
    return True


def read(file: Path) -> Any:
    """What `file` holds: `whole`, `run` and `stages`, as `of` has them, checked.

    Raises UserError that names the file and what in it is wrong.
    """
    from pydantic import ValidationError

    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise UserError(f"{file}: is larger than any record of a run")
        found = json.loads(raw)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is damaged: {error}") from None
    version = found.get("condorctl") if isinstance(found, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{file}: is no record of a run")
    if version > _FORMAT:
        raise UserError(f"{file}: a newer condorctl wrote it: rebuild with that one")
    try:
        kept = _model().model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: is damaged: {where}: {first['msg']}") from None
    values = kept.model_dump(exclude_unset=True)
    _check_names(file, values)
    return values


def _check_names(file: Path, kept: Json) -> None:
    names = [kept["run"]["name"], *(stage["name"] for stage in kept["stages"])]
    for name in names:
        if not _PLAIN.fullmatch(name) or name in (".", ".."):
            raise UserError(f"{file}: is damaged: {name!r} is no name of a run or a stage")
    if len(set(names[1:])) < len(names) - 1:
        raise UserError(f"{file}: is damaged: two stages have the same name")


def _model() -> Any:
    """The checks, made from the ledger's tables."""
    from pydantic import create_model

    def table(of: type[Base], without: Iterable[str], **more: Any) -> Any:
        hints = get_type_hints(of)
        fields: dict[str, Any] = {}
        for attribute in sa.inspect(of).column_attrs:
            column = attribute.columns[0]
            if attribute.key not in without:
                kind = get_args(hints[attribute.key])[0]
                needed = not column.nullable and column.default is None
                fields[attribute.key] = (kind, ... if needed else None)
        return create_model(of.__name__, __config__=config, **fields, **more)

    config: Any = {"extra": "ignore", "strict": True, "allow_inf_nan": False}
    parts: Mapping[str, Any] = {
        part: (list[table(one, _OURS)], [])  # type: ignore[misc]
        for part, one in PARTS.items()
    }
    job = table(Job, _OURS, **parts)
    source = create_model("Source", __config__=config, run=(str, ...), stage=(str, ...))
    stage = table(Stage, _OURS, source=(source | None, None), jobs=(list[job], []))  # type: ignore[valid-type]
    return create_model(
        "RunFile",
        __config__=config,
        whole=(bool, ...),
        run=(table(Run, _OURS), ...),
        stages=(list[stage], ...),  # type: ignore[valid-type]
    )
