"""Reading files in the sandbox of a running job, by condor_ssh_to_job and condor_tail.

The remote exit status cannot be trusted (into a container it is lost), so every file travels with
its size and sha256 in-band, and the stream has an end mark.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO

# A job that runs has its output under names of HTCondor's own.
STDOUT, STDERR = "_condor_stdout", "_condor_stderr"

_CONNECT_S = 60.0
_STALL_S = 60.0
_CHUNK = 1 << 20
# condor_tail sends the end of a file: more than any log that one wants to read.
_TAIL_BYTES = 1 << 30

# Writes for each file "<size> <sha256> <name>\0" and the first <size> bytes: a log may grow
# meanwhile. `find` expands folders; links are not followed out of the sandbox. Without line breaks,
# which condor_ssh_to_job loses on the way.
_SEND = (
    'for name do if [ -f "$name" ] && [ -r "$name" ]; then '
    'size=$(wc -c <"$name"); size=$((size)); sum=$(head -c "$size" <"$name" | sha256sum); '
    """printf '%s %s %s\\0' "$size" "${sum%% *}" "$name"; head -c "$size" <"$name"; """
    """else printf '%s - %s\\0' -1 "$name"; fi; done"""
)
_SEND_ALL = (
    "send=$1; shift; for path do "
    """[ -e "$path" ] || { printf '%s - %s\\0' -1 "$path"; exit; }; done; """
    'for path do if [ -d "$path" ]; then '
    'find "$path" -type f -exec sh -c "$send" sh {} +; else sh -c "$send" sh "$path"; fi; done; '
    """printf '%s - \\0' -2"""
)
_MISSING, _END = -1, -2

# condor_ssh_to_job says these while a job is starting; the next try may get through.
_NOT_YET = re.compile(
    r"is not running|not yet ready|suspended|Failed to read address|starter address"
    r"|Use -auto-retry",
    re.IGNORECASE,
)


class Broken(Exception):
    """The stream ended early, or a file changed while it was read: asking again may help."""


class Missing(Exception):
    """There is no such file; its name is the message."""


class NoSsh(Exception):
    """condor_ssh_to_job will not get into this job, however often it tries."""


class NotRunning(Exception):
    """The job has left its slot."""


class Stream:
    """What the far side sends, with a limit on how long it may say nothing."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        assert process.stdout is not None
        self._stderr, self._fd = stderr, process.stdout.fileno()
        self._buffer = b""

    def files(self, wanted: Sequence[str]) -> Iterator[tuple[str, int, str]]:
        """Name, size and sha256 of each file; its bytes are to be `read` before the next.

        Raises Missing, and Broken when the stream does not make sense.
        """
        while True:
            size_text, _, rest = self._read_until(b"\0").partition(" ")
            digest, _, name = rest.partition(" ")
            try:
                size = int(size_text)
            except ValueError:
                raise Broken("a file changed while it was read") from None
            if size == _END:
                return
            if size == _MISSING:
                raise Missing(name)
            # The far side is not trusted with the choice of what is written here.
            below = any(name == path or name.startswith(f"{path.rstrip('/')}/") for path in wanted)
            if size < 0 or not below or ".." in PurePosixPath(name).parts:
                raise Broken(f"{name!r} was sent unasked")
            yield name, size, digest

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        if not self._buffer:
            self.fill()
        chunk, self._buffer = self._buffer[:count], self._buffer[count:]
        return chunk

    def fill(self) -> bool:
        """Wait for more; False at the end. Raises Broken when nothing comes for too long."""
        ready, _, _ = select.select([self._fd], [], [], _STALL_S)
        if not ready:
            raise Broken(f"nothing came for {_STALL_S:.0f} s")
        chunk = os.read(self._fd, _CHUNK)
        self._buffer += chunk
        return bool(chunk)

    def complaint(self) -> str:
        """The last line that condor_ssh_to_job wrote to its standard error."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _read_until(self, mark: bytes) -> str:
        while mark not in self._buffer:
            if len(self._buffer) > _CHUNK or not self.fill():
                raise Broken(self.complaint() or "the connection ended early")
        text, _, self._buffer = self._buffer.partition(mark)
        return text.decode(errors="surrogateescape")


@contextmanager
def stream(job: str, wanted: Sequence[str]) -> Iterator[Stream]:
    """The files and folders `wanted` of the job ``cluster.proc``; retries while it is starting.

    Raises NoSsh, and NotRunning when the job cannot be reached for a minute.
    """
    script = shlex.join(["sh", "-c", _SEND_ALL, "sh", _SEND, *wanted])
    deadline = time.monotonic() + _CONNECT_S
    while True:
        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    ["condor_ssh_to_job", job, script],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                )  # fmt: skip
            except FileNotFoundError:
                raise NoSsh("condor_ssh_to_job is not on PATH") from None
            try:
                far_side = Stream(process, stderr)
                if far_side.fill():
                    yield far_side
                    return
                process.wait(_STALL_S)
                complaint = far_side.complaint()
            finally:
                process.kill()
                process.wait()
        if not _NOT_YET.search(complaint):
            raise NoSsh(complaint)
        if time.monotonic() > deadline:
            raise NotRunning(complaint)
        time.sleep(1.0)


def tail(job: str, name: str, into: IO[bytes]) -> None:
    """Write the job's `STDOUT` or `STDERR` into a file, where ssh is not allowed.

    Raises NoSsh with condor_tail's own words when that does not work either.
    """
    which = [] if name == STDOUT else ["-no-stdout", "-stderr"]
    command = ["condor_tail", *which, "-maxbytes", str(_TAIL_BYTES), job]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=into, stderr=subprocess.PIPE, timeout=_STALL_S
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NoSsh(f"condor_tail: {error}") from None
    if answer.returncode:
        raise NoSsh(answer.stderr.decode(errors="replace").strip())
