"""What Alembic runs to bring a ledger up to date: in the transaction that holds the write lock.

Another layout is another file in versions/; the tables in condorctl/ledger must say the same, and a
test holds one to the other. ``with op.batch_alter_table(...)`` is for what SQLite cannot alter.
"""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_pk=False)
context.run_migrations()
