"""Runs the command line as a process of its own without waiting for Python's imports each time.

A command is forked from a process that has imported condorctl and has done nothing else. What a
command imports, and when, is tested with real starts (`test_package`, and most of tests/pool).
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_NOT_PRELOADED = ("__main__", "starter_files", "migrations")


class ForkServer:
    """The process; `run` is what `subprocess.run` of the command line would be.

    `start` makes of its command line the one that starts it as somebody else.
    """

    def __init__(self, start: Callable[[Sequence[str]], list[str]] = list) -> None:
        self._server = subprocess.Popen(
            start([sys.executable, "-m", __name__]), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self._lock = threading.Lock()

    def run(
        self,
        words: tuple[str, ...],
        cwd: Path,
        timeout: float,
        environment: Mapping[str, str] = os.environ,
    ) -> subprocess.CompletedProcess[str]:
        assert self._server.stdin and self._server.stdout
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            for file in (out, err):
                Path(file.name).chmod(0o666)
            request = {
                "words": words, "cwd": str(cwd), "env": dict(environment), "out": out.name,
                "err": err.name,
            }  # fmt: skip
            with self._lock:
                self._server.stdin.write(json.dumps(request) + "\n")
                self._server.stdin.flush()
                pid = int(self._server.stdout.readline())
                guard = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
                guard.start()
                code = int(self._server.stdout.readline())
                guard.cancel()
            assert code != -signal.SIGKILL, f"condorctl {words} was not done after {timeout} s"
            return subprocess.CompletedProcess(
                ["condorctl", *words], code, Path(out.name).read_text(), Path(err.name).read_text()
            )

    def stop(self) -> None:
        self._server.communicate()


def _serve() -> None:
    import condorctl

    for module in pkgutil.walk_packages(condorctl.__path__, "condorctl."):
        if not any(word in module.name for word in _NOT_PRELOADED):
            importlib.import_module(module.name)
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        replies.write(f"{pid}\n")
        replies.flush()
        _, status = os.waitpid(pid, 0)
        replies.write(f"{os.waitstatus_to_exitcode(status)}\n")
        replies.flush()


def take_over(request: Mapping[str, Any], stdout: int, stderr: int) -> None:
    """Have this process, a forked one, the folder `cwd` and environment `env`, and these files."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, stdout), (2, stderr)):
        os.dup2(file, number)
        os.close(file)


def _become(request: dict[str, object]) -> NoReturn:
    from condorctl import cli

    code = 1
    try:
        out, err = (os.open(str(request[name]), os.O_RDWR) for name in ("out", "err"))
        take_over(request, out, err)
        sys.argv = ["condorctl", *request["words"]]  # type: ignore[misc]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
