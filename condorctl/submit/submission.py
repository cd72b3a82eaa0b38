"""From a spec to a running DAG, with nothing half-written when something is wrong."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import drafts, paths, pool, secrets
from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, Stage, events, find, runfile
from condorctl.pool import elsewhere
from condorctl.spec import reader
from condorctl.spec.pipeline import Pipeline
from condorctl.submit import provenance, render, reuse, snapshot, spool, universe


@dataclass(frozen=True)
class Submitted:
    """The name of a run, why each of its stages runs or not, and remarks for a human."""

    run: str
    why: dict[str, str]
    remarks: list[str]


def submit(
    ledger: Ledger,
    name: str,
    settings: Mapping[str, str],
    site: str | None = None,
    wish: reuse.Wish | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Submitted:
    """Submit the pipeline `name` with its parameters set, without the stages that need not run.

    `wish` says which those are: by default all that have not changed. `tell` gets a line before
    what takes long. Raises UserError when the spec, a template or a file is wrong, or the schedd
    does not answer; then there is neither a folder nor an entry of the run.
    """
    file = paths.spec(name)
    pipeline = reader.load(file, settings, site)
    schedd = cluster.schedd_name()
    events.sync(ledger)
    runs = paths.runs()
    with drafts.new(runs) as draft:
        # Files are copied and hashed while nobody waits for the ledger.
        taken = snapshot.take(ledger, pipeline, draft, tell)
        texts = {
            stage.name: render.submit_file(pipeline, stage, pipeline.name, python())
            for stage in pipeline.stages.values()
        }
        images = universe.used(ledger, texts)
        prints = {
            stage.name: reuse.fingerprint(
                stage, pipeline, taken, universe.python(pipeline, stage, python()),
                texts[stage.name], images.get(stage.name),
            )
            for stage in pipeline.stages.values()
        }  # fmt: skip
        plan = reuse.plan(ledger, pipeline, prints, wish or reuse.Wish(), draft)
        origin = provenance.gather(pipeline, file, taken, schedd, draft, images)
        with ledger.session() as session:
            run = _entry(session, pipeline, runs, schedd)
            run.provenance = {**origin, "why": plan.why}
            for entry in run.stages:
                entry.fingerprint = prints[entry.name]
                if entry.name in plan.taken:
                    entry.source = session.get_one(Stage, plan.taken[entry.name].origin)
            session.add(run)
            session.flush()
            inputs = spool.places(taken, draft) if run.spooled else taken.finals(run.path)
            dag = render.render(pipeline, run.name, draft, python(), inputs, plan.taken)
            for stage in pipeline.stages.values():
                if stage.name not in plan.taken:
                    secrets.write(stage, draft)
            if run.spooled:
                spool.make_absolute(draft)
            cluster.check_dag(dag)
            shutil.copy2(file, draft / "spec.yaml")
            runfile.write(draft / runfile.FILE, runfile.of(session, run))
            chosen, folder = run.name, run.path
        # An entry without a folder is forgotten by the next who looks; a folder of that name
        # without an entry would stay for ever.
        try:
            draft.rename(folder)
        except BaseException:
            _forget(ledger, chosen)
            raise
        send = spool.submit if elsewhere.schedd() else cluster.submit_dag
        try:
            cluster_id = send(folder / dag.name, chosen)
        except UserError:
            # Refused, so nothing runs. After any other end the DAG may be queued: its log tells.
            drafts.remove(folder)
            _forget(ledger, chosen)
            raise
        with ledger.session() as session:
            find.run(session, chosen).cluster = cluster_id
    runfile.keep(ledger, chosen)
    large = [
        f"input {one.source} is used where it is, for its size: leave it as it is while "
        f"{chosen} runs"
        for one in taken.in_place
    ]
    return Submitted(chosen, plan.why, [*large, *reuse.explain(plan)])


def _forget(ledger: Ledger, name: str) -> None:
    with ledger.session() as session:
        session.delete(find.run(session, name))


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
        spooled=bool(elsewhere.schedd()),
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


def python() -> list[str]:
    """What ``python`` at the head of a command is on the execute node.

    Without a pool it is what a pool that is not this machine would be asked for.
    """
    # A personal pool's jobs run on this machine, where this interpreter has all they import;
    # anywhere else only what the node itself calls python3 can be counted on.
    with contextlib.suppress(UserError):
        if pool.activate().where == "personal" and not elsewhere.schedd():
            return [sys.executable]
    return ["/usr/bin/env", "python3"]
