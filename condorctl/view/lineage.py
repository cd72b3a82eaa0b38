"""What a result rests on: its stage and all that it needs, with who made each, where and when."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from condorctl.ledger import Job, Run, Stage
from condorctl.view import cost


class Step(BaseModel):
    """A stage that a result rests on, as it was run. Times are Unix seconds.

    ``cpu_h`` and ``gpu_h`` are hours of one core and one GPU, without those that evictions and
    failures lost (`cost`: useful); ``outputs`` has a SHA-256 a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    stage: str
    run: str = Field(description="whose job it was: another run's, where that stood in")
    commit: str | None = Field(description="null outside a repository")
    dirty: bool = Field(description="whether something was not committed")
    command: list[str]
    job: str | None = Field(description="cluster.proc; null for a stage that has none")
    host: str | None
    started: float | None
    finished: float | None
    cpu_h: float
    gpu_h: float
    outputs: dict[str, str]


class Lineage:
    """The stages of `run`, one of `session`, each looked at once."""

    def __init__(self, session: Session, run: Run) -> None:
        # In a few queries, not in some for each of a sweep's stages.
        jobs = selectinload(Stage.jobs)
        query = select(Stage).where(Stage.run_id == run.id)
        session.scalars(
            query.options(jobs.selectinload(Job.states), jobs.selectinload(Job.written))
        ).all()
        self._stages = {stage.name: stage for stage in run.stages}
        self._steps: dict[str, Step] = {}

    def of(self, stage: Stage) -> list[Step]:
        """`stage`, last, after all that it needs, in the order of its run."""
        needed: set[str] = set()
        open_ends = [stage.name]
        while open_ends:
            name = open_ends.pop()
            if name in self._stages and name not in needed:
                needed.add(name)
                open_ends += self._stages[name].needs
        return [self._step(one) for name, one in self._stages.items() if name in needed]

    def _step(self, stage: Stage) -> Step:
        if stage.name not in self._steps:
            self._steps[stage.name] = _step(stage)
        return self._steps[stage.name]


def commit(run: Run) -> tuple[str | None, bool]:
    """The commit that `run` was submitted from, and whether something was not committed."""
    git = run.provenance.get("git") or {}
    return git.get("commit"), bool(git.get("dirty"))


def _step(stage: Stage) -> Step:
    origin = stage.origin
    job = origin.current[-1] if origin.current else None
    at, dirty = commit(origin.run)
    took = cost.of_stage(origin).as_json()
    return Step(
        stage=stage.name, run=origin.run.name, commit=at, dirty=dirty, command=origin.command,
        job=job.number if job else None, host=job.host if job else None,
        started=job.started if job else None, finished=job.finished if job else None,
        cpu_h=took["cpu_h"]["useful"], gpu_h=took["gpu_h"]["useful"],
        outputs={one.path: one.sha256 for one in (job.written if job else [])},
    )  # fmt: skip
