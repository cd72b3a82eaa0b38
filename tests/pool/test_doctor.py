"""`condorctl doctor` on a real pool, on none, and with a job on a slot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Condorctl


def _checks(condorctl: Condorctl, *words: str, code: int = 0) -> dict[str, dict[str, str | None]]:
    answer = condorctl("doctor", "--json", *words)
    assert answer.returncode == code, answer
    assert "Traceback" not in answer.stderr
    told = json.loads(answer.stdout)
    assert told["ok"] is (code == 0)
    return {finding["check"]: finding for finding in told["checks"]}


def test_a_pool_that_works_and_a_job_that_tries_it(pool: Path, condorctl: Condorctl) -> None:
    found = _checks(condorctl, "--job", "--timeout", "90")
    assert {f["check"] for f in found.values() if f["state"] == "problem"} == set()
    assert "who may submit" in str(found["rights"]["what"])
    assert "8 cores" in str(found["slots"]["what"])
    assert found["clock"]["state"] == found["node clocks"]["state"] == "ok"
    assert found["job: transfer"]["state"] == found["job: chirp"]["state"] == "ok"
    assert found["job: ssh"]["state"] == "ok"
    # It leaves nothing in the queue.
    answer = condorctl("pool", "run", "condor_q", "-allusers", "-constraint",
                       'JobBatchName == "condorctl-doctor"', "-af", "JobStatus")  # fmt: skip
    assert answer.stdout.strip() in {"", "3"}


def test_a_job_that_gets_no_slot_in_time(pool: Path, condorctl: Condorctl) -> None:
    late = _checks(condorctl, "--job", "--timeout", "1", code=1)["job"]
    assert late["state"] == "problem"
    assert late["what"] == "it did not start within 1 s"


def test_no_pool_and_a_ledger_that_cannot_be_had(
    condorctl: Condorctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("CONDOR_CONFIG", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONDORCTL_LEDGER", str(tmp_path / "file" / "ledger.sqlite"))
    found = _checks(condorctl, "--job", code=1)
    assert found["pool"]["state"] == found["ledger"]["state"] == "problem"
    assert "condorctl pool up" in str(found["pool"]["mend"])
    words = condorctl("doctor")
    assert words.returncode == 1
    assert "problem  pool         there is no HTCondor here — `condorctl pool up`" in words.stdout
