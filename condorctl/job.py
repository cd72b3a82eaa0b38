"""What a training script calls while it runs inside a job. Standard library only.

    from condorctl import job

    for epoch in range(1, epochs + 1):
        loss = train_one_epoch()
        job.progress(epoch=epoch, epochs=epochs, loss=loss)
    job.save("checkpoint.pt", write=lambda path: torch.save(state, path), epoch=epochs)
    job.result(clean=0.99, pgd20=0.87)

Every call appends one JSON line to ``metrics.jsonl`` in the working directory, which HTCondor
brings back with the job's output and condorctl reads into its ledger. Inside a job that asked for
``+WantIOProxy = true`` the latest progress also goes into the job's ad at once, through chirp's
``set_job_attr_delayed`` (HTCondor manual, "Chirp"), so that ``condorctl status`` shows it live.
Outside a pool the same script just runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What JSON can carry; lists and dictionaries at run time.
Json = str | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

METRICS_FILE = "metrics.jsonl"
RESULT_BYTES = 64 * 1024
RESULT_DEPTH = 16

# HTCondor lets a job set only attributes whose names begin with "Chirp".
PROGRESS_ATTRIBUTE = "ChirpProgress"
CHECKPOINT_ATTRIBUTE = "ChirpCheckpoint"

# The starter forwards delayed attributes with its periodic update, every few seconds at best:
# a loop with a thousand epochs a second must not pay a round trip for each.
_CHIRP_INTERVAL_S = 1.0
_CHIRP_TIMEOUT_S = 5.0
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
    """Have `write` make a checkpoint, put it at `path` atomically, record it; return its sha256.

    `write` gets the name of a temporary file beside `path`. The file is flushed to disk before it
    takes the place of an older one, so a crash leaves either the old checkpoint or the new one.
    Raises OSError when the disk is full or `path` cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        write(str(partial))
        with partial.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
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
    """Set `attribute` in the job's ad to the record's JSON text; never fails the training."""
    config = os.environ.get("_CONDOR_CHIRP_CONFIG")
    last = _last_chirp.get(attribute, -_CHIRP_INTERVAL_S)
    if not config or not (now or time.monotonic() - last >= _CHIRP_INTERVAL_S):
        return
    _last_chirp[attribute] = time.monotonic()
    try:
        host, port, cookie = Path(config).read_text(encoding="ascii").split()
        # The value is a ClassAd string literal; chirp's own words end at an unescaped blank.
        text = json.dumps(record, separators=(",", ":"), allow_nan=False)
        literal = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        word = literal.replace("\\", "\\\\").replace(" ", "\\ ")
        with socket.create_connection((host, int(port)), _CHIRP_TIMEOUT_S) as proxy:
            replies = proxy.makefile("r", encoding="ascii")
            for command in (f"cookie {cookie}", f"set_job_attr_delayed {attribute} {word}"):
                proxy.sendall(f"{command}\n".encode())
                if int(replies.readline()) < 0:
                    return
    except (OSError, ValueError):
        # Progress is a courtesy; the record in metrics.jsonl is the truth.
        return
