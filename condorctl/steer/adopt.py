"""HTCondor work that was not written here comes into the ledger: DAGs, submit files, clusters.

A DAG becomes a run of kind "dag", its nodes are the stages. Anything else becomes a run of kind
"jobs" with one stage, the cluster. What is submitted here is submitted as HTCondor's own tools do
it: from the current folder, with all that the submit language can do (``include command`` too). It
is the user's own file.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.condor import cluster, dagman
from condorctl.condor.codes import JobEvent, JobStatus, JobUniverse
from condorctl.errors import UserError
from condorctl.ledger import (
    NEWEST_FIRST,
    Job,
    Ledger,
    Run,
    Stage,
    ads,
    events,
    find,
    job_events,
    runfile,
)

_RUN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_LOG = ".dagman.log"

# What a DAG file begins with (HTCondor manual, "DAG Input File Commands").
_DAG_WORDS = {
    "abort-dag-on", "category", "config", "connect", "done", "dot", "env", "final", "include",
    "job", "jobstate_log", "maxjobs", "node", "node_status_file", "parent", "pin_in", "pin_out",
    "pre_skip", "priority", "provisioner", "reject", "retry", "save_point_file", "script",
    "service", "set_job_attr", "splice", "subdag", "submit-description", "vars",
}  # fmt: skip
_ASSIGNMENT = re.compile(r"[+\w.-]+\s*=|@\w+\s*=")
_SUBMIT_WORDS = re.compile(r"(?i)(?:queue|if|elif|else|endif|error|warning)\b|(?:use|include)\b.*:")
_HEAD_BYTES = 1 << 16

Ad = dict[str, Any]


@dataclass(frozen=True)
class _Dag:
    """A DAG that has been submitted, and each DAGMan job that was, with its time."""

    file: Path
    folder: Path
    graph: dagman.Graph
    owner: str
    begun: list[tuple[int, float]]


def foreign_file(word: str) -> Path | None:
    """The file that `word` names if it is no pipeline's; None when a pipeline must be meant.

    A word without a dot or a slash is always the name of a pipeline, whatever lies here.
    """
    path = Path(word)
    if path.suffix in (".yaml", ".yml") or ("." not in word and os.sep not in word):
        return None
    return path if path.is_file() else None


def is_dag(file: Path) -> bool:
    """Whether the file is a DAG, by what its first line says; else it is a submit file.

    Its name does not tell. Raises UserError when it is neither.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    for line in map(str.strip, head.splitlines()):
        if not line or line.startswith("#"):
            continue
        if _ASSIGNMENT.match(line) or _SUBMIT_WORDS.match(line):
            return False
        if line.split()[0].lower() in _DAG_WORDS and len(line.split()) > 1:
            return True
        break
    raise UserError(
        f"{file}: is neither a DAG nor a submit file by its first line; a pipeline's spec is a "
        ".yaml file, or its name in jobs/"
    )


def submit(ledger: Ledger, file: Path, name: str | None = None) -> str:
    """Submit a DAG or a submit file as HTCondor's own tools would; return the name of its run.

    Raises UserError when HTCondor refuses it, before or after it is sent, and Unreachable.
    """
    dag = is_dag(file)
    _check_name(ledger, name)
    if dag:
        # condor_submit_dag does not read the DAG; DAGMan would tell later, in a file.
        dagman.graph([str(file)], Path.cwd())
    number = cluster.submit_as_told(file, dag)
    try:
        return _adopt_cluster(ledger, number, None, name or file.stem, bool(name))
    except UserError as error:
        told = f"{file} is submitted, as cluster {number}, but is not in the ledger: {error}"
        raise UserError(f"{told}; `condorctl adopt {number}` tries again", 1) from None


def adopt(ledger: Ledger, what: str, name: str | None = None) -> str:
    """Enter work that exists into the ledger; return the name of its run.

    `what` is a cluster, a job (``cluster.proc``, without the other processes of its cluster), or
    the file of a DAG that has run. Raises UserError when there is no such work of the user's own,
    or when it is in the ledger already; Unreachable when the schedd is needed and silent.
    """
    _check_name(ledger, name)
    match = find.JOB_ID.fullmatch(what.strip())
    if not match:
        return _adopt_file(ledger, Path(what), name)
    schedd = cluster.schedd_name()
    if match["schedd"] not in (None, schedd):
        raise UserError(f"{what}: that is on schedd {match['schedd']}, this one is {schedd}")
    proc = int(match["proc"]) if match["proc"] else None
    return _adopt_cluster(ledger, int(match["cluster"]), proc, name, bool(name))


def _adopt_cluster(
    ledger: Ledger, number: int, proc: int | None, name: str | None, exact: bool
) -> str:
    schedd = cluster.schedd_name()
    found = _ads(number)
    if proc is not None:
        found = [ad for ad in found if ad["ProcId"] == proc]
    job = f"{number}.{proc}" if proc is not None else str(number)
    if not found:
        raise UserError(f"{job}: neither the queue nor the history of {schedd} knows it", 1)
    owner = str(found[0].get("Owner", ""))
    if owner != _user():
        raise UserError(f"{job} is {owner}'s: only they can adopt it (you are {_user()})", 1)
    if _is_dagman(found[0]):
        return _adopt_dag(ledger, found[0], schedd, name, exact)
    if "DAGManJobId" in found[0] and _ads(found[0]["DAGManJobId"]):
        dag = found[0]["DAGManJobId"]
        raise UserError(f"{job} is a job of a DAG: `condorctl adopt {dag}` takes all of it")
    with ledger.session() as session:
        _refuse_known_jobs(session, schedd, number, found)
        first = found[0]
        stem = _plain(name or _title(first))
        run = Run(
            name=_free(session, stem, exact),
            kind="jobs",
            pipeline=stem,
            folder=str(first.get("Iwd", "/")),
            params={},
            owner=owner,
            schedd=schedd,
            submitted=float(first.get("QDate", time.time())),
            provenance={"proc": proc} if proc is not None else {"procs": _count(first)},
        )
        words = [str(first.get("Cmd", "")), str(first.get("Arguments") or first.get("Args") or "")]
        run.stages = [
            Stage(name=stem, position=0, needs=[], command=[word for word in words if word])
        ]
        session.add(run)
        for ad in found:
            # Its log tells the story anew where there is one.
            one = ads.add(run.stages[0], ad)
            if _logged(ad):
                one.states.clear()
                ad = {**ad, "JobStatus": JobStatus.IDLE}
            ads.enter(one, ad, "jobs")
        session.flush()
        ads.conclude(session, run)
        chosen = run.name
    events.sync(ledger)
    runfile.keep(ledger, chosen)
    return chosen


def _adopt_dag(ledger: Ledger, ad: Ad, schedd: str, name: str | None, exact: bool) -> str:
    number, folder = ad["ClusterId"], Path(str(ad["Iwd"]))
    log = str(folder / str(ad["UserLog"]))
    dag = Path(log.removesuffix(_LOG))
    arguments = str(ad.get("Arguments") or ad.get("Args") or "")
    files = dagman.dag_files(arguments)
    graph = _graph(files, folder, dag, dagman.uses_dag_dir(arguments))
    begun = _submissions(dag) or [(number, float(ad["QDate"]))]
    return _enter_dag(
        ledger, _Dag(dag, folder, graph, str(ad["Owner"]), begun), schedd, name, exact
    )


def _adopt_file(ledger: Ledger, file: Path, name: str | None) -> str:
    """A DAG that has run in a folder here, whose DAGMan job no schedd need know any more."""
    dag = file.absolute()
    if not file.is_file():
        raise UserError(f"{file}: no such file, and no cluster's number")
    if not is_dag(file):
        raise UserError(f"{file}: is a submit file: `condorctl submit {file}` submits it; a "
                        "cluster that runs is adopted by its number")  # fmt: skip
    log = Path(f"{dag}{_LOG}")
    if not log.is_file():
        raise UserError(f"{file}: has not run here ({log.name} is missing): `condorctl submit` it")
    begun = _submissions(dag)
    if not begun:
        raise UserError(f"{log}: tells of no submission")
    owner = pwd.getpwuid(log.stat().st_uid).pw_name
    if log.stat().st_uid != os.geteuid():
        raise UserError(f"{file} was run by {owner}: only they can adopt it (you are {_user()})", 1)
    graph = _graph([str(dag)], dag.parent, dag, False)
    told = _Dag(dag, dag.parent, graph, owner, begun)
    return _enter_dag(ledger, told, cluster.schedd_name(), name, bool(name))


def _submissions(dag: Path) -> list[tuple[int, float]]:
    """The DAGMan jobs that the DAG's own log tells of, each with when it was submitted."""
    log = Path(f"{dag}{_LOG}")
    if not log.is_file():
        return []
    told = cluster.read_events(log, cluster.Start())
    kind = "EventTypeNumber"
    return [
        (int(one["Cluster"]), job_events.time_of(one))
        for one in told
        if one[kind] == JobEvent.SUBMIT
    ]


def _graph(files: Sequence[str], folder: Path, dag: Path, in_place: bool) -> dagman.Graph:
    """The DAG's graph; an empty one when its files are gone or were changed since.

    Then its stages are those that its log tells of.
    """
    try:
        rescue = dagman.rescue_of(dag)
        return dagman.graph(files or [dag.name], folder, rescue, in_place)
    except UserError:
        return dagman.Graph({}, frozenset())


def _enter_dag(ledger: Ledger, told: _Dag, schedd: str, name: str | None, exact: bool) -> str:
    dag, (number, submitted) = told.file, told.begun[-1]
    with ledger.session() as session:
        known = session.scalar(select(Run).where(Run.dag_file == str(dag)).order_by(*NEWEST_FIRST))
        if known and known.schedd == schedd and number in (known.cluster, *known.earlier):
            raise UserError(f"DAG job {number} is in the ledger already: it is {known.name}", 1)
        if known and known.kind == "dag" and known.schedd == schedd and not known.cleaned:
            # The rest of a DAG that was submitted again; its log tells the number.
            known.finished = known.problem = None
            chosen = known.name
        else:
            stem = _plain(name or dag.stem)
            run = Run(
                name=_free(session, stem, exact),
                kind="dag",
                pipeline=_plain(dag.stem),
                folder=str(told.folder),
                dag_file=str(dag),
                params={},
                owner=told.owner,
                schedd=schedd,
                submitted=told.begun[0][1],
                cluster=number,
                earlier=[one for one, _ in told.begun[:-1]],
                provenance={},
                stages=_stages(told.graph),
            )
            if run.earlier:
                resumed = {"time": int(submitted), "dag": run.earlier[-1]}
                run.provenance = {"resumes": [resumed]}
            session.add(run)
            chosen = run.name
    events.sync(ledger)
    past = cluster.history(
        " || ".join(f"DAGManJobId == {one}" for one, _ in told.begun), told.begun[0][1] - 60
    )
    with ledger.session() as session:
        ads.recall(find.run(session, chosen), past)
    runfile.keep(ledger, chosen)
    return chosen


def _stages(graph: dagman.Graph) -> list[Stage]:
    stages = []
    for position, node in enumerate(dagman.ordered(graph.needs)):
        count, final = graph.retries.get(node, (0, None))
        stages.append(
            Stage(
                name=node,
                position=position,
                needs=graph.needs[node],
                retries=count,
                final_exit_codes=[] if final is None else [final],
                outcome="done" if node in graph.done else None,
            )
        )
    return stages


def _ads(number: int) -> list[Ad]:
    """The ads of a cluster's jobs, in the queue and in the history, by process."""
    # In this order: what leaves the queue meanwhile is seen twice, and not never.
    live = cluster.live([], [number])
    past = cluster.history(f"ClusterId == {number}", 0)
    found = {ad["ProcId"]: ad for ad in (*live, *past)}
    return [found[proc] for proc in sorted(found)]


def _is_dagman(ad: Ad) -> bool:
    universe = ad.get("JobUniverse") == JobUniverse.SCHEDULER
    return universe and str(ad.get("UserLog", "")).endswith(_LOG)


def _logged(ad: Ad) -> bool:
    log = ad.get("UserLog")
    return bool(log) and (Path(str(ad.get("Iwd", "/"))) / str(log)).is_file()


def _title(ad: Ad) -> str:
    """A name for a cluster that nobody has named."""
    return str(ad.get("JobBatchName") or Path(str(ad.get("Cmd", ""))).stem or "jobs")


def _count(ad: Ad) -> int:
    count = ad.get("TotalSubmitProcs", 0)
    return count if isinstance(count, int) else 0


def _plain(text: str) -> str:
    """`text` as a name that needs no quotes anywhere and is no job's number."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:80]
    return plain if re.match(r"[A-Za-z]", plain) else f"jobs-{plain}".rstrip("-")


def _free(session: Session, stem: str, exact: bool) -> str:
    taken = set(session.scalars(select(Run.name)))
    if exact:
        return stem
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def _check_name(ledger: Ledger, name: str | None) -> None:
    """Raises UserError for a name that no run may have, or that one has already."""
    if name is None:
        return
    if not _RUN_NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: letters, digits, '_', '.' and '-', a letter first")
    with ledger.session() as session:
        if session.scalar(select(Run.id).where(Run.name == name)):
            raise UserError(f"--name {name}: a run has this name already")


def _refuse_known_jobs(session: Session, schedd: str, number: int, found: Sequence[Ad]) -> None:
    known = select(Job).where(Job.schedd == schedd, Job.cluster == number)
    procs = {ad["ProcId"]: float(ad.get("QDate", 0)) for ad in found}
    for job in session.scalars(known):
        # A schedd set up anew counts from 1 again.
        if job.proc in procs and abs(job.submitted - procs[job.proc]) < 5:
            raise UserError(
                f"{job.number} is in the ledger already: {job.stage.run.name}/{job.stage.name}", 1
            )


def _user() -> str:
    """The user that the schedd knows this process as."""
    return pwd.getpwuid(os.geteuid()).pw_name
