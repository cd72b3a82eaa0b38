"""Ledgers of older layouts: brought up to date in place, and none lost on the way."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import LAYOUT, Base, Job, Ledger, Run, Stage, database, migrations
from condorctl.ledger.database import Database
from tests.conftest import Condorctl, one_error_line
from tests.forked_python import ForkedPython

OLDEST = "3"


@pytest.fixture
def old(project: Path, engine: str) -> Iterator[sa.Engine]:
    """A ledger of the oldest layout, with a run in it."""
    found = Database(paths.ledger()).engine
    with found.begin() as connection:
        database._version.create(connection)
        migrations.upgrade(connection, OLDEST)
        connection.execute(
            sa.text(
                "INSERT INTO run (name, kind, pipeline, folder, spooled, params, tables, owner, "
                "host, schedd, submitted, earlier, state, provenance) VALUES ('p-1', 'pipeline', "
                "'p', '/nowhere', false, '{\"a\": 1}', '[]', 'me', 'h', 's', 1.5, '[]', 'done', "
                "'{}')"
            )
        )
        for name, source in (("one", "NULL"), ("two", "1")):
            connection.execute(
                sa.text(
                    "INSERT INTO stage (run_id, position, name, needs, retries, final_exit_codes, "
                    f"command, outputs, fingerprint, source_id) VALUES (1, 0, '{name}', '[]', 0, "
                    f"'[]', '[]', '[]', '{{}}', {source})"
                )
            )
        connection.execute(
            sa.text(
                "INSERT INTO job (stage_id, schedd, cluster, proc, attempt, state, submitted, "
                "starts, spooled, usage, machine) VALUES (1, 's', 7, 0, 1, 'completed', 1.5, 1, "
                "false, '{}', '{}')"
            )
        )
    yield found
    found.dispose()


def differences(engine: sa.Engine) -> list[object]:
    """What alembic would still change in the database to have it hold the models' tables."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("start", ["nothing", OLDEST])
def test_models_and_migrations_agree(project: Path, engine: str, start: str) -> None:
    found = Database(paths.ledger()).engine
    with found.begin() as connection:
        database._version.create(connection)
        if start != "nothing":
            migrations.upgrade(connection, start)
    assert differences(found)
    with found.begin() as connection:
        migrations.upgrade(connection)
    assert differences(found) == []
    assert migrations.layouts() == [OLDEST, *map(str, range(int(OLDEST) + 1, LAYOUT + 1))]
    found.dispose()


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
def test_what_the_models_make_is_what_the_migrations_make(project: Path, engine: str) -> None:
    Ledger(paths.ledger())
    found = Database(paths.ledger()).engine
    assert differences(found) == []
    found.dispose()


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
def test_an_older_ledger_is_brought_up_to_date_with_all_that_it_holds(
    old: sa.Engine, engine: str, tmp_path: Path
) -> None:
    assert differences(old)
    ledger = Ledger(paths.ledger())
    with ledger.session() as session:
        run = session.scalars(select(Run)).one()
        assert (run.name, run.params, [stage.name for stage in run.stages]) == (
            "p-1", {"a": 1}, ["one", "two"],
        )  # fmt: skip
        assert run.stages[1].source is run.stages[0]
        assert session.scalars(select(Job)).one().stage.name == "one"
        session.add(Stage(run_id=run.id, name="three", position=2, needs=[]))
    assert differences(old) == []
    if engine == "sqlite":
        copy = tmp_path / f"ledger.sqlite.layout-{OLDEST}"
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        with closing(sqlite3.connect(copy)) as kept:
            assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [(OLDEST,)]
            assert kept.execute("SELECT count(*) FROM stage").fetchone() == (2,)
        assert [path.name for path in tmp_path.glob("*.new*")] == []


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
def test_one_of_several_who_open_it_at_once_brings_it_up_to_date(
    old: sa.Engine, forked_python: ForkedPython
) -> None:
    code = (
        "from condorctl import paths; from condorctl.ledger import Ledger; Ledger(paths.ledger())"
    )
    processes = [forked_python.start(code) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == 4 * [""]
    assert differences(old) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
def test_who_is_killed_on_the_way_leaves_it_as_it_was(
    old: sa.Engine, engine: str, forked_python: ForkedPython
) -> None:
    code = (
        "import time\n"
        "from condorctl import paths\n"
        "from condorctl.ledger import Ledger, migrations\n"
        "upgrade = migrations.upgrade\n"
        "def slowly(connection):\n"
        "    upgrade(connection)\n"
        "    print('in', flush=True)\n"
        "    time.sleep(100)\n"
        "migrations.upgrade = slowly\n"
        "Ledger(paths.ledger())\n"
    )
    victim = forked_python.start(code)
    assert victim.stdout.readline() == "in\n"
    victim.kill()
    victim.communicate()
    if engine == "sqlite":
        with old.connect() as connection:
            assert connection.scalar(select(database._version.c.version_num)) == OLDEST
    Ledger(paths.ledger())
    assert differences(old) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize(
    ("found", "told"),
    [(str(LAYOUT + 1), "a newer condorctl made it"), ("1", "none so old"), ("x; y", "none so old")],
)
def test_a_ledger_that_cannot_be_brought_up_to_date_is_refused_in_a_line(
    project: Path, engine: str, condorctl: Condorctl, found: str, told: str
) -> None:
    ledger = Ledger(paths.ledger())
    with ledger.session() as session:
        session.execute(database._version.update().values(version_num=found))
    with pytest.raises(UserError, match=f"its layout is {found}, this condorctl knows .*{told}"):
        Ledger(paths.ledger())
    if engine == "sqlite" and found == "1":
        assert told in one_error_line(condorctl("status"))


def test_a_ledger_from_before_the_first_is_refused(project: Path) -> None:
    with closing(sqlite3.connect(os.environ["CONDORCTL_LEDGER"])) as file:
        file.execute("PRAGMA user_version = 2")
    with pytest.raises(UserError, match=r"its layout is 0\.2, .* move it away"):
        Ledger(paths.ledger())


def test_a_ledger_whose_rows_are_missing_is_left_as_it_is(project: Path) -> None:
    found = Database(paths.ledger()).engine
    with found.begin() as connection:
        database._version.create(connection)
        migrations.upgrade(connection, OLDEST)
    with closing(sqlite3.connect(os.environ["CONDORCTL_LEDGER"])) as file, file:
        file.execute("INSERT INTO job_state (job_id, state, time, detail) VALUES (9, 'x', 1, '')")
    with pytest.raises(UserError, match="rows that others refer to are missing"):
        Ledger(paths.ledger())
    with found.connect() as connection:
        assert connection.scalar(select(database._version.c.version_num)) == OLDEST


def test_a_ledger_that_is_up_to_date_does_not_wait_for_alembic(project: Path) -> None:
    code = (
        "import sys; from condorctl import paths; from condorctl.ledger import Ledger\n"
        "Ledger(paths.ledger()); print('alembic' in sys.modules)"
    )
    answers = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert answers == 2 * ["False\n"]
