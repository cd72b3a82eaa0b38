"""Every test that asks for a `ledger` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Condorctl
from tests.fork_server import ForkServer
from tests.forked_python import ForkedPython
from tests.postgres import Postgres


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ledger" in metafunc.fixturenames:
        metafunc.fixturenames.insert(0, "engine")
        metafunc.parametrize("engine", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two holds the ledger that `paths.ledger` names."""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("CONDORCTL_DB", server.new_database())
    return str(request.param)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """What runs commands here: started with the first."""
    server = ForkServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def forked_python() -> Iterator[ForkedPython]:
    """What starts other processes on a ledger: started with the first."""
    server = ForkedPython()
    yield server
    server.stop()


@pytest.fixture
def condorctl(project: Path, fork_server: ForkServer) -> Condorctl:
    """Run the real command line in the project's folder, in a process of its own."""

    def run(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return fork_server.run(words, project, timeout)

    return run
