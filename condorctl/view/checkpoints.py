"""`condorctl checkpoints`: what the stages of a run have left to go on from, and where it is.

A job says through chirp what it keeps in its sandbox; the folder of its stage has what came to the
submit side, and the schedd's spool what HTCondor itself brought along from an eviction. Outputs
that the jobs recorded (`job.save`) are listed, too. Of a stage that is done the newest is kept
until the run is done; then its outputs alone are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condorctl.condor import cluster, evicted
from condorctl.errors import UserError
from condorctl.job.folder import FOLDER, Folder
from condorctl.ledger import Job, Ledger, Stage, events, find, job_states, sharing

Json = dict[str, Any]


@dataclass
class _Known:
    """What the ledger knows of a stage, free of the database."""

    name: str
    folder: Path | None
    # What its jobs told, each with the place.
    told: list[tuple[Json, str]] = field(default_factory=list)
    # Jobs, schedd and number, whose files the schedd may keep.
    left: list[tuple[str, str]] = field(default_factory=list)


def load(ledger: Ledger, name: str | None) -> Json:
    """The checkpoints of the run called `name`, of the latest one if there is no name.

    Returns `run`, `note` (what is not known, or None) and `checkpoints`, those of a stage together
    and the newest first, each with `stage`, `job`, `path` in the job's folder, `epoch`, `number`
    (None for an output), `bytes`, `sha256`, `places` and whether it is the `newest` of its stage.
    Raises UserError when there is no such run.
    """
    unknown = events.sync(ledger)
    with ledger.session() as session:
        run = find.run(session, name)
        here = sharing.is_ours_to_read(ledger, run)
        ours = here and run.kind == "pipeline"
        known = [_known(stage, ours) for stage in run.stages]
        chosen = run.name
        away = [] if here else [f"the folder of {run.name} is on {run.host}"]
    found = [row for stage in known for row in _rows(stage)]
    note = "; ".join([*away, *filter(None, [str(unknown)])])
    return {"run": chosen, "checkpoints": found, "note": note or None}


def _known(stage: Stage, ours: bool) -> _Known:
    known = _Known(stage.name, stage.folder / FOLDER if ours else None)
    for job in stage.origin.jobs:
        for told in job.checkpoints:
            row = _row(job.number, told.path, told.epoch, None, told.bytes, told.sha256)
            if place := _place(job, told.path, told.place):
                known.told.append((row, place))
    if ours:
        left = [job for job in stage.current if job.starts and job.state in job_states.OUT_OF_REACH]
        known.left = [(job.schedd, job.number) for job in left]
    return known


def _place(job: Job, path: str, place: str | None) -> str | None:
    """Where the file is that the job told of; None when it is nowhere any more."""
    if place is None:
        return None
    if job.state in job_states.ON_NODE:
        return f"sandbox on {job.host}"
    # What it goes on from is looked for by itself.
    return None if path.startswith(f"{FOLDER}/") or not Path(place).is_file() else "run folder"


def _rows(stage: _Known) -> list[Json]:
    rows: dict[str, Json] = {}
    for row, place in [*stage.told, *_kept(stage)]:
        known = rows.setdefault(row["sha256"], {**row, "places": []})
        known["places"] += [place] if place not in known["places"] else []
        known["number"] = known["number"] or row["number"]
    ordered = sorted(rows.values(), key=lambda row: (row["epoch"], row["number"] or 0))[::-1]
    return [{"stage": stage.name, **row, "newest": row is ordered[0]} for row in ordered]


def _kept(stage: _Known) -> Iterator[tuple[Json, str]]:
    if stage.folder:
        yield from _in(stage.folder, "run folder")
    for schedd, number in stage.left:
        with suppress(UserError):
            # Another schedd may have given the same number to another job.
            kept = evicted.folder(number) if schedd == cluster.schedd_name() else None
            yield from _in(kept / FOLDER, "spool") if kept else ()


def _in(folder: Path, place: str) -> Iterator[tuple[Json, str]]:
    for one in Folder(folder).checkpoints():
        path, state = f"{FOLDER}/{one.state.name}", one.state
        yield _row(one.job, path, one.epoch, one.number, state.bytes, state.sha256), place


def _row(
    job: str | None, path: str, epoch: int, number: int | None, size: int, sha256: str
) -> Json:
    return {
        "job": job, "path": path, "epoch": epoch, "number": number, "bytes": size,
        "sha256": sha256,
    }  # fmt: skip
