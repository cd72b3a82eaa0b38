"""What the shell offers after TAB: pipelines, runs, stages and job ids, the newest first.

`condorctl --install-completion` sets it up. Nothing here may print, raise, or ask a daemon: the
shell shows whatever comes, and its user is waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

# A word, and what to say of it.
Offer = tuple[str, str]

_MOST = 50
_JOBS_LOOKED_AT = 1000


def pipelines(incomplete: str) -> list[Offer]:
    """Pipelines in jobs/ whose names begin with `incomplete`, one's own before the shipped."""
    return _fitting(_pipelines, incomplete)


def runs(incomplete: str) -> list[Offer]:
    """Runs whose names begin with `incomplete`."""
    return _fitting(_runs, incomplete)


def jobs(incomplete: str) -> list[Offer]:
    """Stages of the latest run, then jobs of all runs, by their number."""
    return _fitting(_jobs, incomplete)


def _fitting(offers: Callable[[], Iterable[Offer]], incomplete: str) -> list[Offer]:
    try:
        # The first of two that are called the same: one's own pipeline hides the shipped one.
        found: dict[str, str] = {}
        for word, remark in offers():
            if word.startswith(incomplete):
                found.setdefault(word, remark)
            if len(found) == _MOST:
                break
        return list(found.items())
    except Exception:
        return []


def _pipelines() -> Iterator[Offer]:
    from condorctl import paths

    for folder in paths.search("jobs"):
        for file in sorted(folder.glob("*.yaml")):
            yield file.stem, str(folder)


def _runs() -> Iterator[Offer]:
    from sqlalchemy import select

    from condorctl import paths
    from condorctl.ledger import NEWEST_FIRST, Ledger, Run

    with Ledger(paths.ledger()).session() as session:
        for run in session.scalars(select(Run).order_by(*NEWEST_FIRST).limit(_JOBS_LOOKED_AT)):
            yield run.name, run.state


def _jobs() -> Iterator[Offer]:
    from sqlalchemy import select

    from condorctl import paths
    from condorctl.ledger import Job, Ledger, find

    with Ledger(paths.ledger()).session() as session:
        for stage in find.run(session, None).stages:
            state = stage.jobs[-1].state if stage.jobs else "no job yet"
            yield stage.name, f"{stage.run.name}, {state}"
        newest = select(Job).order_by(Job.id.desc()).limit(_JOBS_LOOKED_AT)
        for job in session.scalars(newest):
            yield job.number, f"{job.stage.run.name}/{job.stage.name}, {job.state}"
