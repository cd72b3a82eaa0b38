"""A real HTCondor pool for the tests, started once and stopped at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Condorctl
from tests.pool.pool_config import PoolConfig

Status = dict[str, Any]
Configure = Callable[..., None]

# A schedd that knows its users by ID tokens alone and shares no folder with them.
_REMOTE = """
DAEMON_LIST = $(DAEMON_LIST) SCHEDD2
SCHEDD2 = $(SCHEDD)
SCHEDD2_ARGS = -local-name SCHEDD2
SCHEDD2.SCHEDD_NAME = remote@$(FULL_HOSTNAME)
SCHEDD2.BIN = {folder}
SCHEDD2.SPOOL = {folder}/spool
SCHEDD2.JOB_QUEUE_LOG = {folder}/spool/job_queue.log
SCHEDD2.HISTORY = {folder}/spool/history
SCHEDD2.SCHEDD_LOG = {folder}/SchedLog
SCHEDD2.SCHEDD_ADDRESS_FILE = {folder}/.schedd_address
SCHEDD2.SCHEDD_DAEMON_AD_FILE = {folder}/spool/.schedd_classad
SCHEDD2.SEC_DEFAULT_AUTHENTICATION_METHODS = IDTOKENS
"""
# On its own machine DAGMan would find the configuration under /etc.
_DAGMAN = """#!/bin/sh
CONDOR_CONFIG={config} exec {bin}/condor_dagman "$@"
"""


def until(go: Path, then: str = "true") -> str:
    """A stage's command that waits for the file `go`, for as long as a busy machine takes."""
    return json.dumps(["sh", "-c", f"until test -e '{go}'; do sleep 0.2; done; {then}"])


@pytest.fixture(scope="session")
def pool() -> Iterator[Path]:
    """A personal pool with eight slots' worth of cores; its jobs mostly sleep."""
    # Not below pytest's folder: the path of a Unix socket holds some hundred characters.
    with tempfile.TemporaryDirectory(prefix="pool-") as state, pytest.MonkeyPatch.context() as env:
        env.setenv("XDG_STATE_HOME", state)
        env.delenv("CONDOR_CONFIG", raising=False)
        command = [sys.executable, "-m", "condorctl", "pool"]
        subprocess.run([*command, "up", "--cpus", "8"], check=True, stdin=subprocess.DEVNULL)
        try:
            yield Path(state) / "condorctl" / "pool"
        finally:
            subprocess.run([*command, "down"], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails half-way must not keep the cores from those after it."""
    yield
    if "pool" in request.fixturenames:
        remove = [sys.executable, "-m", "condorctl", "pool", "run", "condor_rm", "-all"]
        subprocess.run(remove, stdin=subprocess.DEVNULL, capture_output=True)


@pytest.fixture
def condor(pool: Path, condorctl: Condorctl) -> Callable[..., str]:
    """Run one of HTCondor's own tools on the test pool; return what it printed."""

    def run(*words: str) -> str:
        answer = condorctl("pool", "run", *words)
        assert answer.returncode == 0, answer
        return answer.stdout

    return run


@pytest.fixture
def configure(pool: Path, condor: Callable[..., str]) -> Iterator[Configure]:
    """Change the pool's configuration (`PoolConfig.change`) until the test has ended."""
    config = PoolConfig(pool / "condor_config", condor)
    yield config.change
    config.restore()


@pytest.fixture
def submit(pool: Path, project: Path, condorctl: Condorctl) -> Callable[..., str]:
    """Write a spec into the project, submit it, return the run's name."""

    def run(text: str, *words: str) -> str:
        (project / "jobs" / "test.yaml").write_text(text, encoding="utf-8")
        answer = condorctl("submit", "test", "--json", *words)
        assert answer.returncode == 0, answer
        return str(json.loads(answer.stdout)["run"])

    return run


_WATCHER = """
import json, sys
from condorctl import api
for name in sys.stdin:
    print(json.dumps(api.status(name.strip())), flush=True)
"""


@pytest.fixture
def status(project: Path) -> Iterator[Callable[[str], Status]]:
    """The run as `condorctl status --json` shows it, its stages by name.

    One process looks at all of a test's runs: to start Python for each look takes the cores away
    from the jobs that are waited for.
    """
    watchers: list[subprocess.Popen[str]] = []

    def run(name: str) -> Status:
        if not watchers:
            words = [sys.executable, "-c", _WATCHER]
            pipe = subprocess.PIPE
            watchers.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True))
        [watcher] = watchers
        assert watcher.stdin and watcher.stdout
        print(name, file=watcher.stdin, flush=True)
        view: Status = json.loads(watcher.stdout.readline())
        view["stages"] = {stage["stage"]: stage for stage in view["stages"]}
        return view

    yield run
    for watcher in watchers:
        watcher.communicate()


@pytest.fixture
def wait(status: Callable[[str], Status]) -> Callable[..., Status]:
    """Look at a run until `until` holds of it; fails after `timeout` seconds."""

    def run(name: str, until: Callable[[Status], bool], timeout: float = 240) -> Status:
        deadline = time.monotonic() + timeout
        while not until(view := status(name)):
            assert time.monotonic() < deadline, json.dumps(view, indent=2)
            time.sleep(0.5)
        return view

    return run


@pytest.fixture
def remote(
    pool: Path,
    condor: Callable[..., str],
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The name of a second schedd, whose tokens are what `token` makes."""
    folder = pool / "remote"
    (folder / "spool").mkdir(parents=True, exist_ok=True)
    dagman = folder / "condor_dagman"
    binaries = condor("condor_config_val", "BIN").strip()
    dagman.write_text(_DAGMAN.format(config=pool / "condor_config", bin=binaries))
    dagman.chmod(0o755)
    monkeypatch.setenv("_CONDOR_SEC_TOKEN_DIRECTORY", str(tmp_path / "tokens"))
    configure(_REMOTE.format(folder=folder))
    name = "remote@" + condor("condor_config_val", "FULL_HOSTNAME").strip()
    deadline = time.monotonic() + 240
    while name not in condor("condor_status", "-schedd", "-af", "Name").split():
        assert time.monotonic() < deadline
        time.sleep(1)
    return name


@pytest.fixture
def token(condor: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Make a token the only one; returns it, as nobody else may see it."""

    def make(identity: str = "", seconds: int = 3600) -> str:
        domain = condor("condor_config_val", "UID_DOMAIN").strip()
        owner = condor("condor_config_val", "USERNAME").strip()
        text = condor(
            "condor_token_create", "-key", "POOL", "-lifetime", str(seconds),
            "-identity", f"{identity or owner}@{domain}",
        ).strip()  # fmt: skip
        folder = tmp_path / "tokens"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "one").write_text(text + "\n")
        (folder / "one").chmod(0o600)
        return text

    return make


@pytest.fixture(autouse=True)
def scripts(project: Path) -> None:
    """A training script without training, and a program that tells its arguments."""
    (project / "work.py").write_text(
        "import sys, time\n"
        "from condorctl import job\n"
        "epochs = int(sys.argv[1])\n"
        "for epoch in range(1, epochs + 1):\n"
        "    time.sleep(1)\n"
        "    print('epoch', epoch)\n"
        "    job.progress(epoch=epoch, epochs=epochs, loss=1 / epoch)\n"
        "    job.save('model.pt', lambda path: open(path, 'w').write(str(epoch)), epoch=epoch)\n"
        "job.result(model='m', clean=0.5)\n"
    )
    (project / "tell.py").write_text(
        "import json, os, sys\n"
        "json.dump([sys.argv[1:], dict(os.environ)], open('told.json', 'w'))\n"
    )
