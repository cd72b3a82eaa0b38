"""Which HTCondor condorctl talks to, and a personal one where there is none.

    pool.up()              # uses the HTCondor that is there, else starts one of the user's own
    pool.activate()        # first thing in every command: htcondor2 now talks to that pool
    pool.status().running  # jobs
    pool.down()            # stops the user's own

In this order: the pool that CONDOR_CONFIG names, the user's own pool while it is up, the system's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from condorctl.errors import UserError
from condorctl.pool import elsewhere, identity
from condorctl.pool.personal import PersonalPool

if TYPE_CHECKING:
    from condorctl.terminal import Progress

__all__ = ["Pool", "Status", "activate", "down", "expect", "find", "status", "up"]

Where = Literal["environment", "personal", "system"]

# Where HTCondor looks when CONDOR_CONFIG is not set (manual, "Configuration Templates and Files").
_SYSTEM_CONFIGS = (
    "/etc/condor/condor_config",
    "/usr/local/etc/condor_config",
    "~condor/condor_config",
)


@dataclass(frozen=True)
class Pool:
    """The HTCondor that a command talks to."""

    where: Where
    config: str  # the configuration file


@dataclass(frozen=True)
class Status:
    """A pool's state; `dataclasses.asdict` of it can be written as JSON."""

    where: Where
    state: Literal["up", "down"]
    config: str
    folder: str | None = None  # the personal pool's queue, logs and sandboxes
    version: str | None = None  # HTCondor's, e.g. "25.14.1"
    schedd: str | None = None  # its name, the first part of a job's full id
    cpus: int | None = None  # cores in all slots
    running: int | None = None  # jobs of all users in this schedd's queue
    idle: int | None = None
    held: int | None = None
    uptime_s: int | None = None  # the schedd's
    started: bool = False  # by this very call of `up`


def find() -> Pool | None:
    """The pool that a command would talk to, None when there is none. Asks no daemon."""
    own = PersonalPool()
    named = os.environ.get("CONDOR_CONFIG", "")
    # htcondor2 sets /dev/null on import where it finds no configuration.
    if named not in ("", "/dev/null", str(own.config)):
        if named != "ONLY_ENV" and not Path(named).is_file():
            raise UserError(f"CONDOR_CONFIG={named}: no such file: correct it, or unset it")
        return Pool("environment", named)
    if own.master():
        return Pool("personal", str(own.config))
    for config in map(os.path.expanduser, _SYSTEM_CONFIGS):
        if Path(config).is_file():
            return Pool("system", config)
    return None


def activate() -> Pool:
    """Have this process, and all that it starts, talk to the pool that `find` finds.

    To be called before any thread is started: for a personal pool, root becomes an ordinary user
    for the rest of the process (`identity`). Sets CONDOR_CONFIG and PATH for a personal pool; takes
    a few milliseconds and asks no daemon. Raises UserError when there is no HTCondor.
    """
    pool = find()
    if pool is None and elsewhere.collector():
        # The bindings alone reach a schedd; what needs HTCondor's tools says so.
        pool = Pool("environment", "ONLY_ENV")
        os.environ["CONDOR_CONFIG"] = pool.config
    if pool is None:
        raise UserError("no HTCondor answers: run `condorctl pool up`, or set CONDOR_CONFIG")
    os.environ.update(elsewhere.settings())
    master = PersonalPool().master() if pool.where == "personal" else None
    if master:
        identity.leave_root()
        os.environ["CONDOR_CONFIG"] = pool.config
        os.environ["PATH"] = master.release.path(os.environ.get("PATH", os.defpath))
        if "htcondor2" in sys.modules:
            sys.modules["htcondor2"].reload_config()
    elif pool.where == "system":
        os.environ.pop("CONDOR_CONFIG", None)  # it named the user's own pool, which is down
    return pool


def expect() -> None:
    """Have a process that begins before its pool does be ready for it.

    Where there is no HTCondor at all, the one that comes up is the user's own, and root must have
    become an ordinary user before threads run. Raises UserError as `activate` does.
    """
    if find() is None and not elsewhere.collector():
        identity.leave_root()


def up(cpus: int | None = None, progress: Progress = lambda what, done, total: None) -> Status:
    """Make sure that there is an HTCondor: the one that answers already, else one of our own.

    `cpus` is the number of cores of a pool that is started, by default those that this process may
    use. Returns at once when the pool is up; two at once are safe. `find` and `activate` hold for
    the new pool afterwards, and this process is in it.
    Raises UserError where no HTCondor can be had, saying what to do instead.
    """
    if cpus is not None and cpus < 1:
        raise UserError(f"--cpus {cpus}: a pool needs at least 1")
    found = find()
    if found and found.where != "personal":
        if _answers():
            activate()
            return status()
        if found.where == "environment":
            raise UserError(
                f"CONDOR_CONFIG={found.config}: its schedd does not answer: start that pool, or "
                "unset CONDOR_CONFIG to have one of your own"
            )
    own = PersonalPool()
    started = False
    try:
        with own.locked():
            if not own.master():
                from condorctl.pool import debian  # 10 ms that no other command has to pay

                # In this order: from one user namespace a process of another cannot be looked into.
                own.clear()
                identity.leave_root()
                release = debian.fetch(progress)
                progress("Starting HTCondor", 0, 0)
                own.start(release, cpus or len(os.sched_getaffinity(0)))
                started = True
    except OSError as error:
        raise UserError(f"{error.filename or own.folder}: {error.strerror}") from None
    state = replace(status(), started=started)
    if state.state == "down":
        raise UserError(
            "the pool runs, but its schedd does not answer: `condorctl pool down`, then up"
        )
    return state


def down() -> Status:
    """Stop the user's own pool; nothing of it runs afterwards. Its queue stays for the next `up`.

    Works whether or not its daemons answer; does nothing when it is down, and to other pools.
    """
    own = PersonalPool()
    with own.locked():
        own.stop()
    return Status("personal", "down", str(own.config), str(own.folder))


def status() -> Status:
    """What the pool that commands talk to is doing; `state` is "down" when its schedd is silent."""
    pool = find()
    own = PersonalPool()
    if pool is None:
        return Status("personal", "down", str(own.config), str(own.folder))
    activate()
    import htcondor2

    folder = str(own.folder) if pool.where == "personal" else None
    try:
        ad = htcondor2.Collector().locate(htcondor2.DaemonType.Schedd)
        [jobs] = htcondor2.Schedd(ad).query(opts=htcondor2.QueryOpt.SummaryOnly)
    except (htcondor2.HTCondorException, ValueError):
        return Status(pool.where, "down", pool.config, folder)
    return Status(
        pool.where,
        "up",
        pool.config,
        folder,
        version=ad["CondorVersion"].split()[1],
        schedd=ad["Name"],
        cpus=_cpus(),
        running=jobs["AllusersRunning"],
        idle=jobs["AllusersIdle"],
        held=jobs["AllusersHeld"],
        # The schedd publishes when it started with its first update, seconds later.
        uptime_s=jobs["ServerTime"] - ad.get("DaemonStartTime", jobs["ServerTime"]),
    )


def _cpus() -> int | None:
    """Cores of all slots that the pool's collector knows; None when it does not answer."""
    import htcondor2

    try:
        slots = htcondor2.Collector().query(
            htcondor2.AdType.Startd, "DynamicSlot =!= True", ["Cpus", "TotalSlotCpus"]
        )
    except htcondor2.HTCondorException:
        return None
    return sum(int(slot.get("TotalSlotCpus", slot.get("Cpus", 0))) for slot in slots)


def _answers() -> bool:
    """Whether the schedd of the pool that `find` finds answers.

    Asked by another process: once the bindings have seen one pool as root they would keep the
    name of root for the personal pool too.
    """
    question = "from condorctl import pool; raise SystemExit(pool.status().state == 'down')"
    try:
        asked = subprocess.run([sys.executable, "-c", question], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
