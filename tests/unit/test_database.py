"""The ledger's two homes: what both hold, and what can go wrong with a server."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, LogPosition, Run, Stage, database, events, sharing
from tests.conftest import Condorctl, one_error_line
from tests.forked_python import ForkedPython, Process
from tests.postgres import PASSWORD, Postgres
from tests.unit.runs_made import a_run
from tests.unit.test_events import ENDED, SUBMIT

Python = Callable[[str], Process]

_PRELUDE = """\
import sys, time
from condorctl import paths
from condorctl.ledger import *
from sqlalchemy import select
from tests.unit.runs_made import a_run
"""


@pytest.fixture
def ledger(project: Path) -> Ledger:
    return Ledger(paths.ledger())


@pytest.fixture
def server(postgres: Postgres, project: Path, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """The server, with CONDORCTL_DB naming an empty database on it."""
    monkeypatch.setenv("CONDORCTL_DB", postgres.new_database())
    return postgres


@pytest.fixture
def python(project: Path, forked_python: ForkedPython) -> Python:
    """Start another process on the same ledger."""
    return lambda code: forked_python.start(_PRELUDE + code)


def test_what_a_job_writes_stops_no_ledger(ledger: Ledger) -> None:
    params = {"z": "a\0b", "a": float("inf"), "n": [float("nan"), 1 << 200], "\ud800": "\x1b"}
    with ledger.session() as session:
        run = a_run("p\0-1")
        run.params = params
        job = Job(schedd="s", cluster=1, proc=0, attempt=1, state="x", submitted=1.0, starts=0)
        job.host, job.exit_code, job.hold_code = "\0\0☃\ud7ff", 1 << 80, -(1 << 80)
        run.stages[0].jobs.append(job)
        session.add(run)
        session.add(LogPosition(path="x", inode=(1 << 64) - 1, offset=5 << 30))
    with ledger.session() as session:
        found = session.scalars(select(Run).where(Run.name == "p\0-1")).one()
        assert found.name == "p\ufffd-1"
        # The order of a spec's parameters is the user's.
        assert list(found.params) == ["z", "a", "n", "\ud800"]
        assert found.params == params | {"a": "inf", "n": ["nan", 1 << 200]}
        [job] = found.stages[0].current
        assert (job.host, job.exit_code) == ("\ufffd\ufffd☃\ud7ff", (1 << 63) - 1)
        assert job.hold_code == -(1 << 63)
        position = session.get_one(LogPosition, "x")
        assert (position.inode, position.offset) == ((1 << 64) - 1, 5 << 30)
    with pytest.raises(UserError, match="cannot keep this"), ledger.session() as session:
        session.add(a_run("half a surrogate pair \ud800"))


def test_transactions_come_one_after_the_other(ledger: Ledger, python: Python) -> None:
    # Each reads all names and takes the next free one: without a lock two would take the same.
    processes = [
        python(
            "ledger = Ledger(paths.ledger())\n"
            "for _ in range(5):\n"
            "    with ledger.session() as session:\n"
            "        taken = len(list(session.scalars(select(Run.name))))\n"
            "        time.sleep(0.02)\n"
            "        session.add(a_run(f'p-{taken + 1}'))\n"
        )
        for _ in range(4)
    ]
    assert [process.communicate()[1] for process in processes] == 4 * [""]
    with ledger.session() as session:
        assert set(session.scalars(select(Run.name))) == {f"p-{n}" for n in range(1, 21)}


def test_several_read_the_same_logs_while_others_write(
    ledger: Ledger, project: Path, python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    with ledger.session() as session:
        run = a_run("p-1", project)
        run.stages = [Stage(name=f"n{n}", position=n, needs=[]) for n in range(40)]
        session.add(run)
    processes = [
        python(
            "from condorctl.ledger import events\n"
            "ledger = Ledger(paths.ledger())\n"
            "print('in', flush=True)\n"
            "for turn in range(15):\n"
            "    events.sync(ledger)\n"
            "    with ledger.session() as session:\n"
            "        taken = len(list(session.scalars(select(Run.name))))\n"
            "        session.add(a_run(f'q-{taken}'))\n"
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "in\n"
    with (project / "p.dag.nodes.log").open("a") as log:
        for number in range(40):
            log.write(SUBMIT.format(number + 10, f"n{number}", 0) + ENDED.format(number + 10, 0))
            log.flush()
            time.sleep(0.02)
    assert [process.communicate(timeout=60) for process in processes] == 4 * [("", "")]
    events.sync(ledger)
    with ledger.session() as session:
        # Each event once, and each name once.
        jobs = list(session.scalars(select(Job)))
        assert sorted(job.cluster for job in jobs) == list(range(10, 50))
        assert {tuple(s.state for s in job.states) for job in jobs} == {("idle", "completed")}
        names = set(session.scalars(select(Run.name)))
        assert names == {"p-1", *(f"q-{number}" for number in range(1, 61))}


def test_several_make_the_same_ledger_at_once(server: Postgres, python: Python) -> None:
    processes = [python("Ledger(paths.ledger())") for _ in range(5)]
    assert [process.communicate()[1] for process in processes] == 5 * [""]
    assert Ledger(paths.ledger()).shared


def test_who_is_killed_in_a_transaction_leaves_nothing_and_no_lock(
    ledger: Ledger, python: Python
) -> None:
    victim = python(
        "with Ledger(paths.ledger()).session() as session:\n"
        "    session.add(a_run('half'))\n"
        "    session.flush()\n"
        "    print('in', flush=True)\n"
        "    time.sleep(100)\n"
    )
    assert victim.stdout.readline() == "in\n"
    waiting = python(
        "with Ledger(paths.ledger()).session() as session:\n"
        "    print(list(session.scalars(select(Run.name))))\n"
    )
    time.sleep(1.5)
    assert waiting.runs()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert waiting.communicate(timeout=20) == ("[]\n", "")


def test_who_stops_in_a_transaction_does_not_stop_the_group(
    server: Postgres, python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(paths.ledger())
    stopped = python(
        "from condorctl.ledger import database\n"
        "database._ABANDONED_S = 2\n"
        "with Ledger(paths.ledger()).session() as session:\n"
        "    print('in', flush=True)\n"
        "    time.sleep(100)\n"
    )
    assert stopped.stdout.readline() == "in\n"
    stopped.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(database, "_BUSY_S", 1)
        with pytest.raises(UserError, match="busy: others"):
            Ledger(paths.ledger())
        monkeypatch.setattr(database, "_BUSY_S", 20)
        Ledger(paths.ledger())
    finally:
        stopped.kill()
        stopped.communicate()


def test_a_ledger_outlives_a_restart_of_its_server(server: Postgres) -> None:
    ledger = Ledger(paths.ledger())
    with ledger.session() as session:
        session.add(a_run("p-1"))
    server.stop()
    try:
        with pytest.raises(UserError, match="server does not answer"), ledger.session():
            pass
    finally:
        server.start()
    with ledger.session() as session:
        assert list(session.scalars(select(Run.name))) == ["p-1"]


def test_a_server_that_does_not_answer_is_one_line(
    project: Path, condorctl: Condorctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2"
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        monkeypatch.setenv(
            "CONDORCTL_DB", f"postgresql://u:{secret}@127.0.0.1:{port}/d?connect_timeout=2"
        )
        began = time.monotonic()
        answer = condorctl("status")
        assert 1.5 < time.monotonic() - began < 20
        assert answer.returncode == 3
        line = one_error_line(answer)
        assert re.search(rf"ledger u@127.0.0.1:{port}/d: its server does not answer", line)
        assert secret not in line
    monkeypatch.setenv("CONDORCTL_DB", f"postgresql://u:{secret}@no.such.host.invalid/d")
    line = one_error_line(condorctl("status", "--json"))
    assert "does not answer" in line and secret not in line


def test_a_password_is_never_said(
    server: Postgres, condorctl: Condorctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Ledger(paths.ledger()).name
    assert name == f"lab@127.0.0.1:{server.port}/{os.environ['CONDORCTL_DB'].rpartition('/')[2]}"
    good = os.environ["CONDORCTL_DB"]
    for wrong in (
        good.replace("p%40ss", "p%41ss"),
        good.replace("%40", "@"),
        good.replace("%3A", ":").replace("%2F", "/"),
        good.replace("%40", "@").replace("%3A", ":").replace("%2F", "/").replace("%25", "%"),
        good.replace(str(server.port), "s3cret-w/rd"),
        good.replace("postgresql:", "mysql:"),
        good.replace("postgresql:", "postgresql+psycopg2:"),
        f"{good.partition('//')[0]}//lab@127.0.0.1:{server.port}/x?password=s3cret-w",
        f"{good}?sslmode=s3cret-w&nonsense=1",
        PASSWORD,
    ):
        monkeypatch.setenv("CONDORCTL_DB", wrong)
        answer = condorctl("status")
        line = one_error_line(answer)
        for part in ("p@ss", "p%40ss", "pAss", "w/rd", "w%2Frd", "%s", "s3cret-w/rd"):
            assert part not in line, wrong
    monkeypatch.setenv("CONDORCTL_DB", good)
    assert "no run in the ledger" in one_error_line(condorctl("status"))


def test_postgresql_without_psycopg_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'condorctl\[postgres\]'"):
        Ledger("postgresql://u@h/d")


def test_a_url_may_name_a_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDORCTL_DB", "sqlite:///sub/other.sqlite")
    ledger = Ledger(paths.ledger())
    assert (ledger.name, ledger.shared) == (str(project / "sub" / "other.sqlite"), False)
    assert (project / "sub" / "other.sqlite").stat().st_mode & 0o777 == 0o600
    for text in ("sqlite://", "sqlite:///:memory:", "no url", "://", "sqlite"):
        with pytest.raises(UserError, match="CONDORCTL_DB"):
            Ledger(text)


def test_a_database_of_another_program_is_left_alone(server: Postgres) -> None:
    url = os.environ["CONDORCTL_DB"]
    server.sql("CREATE TABLE run (id int)", database=url.rpartition("/")[2])
    with pytest.raises(UserError, match="table 'run' of another program"):
        Ledger(url)
    tables = "select tablename from pg_tables where schemaname = 'public'"
    assert server.sql(tables, database=url.rpartition("/")[2]) == [("run",)]


def test_each_of_a_group_has_an_account_of_its_own(server: Postgres) -> None:
    name = os.environ["CONDORCTL_DB"].rpartition("/")[2]
    password = "'" + PASSWORD + "'"
    server.sql(
        f"CREATE ROLE alice_{name} LOGIN PASSWORD {password}",
        f"CREATE ROLE bob_{name} LOGIN PASSWORD {password}",
        f"CREATE ROLE group_{name}",
        f"GRANT group_{name} TO alice_{name}, bob_{name}",
        f"GRANT CREATE ON SCHEMA public TO group_{name}",
        database=name,
    )
    alice, bob = (server.url(name, user) for user in (f"alice_{name}", f"bob_{name}"))
    with Ledger(alice).session() as session:
        session.add(a_run("p-1", owner="alice"))
    refused = pytest.raises(UserError, match=r"permission denied.*have its owner grant")
    with refused as caught, Ledger(bob).session() as session:
        session.add(a_run("p-2"))
    assert "\n" not in str(caught.value)
    server.sql(f"REASSIGN OWNED BY alice_{name} TO group_{name}", database=name)
    with Ledger(bob).session() as session:
        session.add(a_run("p-2", owner="bob"))
        assert list(session.scalars(select(Run.owner).order_by(Run.id))) == ["alice", "bob"]


def test_a_stricter_server_does_not_show_what_was_true_before_the_lock(
    server: Postgres, python: Python
) -> None:
    name = os.environ["CONDORCTL_DB"].rpartition("/")[2]
    server.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    first, second = Ledger(paths.ledger()), None
    with first.session() as session:
        second = python(
            "with Ledger(paths.ledger()).session() as session:\n"
            "    print(list(session.scalars(select(Run.name))))\n"
        )
        time.sleep(1.5)
        session.add(a_run("p-1"))
    assert second.communicate(timeout=20) == ("['p-1']\n", "")


def test_a_run_of_another_machine_is_left_to_its_owner(
    server: Postgres, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    ledger = Ledger(paths.ledger())
    (project / "p.dag.dagman.log").write_text(SUBMIT.format(7, "", 0) + ENDED.format(7, 1))
    with ledger.session() as session:
        session.add(a_run("p-1", project))

    def state(host: str, inode: int | None) -> str:
        with ledger.session() as session:
            run = session.scalars(select(Run)).one()
            run.host, run.inode = host, inode
        events.sync(ledger)
        with ledger.session() as session:
            return session.scalars(select(Run)).one().state

    # Elsewhere, under the same path: another folder, as far as anybody knows.
    assert state("elsewhere", None) == "idle"
    assert state("elsewhere", 12345) == "idle"
    # A folder that both machines mount.
    assert state("elsewhere", project.stat().st_ino) == "failed"


@pytest.mark.parametrize("closed", [".", "one", "p.dag.nodes.log", "one/metrics.jsonl"])
def test_a_folder_that_is_closed_to_us_is_left_to_its_owner(
    server: Postgres, project: Path, python: Python, closed: str
) -> None:
    ledger = Ledger(paths.ledger())
    folder = project / "run"
    (folder / "one").mkdir(parents=True)
    for file in ("p.dag.dagman.log", "p.dag.nodes.log", "one/metrics.jsonl"):
        (folder / file).write_text("")
    with ledger.session() as session:
        session.add(run := a_run("p-1", folder))
        session.flush()
        assert sharing.is_ours_to_read(ledger, run)
    if os.geteuid() == 0:
        os.chown(folder / closed, 12345, 12345)  # root out of the way below
    (folder / closed).chmod(0)
    try:
        asked = python(
            "from condorctl.ledger import sharing\n"
            "from condorctl.pool import identity\n"
            "identity.leave_root()\n"
            "ledger = Ledger(paths.ledger())\n"
            "with ledger.session() as session:\n"
            "    print(sharing.is_ours_to_read(ledger, session.scalars(select(Run)).one()))\n"
        )
        assert asked.communicate() == ("False\n", "")
    finally:
        if os.geteuid() == 0:
            os.chown(folder / closed, 0, 0)
        (folder / closed).chmod(0o700)


def test_a_ledger_without_its_version_is_none(ledger: Ledger) -> None:
    with ledger.session() as session:
        session.execute(sa.text("DELETE FROM alembic_version"))
    with pytest.raises(UserError, match="its layout is none, this condorctl knows"):
        Ledger(paths.ledger())
