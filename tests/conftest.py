"""What every test shares: a folder, a ledger and a HOME of its own, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres

# With it Python takes C's buffer away, too, and hides what a library writes to standard output.
os.environ.pop("PYTHONUNBUFFERED", None)

Condorctl = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of tests that wait for a pool among those that compute, in equal parts.

    Several processes take a file each, in this order: so the cores have work while jobs are waited
    for, and not everybody waits, or computes, at the same time.
    """
    files = list(dict.fromkeys(item.path for item in items))
    kinds = [
        [file for file in files if (file.parent.name == "pool") == waits] for waits in (True, False)
    ]
    place = {file: at / len(kind) for kind in kinds for at, file in enumerate(kind)}
    items.sort(key=lambda item: place[item.path])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's, the current one, with a ledger of its own."""
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "jobs").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CONDORCTL_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("CONDORCTL_DB", raising=False)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, started when the first test asks for it: half a second."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def condorctl(project: Path) -> Condorctl:
    """Run the real command line in the project's folder."""

    def run(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "condorctl", *words],
            cwd=project,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    return run


def one_error_line(answer: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal: exit code other than 0, nothing on stdout, no traceback."""
    assert answer.returncode not in (0, -11), answer
    assert answer.stdout == ""
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
