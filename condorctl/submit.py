"""From a spec to a running DAG, with nothing half-written when something is wrong."""

from __future__ import annotations

import getpass
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import cluster, find, paths, pool, render, spec
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, Stage
from condorctl.spec import Pipeline


def submit(ledger: Ledger, name: str, settings: Mapping[str, str]) -> str:
    """Submit the pipeline `name` with its parameters set; return the run's name.

    Raises UserError when the spec, a template or a file is wrong, or the schedd does not answer;
    then there is neither a folder nor an entry of the run.
    """
    file = paths.spec(name)
    pipeline = spec.load(file, settings)
    schedd = cluster.schedd_name()
    runs = paths.runs()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=runs))
    except OSError as error:
        raise UserError(f"{runs}: {error.strerror}") from None
    folder: Path | None = None
    try:
        with ledger.session() as session:
            run = _entry(session, pipeline, runs, schedd)
            session.add(run)
            session.flush()
            dag = render.render(pipeline, run.name, draft, _python())
            cluster.check_dag(dag)
            shutil.copy2(file, draft / "spec.yaml")
            # The rename takes the name for good: it fails where another run has just taken it.
            draft.rename(run.path)
            chosen, folder = run.name, run.path
    except BaseException:
        shutil.rmtree(folder or draft, ignore_errors=True)
        raise
    try:
        cluster_id = cluster.submit_dag(folder / dag.name, chosen)
    except UserError:
        # Refused, so nothing runs. After any other end the DAG may be in the queue: its log tells.
        shutil.rmtree(folder, ignore_errors=True)
        with ledger.session() as session:
            session.delete(find.run(session, chosen))
        raise
    with ledger.session() as session:
        find.run(session, chosen).cluster = cluster_id
    return chosen


def _entry(session: Session, pipeline: Pipeline, runs: Path, schedd: str) -> Run:
    taken = set(session.scalars(select(Run.name)))
    taken |= {path.name for path in runs.iterdir()}
    number = 1
    while f"{pipeline.name}-{number}" in taken:
        number += 1
    name = f"{pipeline.name}-{number}"
    folder = (runs / name).absolute()
    return Run(
        name=name,
        pipeline=pipeline.name,
        folder=str(folder),
        dag_file=str(folder / f"{pipeline.name}.dag"),
        params=dict(pipeline.params),
        tables=[table.model_dump() for table in pipeline.tables],
        owner=getpass.getuser(),
        schedd=schedd,
        submitted=time.time(),
        stages=[
            Stage(
                name=stage.name,
                position=position,
                needs=stage.upstream(pipeline.stages),
                retries=stage.retries,
                final_exit_codes=stage.final_exit_codes,
                command=stage.command,
                outputs=stage.outputs,
            )
            for position, stage in enumerate(pipeline.stages[n] for n in pipeline.order())
        ],
    )


def _python() -> list[str]:
    """What ``python`` at the head of a command is on the execute node."""
    # A personal pool's jobs run on this machine, where this interpreter has all they import;
    # anywhere else only what the node itself calls python3 can be counted on.
    if pool.activate().where == "personal":
        return [sys.executable]
    return ["/usr/bin/env", "python3"]
