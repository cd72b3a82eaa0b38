"""Layout 3: the first that says in ``alembic_version`` which one it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from condorctl.ledger.database import Inode, Text, Whole

revision = "3"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "content_hash",
        sa.Column("host", Text(), nullable=False),
        sa.Column("path", Text(), nullable=False),
        sa.Column("stamp", Text(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.PrimaryKeyConstraint("host", "path"),
    )
    op.create_table(
        "log_position",
        sa.Column("path", Text(), nullable=False),
        sa.Column("inode", Inode(), nullable=False),
        sa.Column("offset", Whole(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    op.create_table(
        "run",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("name", Text(), nullable=False),
        sa.Column("kind", Text(), nullable=False),
        sa.Column("pipeline", Text(), nullable=False),
        sa.Column("folder", Text(), nullable=False),
        sa.Column("spooled", sa.Boolean(), nullable=False),
        sa.Column("dag_file", Text(), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("tables", sa.JSON(), nullable=False),
        sa.Column("owner", Text(), nullable=False),
        sa.Column("host", Text(), nullable=False),
        sa.Column("inode", Inode(), nullable=True),
        sa.Column("schedd", Text(), nullable=False),
        sa.Column("submitted", sa.Double, nullable=False),
        sa.Column("cluster", Whole(), nullable=True),
        sa.Column("earlier", sa.JSON(), nullable=False),
        sa.Column("state", Text(), nullable=False),
        sa.Column("finished", sa.Double, nullable=True),
        sa.Column("exit_code", Whole(), nullable=True),
        sa.Column("problem", Text(), nullable=True),
        sa.Column("seen", sa.Double, nullable=True),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("cleaned", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "stage",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("run_id", Whole(), nullable=False),
        sa.Column("position", Whole(), nullable=False),
        sa.Column("name", Text(), nullable=False),
        sa.Column("needs", sa.JSON(), nullable=False),
        sa.Column("retries", Whole(), nullable=False),
        sa.Column("final_exit_codes", sa.JSON(), nullable=False),
        sa.Column("command", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("source_id", Whole(), nullable=True),
        sa.Column("outcome", Text(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.ForeignKeyConstraint(["source_id"], ["stage.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "name"),
    )
    op.create_table(
        "job",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("stage_id", Whole(), nullable=False),
        sa.Column("schedd", Text(), nullable=False),
        sa.Column("cluster", Whole(), nullable=False),
        sa.Column("proc", Whole(), nullable=False),
        sa.Column("attempt", Whole(), nullable=False),
        sa.Column("state", Text(), nullable=False),
        sa.Column("submitted", sa.Double, nullable=False),
        sa.Column("started", sa.Double, nullable=True),
        sa.Column("starts", Whole(), nullable=False),
        sa.Column("finished", sa.Double, nullable=True),
        sa.Column("host", Text(), nullable=True),
        sa.Column("exit_code", Whole(), nullable=True),
        sa.Column("signal", Whole(), nullable=True),
        sa.Column("hold_code", Whole(), nullable=True),
        sa.Column("hold_subcode", Whole(), nullable=True),
        sa.Column("hold_reason", Text(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("iwd", Text(), nullable=True),
        sa.Column("out", Text(), nullable=True),
        sa.Column("err", Text(), nullable=True),
        sa.Column("log", Text(), nullable=True),
        sa.Column("spooled", sa.Boolean(), nullable=False),
        sa.Column("cpus", Whole(), nullable=True),
        sa.Column("gpus", Whole(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stage.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("schedd", "cluster", "proc", "submitted"),
    )
    op.create_table(
        "checkpoint",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("path", Text(), nullable=False),
        sa.Column("epoch", Whole(), nullable=False),
        sa.Column("bytes", Whole(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("place", Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "path", "sha256"),
    )
    op.create_table(
        "fetched",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("path", Text(), nullable=False),
        sa.Column("target", Text(), nullable=False),
        sa.Column("bytes", Whole(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "job_state",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("state", Text(), nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("detail", Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_job_state_job_id", "job_state", ["job_id"])
    op.create_table(
        "metric",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("epoch", Whole(), nullable=False),
        sa.Column("name", Text(), nullable=False),
        sa.Column("value", sa.Double, nullable=True),
        sa.Column("time", sa.Double, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "epoch", "name"),
    )
    op.create_table(
        "output",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("path", Text(), nullable=False),
        sa.Column("bytes", Whole(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "path"),
    )
    op.create_table(
        "result",
        sa.Column("id", Whole(), nullable=False),
        sa.Column("job_id", Whole(), nullable=False),
        sa.Column("position", Whole(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "position"),
    )
