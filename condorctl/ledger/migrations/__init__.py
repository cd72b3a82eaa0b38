"""From older layouts of the ledger's tables to the present one, by Alembic.

It is imported for a ledger that is not up to date, and for no other.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def _config() -> Config:
    config = Config()
    # Alembic's settings know `%(here)s`; a folder's name may hold such a sign.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def layouts() -> list[str]:
    """The layouts that can be brought up to date, and the present one, the oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Bring the tables that `connection`, in its transaction, sees to the layout `to`.

    Raises what the database does, and Alembic's CommandError.
    """
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, to)
