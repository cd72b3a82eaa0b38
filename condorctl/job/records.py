"""What a job says of itself: progress, outputs and results, a JSON line each in ``metrics.jsonl``.

HTCondor brings that file back with the job's output, and condorctl reads it into its ledger. The
latest progress also goes into the job's ad at once, through `chirp`, so that ``condorctl status``
shows it live.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from condorctl.job import atomic, chirp

# What JSON can carry; lists and dictionaries at run time.
Json = str | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

METRICS_FILE = "metrics.jsonl"
RESULT_BYTES = 64 * 1024
RESULT_DEPTH = 16

PROGRESS_ATTRIBUTE = "ChirpProgress"
CHECKPOINT_ATTRIBUTE = "ChirpCheckpoint"

# A loop with a thousand epochs a second must not pay a round trip for each.
_CHIRP_INTERVAL_S = 1.0
_last_chirp: dict[str, float] = {}
_first: dict[str, float] = {}


def progress(epoch: int, epochs: int, **metrics: float) -> None:
    """Record that `epoch` (1-based) of `epochs` is done, with its metrics by name.

    Live in the job's ad as ``ChirpProgress``, in ``metrics.jsonl`` always.
    Raises ValueError for an epoch outside 0..epochs, TypeError for a metric that is no number.
    """
    if not 0 <= epoch <= epochs:
        raise ValueError(f"epoch {epoch} is not within 0..{epochs}")
    now = round(time.time(), 3)
    # What this start of the job began with, and when: without it an observer who comes late takes
    # a job that began anew for one that went on.
    _first.setdefault("epoch", epoch)
    _first.setdefault("time", now)
    record = {"epoch": epoch, "epochs": epochs, "metrics": _numbers(metrics), "time": now}
    _append("progress", record)
    record["first"] = _first
    _chirp(PROGRESS_ATTRIBUTE, record, now=epoch == epochs)


def save(path: str | os.PathLike[str], write: Callable[[str], object], epoch: int) -> str:
    """Have `write` make an output, put it at `path` atomically, record it; return its sha256.

    `write` gets the name of a temporary file beside `path`. The file is flushed to disk before it
    takes the place of an older one, so a crash leaves either the old one or the new one. What the
    job goes on from after it was stopped is kept by `checkpoint.save` instead.
    Raises OSError when the disk is full or `path` cannot be written.
    """
    target = Path(path)
    digest, size = atomic.write(target, write)
    record = {"path": str(target), "epoch": epoch, "bytes": size, "sha256": digest}
    _append("checkpoint", record)
    _chirp(CHECKPOINT_ATTRIBUTE, record, now=True)
    return digest


def result(**values: Json) -> None:
    """Record one row of final results, e.g. ``result(model="dense", clean=0.99, pgd20=0.87)``.

    Text values name the row, numbers fill it. Accuracies are fractions in 0..1. Lists and mappings,
    such as ``details={"config": {...}}``, are kept with the row and are no column of a table.
    Raises TypeError for a value that JSON has not, ValueError as `check_result` does.
    """
    check_result(values)
    _append("result", {"values": values})


def check_result(values: Mapping[str, Json]) -> None:
    """Both sides' rule for a row: JSON, at most 64 KB of it in UTF-8, nested at most 16 deep.

    Raises ValueError for a row that is larger or deeper, or holds a NaN, an infinity or half of a
    surrogate pair; TypeError for a value that JSON has not.
    """
    # Before anything that recurses without a limit of its own.
    _check_depth(values, RESULT_DEPTH)
    size = len(json.dumps(values, ensure_ascii=False, allow_nan=False).encode())
    if size > RESULT_BYTES:
        raise ValueError(f"a result of {size} bytes: at most {RESULT_BYTES} are kept")


def _check_depth(value: object, left: int) -> None:
    if isinstance(value, dict | list | tuple):
        if left == 0:
            raise ValueError(f"a result nested more than {RESULT_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _numbers(metrics: dict[str, float]) -> dict[str, float | None]:
    """Plain floats for JSON; a NaN or an infinity becomes null, which JSON can carry."""
    plain = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in plain.items()}


def _append(kind: str, record: dict[str, Any]) -> None:
    line = json.dumps({"kind": kind, "time": round(time.time(), 3), **record}, allow_nan=False)
    # One write call a line: a reader never sees half of one.
    with Path(METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _chirp(attribute: str, record: dict[str, Any], now: bool) -> None:
    """Set `attribute` in the job's ad to the record's JSON text, if it is time for it."""
    last = _last_chirp.get(attribute, -_CHIRP_INTERVAL_S)
    if now or time.monotonic() - last >= _CHIRP_INTERVAL_S:
        _last_chirp[attribute] = time.monotonic()
        chirp.set_attribute(attribute, record)
