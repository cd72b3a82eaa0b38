"""A group's ledger: two people, one PostgreSQL server, a real pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import one_error_line
from tests.postgres import Postgres

Person = Callable[..., "subprocess.CompletedProcess[str]"]

SPEC = """\
defaults: {request_memory: 64 MB, request_disk: 50 MB}
stages:
  one: {command: [python, work.py, 2], inputs: [work.py], outputs: [model.pt, metrics.jsonl]}
"""


@pytest.fixture
def people(pool: Path, postgres: Postgres, project: Path) -> Callable[[str], Person]:
    """The command line as one of the group runs it: in a folder of their own."""
    database = postgres.new_database()

    def person(name: str) -> Person:
        folder = project / name
        (folder / "jobs").mkdir(parents=True)
        (folder / "jobs" / "test.yaml").write_text(SPEC)
        (folder / "work.py").write_bytes((project / "work.py").read_bytes())
        environment = {**os.environ, "LOGNAME": name, "CONDORCTL_DB": database}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "condorctl", *words], cwd=folder, env=environment,
                capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
            )  # fmt: skip

        return run

    return person


def test_two_people_share_a_ledger(
    people: Callable[[str], Person], postgres: Postgres, project: Path
) -> None:
    alice, bob = people("alice"), people("bob")
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda who: who("submit", "test", "--json"), (alice, bob)))
    names = [json.loads(answer.stdout)["run"] for answer in answers]
    assert set(names) == {"test-1", "test-2"}
    # Without a name each means their own, and each can follow the other's.
    for who, own, other in ((alice, *names), (bob, *reversed(names))):
        assert json.loads(who("status", "--json").stdout)["run"] == own
        assert who("follow", other).returncode == 0
    # The server goes away and comes back.
    postgres.stop()
    try:
        assert "server does not answer" in one_error_line(alice("status"))
    finally:
        postgres.start()
    view = json.loads(bob("status", names[0], "--json").stdout)
    assert (view["owner"], view["state"]) == ("alice", "done")
    [stage] = view["stages"]
    assert (stage["epoch"], stage["checkpoint"]["epoch"]) == (2, 2)
    rows = json.loads(bob("results", *names, "--json").stdout)["results"]
    assert [(row["run"], row["clean"]) for row in rows] == [(name, 0.5) for name in names]
    fetched = bob("fetch", f"{names[0]}/one", "model.pt", "--json")
    [file] = json.loads(fetched.stdout)["files"]
    assert (project / "bob" / file["target"]).read_text() == "2"
    assert (project / "alice" / "exp" / "runs" / names[0]).is_dir()
