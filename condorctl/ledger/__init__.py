"""The ledger: what was submitted, what became of it, what it left behind (SQLAlchemy 2).

The event logs in the run folders are the truth about jobs; the ledger is what was read from them,
joined with what only condorctl knows. Times are Unix seconds (UTC) throughout.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from condorctl.ledger.database import Database, Inode, Text, Whole

Json = dict[str, Any]
# The layout of the tables below; each has a file in migrations/versions.
LAYOUT = 4


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        str: Text,
        int: Whole,
        Json: sa.JSON,
        list[str]: sa.JSON,
        list[int]: sa.JSON,
        list[Json]: sa.JSON,
    }


class Run(Base):
    """What was submitted together: a pipeline or foreign DAG (one DAGMan job), or foreign jobs."""

    __tablename__ = "run"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    # "pipeline" was rendered here; "dag" and "jobs" are work that condorctl adopted.
    kind: Mapped[str] = mapped_column(default="pipeline")
    pipeline: Mapped[str]
    folder: Mapped[str]
    # Whether it runs in the spool of a schedd elsewhere, and is brought back from there (`spool`).
    spooled: Mapped[bool] = mapped_column(default=False)
    # The DAG's file, after which DAGMan names its own; None for jobs without a DAG.
    dag_file: Mapped[str | None]
    params: Mapped[Json]
    # The tables that the spec declares, each a `spec.Table`.
    tables: Mapped[list[Json]] = mapped_column(default=list)
    owner: Mapped[str]
    # The machine that has the folder, and the folder's inode: the same path elsewhere may be
    # another folder, or the same one on a file system that machines share (`sharing`).
    host: Mapped[str] = mapped_column(default=socket.gethostname)
    inode: Mapped[int | None] = mapped_column(Inode)
    schedd: Mapped[str]
    submitted: Mapped[float]
    # None between writing the run's folder and the schedd's answer; found again in the DAG's log.
    cluster: Mapped[int | None]
    # The DAGMan jobs before the present one: a run that was resumed has several.
    earlier: Mapped[list[int]] = mapped_column(default=list)
    state: Mapped[str] = mapped_column(default="idle")
    finished: Mapped[float | None]
    exit_code: Mapped[int | None]
    # Why DAGMan itself is held, or what it said when it gave up.
    problem: Mapped[str | None]
    # When the schedd last told what the run's jobs do; None before it has.
    seen: Mapped[float | None]
    # Where the run comes from: commit, diff, versions, user, site (`provenance`).
    provenance: Mapped[Json] = mapped_column(default=dict)
    # When `condorctl clean` took its files away.
    cleaned: Mapped[float | None]
    # How often something was learnt that is not in its record yet (`runfile`); 0 when all is.
    unkept: Mapped[int] = mapped_column(default=0, server_default="0")

    stages: Mapped[list[Stage]] = relationship(
        back_populates="run", order_by="Stage.position", cascade="all, delete-orphan"
    )

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def resumed(self) -> float | None:
        """When it was last resumed, None if it never was."""
        resumes = self.provenance.get("resumes")
        return resumes[-1]["time"] if resumes else None

    @property
    def dag(self) -> Path | None:
        """The DAG's file; DAGMan's own files are named after it."""
        return Path(self.dag_file) if self.dag_file else None


# By when, not by the order they were entered in: a rebuilt ledger enters them in another one, and
# `adopt` takes in what was submitted a week ago.
NEWEST_FIRST = (Run.submitted.desc(), Run.id.desc())


class Stage(Base):
    """One node of a run's graph; of adopted jobs without a DAG, one cluster."""

    __tablename__ = "stage"
    __table_args__ = (UniqueConstraint("run_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    position: Mapped[int]
    name: Mapped[str]
    needs: Mapped[list[str]]
    retries: Mapped[int] = mapped_column(default=0)
    # Exit codes that no retry mends.
    final_exit_codes: Mapped[list[int]] = mapped_column(default=list)
    command: Mapped[list[str]] = mapped_column(default=list)
    outputs: Mapped[list[str]] = mapped_column(default=list)
    # What the stage's result depends on, each part by its sha256 (`reuse`).
    fingerprint: Mapped[Json] = mapped_column(default=dict)
    # The stage of another run whose outputs stand in for this one's; it has no job then.
    source_id: Mapped[int | None] = mapped_column(
        ForeignKey("stage.id", ondelete="SET NULL"), index=True
    )
    # DAGMan's verdict, "done" or "failed", where the jobs alone do not tell it: NOOP, DONE, POST.
    outcome: Mapped[str | None]

    run: Mapped[Run] = relationship(back_populates="stages")
    source: Mapped[Stage | None] = relationship(remote_side="Stage.id")
    jobs: Mapped[list[Job]] = relationship(
        back_populates="stage", order_by="(Job.attempt, Job.proc)", cascade="all, delete-orphan"
    )

    @property
    def folder(self) -> Path:
        """The stage's own folder in that of its run."""
        return self.run.path / self.name

    @property
    def origin(self) -> Stage:
        """The stage whose jobs made its outputs: itself, unless another one stands in for it."""
        return self.source.origin if self.source else self

    @property
    def current(self) -> list[Job]:
        """The jobs of the latest attempt: one, or one for each process of a foreign cluster."""
        last = self.jobs[-1].attempt if self.jobs else 0
        return [job for job in self.jobs if job.attempt == last]


class Job(Base):
    """One HTCondor job of a stage; a retry by DAGMan is another job with the next attempt."""

    __tablename__ = "job"
    __table_args__ = (UniqueConstraint("schedd", "cluster", "proc", "submitted"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    stage_id: Mapped[int] = mapped_column(ForeignKey("stage.id"), index=True)
    schedd: Mapped[str]
    cluster: Mapped[int]
    proc: Mapped[int]
    attempt: Mapped[int]
    state: Mapped[str]
    submitted: Mapped[float]
    # The latest start and how many there were: an evicted job starts again under the same id.
    started: Mapped[float | None]
    starts: Mapped[int] = mapped_column(default=0)
    finished: Mapped[float | None]
    host: Mapped[str | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    hold_code: Mapped[int | None]
    hold_subcode: Mapped[int | None]
    hold_reason: Mapped[str | None]
    # {"epoch": 3, "epochs": 10, "metrics": {...}}, as the job last said
    progress: Mapped[Json | None]
    # Where HTCondor puts its files on the submit machine; absolute, None where it was not told.
    iwd: Mapped[str | None]
    out: Mapped[str | None]
    err: Mapped[str | None]
    log: Mapped[str | None]
    # Whether its files stay in the schedd's spool until they are fetched (`condor_transfer_data`).
    spooled: Mapped[bool] = mapped_column(default=False)
    # What its slot gave it, and what it used of that: memory_mb, disk_kb, cpu_s; where somebody
    # looked (`gpus`) gpu_busy, 0..1, and gpu_memory_mb.
    cpus: Mapped[int | None]
    gpus: Mapped[int | None]
    usage: Mapped[Json] = mapped_column(default=dict)
    # The machine as the job found it: host, kernel, driver; gpus, each with name, memory_mb,
    # capability, cuda, which HTCondor tells when it starts.
    machine: Mapped[Json] = mapped_column(default=dict)

    stage: Mapped[Stage] = relationship(back_populates="jobs")
    states: Mapped[list[JobState]] = relationship(
        order_by="JobState.id", cascade="all, delete-orphan"
    )
    checkpoints: Mapped[list[Checkpoint]] = relationship(
        order_by="Checkpoint.epoch", cascade="all, delete-orphan"
    )
    written: Mapped[list[Output]] = relationship(order_by="Output.id", cascade="all, delete-orphan")
    metrics: Mapped[list[Metric]] = relationship(order_by="Metric.id", cascade="all, delete-orphan")
    results: Mapped[list[Result]] = relationship(order_by="Result.id", cascade="all, delete-orphan")
    fetched: Mapped[list[Fetched]] = relationship(
        order_by="Fetched.id", cascade="all, delete-orphan"
    )

    @property
    def folder(self) -> Path:
        """Where its outputs are on the submit machine, once it has ended."""
        return Path(self.iwd) if self.iwd else self.stage.folder

    @property
    def id_text(self) -> str:
        """``schedd#cluster.proc``: unique in the world until a schedd is set up anew."""
        return f"{self.schedd}#{self.number}"

    @property
    def number(self) -> str:
        """``cluster.proc``, as condor_q prints it."""
        return f"{self.cluster}.{self.proc}"


class JobState(Base):
    """A state that a job entered, and when."""

    __tablename__ = "job_state"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), index=True)
    state: Mapped[str]
    time: Mapped[float]
    detail: Mapped[str] = mapped_column(default="")


class Checkpoint(Base):
    """A checkpoint that a job said it wrote.

    `place` is where it was last known; None when a later one has taken its path.
    """

    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("job_id", "path", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    path: Mapped[str]
    epoch: Mapped[int]
    bytes: Mapped[int]
    sha256: Mapped[str]
    place: Mapped[str | None]


class Output(Base):
    """A file that a job wrote, as its own node saw it when the command had ended."""

    __tablename__ = "output"
    __table_args__ = (UniqueConstraint("job_id", "path"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    path: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]


class Metric(Base):
    """One number of one epoch."""

    __tablename__ = "metric"
    __table_args__ = (UniqueConstraint("job_id", "epoch", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    epoch: Mapped[int]
    name: Mapped[str]
    value: Mapped[float | None]
    time: Mapped[float | None]


class Result(Base):
    """One row of final results, as the job reported it."""

    __tablename__ = "result"
    __table_args__ = (UniqueConstraint("job_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    position: Mapped[int]
    values: Mapped[Json]


class Fetched(Base):
    """A file brought back by ``condorctl fetch``."""

    __tablename__ = "fetched"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), index=True)
    path: Mapped[str]
    target: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    time: Mapped[float]


class LogPosition(Base):
    """How far an event log was read. Another inode or a smaller size means another file."""

    __tablename__ = "log_position"

    path: Mapped[str] = mapped_column(primary_key=True)
    inode: Mapped[int] = mapped_column(Inode)
    offset: Mapped[int]


class ContentHash(Base):
    """The SHA-256 of a large file or folder, not to be read again while its stamp is the same."""

    __tablename__ = "content_hash"

    host: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    stamp: Mapped[str]
    sha256: Mapped[str]


class Ledger:
    """The ledger at `where`, a file or a database's URL; `session` gives one transaction."""

    def __init__(self, where: Path | str) -> None:
        self._database = Database(where)
        self._database.prepare(Base.metadata, LAYOUT)

    @property
    def name(self) -> str:
        """Where it is, as a human may see it: a URL without its password."""
        return self._database.name

    @property
    def shared(self) -> bool:
        """Whether it is a group's, on a server."""
        return self._database.shared

    @property
    def records(self) -> Path:
        """The folder for what is kept of runs that have no folder of their own (`runfile`)."""
        return self._database.records

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error.

        It takes the write lock at once, so what is read in it stays true until it ends.
        """
        database = self._database
        with database.readable(), Session(database.engine) as session, session.begin():
            session.connection()
            yield session
