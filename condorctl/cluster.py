"""The one place that talks to HTCondor's daemons, through its Python bindings (htcondor2).

Ads come back as plain dictionaries. Everything that HTCondor refuses becomes a UserError;
a schedd that does not answer becomes `Unreachable`, which is never taken for a failed job.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condorctl import pool
from condorctl.errors import UserError

if TYPE_CHECKING:
    from condorctl.ledger import LogPosition

Ad = dict[str, Any]

_LIVE_ATTRIBUTES = ["ClusterId", "ProcId", "DAGManJobId", "ChirpProgress", "ChirpCheckpoint"]


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
def _schedd() -> tuple[Any, str]:
    htcondor = _htcondor()
    try:
        pool.activate()
        location = htcondor.Collector().locate(htcondor.DaemonType.Schedd)
        return htcondor.Schedd(location), str(location["Name"])
    except UserError as error:
        raise Unreachable(str(error), 3) from None
    except Exception as error:
        message = f"no schedd answers ({error}): is the pool up? `condorctl pool status`"
        raise Unreachable(message, 3) from None


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
    command = ["condor_dag_checker", "-json", "-CheckJDL", "-CheckExternalFiles", dag.name]
    try:
        answer = subprocess.run(command, cwd=dag.parent, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return
    for problem in json.loads(answer.stdout or "[{}]")[0].get("Errors", []):
        where = Path(str(problem.get("SourceFile", dag))).name
        line = problem.get("SourceLine")
        raise UserError(f"{where}{f':{line}' if line else ''}: {problem.get('Reason')}")


def submit_dag(dag: Path, batch_name: str) -> int:
    """Submit the DAG from its own folder; return the cluster id of its DAGMan job.

    Raises Unreachable when the schedd does not answer, UserError when it refuses.
    """
    htcondor = _htcondor()
    schedd, _ = _schedd()
    # DAGMan's working directory is the one that is current now.
    with contextlib.chdir(dag.parent):
        try:
            description = htcondor.Submit.from_dag(dag.name, {"BatchName": batch_name})
            return int(schedd.submit(description).cluster())
        except htcondor.HTCondorException as error:
            raise UserError(f"{dag.name}: HTCondor refuses the DAG: {error}") from None


def live(dags: Sequence[int]) -> list[Ad]:
    """What the queue knows of the jobs of these DAGs (cluster ids of their DAGMan jobs).

    A dictionary a job: its ids and what it has said of itself through chirp. Raises Unreachable.
    """
    if not dags:
        return []
    schedd, _ = _schedd()
    constraint = " || ".join(f"DAGManJobId == {number}" for number in dags)
    try:
        ads = schedd.query(constraint=constraint, projection=_LIVE_ATTRIBUTES)
    except Exception as error:
        raise Unreachable(f"the schedd does not answer: {error}", 3) from None
    return [{name: ad[name] for name in _LIVE_ATTRIBUTES if name in ad} for ad in ads]


def read_events(path: Path, position: LogPosition) -> Iterator[Ad]:
    """Events in the job event log at `path` from `position` on, which moves along.

    Raises DamagedLog at bytes that are no event; `position` stays before them.
    """
    htcondor = _htcondor()
    log = htcondor.JobEventLog(str(path))
    # The bindings give a log's position away only through its pickled state.
    state, _ = log.__getstate__()
    log.__setstate__((state, position.offset))
    with log:
        try:
            for event in log.events(stop_after=0):
                position.offset = log.__getstate__()[1]
                yield {name: event[name] for name in event}
        except (htcondor.HTCondorException, UnicodeDecodeError) as error:
            raise DamagedLog(f"{path}: no event after byte {position.offset}: {error}") from None
