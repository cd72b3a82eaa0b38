"""Processes as /proc shows them: real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from condorctl.pool import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_alive_until_it_ends_even_as_a_zombie(
    sleeper: subprocess.Popen[bytes],
) -> None:
    found = processes.find(sleeper.pid)
    assert found is not None and found.alive()
    assert not processes.wait_gone(found, 0.1)
    processes.kill(found, signal.SIGKILL)
    assert processes.wait_gone(found, 5)
    assert Path(f"/proc/{sleeper.pid}").exists()  # nobody has waited for it yet: a zombie
    assert processes.find(sleeper.pid) is None
    sleeper.wait()
    assert processes.find(sleeper.pid) is None


def test_a_recycled_pid_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    found = processes.find(sleeper.pid)
    assert found is not None
    earlier = replace(found, started=found.started - 1)
    before_boot = replace(found, boot="another")
    assert not earlier.alive() and not before_boot.alive()
    processes.kill(earlier, signal.SIGKILL)
    processes.kill(before_boot, signal.SIGKILL)
    time.sleep(0.1)
    assert sleeper.poll() is None


def test_a_name_with_blanks_and_brackets_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a ) S (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        assert processes.find(process.pid) is not None
    finally:
        process.kill()
        process.wait()


def test_a_pool_is_its_daemons_and_its_jobs_alone(tmp_path: Path) -> None:
    config, execute = tmp_path / "condor_config", tmp_path / "execute"
    daemon = tmp_path / "condor_schedd"
    tool = tmp_path / "condor_wait"
    for program in (daemon, tool):
        program.write_bytes(Path("/bin/sleep").read_bytes())
        program.chmod(0o755)
    ours = {**os.environ, "CONDOR_CONFIG": str(config)}
    theirs = {**os.environ, "CONDOR_CONFIG": f"{config}2"}
    job = {**os.environ, "_CONDOR_SCRATCH_DIR": f"{execute}/dir_1/scratch"}
    started = [
        subprocess.Popen([program, "60"], env=environment)
        for program, environment in [
            (daemon, ours),
            ("sleep", job),
            (daemon, theirs),
            (tool, ours),
            ("sleep", ours),
        ]
    ]
    try:
        found = {process.pid for process in processes.of_pool(config, execute)}
        assert found == {started[0].pid, started[1].pid}
    finally:
        for process in started:
            process.kill()
            process.wait()
