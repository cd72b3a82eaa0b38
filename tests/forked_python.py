"""Processes of Python that run at once: forked from one that has imported the ledger, no more.

For tests of several at the same ledger: nothing is shared with whoever starts them, as `os.fork`
in a test would have it (SQLite forbids it), and none waits for Python's imports.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tests.fork_server import take_over


class Process:
    """What `subprocess.Popen` is for a process of one's own."""

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdout = os.fdopen(stdout, encoding="utf-8")
        self._stderr = os.fdopen(stderr, encoding="utf-8")

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """All that it prints, and what it says of its errors, until its end."""
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        with self.stdout, self._stderr:
            told = self.stdout.read(), self._stderr.read()
        assert guard.is_alive(), f"not done after {timeout} s: {told}"
        guard.cancel()
        return told

    def runs(self) -> bool:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class ForkedPython:
    """The process that is forked."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1],
            )  # fmt: skip

    def start(self, code: str) -> Process:
        """Run `code` with this process's environment and current folder."""
        request = {"code": code, "env": dict(os.environ), "cwd": str(Path.cwd())}
        (stdout, out), (stderr, err) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [json.dumps(request).encode()], [out, err])
        os.close(out)
        os.close(err)
        return Process(int(self._socket.recv(32)), stdout, stderr)

    def stop(self) -> None:
        self._socket.close()
        self._server.wait()


def _serve(requests: socket.socket) -> None:
    import psycopg  # noqa: F401

    import tests.unit.runs_made  # noqa: F401

    # None waits for those that end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, *_ = socket.recv_fds(requests, 1 << 20, 2)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            _become(json.loads(request), *files)
        for file in files:
            os.close(file)
        requests.send(str(pid).encode())


def _become(request: dict[str, object], stdout: int, stderr: int) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        take_over(request, stdout, stderr)
        exec(str(request["code"]), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
