"""The lines of logs that show why something is as it is: file, number, text.

Logs are read as text, since a line number is what a human can look up. They may be long, and a job
may write what it likes into its own: lines are cut, and only the end of a file is kept.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 1000
_KEPT = 400
# Of an event, as HTCondor writes it: its number, the job, date and time, what happened.
_EVENT = re.compile(r"(?P<kind>\d{3}) \((?P<cluster>\d+)\.(?P<proc>\d+)\.\d+\) ")
_END_OF_EVENT = "..."
_PEAK = re.compile(r"\s*(?P<mb>\d+)\s+-\s+MemoryUsage of job \(MB\)")
_USED = re.compile(
    r"\s*(?P<name>Memory \(MB\)|Disk \(KB\))\s*:\s*(?P<used>\d*)\s+(?P<asked>\d+)\s+\d+\s*$"
)


@dataclass(frozen=True)
class Line:
    """A line of a file; numbers count from 1."""

    file: Path
    number: int
    text: str

    def as_json(self) -> dict[str, str | int]:
        return {"file": str(self.file), "line": self.number, "text": self.text}


@dataclass(frozen=True)
class Peak:
    """The most that a job was seen to use, and what it had asked for; MB, None where not known."""

    used: int | None = None
    asked: int | None = None

    def __or__(self, other: Peak) -> Peak:
        used = max((p.used for p in (self, other) if p.used is not None), default=None)
        return Peak(used, other.asked if other.asked is not None else self.asked)


def read(path: Path) -> Iterator[Line]:
    """The lines of the file; none when it cannot be read.

    Of a line that a progress bar has drawn over itself, what it showed last.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip(b"\r\n").rpartition(b"\r")[2][:_LONGEST]
                yield Line(path, number, text.decode(errors="replace").rstrip())
    except OSError:
        return


def tail(path: Path) -> list[Line]:
    """The last lines of the file."""
    return list(deque(read(path), _KEPT))


def event(
    logs: Iterable[Path], cluster: int, proc: int, kinds: Collection[int]
) -> tuple[int, list[Line]] | None:
    """Number and lines of the job's last event of these kinds, from the first log that has one."""
    for log in logs:
        found: tuple[int, list[Line]] | None = None
        for kind, lines in _events(log, cluster, proc):
            if kind in kinds:
                found = kind, lines
        if found:
            return found
    return None


def memory(logs: Iterable[Path], cluster: int, proc: int) -> Peak:
    """The job's peak, from the updates and tables in its event logs."""
    peak = Peak()
    for log in logs:
        for _, lines in _events(log, cluster, proc):
            for line in lines:
                if found := _PEAK.match(line.text):
                    peak |= Peak(int(found["mb"]))
                elif (found := _USED.match(line.text)) and found["name"].startswith("Memory"):
                    peak |= Peak(int(found["used"] or 0) or None, int(found["asked"]))
    return peak


def _events(log: Path, cluster: int, proc: int) -> Iterator[tuple[int, list[Line]]]:
    """The job's events in their order."""
    kind, lines = None, []
    for line in read(log):
        if kind is None:
            found = _EVENT.match(line.text)
            if found and (int(found["cluster"]), int(found["proc"])) == (cluster, proc):
                kind, lines = int(found["kind"]), [line]
        elif line.text == _END_OF_EVENT:
            yield kind, lines
            kind = None
        else:
            lines.append(line)


def dag_errors(dagman_out: Path) -> list[Line]:
    """What DAGMan said before it gave up on the DAG as a whole, without date and time."""
    # It may have been started more than once, each time into the same file.
    lines: list[Line] = []
    for line in read(dagman_out):
        if "STARTING UP" in line.text:
            lines = []
        elif _DAG_ERROR.search(line.text):
            lines.append(_undated(line))
    return lines


def named_line(folder: Path, errors: Iterable[Line]) -> list[Line]:
    """The line of a DAG's file in `folder` that DAGMan's words point at, as ``FILE:LINE``."""
    for error in errors:
        if found := re.search(r"Processing error at (?P<name>.+):(?P<number>\d+)$", error.text):
            lines = read(folder / found["name"])
            return [line for line in lines if line.number == int(found["number"])]
    return []


_DAG_ERROR = re.compile(
    r" ERROR\b(?!:? the following)|Processing error at|Failed to parse|fatal error"
)
_DATE = re.compile(r"[\d/-]+ [\d:.]+ (?:\([^)]*\) )*")


def script_failure(dagman_out: Path, node: str) -> list[Line]:
    """What DAGMan last said of the node's PRE or POST script when it failed."""
    name = re.escape(node)
    failed = re.compile(rf"(?:PRE|POST) Script of [Nn]ode {name} (?:failed|died)")
    told = [
        line
        for line in read(dagman_out)
        if failed.search(line.text) or "Cannot access specified executable" in line.text
    ]
    last = next((line for line in reversed(told) if failed.search(line.text)), None)
    if not last:
        return []
    # A script that could not even be started is told of a few lines before.
    return [_undated(line) for line in told if last.number - 5 < line.number <= last.number]


def command(dag: Path, node: str, word: str) -> Line | None:
    """The line of the DAG's file that gives the node a script: `word` is PRE or POST."""
    options = r"(?:(?:DEFER|DEBUG)(?:\s+\S+){2}\s+)*"
    pattern = re.compile(
        rf"\s*SCRIPT\s+{options}{word}\s+(?:{re.escape(node)}|ALL_NODES)\s", re.IGNORECASE
    )
    return next((line for line in read(dag) if pattern.match(line.text)), None)


def submit_line(submit_file: Path, keys: Sequence[str]) -> Line | None:
    """The line of the submit file that sets one of `keys`; the last one counts."""
    wanted = {key.lower() for key in keys}
    found = None
    for line in read(submit_file):
        key = line.text.partition("=")[0].strip().lower()
        if key in wanted and "=" in line.text:
            found = line
    return found


def _undated(line: Line) -> Line:
    return Line(line.file, line.number, _DATE.sub("", line.text, count=1))
