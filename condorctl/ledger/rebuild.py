"""A ledger made again from what lies in the runs' folders, or filled up with what it lacks.

Each run comes in one transaction, or not at all: from its ``run.json`` (`runfile`), then by reading
HTCondor's logs and the jobs' files from their beginning, as they were read when they were written.
What is in the ledger already is left as it is.

In no folder, so lost with the ledger: what was fetched from the jobs of a pipeline and where to,
when the schedd was last asked, and what a job that goes on said of itself in its present start (it
says it again).
"""

from __future__ import annotations

import glob
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import paths
from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.ledger import Job, JobState, Ledger, Run, Stage, events, runfile
from condorctl.terminal import Progress

Json = dict[str, Any]


@dataclass
class Rebuilt:
    """The names of the runs that were `added`, `known` before, and `kept` (had no run.json yet).

    What could not be read is in `problems`, and what is only missing in `remarks`, a line each.
    """

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def rebuild(ledger: Ledger, folders: Sequence[Path], progress: Progress) -> Rebuilt:
    """Enter the runs below `folders`, by default exp/runs and what is kept beside the ledger.

    Raises UserError for a folder that does not exist, or holds no run.
    """
    done = Rebuilt()
    found: list[tuple[Path, Json]] = []
    for file in _files(ledger, folders):
        try:
            found.append((file, runfile.read(file)))
        except UserError as error:
            done.problems.append(str(error))
    # A run that takes another's outputs over is the later of the two.
    found.sort(key=lambda one: one[1]["run"]["submitted"])
    for number, (file, kept) in enumerate(found):
        progress("Reading the runs", number, len(found))
        try:
            _enter(ledger, file, kept, done)
        except (UserError, OSError) as error:
            done.problems.append(f"{file}: {error}")
    progress("Reading the runs", len(found), len(found))
    _keep(ledger, done)
    return done


def _files(ledger: Ledger, folders: Sequence[Path]) -> list[Path]:
    if folders:
        return [file for folder in folders for file in _below(folder)]
    own = sorted(paths.runs().glob(f"[!.]*/{runfile.FILE}"))
    return own + sorted(ledger.records.glob("[!.]*.json"))


def _below(folder: Path) -> Iterator[Path]:
    """The records of runs in `folder`: its own, those of its folders, or those kept there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / runfile.FILE).is_file():
        yield folder.absolute() / runfile.FILE
        return
    found = sorted(folder.absolute().glob(f"[!.]*/{runfile.FILE}"))
    if folder.suffix == ".records":
        found += sorted(folder.absolute().glob("[!.]*.json"))
    if not found:
        raise UserError(
            f"{folder}: holds no run, nor folders of runs: none has a {runfile.FILE}", 1
        )
    yield from found


def _enter(ledger: Ledger, file: Path, kept: Json, done: Rebuilt) -> None:
    whole = kept["whole"]
    name, folder = kept["run"]["name"], kept["run"]["folder"] if whole else str(file.parent)
    with ledger.session() as session:
        known = session.scalar(select(Run).where(Run.name == name))
        if known:
            if known.folder == folder:
                done.known.append(name)
                done.remarks += _link(session, known, kept)
            else:
                done.problems.append(
                    f"{file}: the ledger has another run {name}, in {known.folder}: "
                    "this one can go into a ledger of its own (CONDORCTL_LEDGER)"
                )
            return
        run = _run(kept, folder)
        session.add(run)
        session.flush()
        done.remarks += _link(session, run, kept)
        if not whole:
            try:
                _replay(session, run, kept)
            except cluster.DamagedLog as error:
                done.problems.append(f"{name}: {error}")
        run.unkept = 0
        done.added.append(name)


def _run(kept: Json, folder: str) -> Run:
    run = Run(**kept["run"])
    run.folder = folder
    if not kept["whole"]:
        # The folder may have been moved with all that is in it.
        run.dag_file = str(Path(folder) / Path(run.dag_file or "").name)
        run.host = socket.gethostname()
    for stage in kept["stages"]:
        values = {key: value for key, value in stage.items() if key not in ("source", "jobs")}
        entry = Stage(**values)
        if kept["whole"]:
            entry.jobs = [_job(job) for job in stage.get("jobs", [])]
        run.stages.append(entry)
    return run


def _job(kept: Json) -> Job:
    job = Job(**{key: value for key, value in kept.items() if key not in runfile.PARTS})
    for part in runfile.PARTS:
        _fill(job, part, kept)
    return job


def _fill(job: Job, part: str, kept: Json) -> None:
    table = runfile.PARTS[part]
    setattr(job, part, [table(**row) for row in kept.get(part, ())])


def _replay(session: Session, run: Run, kept: Json) -> None:
    """Read the logs of `run` from their beginning; then enter what they do not tell."""
    told = {
        (job["cluster"], job["proc"]): (stage["name"], job)
        for stage in kept["stages"]
        for job in stage.get("jobs", ())
    }
    try:
        heard = {key: (job.get("progress"), job.get("usage")) for key, (_, job) in told.items()}
        events.read_again(session, run, _put_aside(Path(run.dag_file or "")), heard)
    finally:
        if run.cluster in run.earlier:
            # It was being resumed; the next look at the queue tells whether it got there.
            run.cluster, run.state = None, "idle"
            run.finished = run.exit_code = run.problem = None
        stages = {stage.name: stage for stage in run.stages}
        known = {(job.cluster, job.proc): job for stage in run.stages for job in stage.jobs}
        for key, (name, job) in told.items():
            if key in known:
                _complete(known[key], job)
            else:
                stages[name].jobs.append(_job(job))


def _complete(job: Job, kept: Json) -> None:
    """Enter what was kept of `job` and is found nowhere any more."""
    for part in ("checkpoints", "metrics", "results", "fetched"):
        if not getattr(job, part):
            _fill(job, part, kept)
    last = job.states[-1].time if job.states else 0.0
    for row in kept.get("states", ()):
        # The queue told of it when no log did.
        if row["time"] > last and row["state"] != job.state:
            job.states.append(JobState(**row))
            job.state = row["state"]
            job.finished = kept.get("finished")


def _put_aside(dag: Path) -> list[Path]:
    """The logs of the DAGs before the last one, which `resume` has put aside, the oldest first."""
    logs = dag.parent.glob(f"{glob.escape(dag.name)}.nodes.log.*")
    return sorted(logs, key=lambda log: (log.stat().st_mtime, log.name))


def _link(session: Session, run: Run, kept: Json) -> list[str]:
    """Have each stage that took another's outputs over name that one; a line for each that cannot.

    Its outputs are there all the same.
    """
    remarks = []
    sources = {stage["name"]: stage["source"] for stage in kept["stages"] if stage.get("source")}
    for stage in run.stages:
        if stage.name not in sources or stage.source_id is not None:
            continue
        of, name = sources[stage.name]["run"], sources[stage.name]["stage"]
        found = session.scalar(select(Stage).join(Run).where(Run.name == of, Stage.name == name))
        stage.source, stage.outcome = found, None if found else "done"
        if not found:
            remarks.append(
                f"{run.name}/{stage.name} has the outputs of {of}/{name}, which is not in the "
                "ledger: `condorctl ledger rebuild FOLDER` with the folder of that run links them"
            )
    return remarks


def _keep(ledger: Ledger, done: Rebuilt) -> None:
    """Write the record of runs that have none: they were submitted before there was one."""
    with ledger.session() as session:
        names = [
            run.name
            for run in session.scalars(select(Run).order_by(Run.id))
            if runfile.is_ours_to_keep(run) and not runfile.place(ledger, run).exists()
        ]
    for name in names:
        try:
            if runfile.keep(ledger, name):
                done.kept.append(name)
        except OSError as error:
            done.problems.append(f"{name}: its record cannot be written: {error.strerror}")
