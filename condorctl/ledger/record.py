"""What a job's own node says of it: the record that stage.sh writes beside the job's output.

Lines of text, ``<cluster>.job`` in the stage's folder: the machine, the command's exit code, and
the hash and size of each file of the outputs. The job could have written it itself, so nothing in
it is believed that is not of the form expected; a record that is missing or odd is no error.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condorctl.ledger import Job, Output, gpus

_FORMAT = "condorctl-job 1"
# A folder of a hundred thousand files.
_MOST_BYTES = 32 << 20
_MOST_TEXT = 200

# sha256sum puts a backslash before the hash when it has escaped some in the name.
_HASH = re.compile(r"(?P<escaped>\\?)(?P<sha256>[0-9a-f]{64}) [ *](?P<path>.+)")
_USE = re.compile(r"\d+ (?P<percent>\d{1,3}) (?P<memory_mb>\d{1,9})", re.ASCII)
_SIZE = re.compile(r"bytes (?P<bytes>\d{1,18}) (?P<path>.+)")
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}


@dataclass
class Record:
    """A job's record: the machine, the exit code, and each file's bytes and SHA-256 by its path.

    `use` is that of its GPUs, as `gpus.use` has it; empty where nobody looked.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    use: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


def read(job: Job) -> None:
    """Enter into the ledger what the record of `job`, which has ended, says."""
    if job.stage.run.kind != "pipeline":
        return
    found = load(job.stage.folder / f"{job.cluster}.job")
    job.machine = gpus.joined(found.machine, job.machine)
    # HTCondor's own measure, where it has one, is of the whole job.
    job.usage = {**found.use, **(job.usage or {})}
    codes = job.stage.final_exit_codes
    if codes and job.exit_code == codes[0] and found.exit_code in codes:
        job.exit_code = found.exit_code
    known = {output.path: output for output in job.written}
    for path, (size, sha256) in found.files.items():
        if path in known:
            known[path].bytes, known[path].sha256 = size, sha256
        else:
            job.written.append(Output(path=path, bytes=size, sha256=sha256))


def load(file: Path) -> Record:
    """What the record in `file` says; an empty one when there is none."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except OSError:
        return Record()
    text = raw.decode("utf-8", "replace")
    if len(raw) > _MOST_BYTES or not text.startswith(f"{_FORMAT}\n"):
        return Record()
    head, _, listing = text.partition("\nfiles\n")
    return _parse(head.split("\n"), listing.split("\n"))


def _parse(head: list[str], listing: list[str]) -> Record:
    values: dict[str, str] = {}
    seen = []
    for line in head:
        key, _, value = line.partition(" ")
        if key == "gpu":
            seen.append([part.strip()[:_MOST_TEXT] for part in value.split(",")])
        else:
            values.setdefault(key, value[:_MOST_TEXT])
    found = Record(exit_code=_number(values.get("exit")))
    for key in ("host", "kernel"):
        if values.get(key):
            found.machine[key] = values[key]
    for key in ("start", "end"):
        if (when := _number(values.get(key))) is not None:
            found.machine[key] = when
    if mine := _of_this_job(seen, values.get("devices", "")):
        found.machine["gpus"] = [{"name": gpu[2], "memory_mb": _number(gpu[3])} for gpu in mine]
        found.machine["driver"] = mine[0][4]
    if use := _USE.fullmatch(values.get("use", "")):
        found.use = gpus.use(int(use["percent"]) / 100, int(use["memory_mb"]))
    found.files = _files(listing)
    return found


def _of_this_job(seen: list[list[str]], devices: str) -> list[list[str]]:
    """Those that the job may use: CUDA takes numbers, UUIDs, and beginnings of UUIDs."""
    whole = [gpu for gpu in seen if len(gpu) == 5]
    wanted = [device.strip() for device in devices.split(",") if device.strip()]
    return [
        gpu
        for gpu in whole
        if any(w == gpu[0] or (len(w) > 4 and gpu[1].startswith(w)) for w in wanted)
    ]


def _files(listing: list[str]) -> dict[str, tuple[int, str]]:
    hashes: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for line in listing:
        if match := _HASH.fullmatch(line):
            path = match["path"]
            if match["escaped"]:
                path = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], path)
            hashes[posixpath.normpath(path)] = match["sha256"]
        elif match := _SIZE.fullmatch(line):
            sizes[posixpath.normpath(match["path"])] = int(match["bytes"])
    return {
        path: (sizes[path], sha256)
        for path, sha256 in hashes.items()
        if path in sizes and is_inside(path)
    }


def is_inside(path: str) -> bool:
    """Whether a file of that path lies in the job's own folder."""
    return not path.startswith("/") and ".." not in path.split("/")


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,15}", text, re.ASCII) else None
