"""Root as an ordinary user, for HTCondor.

HTCondor refuses jobs that belong to root, and a machine of which one is root (a container, a rented
GPU box) often has nobody else. In a user namespace that maps root to an ordinary account, the very
same process is that account to every program, HTCondor's included, and still owns root's files:
submitting, FS authentication and condor_ssh_to_job all work. See user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import getpass
import os
import pwd
from pathlib import Path

from condorctl.errors import UserError

_CLONE_NEWUSER = 0x10000000  # linux/sched.h


def leave_root() -> None:
    """Make this process, when it is root's, one of an ordinary user; otherwise do nothing.

    Takes effect for the process and all that it starts, for good, in well under a millisecond.
    It has to come before any thread is started: the kernel refuses it afterwards.
    Raises UserError where user namespaces are not allowed or threads run already.
    """
    if os.geteuid() != 0:
        return
    account = _account()
    libc = ctypes.CDLL(None, use_errno=True)
    # Python finds the home folder through HOME; the account's own home is not root's.
    os.environ.setdefault("HOME", pwd.getpwuid(0).pw_dir)
    # And the user's name through this: whose a run is must not depend on how root came in.
    os.environ.setdefault("LOGNAME", getpass.getuser())
    if libc.unshare(_CLONE_NEWUSER) != 0:
        reason = os.strerror(ctypes.get_errno())
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise UserError("threads run already: call condorctl.pool.activate() before they do")
        raise UserError(
            f"HTCondor runs no jobs of root's, and user namespaces are refused here ({reason}): "
            "run condorctl as an ordinary user (useradd -m me; su - me), or allow them "
            "(docker run --security-opt seccomp=unconfined; sysctl user.max_user_namespaces)"
        )
    # A group map may be written only by who has given up setgroups(2).
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{account.pw_uid} 0 1")
    Path("/proc/self/gid_map").write_text(f"{account.pw_gid} 0 1")


def _account() -> pwd.struct_passwd:
    """The account to be: always the same one, since a pool knows its owner by this name.

    Never the overflow id (nobody's): inside the namespace the files of ALL other users show that
    id, so that FS authentication would take any of them for the pool's owner.
    """
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    accounts = [account for account in pwd.getpwall() if account.pw_uid not in (0, overflow)]
    if not accounts:
        raise UserError("/etc/passwd has no account but root's: make one (useradd condorctl)")
    # "daemon" is on every system; accounts that come and go later do not change this choice.
    return min(accounts, key=lambda account: (account.pw_name != "daemon", account.pw_uid))
