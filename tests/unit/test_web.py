"""The page for the browser: who may see it, what it says, and that nothing in it runs."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from condorctl import api, paths
from condorctl.errors import UserError
from condorctl.ledger import (
    Checkpoint,
    Job,
    JobState,
    Ledger,
    Metric,
    Result,
    Run,
    Stage,
)
from condorctl.web import page, server, views
from tests.conftest import Condorctl, one_error_line

EVIL = "</script><!--<script>alert(1)</script><img src=x onerror=alert(2)>"
START = 1_700_000_000.0


@pytest.fixture
def ledger(engine: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An empty ledger; no pool answers."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    return Ledger(paths.ledger())


def add_run(ledger: Ledger, folder: Path, name: str = "p-1", **more: Any) -> None:
    """A run that has ended: `train` done with curves and results, `test` held, `rest` waits."""
    schedd = str(more.setdefault("schedd", "s"))
    train = Job(
        schedd=schedd, cluster=7, proc=0, attempt=1, state="completed", submitted=START,
        started=START + 5, starts=1, finished=START + 65, host="slot1@node", exit_code=0, cpus=2,
        usage={"memory_mb": 100, "cpu_s": 90},
        progress={"epoch": 3, "epochs": 3, "metrics": {"loss": 0.25}},
        states=[
            JobState(state="idle", time=START),
            JobState(state="running", time=START + 5),
            JobState(state="completed", time=START + 65, detail=EVIL),
        ],
        checkpoints=[Checkpoint(path=EVIL, epoch=3, bytes=10, sha256="0" * 64)],
    )  # fmt: skip
    test = Job(
        schedd=schedd, cluster=8, proc=0, attempt=1, state="held", submitted=START, hold_code=34,
        hold_subcode=102, hold_reason=EVIL,
        states=[JobState(state="held", time=START + 70)],
    )  # fmt: skip
    values = {"submitted": START, "finished": START + 100, "state": "failed", "params": {"a": EVIL}}
    with ledger.session() as session:
        session.add(
            Run(
                name=name, pipeline="p", folder=str(folder), dag_file=str(folder / "p.dag"),
                owner=getpass.getuser(), **(values | more),
                stages=[
                    Stage(name="train", position=0, needs=[], jobs=[train]),
                    Stage(name="test", position=1, needs=["train"], jobs=[test]),
                    Stage(name="rest", position=2, needs=["test"]),
                ],
            )
        )  # fmt: skip
        session.flush()
        for epoch in (1, 2, 3):
            value = None if epoch == 2 else 1 / epoch
            session.add(Metric(job_id=train.id, epoch=epoch, name=EVIL, value=value))
            session.add(Metric(job_id=train.id, epoch=epoch, name="loss", value=-1e308 * epoch))
        row = {"clean": 0.5, EVIL: EVIL, "big": 1 << 60}
        session.add(Result(job_id=train.id, position=0, values=row))
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "7.out").write_bytes(b"\xff" + b"line\n" * 100_000 + EVIL.encode())


@pytest.fixture
def client(ledger: Ledger) -> TestClient:
    """A browser that has opened the whole address."""
    guard = server.Guard(server.application(views.Views(ledger)), server._names("127.0.0.1"))
    client = TestClient(guard, base_url="http://127.0.0.1:8000", follow_redirects=False)
    client.token, client.place = guard.token, guard.place  # type: ignore[attr-defined]
    enter(client, guard)
    return client


def enter(client: TestClient, guard: server.Guard) -> httpx.Response:
    answer = client.get("/", params={"token": guard.token})
    assert answer.status_code == 200
    assert f"url={guard.place}" in answer.text
    return answer


def place(client: TestClient) -> str:
    return str(client.place)  # type: ignore[attr-defined]


def get(client: TestClient, what: str, **words: str) -> Any:
    answer = client.get(f"{place(client)}{what}", params=words)
    assert answer.status_code == 200, answer.text
    # What JavaScript's own parser takes: no NaN, no Infinity.
    return json.loads(answer.text, parse_constant=lambda word: pytest.fail(word))


def test_only_who_has_the_token_gets_in(ledger: Ledger) -> None:
    guard = server.Guard(server.application(views.Views(ledger)), {"localhost"})
    client = TestClient(guard, base_url="http://localhost:1234")
    for path in (
        "/", "/?token=", "/?token=wrong", "/?token=é", f"/?token={guard.token}x",
        guard.place, f"{guard.place}runs", f"{guard.place}?token={guard.token}", "/runs", "//runs",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 403, path
        assert guard.token not in answer.text and guard.place not in answer.text
    answer = enter(client, guard)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    # Another server on this host, on another port, is never sent the cookie.
    assert f"Path={guard.place}" in cookie
    assert guard.token not in cookie
    assert client.get(guard.place).status_code == 200
    client.cookies.clear()
    forged = {"Cookie": f"condorctl={guard.token}"}
    assert client.get(guard.place, headers=forged).status_code == 403


@pytest.mark.parametrize("host, answered", [
    ("localhost:99", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("127.0.0.1:8000", 200),
    ("evil.example", 421), ("localhost.evil.example:8000", 421), ("127.0.0.1.evil.example", 421),
    ("", 421), ("localhost@evil.example", 421),
])  # fmt: skip
def test_a_name_made_to_lead_here_is_refused(client: TestClient, host: str, answered: int) -> None:
    assert client.get(place(client), headers={"Host": host}).status_code == answered


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_looking(client: TestClient, method: str) -> None:
    assert client.request(method, place(client)).status_code == 405


def test_the_headers_let_in_nothing_foreign(client: TestClient) -> None:
    for path in (place(client), f"{place(client)}runs", f"{place(client)}none", "/"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
    text = client.get(place(client)).text
    assert "http://www.w3.org/2000/svg" in text
    assert re.findall(r"https?://(?!www\.w3\.org)", text) == []  # it works without a network


def test_an_empty_ledger(client: TestClient) -> None:
    assert get(client, "runs")["runs"] == []
    answer = client.get(f"{place(client)}run", params={"run": "none"})
    assert answer.status_code == 404 and "no run" in answer.json()["error"]


def test_a_run_with_all_it_has(client: TestClient, ledger: Ledger, project: Path) -> None:
    add_run(ledger, project)
    assert [run["run"] for run in get(client, "runs")["runs"]] == ["p-1"]
    view = get(client, "run", run="p-1")
    stages = {stage["stage"]: stage for stage in view["stages"]}
    assert stages["train"]["state"] == "done"
    assert stages["test"]["needs"] == ["train"]
    assert "memory" in stages["test"]["hold"]["cause"]
    assert view["costs"]["train"]["cpu_h"]["useful"] == pytest.approx(2 * 60 / 3600, abs=1e-5)
    assert view["results"]["rows"][0]["clean"] == 0.5
    assert view["results"]["rows"][0]["big"] == str(1 << 60)  # JavaScript would round it
    curves = get(client, "curves", run="p-1")["curves"]
    by_metric = {curve["metric"]: curve for curve in curves}
    assert by_metric[EVIL]["epochs"] == [1, 2, 3]
    assert by_metric[EVIL]["values"] == [1.0, None, 1 / 3]
    assert by_metric["loss"]["values"][-1] is None or "inf" in str(by_metric["loss"]["values"][-1])


def test_a_long_curve_is_thinned_to_its_ends(
    client: TestClient, ledger: Ledger, project: Path
) -> None:
    add_run(ledger, project)
    with ledger.session() as session:
        for epoch in range(1, 5001):
            session.add(Metric(job_id=1, epoch=epoch, name="long", value=float(epoch)))
    [curve] = [c for c in get(client, "curves", run="p-1")["curves"] if c["metric"] == "long"]
    assert len(curve["epochs"]) == 200
    assert (curve["epochs"][0], curve["epochs"][-1], curve["values"][-1]) == (1, 5000, 5000.0)


def test_the_end_of_what_a_job_printed(client: TestClient, ledger: Ledger, project: Path) -> None:
    add_run(ledger, project)
    told = get(client, "output", job="s#7.0", stream="out")
    assert told["cut"] and told["bytes"] > 500_000
    assert len(told["text"]) <= 64 << 10 and told["text"].endswith(EVIL)
    assert get(client, "output", job="s#7.0", stream="err")["note"] == "No such file or directory"
    for words in ({"stream": "../../p"}, {"stream": "out", "job": "../../etc/passwd"}, {"job": ""}):
        words = {"job": "s#7.0", "stream": "out"} | words
        answer = client.get(f"{place(client)}output", params=words)
        assert answer.status_code == 404, answer.text
    for path in ("../../etc/passwd", "..%2f..%2fetc/passwd", "static/page.js", "page.css"):
        assert client.get(f"{place(client)}{path}").status_code in (403, 404)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "device"])
def test_output_that_is_no_plain_file_is_not_read(
    client: TestClient, ledger: Ledger, project: Path, kind: str
) -> None:
    add_run(ledger, project)
    file = project / "train" / "7.err"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to("/etc/passwd")
    elif kind == "folder":
        file.mkdir()
    else:
        with ledger.session() as session:
            session.get_one(Job, 1).err = "/dev/zero"
    told = get(client, "output", job="s#7.0", stream="err")
    assert told["text"] == "" and told["note"]


def test_the_file_to_pass_on_is_whole_and_inert(ledger: Ledger, project: Path) -> None:
    add_run(ledger, project)
    add_run(ledger, project, "p-2", schedd="t")
    file = project / "run <1>.html"
    assert api.web("p-1", export=file) == {"run": "p-1", "file": str(file)}
    text = file.read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<!--" not in text and "<img" not in text
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    held = json.loads(data)
    assert held["run"]["results"]["rows"][0][EVIL] == EVIL
    assert held["outputs"]["s#7.0"]["out"]["text"].endswith(EVIL)
    assert "connect-src &#x27;none&#x27;" in text
    # The policy names by its hash the very script that stands in the file.
    assert page._hash("page.js")[1:-1] in text and page._hash("page.css")[1:-1] in text


def test_a_sweep_of_200_stages_is_quick(client: TestClient, ledger: Ledger, project: Path) -> None:
    with ledger.session() as session:
        stages = [
            Stage(
                name=f"train-{index}-0.1", position=index, needs=[], jobs=[
                    Job(schedd="s", cluster=index + 1, proc=0, attempt=1, state="completed",
                        submitted=START, started=START, starts=1, finished=START + 9, exit_code=0)
                ],
            )
            for index in range(200)
        ]  # fmt: skip
        session.add(
            Run(name="p-1", pipeline="p", folder=str(project), params={}, owner="me", schedd="s",
                submitted=START, finished=START + 9, state="done", stages=stages)
        )  # fmt: skip
        session.flush()
        for stage in stages:
            for epoch in range(1, 21):
                job = stage.jobs[0].id
                session.add(Metric(job_id=job, epoch=epoch, name="loss", value=1 / epoch))
    began = time.process_time()
    assert len(get(client, "run", run="p-1")["stages"]) == 200
    assert len(get(client, "curves", run="p-1")["curves"]) == 200
    assert time.process_time() - began < 3


def test_many_at_once_read_the_logs_once(
    ledger: Ledger, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(ledger, project)
    readings = []
    sync = views.events.sync
    monkeypatch.setattr(views.events, "sync", lambda ledger: (readings.append(1), sync(ledger))[1])
    seen = views.Views(ledger)
    threads = [threading.Thread(target=seen.runs) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) == 1


@pytest.fixture
def served(ledger: Ledger, project: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command, and the address that it printed."""
    add_run(ledger, project)
    process = subprocess.Popen(
        [sys.executable, "-m", "condorctl", "web", "p-1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_on_loopback_until_it_is_interrupted(
    served: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address), process.stderr
    base, port = address.partition("?")[0], int(address.split(":")[2].partition("/")[0])
    with httpx.Client() as browser:
        answer = browser.get(address)
        [url] = re.findall(r"url=([^\"]+)\"", answer.text)
        assert url.endswith("/#/p-1")
        assert "server" not in answer.headers
        where = httpx.URL(base).join(url).copy_with(fragment=None)
        assert browser.get(where.join("runs")).json()["runs"][0]["run"] == "p-1"
    # A request that is none, and one that never ends, harm nobody else.
    with socket.create_connection(("127.0.0.1", port)) as raw, \
            socket.create_connection(("127.0.0.1", port)) as slow:  # fmt: skip
        raw.sendall(b"\x00\xff no HTTP\r\n\r\n")
        slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert httpx.get(base).status_code == 403
        process.send_signal(2)
        _, stderr = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in stderr and address.partition("=")[2] not in stderr


def test_what_cannot_be_done_is_said_in_a_line(ledger: Ledger, condorctl: Condorctl) -> None:
    assert "no run" in one_error_line(condorctl("web", "none"))
    assert "no run" in one_error_line(condorctl("web", "--export", "x.html"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "--port 0" in one_error_line(condorctl("web", "--port", port))
    assert "--host" in one_error_line(condorctl("web", "--host", "no-such-host.invalid"))
    with pytest.raises(UserError, match="--host"):
        api.web(host="203.0.113.1")


def test_a_file_that_cannot_be_written(ledger: Ledger, project: Path, condorctl: Condorctl) -> None:
    add_run(ledger, project)
    assert "no/x.html" in one_error_line(condorctl("web", "--export", "no/x.html"))


def test_without_the_extra_it_says_what_to_install(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "condorctl.web.server", raising=False)
    monkeypatch.delattr("condorctl.web.server", raising=False)
    with pytest.raises(UserError, match=r"uvicorn is missing: pip install 'condorctl\[web\]'"):
        api.web()
