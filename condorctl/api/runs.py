"""Runs: submitted, adopted, steered to their end, cleaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condorctl.api.base import Json, Progress, describe, open_ledger, silent
from condorctl.errors import UserError


def submit(
    pipeline: str,
    set: Mapping[str, str] | None = None,
    site: str | None = None,
    start: Sequence[str] = (),
    reuse: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Json:
    """Submit a pipeline as a DAG, to a site by its profile; return the run as `status` does.

    `pipeline` may also be a file of one's own, a DAG or a submit file: it is submitted as
    HTCondor's own tools do it, and none of the other parameters are for it (`adopt.submit`).

    Stages that have not changed since they were done are not run again, unless `force`. With
    `start` (``--from``), names or globs, and `reuse`, a run: these stages and all after them run,
    the others come from that run. Each stage has its `why` beside `reused_from`; `remarks` are
    lines for a human.
    """
    from condorctl.steer import adopt as adoption
    from condorctl.submit import submission
    from condorctl.submit.reuse import Wish

    if file := adoption.foreign_file(pipeline):
        if set or site or start or reuse or force:
            raise UserError(
                f"{pipeline}: --set, --site, --from, --reuse and --force are for pipelines; "
                "HTCondor submits this file as it is"
            )
        ledger = open_ledger()
        return {**describe(ledger, adoption.submit(ledger, file)), "remarks": []}
    if force and (start or reuse):
        raise UserError("--force runs every stage: leave out --from and --reuse")
    ledger = open_ledger()
    wish = Wish(start, reuse, force)
    done = submission.submit(
        ledger, pipeline, set or {}, site, wish, lambda what: progress(what, 0, 0)
    )
    view = describe(ledger, done.run)
    for stage in view["stages"]:
        stage["why"] = done.why[stage["stage"]]
    return {**view, "remarks": done.remarks}


def adopt(what: str, name: str | None = None) -> Json:
    """Enter HTCondor work of one's own that exists into the ledger; return the run as `status`.

    `what` is a cluster, queued or in the history (of a DAGMan job: the whole DAG), a job, or the
    file of a DAG that has run here. `name` is that of the run, else one is made.
    """
    from condorctl.steer import adopt as adoption

    ledger = open_ledger()
    return describe(ledger, adoption.adopt(ledger, what, name))


def resume(run: str | None = None) -> Json:
    """Go on with a run that failed or was removed; the stages that are done are kept.

    Returns `run`, `dag` (the new DAGMan's cluster id), `rescue`, `kept` and `left`.
    """
    from condorctl.steer import resume as resuming

    return resuming.resume(open_ledger(), run)


def cancel(run: str | None = None) -> Json:
    """Remove a run and its jobs from the queue; returns `run`, `state` and the `rescue` file."""
    from condorctl.steer import steering

    return steering.cancel(open_ledger(), run)


def hold(target: str) -> Json:
    """Hold a job, or a run with all its jobs; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.hold(open_ledger(), target)


def release(target: str) -> Json:
    """Release a job, or all of a run; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.release(open_ledger(), target)


def rm(job: str) -> Json:
    """Remove one job, which to its DAG has failed; returns `what` and the number of `jobs`."""
    from condorctl.steer import steering

    return steering.remove(open_ledger(), job)


def clean(
    runs: Sequence[str] = (),
    older_than: float | None = None,
    keep_outputs: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> Json:
    """Remove the files of runs that have ended; the ledger keeps what they were.

    Returns `runs`, each `run`, `folder` and `bytes`, and the `bytes` that this frees in all.
    """
    from condorctl.steer import cleaning

    return cleaning.clean(open_ledger(), runs, older_than, keep_outputs, dry_run, force)
