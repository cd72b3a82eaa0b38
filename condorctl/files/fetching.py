"""Bringing a job's files back, in whatever state it is.

Out of its sandbox while it runs, out of the schedd's spool when it was evicted with them, else from
the folder that HTCondor put them in (`locate`). An interrupted fetch goes on where it stopped.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from condorctl.deadline import Deadline
from condorctl.errors import UserError
from condorctl.files import locate, patterns, receive, sandbox
from condorctl.files.locate import Target
from condorctl.files.receive import File, check_path
from condorctl.files.sandbox import Header, Want
from condorctl.ledger import Fetched, Ledger, Run, events, find, job_states
from condorctl.terminal import Progress

_ATTEMPTS = 3
# While a job is starting, or the queue does not know yet where it runs.
_REACH_S = 60.0
# Of a job that is followed: each look starts an sshd beside it.
_INTERVAL_S = 2.0
# Held for this long: nobody is going to release it while a script waits.
_HELD_S = 10.0


@dataclass
class Brought:
    """What a fetch has brought, what a human should know of it, and what it could not bring."""

    files: list[File] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def fetch(
    ledger: Ledger,
    job: str,
    paths: Sequence[str] = (),
    to: Path | None = None,
    progress: Progress = lambda *_: None,
    timeout: float | None = None,
    follow: bool = False,
) -> Brought:
    """Bring `paths` of a job into the folder `to`; its output, errors and event log by default.

    `job` is what `find.jobs` takes, or a run, of which the outputs of its finished stages come.
    Paths are relative to the job's sandbox; folders stand for all that is in them, and wildcards
    are those of `patterns`. Each file appears under its own name only once it is whole and its
    sha256 agrees. With `follow` files that grow keep coming until the job has ended. A file is a
    dictionary with ``job``, ``path``, ``target``, ``bytes`` and ``sha256``.

    Raises UserError when there is no such job or file, the job cannot be reached, or it takes
    longer than `timeout` seconds (exit code 124).
    """
    for path in paths:
        check_path(path)
    deadline = Deadline(timeout)
    brought = Brought()
    found = _asked(ledger, job, list(paths), to, brought)
    for target, wanted, root in found:
        one = _Fetch(ledger, target, wanted, root, progress, deadline, brought)
        try:
            one.follow() if follow else one.bring()
        except UserError as error:
            if len(found) == 1 or error.exit_code == 124:
                raise
            brought.problems.append(str(error))
        except OSError as error:
            where = error.filename or root
            raise UserError(f"{where}: {error.strerror or error}", 1) from None
        finally:
            _record(ledger, one)
    if brought.problems and not brought.files:
        raise UserError("; ".join(brought.problems), 1)
    brought.remarks = list(dict.fromkeys(brought.remarks))
    return brought


def _asked(
    ledger: Ledger, text: str, paths: list[str], to: Path | None, brought: Brought
) -> list[tuple[Target, list[str], Path]]:
    """The jobs that `text` means, what is wanted of each, and the folder that it goes to."""
    run = _run(ledger, text)
    if run is None:
        found = locate.targets(ledger, text)
        if len(found) == 1:
            return [(found[0], paths, to or Path("fetched") / found[0].number)]
        return [(one, paths, (to or Path("fetched")) / one.number) for one in found]
    stages = []
    for name in run:
        try:
            jobs = locate.targets(ledger, f"{text}/{name}")
        except UserError:
            jobs = []
        for one in jobs:
            home = (to or Path("fetched") / text) / name
            if one.succeeded:
                folder = home if len(jobs) == 1 else home / one.number
                stages.append((one, paths or list(one.outputs), folder))
        if not jobs or not all(one.succeeded for one in jobs):
            brought.remarks.append(f"{text}/{name}: not done, so nothing of it was fetched")
    if not stages:
        raise UserError(f"{text}: no stage of it is done yet: `condorctl status {text}`", 1)
    return stages


def _run(ledger: Ledger, text: str) -> list[str] | None:
    """The stages of the run called `text`; None where it is a job's or a stage's name."""
    with ledger.session() as session:
        run = session.scalar(select(Run).where(Run.name == text))
        if run is None:
            return None
        latest = find.run(session, None)
        if any(stage.name == text for stage in latest.stages):
            return None
        return [stage.name for stage in run.stages]


def _record(ledger: Ledger, done: _Fetch) -> None:
    if done.target.row is None or not done.got:
        return
    with ledger.session() as session:
        for file in done.got.values():
            # Linux takes any bytes for a name, a database only text.
            words = {k: _text(v) if isinstance(v, str) else v for k, v in file.items()}
            words.pop("job")
            session.add(Fetched(job_id=done.target.row, time=time.time(), **words))


def _text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


class _Fetch:
    """One job's files on their way into one folder."""

    def __init__(
        self, ledger: Ledger, target: Target, paths: Sequence[str], to: Path, progress: Progress,
        deadline: Deadline, brought: Brought,
    ) -> None:  # fmt: skip
        self.target, self.got = target, dict[str, File]()
        self._ledger, self._paths, self._to = ledger, paths, to
        self._progress, self._deadline, self._brought = progress, deadline, brought
        self._moved = False

    def bring(self) -> None:
        """Everything once."""
        end = time.monotonic() + _REACH_S
        while True:
            try:
                self._from_where_it_is()
                break
            except sandbox.NotRunning as error:
                # It has just started, or ended between the look and the call: then its files are
                # on their way here, or here.
                if time.monotonic() > end:
                    raise UserError(f"{self.target.label}: cannot be reached: {error}", 1) from None
                self._deadline.sleep(1.0)
                self._look()
        self._brought.files = [
            *(file for file in self._brought.files if file["job"] != self.target.number),
            *self.got.values(),
        ]

    def follow(self) -> None:
        """Again and again until the job has ended, and once more then."""
        held_since: float | None = None
        while True:
            began = time.monotonic()
            self._look()
            ended = self.target.ended
            try:
                self.bring()
            except UserError as error:
                if error.exit_code == 124 or (ended and not self.got):
                    raise
                if ended:
                    # Nobody asked HTCondor to bring it, and its sandbox is gone.
                    self._remark(f"{error}; what is here of it is as it was at the last look")
            if ended:
                return
            now = time.monotonic()
            held_since = (held_since or now) if self.target.state == "held" else None
            if held_since and now - held_since > _HELD_S and not sys.stdin.isatty():
                raise UserError(f"{self.target.label}: {self.target.why_not}", 1)
            self._deadline.sleep(max(_INTERVAL_S, 4 * (now - began)))

    def _look(self) -> None:
        events.sync(self._ledger)
        self.target = locate.again(self._ledger, self.target)

    def _remark(self, words: str) -> None:
        self._brought.remarks.append(words)

    def _from_where_it_is(self) -> None:
        target = self.target
        if target.row is not None and target.state in job_states.REACHABLE:
            locate.check_schedd(target)
            self._from_sandbox()
        elif kept := locate.kept(target):
            if not self._paths:
                self._remark(f"{target.label}: {_LEFT[target.state]} this is what it had by then")
            self._from_folder(kept)
        else:
            if target.spooled and target.ended:
                self.target, problem = locate.spooled(target, self._deadline)
                if problem:
                    self._remark(f"{target.label}: not all came from the schedd: {problem}")
            self._from_folder(self.target.folder)

    # --- a job that runs ---

    def _from_sandbox(self) -> None:
        target = self.target
        ours = {target.out.name: sandbox.STDOUT, target.err.name: sandbox.STDERR}
        if not self._paths:
            for path in [*target.more_logs, target.log]:
                self._log(path)
        wanted = [ours.get(path, path) for path in self._paths or ours]
        attempt = 0
        while True:
            self._moved = False
            try:
                self._ask(wanted, {sandbox_name: name for name, sandbox_name in ours.items()})
                return
            except sandbox.Missing as error:
                streamed = {sandbox.STDOUT: target.out, sandbox.STDERR: target.err}
                if str(error) in streamed and (path := streamed[str(error)]).is_file():
                    # stream_output has HTCondor write it here.
                    self._log(path)
                    wanted.remove(str(error))
                    continue
                raise UserError(f"{target.label}: has no {error}", 1) from None
            except sandbox.Refused as error:
                raise UserError(f"{target.label}: {_refused(str(error))}", 1) from None
            except sandbox.NoSsh as error:
                self._without_ssh(str(error))
                return
            except sandbox.Broken as error:
                # A connection that brought something may be cut as often as it likes.
                attempt += isinstance(error, sandbox.Changed) or not self._moved
                if attempt >= _ATTEMPTS:
                    raise UserError(
                        f"{target.label}: {error}; tried {_ATTEMPTS} times", 1
                    ) from None

    def _ask(self, wanted: Sequence[str], home: dict[str, str]) -> None:
        named, found = set[str](), list[str]()
        for path in wanted:
            if patterns.is_pattern(path):
                base = patterns.base(path)
                below = patterns.select(
                    sandbox.names(self.target.number, base, self._deadline), path
                )
                if not below:
                    raise sandbox.Missing(path)
                found += below
            else:
                named.add(path)
                found.append(path)
        while found:
            folders = []
            asked = [self._want(name, home) for name in dict.fromkeys(found)]
            answers = sandbox.get(self.target.number, asked, self._deadline)
            for want, (header, stream) in zip(asked, answers, strict=True):
                if header.size >= 0:
                    self._receive(stream, home.get(want.name, want.name), header, want)
                elif want.name in named and header.size == sandbox.FOLDER:
                    folders.append(want.name)
                elif want.name in named:
                    what = {sandbox.MISSING: sandbox.Missing}.get(header.size, sandbox.Refused)
                    raise what(want.name)
                elif header.size == sandbox.REFUSED:
                    self._remark(f"{self.target.label}: left out: {_refused(want.name)}")
            found = [
                name
                for folder in folders
                for name in sandbox.names(self.target.number, folder, self._deadline)
            ]

    def _without_ssh(self, why: str) -> None:
        before = self.target.state
        self._look()
        if self.target.state != before:
            raise sandbox.NotRunning(why)
        if self._paths:
            raise UserError(f"{self.target.label}: cannot be reached: {why}", 1)
        both = {sandbox.STDOUT: self.target.out.name, sandbox.STDERR: self.target.err.name}
        for called, name in both.items():
            try:
                text = sandbox.tail(self.target.number, called, sandbox.TAIL_BYTES, self._deadline)
            except sandbox.NoSsh as error:
                raise UserError(f"{self.target.label}: cannot be reached: {error}", 1) from None
            header = Header(name, len(text), "", 0)
            self._receive(io.BytesIO(text), name, header, Want(name))

    # --- a folder here ---

    def _from_folder(self, folder: Path) -> None:
        target = self.target
        kept = folder != target.folder
        why = f": {target.why_not}" if target.why_not else ""
        if not self._paths:
            if kept:
                self._log(folder / sandbox.STDOUT, target.out.name)
                self._log(folder / sandbox.STDERR, target.err.name)
            logs = [path for path in target.logs if not (kept and path in (target.out, target.err))]
            home = locate.names(target, logs)
            for path in logs:
                self._log(path, home[path])
            if not self.got:
                if not target.folder.is_dir():
                    raise locate.missing_folder(target)
                raise UserError(f"{target.label}: there is no output{why}", 1)
            if set(self.got) == {target.log.name} and why:
                self._remark(f"{target.label}: this is its event log alone{why}")
            return
        if not folder.is_dir():
            raise locate.missing_folder(target)
        if target.superseded:
            raise UserError(
                f"{target.label}: a later attempt has replaced its files; its logs are still there",
                1,
            )
        for wanted in self._paths:
            self._from_here(folder, wanted, why)

    def _from_here(self, folder: Path, path: str, why: str) -> None:
        """A path that one named, out of a folder of this machine."""
        target = self.target
        logs = {log.name: log for log in target.logs}
        if (folder / path).is_dir() or patterns.is_pattern(path):
            below = list(_below(folder, patterns.base(path) if patterns.is_pattern(path) else path))
            names = patterns.select(below, path)
            if not names and not (folder / path).is_dir():
                raise UserError(f"{target.label}: has no {path}{why}", 1)
            for name in names:
                try:
                    self._copy(_inside(folder, name), name)
                except sandbox.Refused:
                    self._remark(f"{target.label}: left out: {_refused(name)}")
            return
        source = folder / path
        if not os.path.lexists(source):
            # Where the submit file has sent it, or one of the logs.
            sent = locate.remaps(target).get(path) or logs.get(path)
            if sent is None or not os.path.lexists(sent):
                raise UserError(f"{target.label}: has no {path}{why}", 1)
            source, folder = sent, sent.parent
        try:
            self._copy(_inside(folder, str(source.relative_to(folder))), path)
        except sandbox.Refused:
            raise UserError(f"{target.label}: {_refused(path)}", 1) from None

    def _log(self, path: Path, name: str | None = None) -> None:
        """A log that HTCondor writes here, if it is there."""
        try:
            self._copy(path, name or path.name)
        except (FileNotFoundError, sandbox.Refused):
            return

    def _copy(self, source: Path, name: str) -> None:
        with receive.open_plain(source) as file:
            want = self._want(name, {})
            header = receive.offer(file, want, self.target.checksums.get(name, ""))
            try:
                self._receive(file, name, header, want)
            except sandbox.Broken:
                raise UserError(
                    f"{self.target.label}: {source} is not what the job wrote", 1
                ) from None

    def _want(self, name: str, home: dict[str, str]) -> Want:
        return receive.want(self._to, home.get(name, name), name)

    def _receive(self, source: receive.Reader, name: str, header: Header, want: Want) -> None:
        def progress(what: str, done: int, size: int) -> None:
            self._moved = True
            self._progress(what, done, size)

        file = receive.receive(source, self._to, name, header, want, progress, self._deadline)
        self.got[name] = {"job": self.target.number, **file}


_LEFT = {
    "idle": "it was evicted and waits to start again;",
    "held": "it is held;",
    "disconnected": "its node does not answer now;",
}


def _refused(name: str) -> str:
    return f"{name} is no plain file of the job's own: a device, a FIFO, or a link that leads out"


def _inside(folder: Path, name: str) -> Path:
    """The file itself, links followed within `folder`; raises Refused where one leads out."""
    try:
        real = (folder / name).resolve(strict=True)
    except RuntimeError:
        raise sandbox.Refused(name) from None
    if not real.is_relative_to(folder.resolve()):
        raise sandbox.Refused(name)
    return real


def _below(folder: Path, path: str) -> Iterator[str]:
    """The files and links below a path of `folder`, by their paths there."""
    for where, folders, names in os.walk(folder / path):
        folders[:] = sorted(name for name in folders if not (Path(where) / name).is_symlink())
        for name in sorted(names):
            file = Path(where) / name
            if file.is_file():
                yield str(file.relative_to(folder))
