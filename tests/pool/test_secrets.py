"""A secret reaches its job, and nobody and nothing else, on a real pool."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

TOKEN = "s3cr3t it's $HOME \\ %s"
SPEC = """
defaults: {request_memory: 64 MB, request_disk: 50 MB}
stages:
  one:
    command: [sh, -c, 'printf %s "$API_TOKEN" | sha256sum >sum; ls -a >seen; test -e again']
    secrets: [API_TOKEN, OTHER]
    outputs: [sum, seen]
    retries: 1
"""


def holding(folder: Path) -> list[str]:
    """The files below `folder` in which the token is."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(f.relative_to(folder)) for f in files if TOKEN.encode() in f.read_bytes())


def test_a_secret_is_in_its_job_and_nowhere_else(
    submit: Callable[..., str], wait: Callable[..., Status], condorctl: Condorctl,
    condor: Callable[..., str], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (project / "jobs" / "test.yaml").write_text(SPEC)
    refused = one_error_line(condorctl("submit", "test"))
    assert "secret API_TOKEN: set it in your environment, or write it into" in refused
    assert list((project / "exp" / "runs").iterdir()) == []
    monkeypatch.setenv("OTHER", "x")
    file = tmp_path / "config" / "condorctl" / "secrets" / "API_TOKEN"
    file.parent.mkdir(parents=True)
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    assert "others can read it: chmod 600" in one_error_line(condorctl("submit", "test"))
    file.chmod(0o600)

    name = submit(SPEC)
    run = project / "exp" / "runs" / name
    view = wait(name, lambda view: bool(view["finished"]))
    # It failed twice, and may be resumed.
    assert (view["state"], view["stages"]["one"]["attempt"]) == ("failed", 2)
    told = "".join(condorctl(*words.split()).stdout for words in (
        f"status {name} --json", f"show {name} --json", f"explain {name} --json", "lint --json",
    ))  # fmt: skip
    told += condor("condor_history", "-l", view["stages"]["one"]["job"])
    assert TOKEN not in told
    assert holding(project) == [f"exp/runs/{name}/one/_condorctl_secrets"]
    assert (run / "one" / "_condorctl_secrets").stat().st_mode & 0o777 == 0o600
    ledger = sqlite3.connect(os.environ["CONDORCTL_LEDGER"])
    assert TOKEN not in "".join(ledger.iterdump())

    spec = SPEC.replace("test -e again", "true")
    name = submit(spec, "--force")
    view = wait(name, lambda view: bool(view["finished"]))
    assert view["state"] == "done", view
    told = (project / "exp" / "runs" / name / "one" / "sum").read_text()
    # sha256 of the token: what came is what was written, quotes, blanks and all.
    assert told.split()[0] == hashlib.sha256(TOKEN.encode()).hexdigest()
    # The command does not find it in its folder; nor does a run that is done keep it.
    assert "secrets" not in (project / "exp" / "runs" / name / "one" / "seen").read_text()
    assert not any(name in path for path in holding(project))
    # Another value of it is no other stage.
    file.write_text("another\n")
    assert "not run again" in condorctl("submit", "test").stderr
