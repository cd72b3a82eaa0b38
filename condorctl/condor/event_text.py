"""HTCondor's event log as lines for a human.

See HTCondor's manual, "Job Event Log Codes".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from condorctl.condor import cluster
from condorctl.condor.codes import JobEvent
from condorctl.errors import printable

_PLAIN: dict[int, str] = {
    JobEvent.SUBMIT: "submitted",
    JobEvent.EVICTED: "evicted",
    JobEvent.ABORTED: "removed",
    JobEvent.SUSPENDED: "suspended",
    JobEvent.UNSUSPENDED: "goes on",
    JobEvent.HELD: "held",
    JobEvent.RELEASED: "released",
    JobEvent.DISCONNECTED: "its node does not answer",
    JobEvent.RECONNECTED: "its node answers again",
    JobEvent.RECONNECT_FAILED: "its node is lost, it will start again",
}
# What the event of a file transfer is about, by the number in it.
_TRANSFERS = {
    1: "waits for its input files", 2: "gets its input files", 3: "has its input files",
    4: "waits to send its output files", 5: "sends its output files", 6: "sent its output files",
}  # fmt: skip


class Reader:
    """Reads the log at `path` on and on; of one job, ``cluster.proc``, or of all."""

    def __init__(self, path: Path, job: str | None) -> None:
        self._path, self._job = path, job
        self._position = cluster.Start()

    def new(self) -> Iterator[str]:
        """A line for each event since the last call. Raises cluster.DamagedLog."""
        if not self._path.is_file() or self._path.stat().st_size <= self._position.offset:
            return
        for event in cluster.read_events(self._path, self._position):
            number = f"{event.get('Cluster')}.{event.get('Proc', 0)}"
            if self._job in (None, number):
                yield line(event)


def line(event: cluster.Ad) -> str:
    """``2026-11-24 11:58:52  started on slot1@node``."""
    when = datetime.fromisoformat(str(event["EventTime"])).strftime("%Y-%m-%d %H:%M:%S")
    return printable(f"{when}  {_words(event)}")


def _words(event: cluster.Ad) -> str:
    kind = event["EventTypeNumber"]
    reason = str(event.get("HoldReason") or event.get("Reason") or event.get("Info") or "")
    if kind == JobEvent.TERMINATED:
        if event.get("TerminatedNormally"):
            return f"ended with exit code {event.get('ReturnValue')}"
        return f"ended with signal {event.get('TerminatedBySignal')}"
    if kind == JobEvent.IMAGE_SIZE:
        return f"uses {event.get('MemoryUsage', '?')} MB of memory"
    if kind == JobEvent.FILE_TRANSFER:
        return _TRANSFERS.get(int(event.get("Type", 0)), "transfers files")
    if kind == JobEvent.EXECUTE:
        return f"started on {event.get('SlotName') or event.get('ExecuteHost')}"
    # JobAdInformationEvent: job ad information
    name = re.sub(r"Event$", "", str(event.get("MyType", f"event {kind}")))
    words = _PLAIN.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return f"{words}: {' '.join(reason.split())}" if reason else words
