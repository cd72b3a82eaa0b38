"""`condorctl pool`: a real personal pool of this test's own, beside whatever else runs.

The pool's state is in a temporary folder; HTCondor itself comes from the user's cache folder,
where the first run puts it. Every call is a process of its own, as with the command line: for
root, the first one makes it an ordinary user for good.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from condorctl.pool import processes

# Where HTCondor's manual has its configuration, when CONDOR_CONFIG names none.
SYSTEM_CONFIGS = ("/etc/condor/condor_config", "/usr/local/etc/condor_config")


class Caller:
    """Calls condorctl.pool in new processes that share a state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "condorctl" / "pool"
        self.environment = {**os.environ, "XDG_STATE_HOME": str(state)}
        self.environment.pop("CONDOR_CONFIG", None)

    def start(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from condorctl import pool\n" + textwrap.dedent(code)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, function: str) -> dict[str, Any]:
        """The Status that e.g. ``up(cpus=2)`` returns."""
        return self.result(self.start(PRINT.format(function)))

    def result(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def run(self, *command: str) -> str:
        """What one of HTCondor's tools prints, run as a condorctl command runs it."""
        code = f"pool.activate()\nimport os, sys\nos.execvp({command[0]!r}, {list(command)!r})"
        process = self.start(code)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out

    def processes(self) -> list[processes.Process]:
        return processes.of_pool(self.folder / "condor_config", self.folder / "execute")

    def master(self) -> int:
        record = json.loads((self.folder / "condorctl.json").read_text())
        pid: int = record[0]["pid"]
        return pid


PRINT = "import dataclasses, json; print(json.dumps(dataclasses.asdict(pool.{})))"


@pytest.fixture(scope="module")
def call() -> Iterator[Caller]:
    # Not tmp_path: with a long path the pool would move to a place of its own under /var/tmp.
    state = Path(tempfile.mkdtemp(prefix="pool-"))
    caller = Caller(state)
    yield caller
    caller("down()")
    shutil.rmtree(state)


def eventually(condition: Any, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.3)
    return value


def test_two_at_once_start_one_pool(call: Caller) -> None:
    both = [call.start(PRINT.format("up(cpus=2)")) for _ in range(2)]
    states = [call.result(process) for process in both]
    assert sorted(state["started"] for state in states) == [False, True]
    for state in states:
        assert (state["where"], state["state"], state["cpus"]) == ("personal", "up", 2)
        assert state["folder"] == str(call.folder)
        assert (state["running"], state["idle"], state["held"]) == (0, 0, 0)


def test_up_again_returns_at_once(call: Caller) -> None:
    call("up()")
    master, began = call.master(), time.monotonic()
    again = call("up()")
    assert time.monotonic() - began < 1.5  # Python's own start included
    assert (again["state"], again["started"], call.master()) == ("up", False, master)
    assert call("status()") == {**again, "uptime_s": pytest.approx(again["uptime_s"], abs=2)}


def test_activate_prepares_the_process_and_what_it_starts(call: Caller) -> None:
    call("up()")
    code = """
        import json, os, shutil, time
        began = time.perf_counter()
        found = pool.activate()
        took = time.perf_counter() - began
        assert pool.activate() == found
        import htcondor2
        print(json.dumps([found.where, os.environ["CONDOR_CONFIG"], shutil.which("condor_q"),
                          htcondor2.param["LOCAL_DIR"], os.getuid(), took]))
    """
    answer: Any = call.result(call.start(code))
    where, config, condor_q, local_dir, uid, took = answer
    assert (where, config) == ("personal", str(call.folder / "condor_config"))
    assert local_dir == str(call.folder)
    assert Path(condor_q).parent.name == "tools"
    assert uid != 0
    assert took < 0.05


def test_a_process_that_begins_before_the_pool_finds_it_from_a_thread(
    call: Caller, tmp_path: Path
) -> None:
    """As `condorctl web` does; root's may not become another's then."""
    call("down()")
    process = call.start(f"""
        import concurrent.futures, os, time
        os.environ["CONDORCTL_LEDGER"] = "{tmp_path}/ledger.sqlite"
        from condorctl import api
        from condorctl.condor import cluster
        from condorctl.errors import UserError

        def schedd():
            for _ in range(150):
                try:
                    return cluster.schedd_name()
                except UserError as error:
                    told = error
                    time.sleep(0.2)
            return told

        api.open_ledger()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            asked = threads.submit(schedd)
            print("begun", flush=True)
            print(asked.result())
    """)
    assert process.stdout and process.stdout.readline() == "begun\n"
    up = call("up()")
    assert process.communicate(timeout=120)[0].strip() == up["schedd"]


def test_a_job_runs_and_can_be_entered_and_reports_progress(call: Caller, tmp_path: Path) -> None:
    call("up()")
    job = tmp_path / "job.py"
    job.write_text(
        "import sys, time; sys.path.insert(0, '.')\n"
        "from condorctl import job\n"
        "job.save('a \"b\\\\c.pt', lambda path: open(path, 'w').close(), epoch=1)\n"
        "for epoch in range(1, 100):\n"
        "    job.progress(epoch=epoch, epochs=100, loss=1 / epoch)\n"
        "    time.sleep(0.5)\n"
    )
    submit = tmp_path / "job.sub"
    submit.write_text(
        f"executable = {sys.executable}\ntransfer_executable = false\narguments = job.py\n"
        f"initialdir = {tmp_path}\nshould_transfer_files = yes\n"
        f"transfer_input_files = job.py, {Path(processes.__file__).parents[1]}\n"
        "log = log\noutput = out\nerror = err\nwant_io_proxy = true\nqueue\n"
    )
    assert "submitted to cluster" in call.run("condor_submit", str(submit))

    def progress() -> Any:
        [ad] = json.loads(
            call.run("condor_q", "-json", "-attributes", "ChirpProgress,ChirpCheckpoint")
        )
        return ad if json.loads(ad.get("ChirpProgress", "{}")).get("epoch", 0) > 3 else None

    ad = eventually(progress)
    record = json.loads(ad["ChirpProgress"])
    assert record["metrics"]["loss"] == 1 / record["epoch"]
    assert json.loads(ad["ChirpCheckpoint"])["path"] == 'a "b\\c.pt'

    assert '"epoch"' in call.run("condor_ssh_to_job", "1.0", "cat metrics.jsonl")
    (tmp_path / "sent").write_bytes(os.urandom(100_000))
    for files in ([str(tmp_path / "sent"), "remote:sent"], ["remote:sent", str(tmp_path / "back")]):
        call.run("condor_ssh_to_job", "-ssh", "scp", "1.0", *files)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()
    assert call("status()")["running"] == 1


def test_a_killed_master_is_noticed_and_its_queue_taken_over(call: Caller) -> None:
    before = call("up()")
    master = call.master()
    earlier = call.processes()
    for process in earlier:  # else the daemons end by themselves when they miss their master
        if process.pid != master:
            os.kill(process.pid, signal.SIGSTOP)
    os.kill(master, signal.SIGKILL)
    eventually(lambda: processes.find(master) is None)
    assert call("status()")["state"] == "down"
    after = call("up()")
    assert (after["started"], after["state"]) == (True, "up")
    assert call.master() != master
    assert not any(process.alive() for process in earlier)
    jobs = [sum(state[kind] for kind in ("running", "idle", "held")) for state in (before, after)]
    assert jobs[0] == jobs[1]


def test_another_process_with_the_masters_pid_is_not_taken_for_it(call: Caller) -> None:
    call("up()")
    call("down()")
    call.folder.joinpath("condorctl.json").write_text(
        json.dumps([{"pid": os.getpid(), "started": 1, "boot": "x"}, "/", "25.14.1"])
    )
    assert call("status()")["state"] == "down"
    assert call("up()")["started"]


def test_down_leaves_no_process_and_can_be_repeated(call: Caller) -> None:
    call("up()")
    assert len(call.processes()) >= 6
    assert call("down()")["state"] == "down"
    assert call.processes() == []
    assert call("down()")["state"] == "down"
    assert call("status()")["state"] == "down"


def test_down_ends_daemons_that_are_stuck(call: Caller) -> None:
    call("up()")
    # Without a master, nobody but `down` ends these.
    for process in sorted(call.processes(), key=lambda process: process.pid != call.master()):
        os.kill(process.pid, signal.SIGSTOP)
    os.kill(call.master(), signal.SIGKILL)
    assert len(call.processes()) >= 5
    call("down()")
    assert call.processes() == []


def test_without_any_htcondor_a_command_says_what_to_do(call: Caller) -> None:
    call("down()")
    output, errors = call.start("print(pool.activate().where)").communicate()
    if any(Path(config).expanduser().is_file() for config in SYSTEM_CONFIGS):
        assert output == "system\n"
    else:
        assert "UserError: no HTCondor answers: run `condorctl pool up`" in errors
    call.environment["CONDOR_CONFIG"] = "/nowhere/condor_config"
    try:
        process = call.start("pool.up()")
        assert "/nowhere/condor_config: no such file" in process.communicate()[1]
    finally:
        del call.environment["CONDOR_CONFIG"]
