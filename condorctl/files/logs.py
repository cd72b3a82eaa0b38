"""What a job says: its output, its errors, or HTCondor's words on it, in whatever state it is.

While it runs they come through condor_tail. Where that has already sent more than is cheap to send
again, and where it does not work, condor_ssh_to_job sends what is new. (`condor_tail -f` repeats
lines, and waits for ever for a job that is held.) What has been told is known by its length and
sha256, so that a connection that is cut, or another place where the same file lies, neither loses
nor repeats anything: an output that begins otherwise is that of another start, and is told whole.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from condorctl.condor import event_text, evicted
from condorctl.deadline import Deadline
from condorctl.errors import UserError, printable
from condorctl.files import locate, sandbox
from condorctl.files.locate import Target
from condorctl.files.receive import open_plain
from condorctl.files.sandbox import Want
from condorctl.ledger import Ledger, events, find, job_states, stage_states

What = Literal["out", "err", "events"]
# Called with a remark on what happens to the job while it is followed.
Tell = Callable[[str], None]

_INTERVAL_S = 1.0
# Bytes that are asked for anew with each look.
_CHEAP = 4 << 20
_CHUNK = 1 << 20
# Held for this long: nobody is going to release it while a script waits.
_HELD_S = 10.0
# While a job is starting, or the queue does not know yet where it runs.
_REACH_S = 60.0
# Terminal sequences that set colours, move the cursor or name the window (ECMA-48).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_ENDS = {"done", "failed", "removed", "not run"}


@dataclass
class Told:
    """How much of an output has been told: so many bytes, with that sha256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class End:
    """How following ended: the job's or stage's state, and whether all is well."""

    state: str
    well: bool


class Log:
    """One job's output, errors or events."""

    def __init__(self, ledger: Ledger, target: Target, what: What) -> None:
        self.target = target
        self._ledger, self._what = ledger, what
        self._told, self._hasher = Told(), hashlib.sha256()
        self._events = event_text.Reader(target.log, None if target.row is None else target.number)
        self._start = target.starts

    def new(self, deadline: Deadline) -> Iterator[bytes]:
        """What has not been told yet. Raises sandbox.NotRunning when the job is on its way.

        Raises UserError when the job cannot be reached.
        """
        target = self.target
        if self._what == "events":
            for line in self._events.new():
                yield f"{line}\n".encode()
            return
        if target.starts != self._start:
            # Of the start before, the last that was written may lie in the schedd's spool.
            yield from self._end_of_start_before()
            self._start = target.starts
            self._again()
        if target.row is not None and target.state in job_states.REACHABLE:
            yield from self._running(deadline)
        elif target.row is None or target.ended:
            yield from self._file(self._path)
        elif kept := locate.kept(target):
            yield from self._file(kept / self._called)

    @property
    def begun(self) -> bool:
        """Whether it has told anything."""
        return self._told.bytes > 0

    @property
    def _path(self) -> Path:
        """Where HTCondor puts it on this machine."""
        target = self.target
        if target.spooled and not target.out.exists():
            # The schedd has sent it to where the job was submitted from.
            target = locate.asked(target)
        return target.out if self._what == "out" else target.err

    @property
    def _called(self) -> str:
        return sandbox.STDOUT if self._what == "out" else sandbox.STDERR

    def _again(self) -> None:
        self._told, self._hasher = Told(), hashlib.sha256()

    def _tell(self, text: bytes) -> bytes:
        self._hasher.update(text)
        self._told = Told(self._told.bytes + len(text), self._hasher.hexdigest())
        return text

    def _rest(self, text: bytes) -> bytes:
        """What of the whole output `text` is new."""
        told = self._told
        if hashlib.sha256(text[: told.bytes]).hexdigest() != told.sha256:
            self._again()
            return text
        return text[told.bytes :]

    def _running(self, deadline: Deadline) -> Iterator[bytes]:
        locate.check_schedd(self.target)
        job = self.target.number
        try:
            if self._told.bytes < _CHEAP:
                text = sandbox.tail(job, self._called, _CHEAP, deadline)
                if len(text) < _CHEAP:
                    yield self._tell(self._rest(text))
                    return
        except sandbox.NoSsh as error:
            why = str(error)
        else:
            why = ""
        yield from self._by_ssh(deadline, why)

    def _by_ssh(self, deadline: Deadline, why: str) -> Iterator[bytes]:
        want = Want(self._called, self._told.bytes, self._told.sha256)
        try:
            for header, stream in sandbox.get(self.target.number, [want], deadline):
                if header.size < 0:
                    # With stream_output it is written here.
                    yield from self._file(self._path)
                    continue
                if header.offset != self._told.bytes:
                    self._again()
                left = header.size - header.offset
                while left:
                    chunk = stream.read(min(_CHUNK, left))
                    if not chunk:
                        raise sandbox.NotRunning("the connection was cut")
                    left -= len(chunk)
                    yield self._tell(chunk)
        except sandbox.Broken as error:
            raise sandbox.NotRunning(str(error)) from None
        except sandbox.NoSsh as error:
            text = self._by_tail_alone(deadline, why or str(error))
            yield self._tell(self._rest(text))

    def _by_tail_alone(self, deadline: Deadline, why: str) -> bytes:
        try:
            return sandbox.tail(self.target.number, self._called, sandbox.TAIL_BYTES, deadline)
        except sandbox.NoSsh:
            raise sandbox.NotRunning(why) from None

    def _end_of_start_before(self) -> Iterator[bytes]:
        folder = evicted.folder(self.target.number) if self.begun else None
        if not folder:
            return
        with suppress(OSError, sandbox.Refused), open_plain(folder / self._called) as file:
            told = self._told
            if hashlib.sha256(file.read(told.bytes)).hexdigest() == told.sha256:
                while chunk := file.read(_CHUNK):
                    yield self._tell(chunk)

    def _file(self, path: Path) -> Iterator[bytes]:
        with suppress(FileNotFoundError, sandbox.Refused), open_plain(path) as file:
            hasher, left = hashlib.sha256(), self._told.bytes
            while left and (chunk := file.read(min(_CHUNK, left))):
                hasher.update(chunk)
                left -= len(chunk)
            if hasher.hexdigest() != self._told.sha256:
                self._again()
                file.seek(0)
            while chunk := file.read(_CHUNK):
                yield self._tell(chunk)


def choose(err: bool, events: bool) -> What:
    """Which of a job's logs is meant; raises UserError when both are."""
    if err and events:
        raise UserError("--err and --events: name one of them")
    return "err" if err else "events" if events else "out"


def read(
    ledger: Ledger, job: str, what: What = "out", lines: int | None = None
) -> Iterator[tuple[Target, Iterator[bytes]]]:
    """What each of the jobs that `job` means (`find.jobs`) has said; its last `lines` lines.

    Raises UserError when there is no such job, and when it has said nothing because it never ran.
    """
    events.sync(ledger)
    for target in locate.targets(ledger, job):
        said = _said(ledger, target, what)
        yield target, said if lines is None else iter([_last(said, lines)])


def _said(ledger: Ledger, target: Target, what: What) -> Iterator[bytes]:
    deadline, end = Deadline(), time.monotonic() + _REACH_S
    said = False
    while True:
        try:
            for chunk in Log(ledger, target, what).new(deadline):
                said = said or bool(chunk)
                yield chunk
            break
        except sandbox.NotRunning as error:
            if said or time.monotonic() > end:
                raise UserError(f"{target.label}: cannot be reached: {error}", 1) from None
            time.sleep(_INTERVAL_S)
            events.sync(ledger)
            target = locate.again(ledger, target)
    if said or what == "events" or target.state in job_states.REACHABLE | {"completed"}:
        return
    if not target.folder.is_dir():
        raise locate.missing_folder(target)
    if target.why_not:
        raise UserError(f"{target.label}: there is no output: {target.why_not}", 1)


def _last(chunks: Iterator[bytes], count: int) -> bytes:
    """The last `count` lines of all that `chunks` hold."""
    kept: deque[bytes] = deque(maxlen=count)
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    return b"".join(kept)


def follow(
    ledger: Ledger, job: str, what: What, write: Callable[[bytes], None], tell: Tell,
    lines: int | None = None,
) -> End:  # fmt: skip
    """Write all that a job says until it has ended; of a stage, all that its attempts say.

    `lines` leaves out what it said before the last lines of now. Raises UserError when the job is
    held for a while and nobody is at a terminal.
    """
    followed = _Followed(ledger, job)
    log: Log | None = None
    held_since: float | None = None
    deadline = Deadline()
    while True:
        # The state before the output: what is said between the two looks is written, too.
        target, end = followed.look()
        if log and target and target.row != log.target.row:
            log.target = locate.again(ledger, log.target)
            _drain(log, write, deadline)
            tell(f"{target.number} is the next attempt, after {log.target.number}")
            log = None
        if log and target:
            _remark(log.target, target, tell)
            log.target = target
        elif target:
            log = Log(ledger, target, what)
        if log and lines is not None:
            text = _collected(log, deadline)
            write(_last(iter([text]), lines))
            lines = None if log.begun else lines
        elif log:
            _drain(log, write, deadline)
        if end:
            return end
        now = time.monotonic()
        held = target is not None and target.state == "held"
        held_since = (held_since or now) if held else None
        if target and held_since and now - held_since > _HELD_S and not sys.stdin.isatty():
            raise UserError(f"{target.label}: {target.why_not}", 1)
        time.sleep(_INTERVAL_S)


def _drain(log: Log, write: Callable[[bytes], None], deadline: Deadline) -> None:
    with suppress(sandbox.NotRunning):
        for chunk in log.new(deadline):
            write(chunk)


def _collected(log: Log, deadline: Deadline) -> bytes:
    text: list[bytes] = []
    _drain(log, text.append, deadline)
    return b"".join(text)


class _Followed:
    """A job until it has ended, or a stage with all its attempts."""

    def __init__(self, ledger: Ledger, text: str) -> None:
        self._ledger, self._text = ledger, text
        self._job: Target | None = None
        events.sync(ledger)
        if find.is_job_id(text):
            found = locate.targets(ledger, text)
            self._job = self._only(found)
        else:
            with ledger.session() as session:
                # The name that it has now, also when another run is the latest one later.
                stage = find.stage(session, text).origin
                self._text = f"{stage.run.name}/{stage.name}"

    def look(self) -> tuple[Target | None, End | None]:
        """The job, None before a stage has one; and how it ended, when it has."""
        events.sync(self._ledger)
        if self._job:
            self._job = locate.again(self._ledger, self._job)
            one = self._job
            return one, End(one.state, one.succeeded) if one.ended else None
        with self._ledger.session() as session:
            stage = find.stage(session, self._text)
            state = stage_states.of(stage.run)[stage.name]
            any_job = bool(stage.jobs)
        end = End(state, state == "done") if state in _ENDS else None
        return self._only(locate.targets(self._ledger, self._text)) if any_job else None, end

    def _only(self, found: list[Target]) -> Target:
        if len(found) > 1:
            raise UserError(
                f"{self._text} has {len(found)} processes: name one to follow, as {found[0].number}"
            )
        return found[0]


class Lines:
    """Bytes as whole lines for a terminal: what a job says must not drive it.

    Colours go, a tab becomes blanks, of what a progress bar draws over itself the last remains.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._rest = write, b""

    def __call__(self, text: bytes) -> None:
        *whole, self._rest = (self._rest + text).split(b"\n")
        for line in whole:
            self._show(line)

    def close(self) -> None:
        """Show the last line where it has no end."""
        if self._rest:
            self._show(self._rest)
        self._rest = b""

    def _show(self, line: bytes) -> None:
        text = _ESCAPES.sub("", line.decode(errors="replace")).rstrip("\r").rpartition("\r")[2]
        self._write(f"{printable(text.expandtabs())}\n")


def _remark(before: Target, now: Target, tell: Tell) -> None:
    if now.starts > before.starts > 0:
        tell(f"{now.number} was evicted and has started again")
    elif now.state != before.state and now.state == "held":
        tell(f"{now.number}: {now.why_not}")
    elif now.state != before.state and now.state == "idle":
        tell(f"{now.number} has left its slot and waits to start again")
