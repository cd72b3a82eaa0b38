"""The one place that talks to HTCondor's daemons, through its Python bindings (htcondor2).

Ads come back as plain dictionaries. Everything that HTCondor refuses becomes a UserError;
a schedd that does not answer becomes `Unreachable`, which is never taken for a failed job.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from condorctl import pool
from condorctl.condor.codes import OVER, JobStatus
from condorctl.errors import UserError
from condorctl.pool import elsewhere

Ad = dict[str, Any]

_QUEUE_ATTRIBUTES = [
    "ClusterId", "ProcId", "Owner", "JobUniverse", "JobStatus", "JobBatchName", "QDate",
    "DAGManJobId", "DAG_NodesTotal", "DAG_NodesDone", "DAG_NodesFailed", "RequestCpus",
    "RequestGPUs",
]  # fmt: skip
# What the ledger takes from a job's ad (HTCondor manual, "Job ClassAd Attributes").
_JOB_ATTRIBUTES = [
    "ClusterId", "ProcId", "DAGManJobId", "DAGNodeName", "ChirpProgress", "ChirpCheckpoint",
    "Owner", "JobUniverse", "JobStatus", "JobBatchName", "QDate", "Cmd", "Args", "Arguments",
    "Iwd", "Out", "Err", "UserLog", "StageInFinish", "NumJobStarts", "JobCurrentStartDate",
    "JobCurrentStartExecutingDate",
    "EnteredCurrentStatus", "CompletionDate", "ExitCode", "ExitBySignal", "ExitSignal",
    "HoldReason", "HoldReasonCode", "HoldReasonSubCode", "RemoveReason", "RemoteHost",
    "LastRemoteHost", "CpusProvisioned", "GPUsProvisioned", "ResidentSetSize", "RequestMemory",
    "DiskUsage", "RemoteUserCpu", "RemoteSysCpu", "TotalSubmitProcs",
]  # fmt: skip

# As long as a job that was suspended may take to go on before it is held.
_WAKE_S = 10.0
# As long as a held job may take to leave its slot, where it saves a checkpoint, to be released.
_LEAVE_S = 60.0
# What a spooled DAGMan job says of where it comes from.
FOLDER = "CondorctlFolder"

# Bytes at the end of an event log that hold the end of an event.
_TAIL = 1 << 18

# DAGMan's note in a SUBMIT event; the plain form is the one that it wrote before version 24.
_NODE_NAME = re.compile(r'(?:DAGNodeName = "|DAG Node: )(?P<name>[^"\s]+)')

# ``12.0 - 12.4`` of condor_submit -terse, and what condor_submit_dag says.
_SUBMITTED = re.compile(r"(?m)^(?:.*submitted to cluster )?(?P<cluster>\d+)(?:\.\d+ - |\.\s*$)")


class Unreachable(UserError):
    """The schedd does not answer: what its jobs do is not known now."""


class DamagedLog(UserError):
    """An event log holds something that is no event."""


@cache
def _htcondor() -> Any:
    """The bindings. They read the configuration on import, so the pool is settled before.

    Without a pool they still read event logs.
    """
    with contextlib.suppress(UserError):
        pool.activate()
    import htcondor2

    return htcondor2


@cache
def connection() -> tuple[Any, Any, Ad]:
    """The bindings, the schedd that this process talks to, and the schedd's own ad.

    Raises Unreachable.
    """
    htcondor = _htcondor()
    try:
        pool.activate()
        name = elsewhere.schedd()
        collector = htcondor.Collector()
        location = collector.locate(htcondor.DaemonType.Schedd, *([name] if name else []))
        if location is None:
            where = elsewhere.collector() or "the pool"
            raise Unreachable(f"schedd {name}: {where} knows none of this name", 3)
        return htcondor, htcondor.Schedd(location), location
    except Unreachable:
        raise
    except UserError as error:
        raise Unreachable(str(error), 3) from None
    except Exception as error:
        if host := elsewhere.collector():
            raise Unreachable(f"no collector answers at {host} ({error})", 3) from None
        message = f"no schedd answers ({error}): is the pool up? `condorctl pool status`"
        raise Unreachable(message, 3) from None


def _schedd() -> tuple[Any, str]:
    _, schedd, location = connection()
    return schedd, str(location["Name"])


def refused(what: str, error: Exception) -> UserError:
    """`what` went wrong, as the schedd said; where it knows us not, with the mend."""
    mend = elsewhere.refusal(str(error)) if elsewhere.schedd() else None
    return (
        Unreachable(f"schedd {elsewhere.schedd()}: {mend}", 3)
        if mend
        else UserError(f"{what}: {error}")
    )


def _silent(error: Exception) -> Unreachable:
    # A schedd that is started again may answer at another address.
    connection.cache_clear()
    mend = elsewhere.refusal(str(error)) if elsewhere.schedd() else None
    if mend:
        return Unreachable(f"schedd {elsewhere.schedd()}: {mend}", 3)
    return Unreachable(f"the schedd does not answer: {error}", 3)


def schedd_name() -> str:
    """The schedd's name in the pool, the first part of a job's full id.

    Raises Unreachable.
    """
    return _schedd()[1]


def check_dag(dag: Path) -> None:
    """Have HTCondor read the DAG and its submit files, which `submit_language` has passed.

    Raises UserError with the file, the line and HTCondor's own words. An HTCondor before 24 has no
    condor_dag_checker; there DAGMan itself says later what it finds.
    """
    _htcondor()
    # It takes h.dag for -h.
    file = f"./{dag.name}"
    command = ["condor_dag_checker", "-json", "-CheckJDL", "-CheckExternalFiles", file]
    try:
        answer = subprocess.run(command, cwd=dag.parent, capture_output=True, text=True, timeout=60)
        [found] = json.loads(answer.stdout)
    except (FileNotFoundError, subprocess.TimeoutExpired, ValueError):
        # DAGMan looks at it again, and says what it finds.
        return
    for problem in found.get("Errors", []):
        if problem.get("DagCommand") == "SCRIPT" and "not exist" in str(problem.get("Reason")):
            # condor_dag_checker 25.14 takes a script with its arguments for the name of one file.
            continue
        where = Path(str(problem.get("SourceFile", dag))).name
        line = problem.get("SourceLine")
        raise UserError(f"{where}{f':{line}' if line else ''}: {problem.get('Reason')}")


def version() -> str:
    """HTCondor's version, as its tools tell it to each other; settles the pool, if there is one."""
    return str(_htcondor().version())


def submit_as_told(file: Path, is_dag: bool) -> int:
    """Have HTCondor submit a file of the user's own from the current folder; return its cluster id.

    What its own tools do by default, condor_submit_dag and condor_submit, is done, refusals too.
    Raises Unreachable when the schedd does not answer, UserError with HTCondor's words.
    """
    schedd_name()
    command = ["condor_submit_dag", str(file)] if is_dag else ["condor_submit", "-terse", str(file)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine: {file} needs it") from None
    found = _SUBMITTED.search(answer.stdout)
    if answer.returncode or not found:
        said = " ".join(f"{answer.stderr}\n{answer.stdout}".replace("ERROR:", "").split())
        raise UserError(f"{file}: {command[0]} refuses it: {said or answer.returncode}")
    return int(found["cluster"])


def submit_dag(dag: Path, batch_name: str) -> int:
    """Submit the DAG from its own folder; return the cluster id of its DAGMan job.

    Raises Unreachable when the schedd does not answer, UserError when it refuses.
    """
    htcondor = _htcondor()
    schedd, _ = _schedd()
    # DAGMan's working directory is the one that is current now.
    with contextlib.chdir(dag.parent):
        try:
            return int(schedd.submit(describe_dag(dag.name, batch_name)).cluster())
        except htcondor.HTCondorException as error:
            raise UserError(f"{dag.name}: HTCondor refuses the DAG: {error}") from None


def describe_dag(dag: str, batch_name: str) -> Any:
    """The DAGMan job for the DAG in the current folder, as HTCondor's bindings describe jobs.

    Raises the bindings' own errors.
    """
    # It writes to standard output itself, which belongs to the command's answer.
    with _silence():
        return _htcondor().Submit.from_dag(dag, {"BatchName": batch_name})


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches the process's standard output, also not from a library in C."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        # What a library has written may still be in C's own buffer.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def act(action: str, constraint: str, reason: str) -> tuple[int, int]:
    """Have the schedd "hold", "release" or "remove" the jobs that meet `constraint`.

    Returns how many did as told and how many were already so. Raises Unreachable, and UserError
    when the schedd refuses or what is to be released does not leave its slot.
    """
    htcondor = _htcondor()
    schedd, _ = _schedd()
    try:
        if action == "hold":
            _wake(schedd, f"({constraint}) && JobStatus == {JobStatus.SUSPENDED}")
        if action == "release" and not _have_left(schedd, constraint):
            raise UserError("a held job has not left its slot in a minute: release it later", 3)
        # The bindings of 25.14 drop a reason that comes without a subcode.
        answer = schedd.act(htcondor.JobAction[action.capitalize()], constraint, (reason, 0))
    except UserError:
        raise
    except Exception as error:
        raise _silent(error) from None
    if answer.get("TotalPermissionDenied"):
        raise UserError(f"the schedd does not let you {action} this: it is another user's", 1)
    return int(answer.get("TotalSuccess", 0)), int(answer.get("TotalAlreadyDone", 0))


def _wake(schedd: Any, suspended: str) -> None:
    """Let `suspended` jobs go on, and wait until their shadows have told the schedd that they do.

    A shadow that tells it after a hold has made the job a running one again, and the schedd then
    takes it for removed (seen with 25.14: five of sixteen at a time on a busy machine).
    """
    if not schedd.query(suspended, ["ClusterId"], limit=1):
        return
    schedd.act(_htcondor().JobAction.Continue, suspended)
    deadline = time.monotonic() + _WAKE_S
    while time.monotonic() < deadline and schedd.query(suspended, ["ClusterId"], limit=1):
        time.sleep(0.2)


def _have_left(schedd: Any, constraint: str) -> bool:
    """Wait until the held jobs among these have left their slots; whether they have.

    A job that is released while its shadow is still there becomes idle, but the schedd does not put
    it among those that it may start (seen with 25.14: until it is held and released once more).
    """
    leaving = f"({constraint}) && JobStatus == {JobStatus.HELD} && RemoteHost =!= undefined"
    deadline = time.monotonic() + _LEAVE_S
    while schedd.query(leaving, ["ClusterId"], limit=1):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def is_queued(folder: str) -> bool:
    """Whether a job that was started in `folder`, DAGMan or one of its, is in the queue.

    Raises Unreachable.
    """
    # What ended on a schedd elsewhere stays there until its files are brought back.
    return any(ad.get("JobStatus") not in OVER or FOLDER not in ad for ad in _queued(folder))


def dag_of(folder: str) -> int | None:
    """The cluster id of the DAGMan job in the queue that was submitted from `folder`, if any.

    Raises Unreachable.
    """
    found = [ad["ClusterId"] for ad in _queued(folder) if "DAGManJobId" not in ad]
    return int(found[-1]) if found else None


def _queued(folder: str) -> list[Ad]:
    import classad2

    schedd, _ = _schedd()
    try:
        text = classad2.quote(folder)
        # Of a job that was spooled, Iwd is a folder of the schedd's.
        constraint = f"Iwd == {text} || {FOLDER} == {text}"
        wanted = ["ClusterId", "DAGManJobId", "JobStatus", FOLDER]
        return list(schedd.query(constraint=constraint, projection=wanted))
    except Exception as error:
        raise _silent(error) from None


def live(dags: Sequence[int], clusters: Sequence[int] = ()) -> list[Ad]:
    """The ads in the queue of these DAGs (by cluster id of DAGMan), their jobs, and these clusters.

    A dictionary a job, of the attributes that it has. Raises Unreachable.
    """
    wanted = [f"DAGManJobId == {number}" for number in dags]
    wanted += [f"ClusterId == {number}" for number in (*dags, *clusters)]
    if not wanted:
        return []
    schedd, _ = _schedd()
    try:
        ads = schedd.query(constraint=" || ".join(wanted), projection=_JOB_ATTRIBUTES)
    except Exception as error:
        raise _silent(error) from None
    return [_plain(ad) for ad in ads]


def history(constraint: str, since: float) -> list[Ad]:
    """The ads of jobs that left the queue after the moment `since`, as `live` gives them.

    Without the ones that the schedd's history has forgotten. Raises Unreachable.
    """
    schedd, _ = _schedd()
    try:
        ads = schedd.history(
            constraint=constraint,
            projection=_JOB_ATTRIBUTES,
            since=f"EnteredCurrentStatus < {int(since)}",
        )
        return [_plain(ad) for ad in ads]
    except Exception as error:
        raise _silent(error) from None


def everything() -> list[Ad]:
    """The ads of all jobs in the queue, of all users, as `live` gives them. Raises Unreachable."""
    schedd, _ = _schedd()
    try:
        return [_plain(ad) for ad in schedd.query(projection=_JOB_ATTRIBUTES)]
    except Exception as error:
        raise _silent(error) from None


def _plain(ad: Any) -> Ad:
    """What of the ad is a plain value: an expression only its own machine could evaluate."""
    found = {name: ad[name] for name in _JOB_ATTRIBUTES if name in ad}
    return {k: v for k, v in found.items() if type(v) in (str, int, float, bool)}


def queue() -> list[Ad]:
    """Every job in the schedd's queue, of all users. Raises Unreachable."""
    schedd, _ = _schedd()
    try:
        ads = schedd.query(projection=_QUEUE_ATTRIBUTES)
    except Exception as error:
        raise _silent(error) from None
    return [{name: ad[name] for name in _QUEUE_ATTRIBUTES if name in ad} for ad in ads]


def job_ad(number: int, proc: int, names: Sequence[str]) -> tuple[Ad, bool] | None:
    """Those attributes of a job, and whether it is in the queue still; else the history tells.

    None when the schedd knows no such job (any more: its history has a limit). Raises Unreachable.
    """
    schedd, _ = _schedd()
    constraint = f"ClusterId == {number} && ProcId == {proc}"
    try:
        queued = schedd.query(constraint=constraint, projection=list(names))
        ads = queued or schedd.history(constraint, list(names), match=1)
        ad = next(iter(ads), None)
        return ({name: ad[name] for name in names if name in ad}, bool(queued)) if ad else None
    except Exception as error:
        raise _silent(error) from None


def node_name(event: Ad) -> str | None:
    """The DAG's node that the event names: that of a SUBMIT, of a script's end, of a skip."""
    if name := event.get("DAGNodeName"):
        return str(name)
    notes = event.get("LogNotes") or event.get("SkipEventLogNotes") or ""
    note = _NODE_NAME.search(str(notes))
    return note["name"] if note else None


class Position(Protocol):
    """How far a log was read, in bytes: a row of the ledger, or a `Start`."""

    offset: int


@dataclass
class Start:
    """The `Position` of a log that is read once, from its beginning."""

    offset: int = 0


def read_events(path: Path, position: Position) -> Iterator[Ad]:
    """Events in the job event log at `path` from `position` on, which moves along.

    An event of which only a part is written comes when it is whole. Those of an execution point
    (types from 100) are of no job and passed over. Bytes that are no event, as after a write on a
    disk that was full, are passed over up to the next end of one; DamagedLog is raised then, once
    all that can be read was read.
    """
    end = _end_of_events(path, position.offset)
    if end <= position.offset:
        return
    htcondor = _htcondor()
    damage = ""
    while position.offset < end:
        try:
            yield from _whole_events(htcondor, path, position, end)
            break
        except (htcondor.HTCondorException, UnicodeDecodeError) as error:
            damage = damage or f"{path}: no event after byte {position.offset}: {error}"
            if (after := _after_separator(path, position.offset)) is None:
                break
            position.offset = after
    if damage:
        raise DamagedLog(damage)


def _whole_events(htcondor: Any, path: Path, position: Position, end: int) -> Iterator[Ad]:
    log = htcondor.JobEventLog(str(path))
    # The bindings give a log's position away only through its pickled state.
    state, _ = log.__getstate__()
    log.__setstate__((state, position.offset))
    with log:
        for event in log.events(stop_after=0):
            told = {name: event[name] for name in event}
            position.offset = log.__getstate__()[1]
            if "Cluster" in told:
                yield told
            if position.offset >= end:
                return


def _after_separator(path: Path, start: int) -> int | None:
    """Where the event that begins at `start`, or what is none, ends; None where it does not."""
    with path.open("rb") as log:
        log.seek(start)
        for line in iter(log.readline, b""):
            if line == b"...\n":
                return log.tell()
    return None


def _end_of_events(path: Path, start: int) -> int:
    """Where the last whole event in the log ends, `start` if there is none after it.

    HTCondor's own reader waits a second for the rest of an event that is half written.
    """
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            # None is that long, but what is no event may be.
            first = max(start, size - _TAIL)
            log.seek(first)
            tail = log.read()
    except OSError:
        return start
    found = tail.rfind(b"\n...\n")
    if found >= 0:
        return first + found + len(b"\n...\n")
    return start if first == start else size
