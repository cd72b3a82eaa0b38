"""Event logs into the ledger.

DAGMan writes two logs beside the DAG: ``<dag>.dagman.log`` about its own job and
``<dag>.nodes.log`` about every job of a node. Jobs without a DAG write the log that their submit
file names, if it names one. Each is read from where the last reading stopped. See HTCondor's
manual, "Job Event Log Codes". What is read twice is recorded once. What no log tells, the queue
and the schedd's history do (`ads`).
"""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from condorctl.condor import cluster, dagman
from condorctl.condor.codes import JobEvent
from condorctl.ledger import (
    Job,
    Ledger,
    LogPosition,
    Run,
    Stage,
    ads,
    leavings,
    runfile,
    sharing,
    spooled,
)
from condorctl.ledger.database import MOST_AT_ONCE
from condorctl.ledger.job_events import (
    STATES,
    Event,
    Heard,
    Reading,
    apply_to_job,
    time_of,
)  # fmt: skip

_LINGER_S = 3600

# Bytes: of a log with more news than that only so many are read in one transaction, because nobody
# else gets at the ledger meanwhile. Two thousand events, half a second.
_BATCH = 1 << 19
_PRE_FAILED = re.compile(rb"PRE Script of node (?P<node>\S+) failed", re.IGNORECASE)


@dataclass(frozen=True)
class Unknown:
    """Why not all that could be known is in the ledger."""

    unreachable: str | None
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(filter(None, [*self.damaged, self.unreachable]))


def sync(ledger: Ledger) -> Unknown:
    """Bring every unfinished run in the ledger up to date, as far as logs and schedd tell."""
    elsewhere = spooled.bring_back(ledger)
    damaged = [elsewhere] if elsewhere else []
    _catch_up(ledger)
    unreachable = _sync(ledger, damaged)
    damaged += runfile.keep_learnt(ledger)
    return Unknown(unreachable, tuple(damaged))


def _sync(ledger: Ledger, damaged: list[str]) -> str | None:
    """Why the schedd could not be asked, if so; what is wrong with logs is added to `damaged`."""
    with ledger.session() as session:
        unfinished = [run for run in _unfinished(session) if sharing.is_ours_to_read(ledger, run)]
        for run in unfinished:
            try:
                read_logs(session, run)
            except cluster.DamagedLog as error:
                damaged.append(str(error))
        questions = [ads.wanted(session, run) for run in unfinished]
        wanted = [one for one in questions if one]
    try:
        # The schedd may take its time: it is asked while nobody waits for the ledger.
        here = cluster.schedd_name() if wanted else ""
        told = ads.ask([one for one in wanted if one.schedd == here])
    except cluster.Unreachable as error:
        return str(error)
    if not told.runs:
        return None
    with ledger.session() as session:
        for run in session.scalars(select(Run).where(Run.id.in_(told.runs))):
            before, run.seen = run.seen or run.submitted, told.time
            if run.kind != "jobs" and told.missing.get(run.id):
                # They may have ended between the look at the log and the question.
                with suppress(cluster.DamagedLog):
                    read_logs(session, run)
            for job, ad in ads.apply(session, run, told):
                leavings.hear(job, ad)
            if run.kind == "pipeline":
                leavings.read(session, run, told.ended.get(run.id, []))
            if not run.finished and run.id in (told.gone.keys() | told.unsent.keys()):
                # It may have ended between the look at its logs and the question.
                with suppress(cluster.DamagedLog):
                    read_logs(session, run)
                if ads.lost(run, told, before):
                    _conclude(session, run)
            if run.id in told.unsent and run.cluster is None:
                ads.find_again(session, run, told.unsent[run.id])
            if run.kind == "jobs":
                ads.conclude(session, run)
    return None


def _unfinished(session: Session) -> list[Run]:
    """Runs of which more can be heard: the schedd may remove a job after its DAGMan has gone."""
    open_jobs = select(Stage.run_id).join(Job).where(Job.finished.is_(None))
    lingers = (Run.finished > time.time() - _LINGER_S) & Run.id.in_(open_jobs)
    return list(session.scalars(select(Run).where(Run.finished.is_(None) | lingers)))


def _catch_up(ledger: Ledger) -> None:
    """Read the long news of DAGs bit by bit, letting others at the ledger in between.

    What is wrong with a log is left for `sync` to say.
    """
    with ledger.session() as session:
        large = [run for run in _unfinished(session) if run.kind != "jobs" and _is_large(run)]
        behind = [run.id for run in large if sharing.is_ours_to_read(ledger, run)]
        behind = [row for row in behind if _news(session, session.get_one(Run, row)) > _BATCH]
    for row in behind:
        more = True
        while more:
            with ledger.session() as session, suppress(cluster.DamagedLog):
                more = False
                more = read_logs(session, session.get_one(Run, row), _BATCH)


def _is_large(run: Run) -> bool:
    with suppress(OSError):
        return Path(f"{run.dag_file}.nodes.log").stat().st_size > _BATCH
    return False


def read_logs(session: Session, run: Run, most: int | None = None) -> bool:
    """Enter what the logs of `run` tell since they were read last; whether there is more.

    Of a DAG's nodes' log `most` bytes are read, if that is a number. Raises DamagedLog; what stood
    before the damage is entered then.
    """
    if run.kind == "jobs":
        _read_job_logs(session, run)
        return False
    going = run.finished is None
    more = most is not None and _news(session, run) > most
    # DAGMan's own log first: when it says the end, the other log is complete. It is not heard
    # before the other one is read that far: a run that has ended is not looked at again.
    for event in _new_events(session, Path(f"{run.dag_file}.dagman.log"), until_end=more):
        _apply_to_run(session, run, event)
    _read_nodes_log(session, run, Path(f"{run.dag_file}.nodes.log"), most if more else None)
    if going and run.finished:
        _conclude(session, run)
    return more


def read_again(session: Session, run: Run, aside: Sequence[Path], heard: Heard) -> None:
    """Enter what the logs of the pipeline `run`, of which nothing was read yet, tell.

    `aside` are the logs of nodes before the present one. What is kept of what jobs said is `heard`:
    their progress and usage, by cluster and process. Raises DamagedLog, as `read_logs`.
    """
    log = Path(f"{run.dag_file}.nodes.log")
    for old in (log, Path(f"{run.dag_file}.dagman.log")):
        if position := session.get(LogPosition, str(old)):
            session.delete(position)
            session.flush()
    for event in _new_events(session, Path(f"{run.dag_file}.dagman.log")):
        _apply_to_run(session, run, event)
    reading = Reading(session, run, heard)
    try:
        for path in aside:
            start = LogPosition(path=str(path), inode=0, offset=0)
            # What of it cannot be read was told when it was the present one.
            with suppress(cluster.DamagedLog):
                _apply_all(reading, cluster.read_events(path, start))
            # As `resume` does it.
            for stage in run.stages:
                stage.outcome = stage.outcome if _succeeded(stage) else None
        _apply_all(reading, _new_events(session, log))
    finally:
        reading.read_files()
    if run.finished:
        _conclude(session, run)


def _apply_all(reading: Reading, events: Iterator[Event]) -> None:
    for chunk in _in_chunks(events):
        reading.expect(chunk)
        for event in chunk:
            apply_to_job(reading, event)


def _read_nodes_log(session: Session, run: Run, log: Path, most: int | None = None) -> None:
    reading = Reading(session, run)
    try:
        _apply_all(reading, _new_events(session, log, most=most))
        if run.kind == "dag":
            _read_failed_scripts(reading)
    finally:
        reading.read_files()


def _in_chunks(events: Iterator[Event]) -> Iterator[list[Event]]:
    """`events` in lists; those before an error come before the error."""
    chunk: list[Event] = []
    try:
        for event in events:
            chunk.append(event)
            if len(chunk) >= MOST_AT_ONCE:
                yield chunk
                chunk = []
    except cluster.DamagedLog:
        yield chunk
        raise
    yield chunk


def _read_job_logs(session: Session, run: Run) -> None:
    jobs = select(Job.log, Job.cluster).join(Stage).where(Stage.run_id == run.id).distinct()
    rows = list(session.execute(jobs))
    numbers = {number for _, number in rows}
    reading = Reading(session, run)
    for log in sorted({log for log, _ in rows if log}):
        # Jobs of many runs may share one log, and each run reads it for itself.
        for chunk in _in_chunks(_new_events(session, Path(log), f"{log}#{run.id}")):
            ours = [event for event in chunk if event.get("Cluster") in numbers]
            reading.expect(ours)
            for event in ours:
                apply_to_job(reading, event)
    ads.conclude(session, run)


def _conclude(session: Session, run: Run) -> None:
    """What became of the nodes and so of the run, now that DAGMan has ended."""
    # Nobody may ever write it again.
    with suppress(OSError):
        runfile.sweep(run.path / runfile.FILE)
    stages = list(
        session.scalars(
            select(Stage).where(Stage.run_id == run.id).options(selectinload(Stage.jobs))
        )
    )
    verdict = dagman.Verdict(False)
    if run.kind == "dag":
        verdict = dagman.verdict(Path(run.dag_file or ""), run.resumed or run.submitted)
    for stage in stages:
        if _succeeded(stage):
            continue
        if stage.name in verdict.done or (verdict.all_done and not stage.jobs):
            stage.outcome = "done"
        elif stage.name in verdict.failed:
            stage.outcome = "failed"
    # DAGMan's exit code 0 does not promise that every node ran.
    if run.state == "done" and not (verdict.all_done or all(map(_succeeded, stages))):
        run.state = "failed"
    if run.state == "failed" and not any(stage.jobs for stage in stages):
        run.problem = _last_error(Path(f"{run.dag_file}.dagman.out"))
    if run.state == "done" and run.kind == "pipeline":
        leavings.forget_checkpoints(run)


def _succeeded(stage: Stage) -> bool:
    if stage.outcome and not stage.source:
        return stage.outcome == "done"
    jobs = stage.origin.current
    return bool(jobs) and all(job.state == "completed" for job in jobs)


def _last_error(path: Path) -> str:
    """What DAGMan wrote before it gave up without submitting anything."""
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [index for index, line in enumerate(lines) if " ERROR" in line]
        if errors:
            # The line before says what the error is about; each starts with date and time.
            told = lines[max(0, errors[-1] - 1) : errors[-1] + 1]
            return "; ".join(line.split(" ", 2)[-1] for line in told)
    return f"see {path}"


def _read_failed_scripts(reading: Reading) -> None:
    """Nodes whose PRE script has failed: no job and no event tells, only DAGMan's own words."""
    path = Path(f"{reading.run.dag_file}.dagman.out")
    position = _position(reading.session, path, str(path))
    if position is None:
        return
    with suppress(OSError), path.open("rb") as file:
        file.seek(position.offset)
        text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        position.offset += len(text)
        for match in _PRE_FAILED.finditer(text):
            stage = reading.stage(match["node"].decode("utf-8", "replace"))
            if stage and not stage.jobs and stage.outcome is None:
                stage.outcome = "failed"


def _position(session: Session, path: Path, key: str) -> LogPosition | None:
    """How far the file was read, None when there is nothing new in it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    position = session.get(LogPosition, key)
    if position is None:
        position = LogPosition(path=key, inode=stat.st_ino, offset=0)
        session.add(position)
    if position.inode != stat.st_ino or position.offset > stat.st_size:
        # Another file under the same name: the reader would stay silent for ever.
        position.inode, position.offset = stat.st_ino, 0
    return position if position.offset < stat.st_size else None


def _last_words(session: Session, path: Path, key: str) -> Iterator[Event]:
    """What was written to a log after it was last read, and before somebody renamed it."""
    position = session.get(LogPosition, key)
    if position is None:
        return
    with suppress(OSError):
        if path.exists() and path.stat().st_ino == position.inode:
            return
        for aside in sorted(path.parent.glob(f"{glob.escape(path.name)}?*")):
            if aside.stat().st_ino == position.inode:
                yield from cluster.read_events(aside, position)


def _news(session: Session, run: Run) -> int:
    """How many bytes of its nodes' log are not read yet."""
    path = Path(f"{run.dag_file}.nodes.log")
    try:
        stat = path.stat()
    except OSError:
        return 0
    position = session.get(LogPosition, str(path))
    if position is None or position.inode != stat.st_ino or position.offset > stat.st_size:
        return stat.st_size
    return stat.st_size - position.offset


def _new_events(
    session: Session,
    path: Path,
    key: str | None = None,
    most: int | None = None,
    until_end: bool = False,
) -> Iterator[Event]:
    """Events that were appended to the log at `path` since the last call for the same `key`.

    At most some `most` bytes of them; with `until_end` those before the end of the job.
    """
    yield from _last_words(session, path, key or str(path))
    position = _position(session, path, key or str(path))
    if position is None:
        return
    start = before = position.offset
    for event in cluster.read_events(path, position):
        if until_end and event["EventTypeNumber"] in (JobEvent.TERMINATED, JobEvent.ABORTED):
            position.offset = before
            return
        before = position.offset
        yield event
        if most is not None and before - start >= most:
            return


def _apply_to_run(session: Session, run: Run, event: Event) -> None:
    kind, when = event["EventTypeNumber"], time_of(event)
    if kind == JobEvent.SUBMIT:
        number = int(event["Cluster"])
        if run.kind == "dag" and run.cluster not in (None, number):
            if number in run.earlier:
                return
            _begin_again(session, run, number, when)
        run.cluster = number
    elif run.kind == "dag" and run.cluster != int(event["Cluster"]):
        return
    if kind == JobEvent.TERMINATED:
        code = event.get("ReturnValue")
        run.exit_code = None if code is None else int(code)
        run.state = "done" if code == 0 else "failed"
        run.finished = when
    elif kind in STATES:
        run.state = STATES[kind]
        run.finished = when if kind == JobEvent.ABORTED else None
    if run.kind != "pipeline":
        run.unkept += 1
    if kind in STATES or kind == JobEvent.TERMINATED:
        run.problem = str(event.get("HoldReason", "")) if kind == JobEvent.HELD else None


def _begin_again(session: Session, run: Run, number: int, when: float) -> None:
    """The user has submitted the rest of a foreign DAG: its nodes' log begins anew."""
    resumes = run.provenance.get("resumes", [])
    run.provenance = {
        **run.provenance,
        "resumes": [*resumes, {"time": int(when), "dag": run.cluster}],
    }
    run.earlier = [*run.earlier, *([run.cluster] if run.cluster is not None else [])]
    run.cluster, run.exit_code = number, None
    for stage in run.stages:
        stage.outcome = stage.outcome if stage.outcome == "done" else None
    if position := session.get(LogPosition, f"{run.dag_file}.nodes.log"):
        position.offset = 0
