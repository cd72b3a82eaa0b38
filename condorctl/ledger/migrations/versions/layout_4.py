"""Layout 4: what a run's record lacks; the jobs of a stage are found without a scan.

A DAG of ten thousand nodes asks for the jobs of each: without an index, a hundred million rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from condorctl.ledger.database import Whole

revision = "4"
down_revision = "3"


def upgrade() -> None:
    op.add_column("run", sa.Column("unkept", Whole(), nullable=False, server_default="0"))
    op.create_index("ix_job_stage_id", "job", ["stage_id"])
    op.create_index("ix_fetched_job_id", "fetched", ["job_id"])
    op.create_index("ix_stage_source_id", "stage", ["source_id"])
