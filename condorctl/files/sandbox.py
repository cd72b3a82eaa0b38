"""Reading files in the sandbox of a running job, by condor_ssh_to_job and condor_tail.

The remote exit status cannot be trusted (into a container it is lost), so every file travels with
its size and sha256 in-band, and every answer has an end of its own. Files are told by their place
in the request: what the far side says never chooses a name here, except in a listing.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from condorctl.deadline import Deadline

# A job that runs has its output under names of HTCondor's own.
STDOUT, STDERR = "_condor_stdout", "_condor_stderr"
# condor_tail sends the end of a file: more than any log that one wants to read.
TAIL_BYTES = 1 << 30

_STALL_S = 60.0
_CHUNK = 1 << 20
# The remote command is one word, and Linux carries 128 KiB in a word.
_REQUEST_BYTES = 90_000
# A listing longer than these is not one of a job's outputs.
_NAMES, _LISTING_BYTES = 100_000, 32 << 20

# Of the scripts: names come as printf's %b writes them, since condor_ssh_to_job loses line breaks
# and what a shell does to the rest differs from node to node. A link is followed within the sandbox
# and never out of it. What is not a plain file is not opened: a FIFO would keep one waiting.
_RESOLVE = r"""
root=$(pwd -P); [ "$root" = / ] && root=;
resolve() { name=$(printf '%b.' "$1"); name=${name%.}; kind=0;
  path=$(readlink -f "./$name" && printf .); path=${path%??};
  if [ ! "$path" ] || { [ ! -e "$path" ] && [ ! -L "./$name" ]; }; then kind=-1; return; fi;
  case $path/ in "$root"/*) ;; *) kind=-3; esac; };
"""
# Answers each request (BYTES, SHA256 and NAME: so much is here already, and it has that sha256)
# with "<size> <sha256> <offset>\0" and the bytes from the offset to the size: a log may grow
# meanwhile. The offset is what is here, when it is how the file begins. While a large file is read
# for its sha256 a dot now and then tells that the far side lives.
_GET = (
    _RESOLVE
    + r"""
sum() { set -- $(head -c "$1" <"$path" | sha256sum); digest=$1; };
while [ $# -gt 0 ]; do have=$1; known=$2; resolve "$3"; shift 3;
  if [ $kind = 0 ] && [ -d "$path" ]; then kind=-4;
  elif [ $kind = 0 ] && ! { [ -f "$path" ] && [ -r "$path" ]; }; then kind=-3; fi;
  if [ $kind != 0 ]; then printf '%s - 0\0' $kind; continue; fi;
  size=$(wc -c <"$path"); size=$((size)); beat=; from=0;
  if [ $size -gt 500000000 ]; then
    (while sleep 5 >/dev/null 2>&1; do printf .; done) & beat=$!; fi;
  if [ "$have" -gt 0 ] && [ "$have" -le $size ]; then
    sum "$have"; [ "$digest" = "$known" ] && from=$have; fi;
  [ $from = $size ] && [ $from != 0 ] || sum $size;
  if [ "$beat" ]; then kill $beat; wait $beat 2>/dev/null; fi;
  printf '%s %s %s\0' $size "$digest" $from;
  if [ $from = 0 ]; then head -c $size <"$path";
  else tail -c +$((from + 1)) <"$path" | head -c $((size - from)); fi; done;
printf '%s - 0\0' -2
"""
)
# Lists plain files and links below each NAME: "0\0" or why not, the names, and an empty name.
_LIST = (
    _RESOLVE
    + r"""
for encoded do resolve "$encoded";
  if [ $kind = 0 ] && [ ! -d "$path" ]; then kind=-3; fi;
  printf '%s\0' $kind; [ $kind = 0 ] &&
  find -H "./$name" -path '*/.condor_ssh_to_job_*' -prune -o \( -type f -o -type l \) -print0;
  printf '\0'; done
"""
)
# Sizes that are none: the file is not there; the answer ends; it is no plain file of the job's own
# (a device, a FIFO, a link that leads out); it is a folder.
MISSING, _END, REFUSED, FOLDER = -1, -2, -3, -4
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/+=@:,")

# condor_ssh_to_job says these while a job is starting; the next try may get through.
NOT_YET = re.compile(
    r"is not running|not yet ready|Failed to read address|starter address|Use -auto-retry",
    re.IGNORECASE,
)
_SUSPENDED = re.compile("currently suspended", re.IGNORECASE)


class Broken(Exception):
    """The stream ended early, or a file changed while it was read: asking again may help."""


class Changed(Broken):
    """A file was another one at the end than at the beginning."""


class Missing(Exception):
    """There is no such file; its name is the message."""


class Refused(Exception):
    """It is no plain file of the job's own: a device, a FIFO, a link that leads out."""


class NoSsh(Exception):
    """condor_ssh_to_job will not get into this job, however often it tries."""


class NotRunning(Exception):
    """The job has left its slot."""


@dataclass(frozen=True)
class Want:
    """A file to ask for, and how much of its beginning is here already."""

    name: str
    bytes: int = 0
    sha256: str = "-"


@dataclass(frozen=True)
class Header:
    """What comes of a file: the bytes from `offset` to `size`; the sha256 is that of all.

    A size of `MISSING`, `REFUSED` or `FOLDER` says why nothing comes.
    """

    name: str
    size: int
    sha256: str
    offset: int


class Stream:
    """What the far side sends, with a limit on how long it may say nothing."""

    def __init__(self, source: IO[bytes], stderr: IO[bytes], deadline: Deadline) -> None:
        self._stderr, self._fd, self._deadline = stderr, source.fileno(), deadline
        self._buffer = b""

    def files(self, wanted: Sequence[Want]) -> Iterator[Header]:
        """A header for each file; its bytes are to be `read` before the next.

        Raises Broken when the stream does not make sense.
        """
        for want in wanted:
            size, digest, offset = self._header()
            known = size >= 0 or size in {MISSING, REFUSED, FOLDER}
            if not known or offset not in {0, want.bytes} or offset > max(size, 0):
                raise Broken("the far side does not make sense")
            yield Header(want.name, size, digest, offset)
        if self._header()[0] != _END:
            raise Broken("the far side sent more than it was asked for")

    def names(self, below: str) -> Iterator[str]:
        """The files and links in the folder `below`; raises Missing, Refused and Broken."""
        status = self._read_until(b"\0")
        if status == str(MISSING):
            raise Missing(below)
        if status != "0":
            raise Refused(below)
        count = total = 0
        while name := self._read_until(b"\0"):
            count, total = count + 1, total + len(name)
            if count > _NAMES or total > _LISTING_BYTES:
                raise Refused(f"{below}, with more than {_NAMES} files")
            name = name.removeprefix("./")
            # The far side is not trusted with the choice of what is written here.
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise Broken(f"{name!r} was sent unasked")
            yield str(PurePosixPath(name))

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        if not self._buffer:
            self.fill()
        chunk, self._buffer = self._buffer[:count], self._buffer[count:]
        return chunk

    def fill(self) -> bool:
        """Wait for more; False at the end. Raises Broken when nothing comes for too long."""
        ready, _, _ = select.select([self._fd], [], [], self._deadline.left(_STALL_S))
        if not ready:
            self._deadline.left(0)
            raise Broken(f"nothing came for {_STALL_S:.0f} s")
        chunk = os.read(self._fd, _CHUNK)
        self._buffer += chunk
        return bool(chunk)

    def complaint(self) -> str:
        """The last thing that condor_ssh_to_job wrote to its standard error."""
        return _complaint(self._stderr)

    def _header(self) -> tuple[int, str, int]:
        words = self._read_until(b"\0").lstrip(".").split(" ")
        with suppress(ValueError, IndexError):
            return int(words[0]), words[1], int(words[2])
        raise Changed("a file changed while it was read")

    def _read_until(self, mark: bytes) -> str:
        while mark not in self._buffer:
            if len(self._buffer) > _CHUNK or not self.fill():
                raise Broken(self.complaint() or "the connection ended early")
        text, _, self._buffer = self._buffer.partition(mark)
        return text.decode(errors="surrogateescape")


def get(job: str, wanted: Sequence[Want], deadline: Deadline) -> Iterator[tuple[Header, Stream]]:
    """Each of the files `wanted` of the job ``cluster.proc``, with the stream to read it from.

    Raises what `Stream.files` and `connect` do.
    """
    for batch in _batches(wanted):
        words = [word for w in batch for word in (str(w.bytes), w.sha256, encode(w.name))]
        with connect(job, command(_GET, words), deadline) as stream:
            for header in stream.files(batch):
                yield header, stream


def names(job: str, folder: str, deadline: Deadline) -> list[str]:
    """The plain files and links below `folder` ("." for all) in the sandbox of the job.

    Raises Missing, Refused, Broken, and what `connect` does.
    """
    with connect(job, command(_LIST, [encode(folder)]), deadline) as stream:
        return list(stream.names(folder))


def command(script: str, words: Sequence[str]) -> str:
    """A remote command in one line that runs `script` with `words` as its arguments."""
    return shlex.join(["sh", "-c", " ".join(script.split("\n")), "sh", *words])


def encode(name: str) -> str:
    """`name` as printf's %b reads it, in letters that no shell and no ssh changes."""
    return "".join(chr(b) if b in _PLAIN else f"\\0{b:03o}" for b in os.fsencode(name))


@contextmanager
def connect(job: str, remote: str, deadline: Deadline, patience_s: float = 0.0) -> Iterator[Stream]:
    """What `remote` writes in the sandbox of a running job.

    Raises NoSsh, Broken when it was cut off before anything came, and NotRunning when the job
    cannot be reached for `patience_s` seconds: it is starting, or has just ended, or the queue does
    not know yet where it runs.
    """
    started = time.monotonic()
    while True:
        words = ["condor_ssh_to_job", job, remote]
        with tempfile.TemporaryFile() as stderr, tool(words, stderr) as process:
            assert process.stdout is not None
            far_side = Stream(process.stdout, stderr, deadline)
            if far_side.fill():
                yield far_side
                return
            complaint = far_side.complaint()
        if not complaint:
            # Cut off before it said anything.
            raise Broken("condor_ssh_to_job ended without a word")
        if _SUSPENDED.search(complaint):
            raise NoSsh("it is suspended, and HTCondor lets nobody in then")
        if not NOT_YET.search(complaint):
            raise NoSsh(complaint)
        if time.monotonic() - started >= patience_s:
            raise NotRunning(complaint)
        deadline.sleep(1.0)


def tail(job: str, name: str, limit: int, deadline: Deadline) -> bytes:
    """The last `limit` bytes of the job's `STDOUT` or `STDERR`, also where ssh is not allowed.

    Raises NoSsh with condor_tail's own words when that does not work either.
    """
    which = [] if name == STDOUT else ["-no-stdout", "-stderr"]
    words = ["condor_tail", *which, "-maxbytes", str(limit), job]
    with tempfile.TemporaryFile() as stderr, tool(words, stderr) as process:
        try:
            # It waits for ever for a job that is held.
            text, _ = process.communicate(timeout=deadline.left(_STALL_S))
        except subprocess.TimeoutExpired:
            deadline.left(0)
            raise NoSsh("condor_tail does not answer") from None
        if process.returncode:
            raise NoSsh(_complaint(stderr))
    return text


@contextmanager
def tool(
    words: Sequence[str], stderr: IO[bytes] | int, stdin: int | None = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """One of HTCondor's tools, which is gone afterwards with all that it started."""
    try:
        # A group of its own: the ssh that it starts would outlive it, and so would a session.
        process = subprocess.Popen(
            words, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    except FileNotFoundError:
        raise NoSsh(f"{words[0]} is not on PATH") from None
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()


def _complaint(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    # What it says to do about it comes last, and is not what is wrong.
    told = [line for line in lines if not line.startswith("(")]
    return (told or lines or [""])[-1]


def _batches(wanted: Sequence[Want]) -> Iterator[list[Want]]:
    batch: list[Want] = []
    size = 0
    for want in wanted:
        # Twice a quote and a blank, the digits and the sha256.
        length = len(encode(want.name)) + 100
        if batch and size + length > _REQUEST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(want)
        size += length
    if batch:
        yield batch
