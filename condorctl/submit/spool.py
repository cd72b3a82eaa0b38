"""Runs on a schedd elsewhere: what they need is spooled there, what they leave is brought back.

DAGMan then works in its job's own folder below the SPOOL of that schedd, and a copy of what it
and its jobs write grows in the run's folder here: logs while they are written, a stage's files
with each start and end of one of its jobs. So everything that reads a run's folder works alike.
No file system is shared. (HTCondor manual, "Submitting Jobs Using a Remote Schedd".)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from condorctl.condor import cluster, submit_language
from condorctl.condor.codes import OVER, JobEvent, JobStatus
from condorctl.errors import UserError
from condorctl.ledger import Ledger, LogPosition, Run, runfile, sharing
from condorctl.submit import content, drafts
from condorctl.submit.snapshot import Snapshot

# What comes back lies here first, below the run's folder.
_STAGING = ".spooled"
# Each bringing back costs the schedd a process.
_INTERVAL_S = 4.0
# Finished DAGs wait that long for somebody to bring back what they left.
_KEEP_S = 30 * 86400
_LEAVE_IN_QUEUE = (
    f"(JobStatus == {JobStatus.COMPLETED} || JobStatus == {JobStatus.REMOVED})"
    f" && time() - EnteredCurrentStatus < {_KEEP_S}"
)
# In a rendered submit file: the line, and a path on it that `places` gave.
_INPUTS = re.compile(r"^[ \t]*transfer_input_files[ \t]*=.*$", re.IGNORECASE | re.MULTILINE)
_INPUT = re.compile(r"([=,]\s*)(inputs/x?\d+)(?=/)")
# Why a job is held whose files are on their way (manual, "HoldReasonCode").
_SPOOLING = 16
_TOLD = ["JobStatus", "HoldReasonCode", "JobStartDate", "SUBMIT_Iwd"]
_NOT_SENT = "its DAGMan has never started: `condorctl resume {}` submits it again"
# Whole only when DAGMan has ended, as is its rescue file, which it writes when it fails.
_LAST = ("dagman.out", "lib.out", "lib.err", "metrics")


@dataclass(frozen=True)
class _Spooled:
    """What bringing a run back takes, free of the database."""

    row: int
    dag: Path
    number: int
    began: float

    @property
    def folder(self) -> Path:
        return self.dag.parent

    @property
    def staging(self) -> Path:
        return self.folder / _STAGING

    def log(self, name: str) -> str:
        return f"{self.dag.name}.{name}"


def places(taken: Snapshot, folder: Path) -> dict[str, str]:
    """Where each local input is in `folder`, the run's; those left in place are copied now."""
    found = {}
    for number, (text, one) in enumerate(taken.inputs.items()):
        place = one.place
        if place is None:
            place = f"inputs/x{number}/{one.source.name}"
            (folder / place).parent.mkdir(parents=True)
            content.copy(one.source, folder / place)
        found[text] = f"{place}{'/' * text.endswith('/')}"
    return found


def make_absolute(folder: Path) -> None:
    """Have DAGMan make the paths of local inputs absolute, in its own folder there.

    A job gets a relative path with all its folders, an absolute one under its base name alone, as
    a spec means it; but where the run's folder will be, only DAGMan knows when it submits.
    """
    for file in folder.glob("*/stage.sub"):
        text = _INPUTS.sub(
            lambda line: _INPUT.sub(r"\1$Ff(\2)", line[0]), file.read_text(encoding="utf-8")
        )
        file.write_text(text, encoding="utf-8")


def submit(dag: Path, batch_name: str) -> int:
    """Submit the DAG with all that lies beside it; return the cluster id of its DAGMan job.

    Raises Unreachable when the schedd does not answer, UserError when it refuses.
    """
    import classad2

    htcondor, schedd, location = cluster.connection()
    staging = dag.parent / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    # Of a run that is resumed: there it begins anew, and readers know it by its inode.
    if (log := Path(f"{dag}.dagman.log")).exists():
        log.rename(log.with_name(f"{log.name}.{int(time.time())}"))
    # They can be asked for from the first moment on.
    for name in ("nodes.log", "dagman.out"):
        (dag.parent / f"{dag.name}.{name}").touch()
    with contextlib.chdir(dag.parent):
        try:
            # Of all requests this one says why it is refused.
            schedd.query(constraint="false")
            description = cluster.describe_dag(dag.name, batch_name)
            Path(f"{dag.name}.condor.sub").unlink()
            own = description["executable"]
            there = f"{htcondor.RemoteParam(location)['BIN']}/condor_dagman"
            description["executable"] = there
            description["transfer_executable"] = "False"
            description["arguments"] = description["arguments"].replace(own, there)
            # Nothing of this machine's environment means anything there.
            description["getenv"] = "False"
            description["environment"] = str(submit_language.environment(_environment(dag)))
            description["should_transfer_files"] = "YES"
            names = (path.name for path in Path().iterdir())
            ours = (_STAGING, runfile.FILE)
            files = sorted(name for name in names if not name.startswith(ours))
            description["transfer_input_files"] = str(submit_language.file_list(files))
            description["leave_in_queue"] = _LEAVE_IN_QUEUE
            # Whoever is killed before the answer comes finds it again by this.
            description[f"My.{cluster.FOLDER}"] = classad2.quote(str(dag.parent))
            result = schedd.submit(description, spool=True)
        except (htcondor.HTCondorException, KeyError) as error:
            raise cluster.refused(f"{dag.name}: HTCondor refuses the DAG", error) from None
        number = int(result.cluster())
        try:
            schedd.spool(result)
            schedd.edit([f"{number}.0"], "SUBMIT_Iwd", f'"{staging}"')
        except BaseException as error:
            with contextlib.suppress(htcondor.HTCondorException):
                _take_back(number)
            if isinstance(error, htcondor.HTCondorException):
                raise cluster.refused(f"{dag.name}: its files did not arrive", error) from None
            raise
    return number


def bring_back(ledger: Ledger) -> str | None:
    """Bring what spooled runs have left by now into their folders; what could not be, in a line.

    Only runs on the schedd that this process talks to. Another process that is at it is not
    waited for.
    """
    with ledger.session() as session:
        runs = session.scalars(select(Run).where(Run.finished.is_(None), Run.spooled))
        going = [
            (
                run.schedd,
                _Spooled(
                    run.id, Path(run.dag_file or ""), run.cluster, run.resumed or run.submitted
                ),
            )
            for run in runs
            if run.cluster is not None and sharing.is_ours_to_read(ledger, run)
        ]
    if not going:
        return None
    try:
        here = cluster.schedd_name()
    except cluster.Unreachable as error:
        return str(error)
    problems = []
    for schedd, run in going:
        if schedd != here:
            problems.append(f"{run.folder.name} is on schedd {schedd}: --schedd {schedd} asks it")
            continue
        with _locked(run) as mine:
            try:
                if mine:
                    _bring(ledger, run, here)
            except UserError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{error.filename or run.folder}: {error.strerror}")
    return "; ".join(problems) or None


def _bring(ledger: Ledger, run: _Spooled, here: str) -> None:
    htcondor, schedd, _ = cluster.connection()
    job = f"{run.number}.0"
    try:
        ads = schedd.query(constraint=f"ClusterId == {run.number}", projection=_TOLD)
        if not ads:
            problem = f"its DAG job {job} has left the queue of {here} with all files"
            _give_up(ledger, run, "removed", problem)
            return
        if _never_starts(ads[0]):
            if not drafts.is_under_way(run.folder, run.began):
                _take_back(run.number)
                _give_up(ledger, run, "failed", _NOT_SENT.format(run.folder.name))
            return
        if ads[0].get("SUBMIT_Iwd") != str(run.staging):
            # Whoever submitted it was killed before that was said.
            schedd.edit([job], "SUBMIT_Iwd", f'"{run.staging}"')
        ended = ads[0]["JobStatus"] in OVER
        logs = [run.log("nodes.log"), run.log("dagman.log")]
        _retrieve(schedd, job, logs)
        if stages := _touched(run):
            _retrieve(schedd, job, stages)
        if ended:
            number = 1 + len(list(run.folder.glob(run.log("rescue*"))))
            for name in (*_LAST, f"rescue{number:03}"):
                with contextlib.suppress(htcondor.HTCondorException):
                    _retrieve(schedd, job, [run.log(name)])
    except htcondor.HTCondorException as error:
        raise cluster.refused(f"{run.folder.name}: nothing came back", error) from None
    _install(run, last=logs)
    if ended:
        with contextlib.suppress(htcondor.HTCondorException):
            schedd.edit([job], "LeaveJobInQueue", "false")


def _never_starts(ad: Any) -> bool:
    """Whether the job's files did not arrive.

    It waits for them, for ever where nobody began to send them; where that broke off the schedd
    has removed the job.
    """
    waits = (ad["JobStatus"], ad.get("HoldReasonCode")) == (JobStatus.HELD, _SPOOLING)
    return waits or (ad["JobStatus"] == JobStatus.REMOVED and "JobStartDate" not in ad)


def _take_back(number: int) -> None:
    """Remove a DAGMan job that never started. Raises the bindings' own errors."""
    htcondor, schedd, _ = cluster.connection()
    schedd.act(htcondor.JobAction.Remove, [f"{number}.0"], ("its files did not arrive", 0))
    schedd.edit([f"{number}.0"], "LeaveJobInQueue", "false")


def _retrieve(schedd: Any, job: str, paths: list[str]) -> None:
    schedd.edit([job], "TransferOutput", f'"{",".join(paths)}"')
    schedd.retrieve([job])


def _touched(run: _Spooled) -> list[str]:
    """The stages of whose jobs the log tells more than its copy in the run's folder."""
    known = (run.folder / run.log("nodes.log")).stat().st_size
    position = LogPosition(path="", inode=0, offset=0)
    nodes: dict[int, str] = {}
    stages = set()
    for event in cluster.read_events(run.staging / run.log("nodes.log"), position):
        number = int(event["Cluster"])
        if event["EventTypeNumber"] == JobEvent.SUBMIT:
            nodes[number] = cluster.node_name(event) or ""
        elif position.offset > known:
            stages.add(nodes.get(number, ""))
    return sorted(name for name in stages if (run.folder / name / "stage.sub").exists())


def _install(run: _Spooled, last: list[str]) -> None:
    """Move what came into the run's folder; logs last, since they announce the rest."""
    files = [path for path in run.staging.rglob("*") if path.is_file() and not path.is_symlink()]
    order = {run.staging / name: number for number, name in enumerate(last, 1)}
    for path in sorted(files, key=lambda path: order.get(path, 0)):
        target = run.folder / path.relative_to(run.staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".log" and target.exists():
            # Readers know a log by its inode and go on where they stopped.
            with path.open("rb") as source, target.open("ab") as file:
                source.seek(file.tell())
                shutil.copyfileobj(source, file)
        elif path.name != "stage.sub":
            path.replace(target)
            continue
        path.unlink()


def _give_up(ledger: Ledger, run: _Spooled, state: str, problem: str) -> None:
    with ledger.session() as session:
        found = session.get_one(Run, run.row)
        found.state, found.finished, found.problem = state, time.time(), problem


@contextlib.contextmanager
def _locked(run: _Spooled) -> Iterator[bool]:
    """Whether it is ours to bring something back now."""
    run.staging.mkdir(exist_ok=True)
    with (run.folder / f"{_STAGING}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        early = time.time() - os.fstat(file.fileno()).st_mtime < _INTERVAL_S
        if not early:
            os.utime(file.fileno())
        yield not early


def _environment(dag: Path) -> dict[str, str]:
    """DAGMan's, there: what `dagman.config` sets, since a file's path would have to be absolute."""
    told = {"_CONDOR_DAGMAN_LOG": f"{dag.name}.dagman.out", "_CONDOR_MAX_DAGMAN_LOG": "0"}
    for line in Path("dagman.config").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith("#"):
            told[f"_CONDOR_{name.strip()}"] = value.strip()
    return told
