"""A run that ended before all its stages were done goes on: the same run, folder and jobs' history.

DAGMan writes a rescue file when it fails or is removed, and a DAG that is submitted again in its
folder leaves out what that file calls done (HTCondor manual, "Resubmitting a Failed DAG"). It also
empties the log of its nodes, which is therefore put aside first. A DAGMan that is killed needs none
of this: the schedd starts it again, and it reads where it was from that log.
"""

from __future__ import annotations

import getpass
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from condorctl import drafts
from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, events, find, runfile
from condorctl.submit import spool

Json = dict[str, Any]


def resume(ledger: Ledger, name: str | None) -> Json:
    """Submit the rest of the run called `name`, of the latest one if there is no name.

    Returns `run`, its new `dag` (cluster id), the `rescue` file, and `kept` and `left`, the names
    of the stages. Raises UserError when there is nothing to resume, or nothing to resume from.
    """
    events.sync(ledger)
    schedd = cluster.schedd_name()
    with ledger.session() as session:
        run = find.run(session, name)
        _check(run, schedd)
        chosen, folder = run.name, run.path
    with drafts.at_work(folder):
        return _resume(ledger, chosen, schedd)


def _resume(ledger: Ledger, chosen: str, schedd: str) -> Json:
    with ledger.session() as session:
        run = find.run(session, chosen)
        _check(run, schedd)
        dag = Path(run.dag_file or "")
        before = (run.cluster, run.state, run.finished, run.exit_code, run.problem)
        spooled, old, kept = run.spooled, run.cluster, _done(run)
        left = [stage.name for stage in run.stages if stage.name not in kept]
        resumes = [*run.provenance.get("resumes", []), {"time": int(time.time()), "dag": old}]
        run.provenance = {**run.provenance, "resumes": resumes}
        if old is not None:
            run.earlier = [*run.earlier, old]
        for stage in run.stages:
            stage.outcome = stage.outcome if stage.name in kept else None
        run.cluster, run.state = None, "idle"
        run.finished = run.exit_code = run.problem = None
    log = Path(f"{dag}.nodes.log")
    aside = log.with_name(f"{log.name}.{old or len(resumes)}")
    try:
        runfile.keep(ledger, chosen)
        rescue = _rescue(dag, kept)
        if log.exists():
            log.rename(aside)
        number = (spool.submit if spooled else cluster.submit_dag)(dag, chosen)
    except (UserError, OSError):
        if aside.exists() and not log.exists():
            aside.rename(log)
        with ledger.session() as session:
            run = find.run(session, chosen)
            run.cluster, run.state, run.finished, run.exit_code, run.problem = before
            run.earlier = [one for one in run.earlier if one != old]
            run.provenance = {**run.provenance, "resumes": resumes[:-1]}
        with suppress(OSError):
            runfile.keep(ledger, chosen)
        raise
    with ledger.session() as session:
        find.run(session, chosen).cluster = number
    runfile.keep(ledger, chosen)
    return {"run": chosen, "dag": number, "rescue": str(rescue), "kept": kept, "left": left}


def _check(run: Run, schedd: str) -> None:
    """Raises UserError for a run that cannot be resumed."""
    name = run.name
    if run.kind != "pipeline" or not run.dag_file:
        mend = "`condor_submit_dag` in its folder resumes it" if run.dag_file else "it has no DAG"
        raise UserError(f"{name} was not submitted by condorctl: {mend}")
    if run.owner != getpass.getuser():
        raise UserError(f"{name} is {run.owner}'s: only they can resume it")
    if run.state == "done":
        raise UserError(f"{name} is done: there is nothing to resume", 1)
    if run.cleaned:
        raise UserError(f"{name}: its files were cleaned away: submit {run.pipeline} anew")
    if not Path(run.dag_file).is_file():
        raise UserError(f"{name}: {run.dag_file} is gone: submit {run.pipeline} anew")
    if run.schedd != schedd:
        raise UserError(f"{name} was submitted to schedd {run.schedd}, this one is {schedd}")
    if cluster.is_queued(run.folder):
        if run.state == "held":
            raise UserError(f"{name}: its DAGMan is held: `condorctl release {name}`", 1)
        state = "its last jobs are being removed" if run.finished else f"it is {run.state}"
        raise UserError(f"{name} is still in the queue, {state}: there is nothing to resume", 1)


def _done(run: Run) -> list[str]:
    return [
        stage.name
        for stage in run.stages
        if (jobs := stage.origin.current) and all(job.state == "completed" for job in jobs)
    ]


def rescues(dag: Path) -> list[Path]:
    """The DAG's rescue files, the one that DAGMan takes last."""
    name = re.compile(re.escape(dag.name) + r"\.rescue\d{3}")
    return sorted(path for path in dag.parent.iterdir() if name.fullmatch(path.name))


def _rescue(dag: Path, kept: list[str]) -> Path:
    """The rescue file that DAGMan will take; written here where its own leaves out what is done.

    DAGMan writes none when it is removed while it is held or about to start, or is lost.
    """
    # Left by a DAGMan that was killed; it would have the next one wait for jobs that are gone.
    Path(f"{dag}.lock").unlink(missing_ok=True)
    there = rescues(dag)
    told: set[str] = set()
    if there:
        words = map(str.split, there[-1].read_text(encoding="utf-8").splitlines())
        told = {line[1] for line in words if len(line) > 1 and line[0] == "DONE"}
        if told >= set(kept):
            return there[-1]
    number = int(there[-1].name[-3:]) + 1 if there else 1
    file = dag.with_name(f"{dag.name}.rescue{number:03}")
    lines = ["# Written by condorctl: DAGMan ended without a rescue file.", ""]
    done = [*kept, *sorted(told - set(kept))]
    draft = file.with_name(f".{file.name}")
    draft.write_text("\n".join([*lines, *(f"DONE {name}" for name in done), ""]), encoding="utf-8")
    return draft.replace(file)
