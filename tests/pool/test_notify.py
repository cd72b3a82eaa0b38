"""Messages about runs, from DAGMan's own scripts to a receiver on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status, until

SMALL = "request_memory: 64 MB, request_disk: 50 MB"


class Receiver:
    """Takes what Apprise posts to a json:// address."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.messages.append({"path": self.path, **json.loads(body)})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def about(self, run: str, count: int, timeout: float = 180) -> list[dict[str, str]]:
        """The messages about a run, once there are `count`."""
        deadline = time.monotonic() + timeout
        while len(found := [m for m in self.messages if run in m["title"]]) < count:
            assert time.monotonic() < deadline, self.messages
            time.sleep(0.5)
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


@pytest.fixture
def addresses(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = project / "notify.conf"
    file.touch(mode=0o600)
    monkeypatch.setenv("CONDORCTL_NOTIFY", str(file))
    return file


def test_a_run_tells_how_it_ended_and_that_a_job_is_held(
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condor: Callable[..., str],
    condorctl: Condorctl,
    receiver: Receiver,
    addresses: Path,
    project: Path,
) -> None:
    addresses.write_text(
        f"json://me:secret@127.0.0.1:{receiver.port}/all\n"
        f"failed=json://127.0.0.1:{receiver.port}/only-failures\n"
    )
    good = submit(
        f"""
        name: good
        stages:
          one: {{command: [python, work.py, '1'], inputs: [work.py],
                outputs: [model.pt, metrics.jsonl], {SMALL}}}
        """
    )
    bad = submit(f"name: bad\nstages: {{one: {{command: ['false'], {SMALL}}}}}")
    stuck = submit(f"name: stuck\nstages: {{one: {{command: {until(project / 'go')}, {SMALL}}}}}")
    job = wait(stuck, lambda view: bool(view["stages"]["one"]["job"]))["stages"]["one"]["job"]
    condor("condor_hold", "-reason", "wanted to look", job)

    [held] = receiver.about(stuck, 1)
    assert held["title"] == f"{stuck}: held"
    assert "held by its owner" in held["message"]
    assert "wanted to look" in held["message"]
    condor("condor_release", job)
    (project / "go").touch()

    [ended] = receiver.about(good, 1)
    assert (ended["title"], ended["path"]) == (f"{good}: done", "/all")
    assert "1 of 1 stages done" in ended["message"]
    assert "| m |" in ended["message"]  # the table of results

    failures = receiver.about(bad, 2)
    assert {m["path"] for m in failures} == {"/all", "/only-failures"}
    assert all("failed with exit code 1" in m["message"] for m in failures)

    for run, state in ((good, "done"), (bad, "failed"), (stuck, "done")):
        view = wait(run, lambda view: bool(view["finished"]))
        assert (view["state"], list(view["stages"])) == (state, ["one"])
        for file in (project / "exp" / "runs" / run).glob("*"):
            assert not file.is_file() or "secret" not in file.read_text(errors="replace")
    assert [m["title"] for m in receiver.about(stuck, 2)] == [f"{stuck}: held", f"{stuck}: done"]
    assert len(receiver.messages) == 5


def test_a_receiver_that_is_down_changes_no_outcome(
    submit: Callable[..., str], wait: Callable[..., Status], addresses: Path, project: Path
) -> None:
    addresses.write_text("json://me:secret@127.0.0.1:9/\n")
    name = submit(f"stages: {{one: {{command: ['true'], {SMALL}}}}}")
    assert wait(name, lambda view: bool(view["finished"]))["state"] == "done"
    log = (project / "exp" / "runs" / name / "notify.log").read_text()
    assert "could not be sent" in log
    assert "secret" not in log


def test_what_is_wrong_with_the_addresses_is_said(
    condorctl: Condorctl, receiver: Receiver, addresses: Path
) -> None:
    addresses.write_text(f"json://127.0.0.1:{receiver.port}/\n")
    answer = condorctl("notify", "--test", "--json")
    assert json.loads(answer.stdout) == {"event": "test", "title": "condorctl", "sent": 1}
    assert len(receiver.messages) == 1
    addresses.write_text("no address\n")
    assert "holds no address" in one_error_line(condorctl("notify", "--test"))
    addresses.chmod(0o644)
    assert "chmod 600" in one_error_line(condorctl("notify", "--test"))
    addresses.unlink()
    assert "No such file" in one_error_line(condorctl("notify", "--test"))
