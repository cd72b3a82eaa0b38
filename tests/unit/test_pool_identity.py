"""Root as an ordinary user, in processes of their own: the change is for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


LEAVE = "from condorctl.pool import identity; identity.leave_root()\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to leave")
def test_root_becomes_an_account_that_owns_roots_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    code = LEAVE + (
        "import os, pathlib, pwd\n"
        "assert os.getuid() == os.geteuid() != 0\n"
        "assert os.getuid() != int(open('/proc/sys/kernel/overflowuid').read())\n"
        "assert os.getgid() == pwd.getpwuid(os.getuid()).pw_gid\n"
        f"pathlib.Path({str(tmp_path / 'file')!r}).write_text('x')\n"
        f"assert os.stat({str(tmp_path / 'file')!r}).st_uid == os.getuid()\n"
        "os.execvp('id', ['id', '-u'])\n"
    )
    ran = python(code)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) != 0
    assert (tmp_path / "file").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to leave")
def test_threads_are_told_apart_from_a_refusal() -> None:
    ran = python("import threading; threading.Timer(0.5, int).start()\n" + LEAVE)
    assert "UserError: threads run already" in ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take the permission away")
def test_where_user_namespaces_are_refused_the_mend_is_named() -> None:
    # Inside a namespace of its own the limit can be lowered without touching the machine's.
    inner = "echo 0 > /proc/sys/user/max_user_namespaces && exec " + sys.executable + ' -c "$0"'
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", inner, LEAVE],
        capture_output=True,
        text=True,
    )
    assert "UserError: HTCondor runs no jobs of root's" in ran.stderr
    assert "run condorctl as an ordinary user" in ran.stderr


def test_an_ordinary_user_stays_who_he_is() -> None:
    # For root this is the second call: it has left already.
    code = LEAVE + "import os; me = os.getuid(); identity.leave_root(); assert os.getuid() == me"
    assert python(code).returncode == 0


def test_the_users_name_does_not_depend_on_how_root_came_in() -> None:
    """A shell of root's has it in the environment, cron's and a container's may not."""
    code = (
        "import getpass, os; os.environ.pop('USER', 0); os.environ.pop('LOGNAME', 0); "
        f"before = getpass.getuser(); {LEAVE.strip()}; assert getpass.getuser() == before"
    )
    assert python(code).returncode == 0
