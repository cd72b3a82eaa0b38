"""The end of what a job printed: from its sandbox while it runs, else from its files here."""

from __future__ import annotations

import os
from typing import Any, Literal

from condorctl.condor import cluster
from condorctl.deadline import Deadline
from condorctl.errors import UserError
from condorctl.files import locate, sandbox
from condorctl.files.locate import Target
from condorctl.files.receive import open_plain
from condorctl.ledger import Ledger, job_states

Json = dict[str, Any]
Stream = Literal["out", "err"]

STREAMS: tuple[Stream, ...] = ("out", "err")
_ASK_S = 10.0


def tail(ledger: Ledger, job: str, stream: Stream, most: int, live: bool) -> Json:
    """The last `most` bytes of the stdout or stderr of a job, or of the first process of several.

    With `live`, a running job is asked for it. Returns `text`, `bytes` (of the whole file, null
    where that is not known), `cut` (whether the beginning is missing) and `note`, which says why
    there is nothing. Raises UserError when there is no such job.
    """
    target = locate.targets(ledger, job)[0]
    if target.state in job_states.REACHABLE and target.row is not None:
        return _running(target, stream, most, live)
    try:
        with open_plain(target.out if stream == "out" else target.err) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - most))
            return _told(file.read(most), size, size > most, "it printed nothing")
    except sandbox.Refused:
        return _nothing("this is no regular file")
    except OSError as error:
        return _nothing(target.why_not or error.strerror or str(error))


def _running(target: Target, stream: Stream, most: int, live: bool) -> Json:
    later = f"it runs: condorctl logs {target.number} shows what it prints"
    if not live:
        return _nothing(later)
    called = sandbox.STDOUT if stream == "out" else sandbox.STDERR
    try:
        # Another schedd gives the same number to another job.
        if target.id != f"{cluster.schedd_name()}#{target.number}":
            return _nothing("it runs at another schedd than the one that is asked from here")
        text = sandbox.tail(target.number, called, most, Deadline(_ASK_S))
    except (sandbox.NoSsh, UserError) as error:
        return _nothing(f"{later} ({error})")
    return _told(text, None, len(text) >= most, "it has printed nothing yet")


def _told(printed: bytes, size: int | None, cut: bool, otherwise: str) -> Json:
    text = printed.decode("utf-8", errors="replace")
    # A character that the cut went through is none.
    text = text.lstrip("\N{REPLACEMENT CHARACTER}") if cut else text
    return {"text": text, "bytes": size, "cut": cut, "note": None if text else otherwise}


def _nothing(note: str) -> Json:
    return {"text": "", "bytes": 0, "cut": False, "note": note}
