"""HTCondor's chirp, from inside a job: attributes of its ad, files in the folder it works for.

The starter listens for a job that asked for ``want_io_proxy = true`` and passes what it says on to
the shadow, so no network is needed but HTCondor's own (manual, "Chirp"; file access may be switched
off there by ENABLE_CHIRP_IO). Paths are those of the submit machine, relative to the job's Iwd.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_CONNECT_S = 5.0
# A submit machine whose disk is busy may take its time with a block.
_REPLY_S = 60.0
_BLOCK = 1 << 18
_NOT_ALLOWED, _NO_SUCH_FILE = {-1, -2, -8}, -3


class Refused(OSError):
    """A command that was answered with an error; `code` is chirp's own number for it."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"chirp refuses {command} ({code})")
        self.code = code


def is_there() -> bool:
    """Whether this process runs in a job with a chirp proxy."""
    return bool(os.environ.get("_CONDOR_CHIRP_CONFIG"))


def set_attribute(name: str, value: Mapping[str, Any]) -> None:
    """Set an attribute of the job's ad to the JSON text of `value`; nothing where that fails.

    HTCondor lets a job set only attributes whose names begin with "Chirp". The starter forwards
    them with its periodic update, every few seconds at best.
    """
    if not is_there():
        return
    # The value is a ClassAd string literal.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    literal = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        with Connection(_CONNECT_S) as chirp:
            chirp.ask("set_job_attr_delayed", name, literal)
    except (OSError, ValueError):
        # What a job says of itself is a courtesy: it never fails the training.
        return


class NotAllowed(Refused):
    """A command that this pool does not let jobs use."""


class Connection:
    """One connection to the starter, as a context manager.

    All that goes wrong is an OSError: `Refused` for an answer that says no.
    """

    def __init__(self, reply_s: float = _REPLY_S) -> None:
        config = Path(os.environ["_CONDOR_CHIRP_CONFIG"]).read_text(encoding="ascii")
        host, port, cookie = config.split()
        self._socket = socket.create_connection((host, int(port)), _CONNECT_S)
        self._socket.settimeout(reply_s)
        self._replies = self._socket.makefile("rb")
        self.ask("cookie", cookie)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._replies.close()
        self._socket.close()

    def ask(self, *words: str | int, data: bytes | memoryview = b"") -> int:
        """Send a command, and `data` after it; its answer, a number from 0 on."""
        # A word ends at an unescaped blank.
        line = " ".join(re.sub(r"([\\\s])", r"\\\1", str(word)) for word in words)
        self._socket.sendall(f"{line}\n".encode())
        if data:
            self._socket.sendall(data)
        answer = self._replies.readline()
        if not re.fullmatch(rb"-?\d+\r?\n", answer):
            raise ConnectionError(f"chirp does not answer {words[0]}")
        if (code := int(answer)) < 0:
            raise (NotAllowed if code in _NOT_ALLOWED else Refused)(str(words[0]), code)
        return code

    def names(self, folder: str) -> set[str]:
        """What there is in a folder there."""
        listing = self._replies.read(self.ask("getdir", folder)).decode("utf-8", "replace")
        return set(listing.split("\n")) - {"", ".", ".."}

    def put(self, source: Path, target: str) -> None:
        """Have the file `source` at `target` there: whole and on its disk, or not at all."""
        partial = f"{target}.partial"
        number = self.ask("open", partial, "wct", 0o600)
        self._replies.readline()  # its state, which nobody asked for
        block = memoryview(bytearray(_BLOCK))
        try:
            with source.open("rb") as file:
                while size := file.readinto(block):
                    if self.ask("write", number, size, data=block[:size]) != size:
                        raise ConnectionError(f"chirp took only a part of {source}")
            self.ask("fsync", number)
        finally:
            self.ask("close", number)
        self.ask("rename", partial, target)

    def remove(self, target: str) -> None:
        """Remove a file there, if there is one."""
        try:
            self.ask("unlink", target)
        except Refused as refused:
            if refused.code != _NO_SUCH_FILE:
                raise
