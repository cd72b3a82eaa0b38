"""An ordinary account that root makes for the tests, for what no user namespace of root's can do.

Rootless Podman needs an account of its own with subordinate ids (subuid(5)), and so does a pool
whose jobs it runs. What the tests use may lie where only root may look in, such as below /root:
each command runs in a mount namespace in which such folders hold nothing but what is needed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NAME = "condorctl-test"

# Of a folder that others may not enter, what is to be seen.
_MASK = """\
keep=$(mktemp -d)
mount --rbind {closed} "$keep"
mount -t tmpfs -o mode=755 tmpfs {closed}
{seen}
umount -R -l "$keep"
rmdir "$keep"
"""
_SEE = """\
mkdir -p {path}
mount --bind "$keep"/{below} {path}
mount -o remount,bind,ro {path}
"""


class Account:
    """The account, with a home folder of its own; `remove` leaves nothing of it."""

    def __init__(self, reads: Sequence[Path]) -> None:
        """`reads` are folders that it may read, wherever they are."""
        with suppress(KeyError):
            pwd.getpwnam(NAME)
            self.remove()
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", NAME], check=True)
        self.home = Path(pwd.getpwnam(NAME).pw_dir)
        self.home.chmod(0o755)
        self.reads = list(reads)
        self.environment = {
            "HOME": str(self.home),
            "USER": NAME,
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "XDG_RUNTIME_DIR": str(self.folder("run", 0o700)),
        }

    def folder(self, name: str, mode: int = 0o755) -> Path:
        """A folder of the account's own below its home."""
        path = self.home / name
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        self.own(path)
        return path

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file of the account's own below its home, with the folders it needs."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        self.own(self.home / Path(name).parts[0])
        return path

    def own(self, path: Path) -> None:
        """Give `path`, and all in it, to the account."""
        subprocess.run(["chown", "-R", f"{NAME}:", str(path)], check=True)

    def words(self, command: Sequence[str], more: Mapping[str, str] | None = None) -> list[str]:
        """The command line, for root, that runs `command` as the account."""
        variables = [f"{k}={v}" for k, v in {**self.environment, **(more or {})}.items()]
        become = ["runuser", "-u", NAME, "--", "env", "-i", *variables, *command]
        script = f'set -e\n{self._namespace()}\nexec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *become]

    def run(
        self, *command: str, cwd: Path | None = None, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end; fails with what it said."""
        answer = subprocess.run(
            self.words(command),
            cwd=cwd or self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or answer.returncode == 0, (command, answer.stdout, answer.stderr)
        return answer

    def remove(self) -> None:
        """End what the account runs, and have it and its files gone."""
        number = pwd.getpwnam(NAME).pw_uid
        deadline = time.monotonic() + 20
        while running := list(_processes(number)):
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, running
            time.sleep(0.1)
        home = Path(pwd.getpwnam(NAME).pw_dir)
        shutil.rmtree(home)
        # Debian's userdel takes its subordinate ids along.
        subprocess.run(["userdel", NAME], check=True, capture_output=True)

    def _namespace(self) -> str:
        closed = sorted({folder for path in self.reads if (folder := _closed(path))})
        return "\n".join(
            _MASK.format(
                closed=folder,
                seen="".join(
                    _SEE.format(path=path, below=path.relative_to(folder))
                    for path in self.reads
                    if path.is_relative_to(folder)
                ),
            )
            for folder in closed
        )


def _closed(path: Path) -> Path | None:
    """The outermost folder above `path` that others may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _processes(user: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # A zombie holds nothing, and goes when its parent looks.
            if entry.stat().st_uid == user and "Z" not in _state(entry):
                yield int(entry.name)


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]
