"""Layout 4: the jobs of a stage, and what was fetched from a job, are found without a scan.

A DAG of ten thousand nodes asks for the jobs of each: without an index, a hundred million rows.
"""

from __future__ import annotations

from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    op.create_index("ix_job_stage_id", "job", ["stage_id"])
    op.create_index("ix_fetched_job_id", "fetched", ["job_id"])
    op.create_index("ix_stage_source_id", "stage", ["source_id"])
