"""What jobs leave behind, and what they say while they run: metrics, results, checkpoints.

A job may write what it likes, so nothing is believed that is not of the form expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from condorctl import secrets
from condorctl.condor import cluster
from condorctl.job import METRICS_FILE, check_result
from condorctl.job.folder import FOLDER, Folder
from condorctl.ledger import Checkpoint, Job, Metric, Result, Run, progress
from condorctl.ledger.database import MOST_AT_ONCE
from condorctl.ledger.record import read as read_record

Json = dict[str, Any]


def hear(job: Job, ad: cluster.Ad) -> None:
    """What a job that has not ended says of itself."""
    job.progress = progress.heard(job, _record(ad.get("ChirpProgress"))) or job.progress
    add_checkpoint(job, _record(ad.get("ChirpCheckpoint")), f"job's sandbox on {job.host}")


def read(session: Session, run: Run, jobs: Sequence[Job]) -> None:
    """What each of these jobs, which have ended, left in the folder of its stage."""
    session.flush()  # rows refer to the jobs'
    metrics: list[Json] = []
    results: list[Json] = []
    for job in jobs:
        if job.attempt == job.stage.jobs[-1].attempt:
            # A later attempt would have written over it.
            _read_metrics(run.path / job.stage.name, job, metrics, results)
        read_record(job)
        if job.state == "completed":
            # DAGMan runs it again when it loses the word of its end, as on a full disk.
            with suppress(OSError):
                Folder(job.stage.folder / FOLDER).empty(keep=1)
            secrets.forget(job.stage.folder)
    for table, rows in ((Metric, metrics), (Result, results)):
        told = [row["job_id"] for row in rows]
        for start in range(0, len(told), MOST_AT_ONCE):
            # An end that is told twice, as by a schedd that was killed, counts once.
            again = set(told[start : start + MOST_AT_ONCE])
            session.execute(delete(table).where(table.job_id.in_(again)))
        if rows:
            session.execute(insert(table), rows)


def forget_checkpoints(run: Run) -> None:
    """A run that is done goes on from nowhere, and its checkpoints may be large."""
    for stage in run.stages:
        with suppress(OSError):
            Folder(run.path / stage.name / FOLDER).empty()


def _read_metrics(folder: Path, job: Job, metrics: list[Json], results: list[Json]) -> None:
    """The rows in the job's ``metrics.jsonl`` are added; lines that are none are passed."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    mine: dict[tuple[int, str], Json] = {}
    position = 0
    records = [_record(line) for line in lines]
    job.progress = progress.ended(job, (r for r in records if r.get("kind") == "progress"))
    for record in records:
        kind = record.get("kind")
        if kind == "progress" and (told := progress.parse(record)):
            epoch, when = told["epoch"], told["time"]
            for name, value in told["metrics"].items():
                # An evicted job may have done an epoch twice: the later line counts.
                row = {"job_id": job.id, "epoch": epoch, "name": name, "value": value}
                mine[epoch, name] = {**row, "time": when}
        elif kind == "checkpoint":
            add_checkpoint(job, record, str(folder / str(record.get("path"))))
        elif kind == "result" and isinstance(values := record.get("values"), dict):
            with suppress(ValueError):
                check_result(values)
                results.append({"job_id": job.id, "position": position, "values": values})
                position += 1
    metrics += mine.values()


def add_checkpoint(job: Job, record: Json, place: str) -> None:
    path, sha256 = record.get("path"), record.get("sha256")
    epoch, size = record.get("epoch"), record.get("bytes")
    if not (isinstance(path, str) and isinstance(sha256, str)):
        return
    if not (progress.is_count(epoch) and progress.is_count(size)):
        return
    same_path = [old for old in job.checkpoints if _slot(old.path) == _slot(path)]
    known = next((old for old in same_path if old.sha256 == sha256), None)
    if known is None:
        known = Checkpoint(path=path, epoch=epoch, bytes=size, sha256=sha256)
        job.checkpoints.append(known)
    if all(old.epoch <= known.epoch for old in same_path):
        for old in same_path:
            old.place = None
        known.place = place


def _slot(path: str) -> str:
    """What a later checkpoint takes the place of: its own path, or all that a job goes on from."""
    return FOLDER if path.startswith(f"{FOLDER}/") else path


def _record(text: object) -> Json:
    """The JSON object in `text`, empty when there is none: a job may write what it likes."""
    try:
        value = json.loads(text, parse_constant=_refuse) if isinstance(text, str) else None
        # Half of a surrogate pair is a string in JSON, but no text that can be stored or shown.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
