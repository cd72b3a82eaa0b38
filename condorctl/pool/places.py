"""Where the personal pool keeps its software and its state."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from condorctl.errors import UserError

# HTCondor hands these paths to shell scripts and comma-separated lists without quoting
# (condor_ssh_to_job_sshd_setup, FILETRANSFER_PLUGINS): only characters that mean nothing there.
_PLAIN = re.compile(r"[A-Za-z0-9/._+@~-]+")

# A Unix socket's path holds 107 bytes (unix(7)), and a job may make one in its sandbox.
_LONGEST_POOL = 64


@dataclass(frozen=True)
class Release:
    """HTCondor unpacked in a folder of ours: ``usr/bin``, ``usr/sbin``, ``usr/lib`` and so on."""

    root: Path
    version: str

    @property
    def usr(self) -> Path:
        return self.root / "usr"

    @property
    def tools(self) -> Path:
        """Links to condor_* and classad_* alone: usr/bin holds programs that would hide others."""
        return self.root / "tools"

    @property
    def ssh(self) -> Path:
        """Links to ssh, scp and sftp, for systems that have none."""
        return self.root / "ssh"

    def path(self, inherited: str) -> str:
        """PATH with HTCondor's tools first, and ssh's last."""
        ours = [str(self.tools), str(self.ssh)]
        others = [folder for folder in inherited.split(os.pathsep) if folder not in ours]
        return os.pathsep.join([ours[0], *others, ours[1]])


def software_dir() -> Path:
    """Where HTCondor itself is kept: ``$XDG_CACHE_HOME/condorctl``, else ``~/.cache/condorctl``."""
    wanted = _base("XDG_CACHE_HOME", ".cache") / "condorctl"
    return wanted if _PLAIN.fullmatch(str(wanted)) else _private(wanted)


def pool_dir() -> Path:
    """The pool's state: ``$XDG_STATE_HOME/condorctl/pool``, else ``~/.local/state/condorctl/pool``.

    Its queue, its logs, the sandboxes of its jobs.
    """
    wanted = _base("XDG_STATE_HOME", ".local/state") / "condorctl" / "pool"
    short = len(str(wanted)) <= _LONGEST_POOL
    return wanted if short and _PLAIN.fullmatch(str(wanted)) else _private(wanted)


def _base(variable: str, default: str) -> Path:
    # XDG Base Directory Specification: a relative path in these variables is to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def _private(wanted: Path) -> Path:
    """A folder of the user's own under /var/tmp, in place of one that HTCondor cannot live in."""
    own = Path(f"/var/tmp/condorctl-{zlib.crc32(os.fsencode(wanted)):08x}")
    own.mkdir(mode=0o700, exist_ok=True)
    # Anybody may write in /var/tmp: a folder of that name made by someone else is not ours to use.
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise UserError(f"{own} belongs to someone else: set XDG_STATE_HOME and XDG_CACHE_HOME")
    return own
