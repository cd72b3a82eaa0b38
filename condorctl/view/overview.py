"""Many runs at a glance: those of the ledger, and what a schedd has to do for all its users."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from condorctl.condor import cluster
from condorctl.condor.codes import JobUniverse
from condorctl.ledger import NEWEST_FIRST, Job, Run, Stage, find, job_states, stage_states
from condorctl.view import cost, status, sweeps

Json = dict[str, Any]

# Groups of a sweep's stages that still fit on a screen.
_MOST_GROUPS = 20


def runs(session: Session, limit: int | None, unreachable: str | None, since: float) -> Json:
    """The ledger's runs, the newest first, `limit` of them at most.

    A run has run, kind, pipeline, owner, schedd, state, submitted, finished, age_s (since it was
    submitted), elapsed_s, stages {"done", "total"}, jobs (of the latest attempts, by state), cost
    (`cost.Cost.as_json`), as_of, unreachable as in `status.describe`. `total` counts all runs.
    """
    jobs = selectinload(Run.stages).selectinload(Stage.jobs)
    query = select(Run).order_by(*NEWEST_FIRST).limit(limit).options(jobs.selectinload(Job.states))
    found = [_run(run, status.doubt(run, unreachable, since)) for run in session.scalars(query)]
    return {"runs": found, "total": session.scalar(select(func.count()).select_from(Run)) or 0}


def _run(run: Run, unreachable: str | None) -> Json:
    now = time.time()
    until = run.finished or (run.seen if unreachable and run.seen else now)
    states = stage_states.of(run)
    current = [job for stage in run.stages if not stage.source for job in stage.current]
    return {
        **status.heading(run),
        "submitted": run.submitted,
        "finished": run.finished,
        "age_s": round(max(0.0, now - run.submitted), 1),
        "elapsed_s": round(until - run.submitted, 1),
        "stages": {
            "done": sum(state == "done" for state in states.values()),
            "total": len(states),
        },
        "jobs": dict(Counter(job.state for job in current)),
        "cost": cost.of_run(run, until).as_json(),
        "as_of": run.finished or run.seen,
        "unreachable": unreachable,
    }


def costs(
    session: Session, names: Sequence[str] | None, unreachable: str | None, since: float
) -> Json:
    """What the runs called `names` took, the latest if there is no name, all runs for None.

    `runs` holds of each run run, pipeline, owner, state, submitted, as_of and unreachable as in
    `status.describe`, the keys of `cost.Cost.as_json`, and when runs were named `stages` (stage,
    reused_from, the same keys) and `groups`, the stages of a sweep together (group, stages, the
    same keys); `users` and `total` are sums of the runs. Raises UserError.
    """
    if names is None:
        jobs = selectinload(Run.stages).selectinload(Stage.jobs)
        query = select(Run).order_by(*NEWEST_FIRST).options(jobs.selectinload(Job.states))
        runs = list(session.scalars(query))
    else:
        runs = [find.run(session, name) for name in dict.fromkeys(names) or [None]]
    rows: list[Json] = []
    users: dict[str, cost.Cost] = defaultdict(cost.Cost)
    for run in runs:
        doubt = status.doubt(run, unreachable, since)
        until = run.seen if doubt and run.seen else None
        stages = {stage: cost.of_stage(stage, until) for stage in run.stages}
        summed = cost.total(stages.values())
        users[run.owner].add(summed)
        row = {name: getattr(run, name) for name in ("pipeline", "owner", "state", "submitted")}
        row |= {"as_of": run.finished or run.seen, "unreachable": doubt, **summed.as_json()}
        if names is not None:
            row["stages"] = [
                {
                    "stage": stage.name,
                    "reused_from": status.reused_from(stage),
                    **found.as_json(),
                }
                for stage, found in stages.items()
            ]
            by_name = {stage.name: found for stage, found in stages.items()}
            row["groups"] = [
                {
                    "group": sweeps.label(stem, members),
                    "stages": members,
                    **cost.total(by_name[name] for name in members).as_json(),
                }
                for stem, members in sweeps.grouped(list(by_name), _MOST_GROUPS).items()
            ]
        rows.append({"run": run.name, **row})
    return {
        "runs": rows,
        "users": {owner: users[owner].as_json() for owner in sorted(users)},
        "total": cost.total(users.values()).as_json(),
    }


def users(session: Session) -> Json:
    """What the schedd has in its queue now, of all its users, by user and batch.

    `work` holds the DAGs and the jobs outside of any, by user and age: user, kind ("dag", "jobs"),
    job (the full id of the DAGMan job, or of the first job), batch, state, submitted, age_s, nodes
    (of a DAG: done, failed, total; null otherwise), jobs (by state), cpus and gpus (of the running
    jobs), run (its name in this ledger, or null). Raises Unreachable.
    """
    schedd, ads = cluster.schedd_name(), cluster.queue()
    known = _known(session, schedd)
    dags = {ad["ClusterId"] for ad in ads if ad.get("JobUniverse") == JobUniverse.SCHEDULER}
    members: dict[tuple[Any, ...], list[Json]] = defaultdict(list)
    for ad in ads:
        dag = ad["ClusterId"] if ad["ClusterId"] in dags else _dag_of(ad, dags)
        user, batch = str(ad.get("Owner", "")), ad.get("JobBatchName")
        if dag is not None:
            members["dag", dag].append(ad)
        elif batch:
            members["jobs", user, str(batch)].append(ad)
        else:
            members["jobs", user, ad["ClusterId"]].append(ad)
    work = [_work(schedd, key, group, known) for key, group in members.items()]
    work.sort(key=lambda one: (one["user"], -one["submitted"]))
    return {"schedd": schedd, "as_of": time.time(), "work": work}


def _dag_of(ad: Json, dags: set[int]) -> int | None:
    """The DAG in the queue that `ad` is a job of; a job whose DAGMan is gone is one of its own."""
    dag = ad.get("DAGManJobId")
    return dag if dag in dags else None


def _work(schedd: str, key: tuple[Any, ...], ads: list[Json], known: dict[int, str]) -> Json:
    kind = str(key[0])
    head = next((ad for ad in ads if kind == "dag" and ad["ClusterId"] == key[1]), ads[0])
    jobs = [ad for ad in ads if not (kind == "dag" and ad is head)]
    states = Counter(map(_state, jobs))
    submitted = float(head.get("QDate") or 0)
    running = [ad for ad in jobs if _state(ad) == "running"]
    names = ("running", "held", "suspended", "idle")
    nodes = {
        name: head.get(f"DAG_Nodes{name.capitalize()}") for name in ("done", "failed", "total")
    }
    return {
        "user": str(head.get("Owner", "")),
        "kind": kind,
        "job": f"{schedd}#{head['ClusterId']}.{head['ProcId']}",
        "batch": _text(head.get("JobBatchName")),
        "state": _state(head) if kind == "dag" else next((n for n in names if states[n]), "idle"),
        "submitted": submitted,
        "age_s": round(max(0.0, time.time() - submitted), 1),
        "nodes": nodes if kind == "dag" else None,
        "jobs": dict(states),
        "cpus": sum(_count(ad.get("RequestCpus")) for ad in running),
        "gpus": sum(_count(ad.get("RequestGPUs")) for ad in running),
        "run": next((known[ad["ClusterId"]] for ad in ads if ad["ClusterId"] in known), None),
    }


def _known(session: Session, schedd: str) -> dict[int, str]:
    """The runs that clusters of `schedd` belong to: DAGMan jobs, and jobs outside of a DAG."""
    going = select(Run).where(Run.schedd == schedd, Run.finished.is_(None))
    found = {run.cluster: run.name for run in session.scalars(going) if run.cluster is not None}
    jobs = select(Job.cluster, Run.name).join(Stage, Job.stage_id == Stage.id)
    jobs = jobs.join(Run, Stage.run_id == Run.id)
    jobs = jobs.where(Job.schedd == schedd, Job.finished.is_(None), Run.finished.is_(None))
    found.update((number, name) for number, name in session.execute(jobs))
    return found


def _state(ad: Json) -> str:
    return job_states.OF_STATUS.get(ad.get("JobStatus", 0), "idle")


def _count(value: object) -> int:
    # A request may be an expression, which only its own machine could evaluate.
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
