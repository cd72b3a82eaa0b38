"""A personal pool with a second node, on loopback: the first is the submit machine, too.

The second has a condor_master, a startd and an execute folder of its own, so it can vanish alone.
Another of another name can join in its place.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from condorctl.pool import processes
from condorctl.pool.processes import Process

_GONE_S = 20

# For daemons that are killed every minute. The collector's address outlives a restart.
_SETTINGS = """\
COLLECTOR_HOST = 127.0.0.1:{port}
MASTER_BACKOFF_CONSTANT = 2
MASTER_BACKOFF_CEILING = 10
# A node that is silent is forgotten in half a minute instead of in fifteen.
CLASSAD_LIFETIME = 30
# A DAGMan that ends in an odd way, as on a full disk, is started again after five minutes else.
SCHEDULER_UNIVERSE_COOL_DOWN_DURATION = 15
# So long a job is kept for a node that is silent.
JOB_DEFAULT_LEASE_DURATION = {lease}
"""

_NODE = """\
include : {pool}/condor_config
LOCAL_CONFIG_FILE = {pool}/condor_config.local, {folder}/condor_config.local
"""

_NODE_LOCAL = """\
LOCAL_DIR = {folder}
EXECUTE = {folder}/execute
LOCK = {folder}/lock
LOG = {folder}/log
RUN = {folder}/run
SPOOL = {folder}/spool
MASTER_ADDRESS_FILE = $(LOG)/.master_address
DAEMON_LIST = MASTER, STARTD
MASTER_NAME = {name}
STARTD_NAME = {name}
SHARED_PORT_PORT = 0
NUM_CPUS = {cpus}
"""

# As root the pool's daemons are an ordinary user's: those of a node, too.
_MASTER = """
import os, sys
from condorctl import pool
pool.activate()
os.environ["CONDOR_CONFIG"] = sys.argv[1]
os.execvp(sys.argv[2], [sys.argv[2], "-f"])
"""


class Node:
    """One further node, in the folder `folder`."""

    def __init__(self, pool: Path, folder: Path, cpus: int) -> None:
        self.pool, self.folder, self.cpus = pool, folder, cpus
        self.execute = folder / "execute"
        self.started: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Path:
        return self.folder / "condor_config"

    def prepare(self) -> None:
        for name in ("execute", "lock", "log", "run", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        words = {"pool": self.pool, "folder": self.folder, "name": self.name, "cpus": self.cpus}
        self.config.write_text(_NODE.format(**words))
        (self.folder / "condor_config.local").write_text(_NODE_LOCAL.format(**words))

    def start(self, environment: dict[str, str]) -> None:
        """Have the node join the pool, which must be up."""
        with (self.folder / "master.out").open("ab") as output:
            self.started = subprocess.Popen(
                [sys.executable, "-c", _MASTER, str(self.config), self._master()],
                env=environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _master(self) -> str:
        settings = (self.pool / "condor_config").read_text().splitlines()
        [sbin] = [line.split(" = ")[1] for line in settings if line.startswith("SBIN = /")][-1:]
        return f"{sbin}/condor_master"

    def processes(self) -> list[Process]:
        """Its daemons, and the jobs that run on it."""
        return processes.of_pool(self.config, self.execute)

    def vanish(self) -> int:
        """Kill all of it, the master first; the number of processes that were killed."""
        killed = set()
        deadline = time.monotonic() + _GONE_S
        while left := self.processes():
            for process in sorted(left, key=lambda one: one.started):
                processes.kill(process, signal.SIGKILL)
                killed.add(process.pid)
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {self.name} does not vanish: {left}")
        if self.started:
            self.started.wait(_GONE_S)
        return len(killed)


class Pool:
    """The pool that `condorctl pool up` starts in `state`, with room for further nodes."""

    def __init__(self, state: Path, cpus: int, lease_s: int) -> None:
        self.folder = state / "condorctl" / "pool"
        self.config = self.folder / "condor_config"
        self.execute = self.folder / "execute"
        self.cpus, self.lease_s = cpus, lease_s
        self.nodes: list[Node] = []

    def prepare(self) -> None:
        self.execute.mkdir(parents=True)
        self.folder.chmod(0o700)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = _SETTINGS.format(port=port, lease=self.lease_s)
        (self.folder / "condor_config.local").write_text(text)

    def new_node(self, folder: Path) -> Node:
        node = Node(self.folder, folder, self.cpus)
        node.prepare()
        self.nodes.append(node)
        return node

    def processes(self) -> list[Process]:
        """All of the first node's and of the submit side's: daemons, DAGMan, jobs."""
        return processes.of_pool(self.config, self.execute)

    def everything(self) -> list[Process]:
        """Those of all nodes."""
        return [*self.processes(), *(one for node in self.nodes for one in node.processes())]


def program(process: Process) -> str:
    """The name of what a process runs, "" when it is gone."""
    try:
        return Path(f"/proc/{process.pid}/exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        return ""


def command(process: Process) -> list[str]:
    """Its command line, empty when it is gone."""
    try:
        raw = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]


def variable(process: Process, name: str) -> str:
    """A variable of its environment, "" when it has none or is gone."""
    try:
        raw = Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return ""
    found = [word for word in raw.split(b"\0") if word.startswith(os.fsencode(f"{name}="))]
    return os.fsdecode(found[0]).partition("=")[2] if found else ""


def parent(process: Process) -> int:
    """The pid of its parent, 0 when it is gone."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
