"""Watching runs, what they cost, and what is left to know when the schedd does not answer."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status
from tests.pool.test_runs import SMALL, done

Submit = Callable[..., str]
Wait = Callable[..., Status]


class Terminal:
    """A command on a terminal of its own, 24 lines of 80 characters."""

    def __init__(self, *words: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            # As a shell leaves it, also where the tests run in the background.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, "-m", "condorctl", *words])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = ""

    def until(self, *words: str, timeout: float = 180) -> None:
        """Read until all `words` have been drawn."""
        deadline = time.monotonic() + timeout
        while not all(word in self.seen for word in words):
            assert time.monotonic() < deadline, self.seen[-4000:]
            if select.select([self._fd], [], [], 0.5)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def end(self, timeout: float = 90) -> int:
        """Its exit code."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._fd, 65536).decode(errors="replace")
                except OSError:
                    # Linux says so when the other end is closed.
                    break
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        for _ in range(100):
            if ended:
                break
            time.sleep(0.1)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        assert ended, self.seen[-4000:]
        return os.waitstatus_to_exitcode(status)


def test_a_screen_shows_a_run_and_leaving_it_changes_nothing(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str]
) -> None:
    name = submit(
        f"""
        defaults: {{{SMALL}}}
        stages:
          train: {{command: [python, work.py, "60"], inputs: [work.py]}}
          "queued-{{{{ n }}}}":
            matrix: {{n: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]}}
            command: ["true"]
            request_cpus: 500
          after: {{command: ["true"], needs: [train]}}
        """
    )
    live = Terminal("status", "--watch", name)
    live.until("train", "/60", "loss=", "/min", "as of", "idle 20", "queued*", "q leaves")
    live.type(b"xq")
    assert live.end() == 0
    assert f"{name} goes on" in live.seen
    # The terminal is as it was: the alternate screen left, the cursor shown.
    assert live.seen.rindex("\x1b[?1049l") > live.seen.rindex("\x1b[?1049h")
    assert live.seen.rindex("\x1b[?25h") > live.seen.rindex("\x1b[?25l")
    for words in [("status", "--watch"), ("follow",)]:
        again = Terminal(*words)
        again.until("queued*")
        again.type(b"\x03")
        assert again.end() == (130 if words == ("follow",) else 0)
        assert f"{name} goes on" in again.seen

    queue = json.loads(condorctl("status", "--users", "--json").stdout)
    ours = next(one for one in queue["work"] if one["run"] == name)
    assert (ours["kind"], ours["nodes"]["total"], ours["jobs"]["running"]) == ("dag", 22, 1)
    assert ours["jobs"]["idle"] == 20
    view = wait(name, lambda view: (view["stages"]["train"]["epoch"] or 0) >= 4)
    train = view["stages"]["train"]
    assert 1 <= train["s_per_epoch"] < 3
    assert 0 < train["eta_s"] < 180
    assert view["stages"]["after"]["eta_s"] is None
    assert view["age_s"] < 5
    # Nothing will ever start the others: following them says so, once.
    script = (
        "import sys; from condorctl import cli; from condorctl.view import follow; "
        "follow.IDLE_S = 2.0; "
        f"sys.argv = ['condorctl', 'follow', '{name}']; cli.main()"
    )
    follower = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(6)
    condor("condor_rm", view["dag"].split("#")[1])
    told = follower.communicate(timeout=180)[1]
    assert told.count("`condorctl explain ") == 1
    assert "and 19 more idle for" in told
    assert follower.returncode == 1
    one = wait(name, done)["stages"]["train"]["jobs"][0]
    assert one["state"] == "removed"
    found = json.loads(condorctl("cost", name, "--json").stdout)["runs"][0]["stages"]
    by_name = {stage["stage"]: stage for stage in found}
    assert by_name["train"]["cpu_h"]["wasted"] * 3600 == pytest.approx(
        one["finished"] - one["started"], abs=1
    )
    assert by_name["queued-1"]["cpu_h"]["total"] == 0
    assert by_name["queued-1"]["queue_s"] > 5


def test_an_eviction_is_paid_for_unless_the_job_went_on_from_its_record(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str], project: Path
) -> None:
    (project / "count.py").write_text(
        "import pathlib, time\n"
        "from condorctl import job\n"
        "record = pathlib.Path('record.txt')\n"
        "record.touch()\n"
        "for count in range(len(record.read_text()) + 1, 21):\n"
        "    time.sleep(1)\n"
        "    record.write_text(count * '.')\n"
        "    job.progress(epoch=count, epochs=20)\n"
    )
    name = submit(
        f"""
        defaults:
          {{{SMALL}, command: [python, count.py], inputs: [count.py], outputs: [record.txt]}}
        stages:
          anew: {{}}
          on: {{template: evaluate.sub.j2}}
          failing: {{command: [sh, -c, "sleep 3; exit 1"], retries: 1, outputs: []}}
        """
    )
    for stage in ("anew", "on"):
        view = wait(name, lambda view, one=stage: (view["stages"][one]["epoch"] or 0) >= 5)
        condor("condor_vacate_job", view["stages"][stage]["job"])
    ended = wait(name, done)
    found = json.loads(condorctl("cost", name, "--json").stdout)
    stages = {stage["stage"]: stage for stage in found["runs"][0]["stages"]}
    times = {
        stage: [s["time"] for s in ended["stages"][stage]["jobs"][0]["states"]]
        for stage in ("anew", "on")
    }
    for stage in ("anew", "on"):
        assert ended["stages"][stage]["starts"] == 2
        _, start, evicted, again, end = times[stage]
        hours = stages[stage]["cpu_h"]
        assert hours["total"] * 3600 == pytest.approx(evicted - start + end - again, abs=0.1)
        assert stages[stage]["wall_s"] == pytest.approx(end - start, abs=0.1)
        if stage == "anew":
            assert hours["repeated"] * 3600 == pytest.approx(evicted - start, abs=0.1)
        else:
            # Five epochs of a second and more are kept; little of the rest is lost.
            assert 0 <= hours["repeated"] * 3600 < (evicted - start) / 2
            assert hours["useful"] * 3600 > 5 + end - again
    failing = ended["stages"]["failing"]["jobs"]
    assert stages["failing"]["cpu_h"]["wasted"] * 3600 == pytest.approx(
        sum(job["finished"] - job["started"] for job in failing), abs=0.1
    )
    assert len(failing) == 2
    total = found["runs"][0]["cpu_h"]
    assert total == pytest.approx(ended["cost"]["cpu_h"], abs=1e-5)
    assert sum(hours for kind, hours in total.items() if kind != "total") == pytest.approx(
        total["total"], abs=1e-5
    )


def test_without_the_schedd_it_is_the_last_known_state_and_its_age(
    submit: Submit, wait: Wait, condorctl: Condorctl, condor: Callable[..., str]
) -> None:
    name = submit(
        f"stages: {{one: {{command: [python, work.py, '25'], inputs: [work.py], {SMALL}}}}}"
    )
    wait(name, lambda view: bool(view["stages"]["one"]["epoch"]))
    follower = subprocess.Popen(
        [sys.executable, "-m", "condorctl", "follow", name],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    condor("condor_off", "-fast", "-daemon", "schedd")
    try:
        view = wait(name, lambda view: bool(view["unreachable"]))
        assert view["age_s"] < 60
        assert view["as_of"] == pytest.approx(time.time() - view["age_s"], abs=10)
        assert view["stages"]["one"]["state"] in {"running", "disconnected", "idle"}
        plain = condorctl("status", name)
        assert plain.returncode == 0
        assert "last known state, as of" in plain.stderr
        assert "failed" not in plain.stdout + plain.stderr
        every = json.loads(condorctl("status", "--all", "--json").stdout)["runs"][0]
        assert every["unreachable"]
        one_error_line(condorctl("status", "--users"))
        live = Terminal("status", "--watch", name)
        live.until("last known state, as of")
        live.type(b"q")
        assert live.end() == 0
    finally:
        condor("condor_on", "-daemon", "schedd")
    output, told = follower.communicate(timeout=240)
    assert follower.returncode == 0, (output, told)
    assert "the schedd answers again" in told
    assert told.count("last known state") == 1
    assert wait(name, done)["unreachable"] is None
