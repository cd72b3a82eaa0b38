"""What works here and what does not: Python, pool, rights, folders, ssh, containers, GPUs.

Each finding is a dictionary: check, state, what, mend (`finding`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from condorctl import paths, pool
from condorctl.errors import UserError
from condorctl.explain.finding import OK, PROBLEM, WARNING, Finding
from condorctl.pool import elsewhere
from condorctl.pool.personal import PersonalPool
from condorctl.spec import site as profiles
from condorctl.terminal import Progress

Json = dict[str, Any]

_LEAST_FREE = 1 << 30
_SKEW_S = 5
# Of a file system that machines share: locks there may be slow, or none.
_SHARED = {"nfs", "nfs4", "cifs", "smb3", "afs", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p"}
_DAY_S = 86400
_OLD_TRIAL_DAYS = 30


def examine(progress: Progress, job_s: float | None = None) -> Json:
    """Look at everything; returns `ok` (no problem was found) and `checks`, a dictionary each.

    With `job_s`, a job tries a slot, too, for at most so many seconds.
    """
    # First of all: the bindings read the configuration when they are imported.
    with contextlib.suppress(UserError):
        pool.activate()
    found: list[Finding] = []
    for part in (_python, _ledger, _runs, _programs, _tokens, _site, _pool):
        progress(part.__name__.strip("_"), 0, 0)
        found += part()
    if job_s and any(finding.check == "rights" and finding.state == OK for finding in found):
        progress("a job on a slot", 0, 0)
        found += _job(job_s)
    return {
        "ok": all(finding.state != PROBLEM for finding in found),
        "checks": [finding._asdict() for finding in found],
    }


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        import htcondor2
    except ImportError as error:
        mend = "`pip install htcondor`"
        yield Finding("bindings", PROBLEM, f"HTCondor's Python bindings: {error}", mend)
        return
    found = f"Python {version}, HTCondor's bindings {_number(htcondor2.version())}"
    yield Finding("bindings", OK, found)


def _ledger() -> Iterator[Finding]:
    from condorctl.ledger import Ledger

    where = paths.ledger()
    if isinstance(where, Path):
        found = _folder("ledger", where.parent, "set CONDORCTL_LEDGER to a file elsewhere")
        if found.state == PROBLEM:
            yield found
            return
    try:
        ledger = Ledger(where)
    except UserError as error:
        yield Finding("ledger", PROBLEM, str(error), "see CONDORCTL_LEDGER and CONDORCTL_DB")
        return
    yield found if isinstance(where, Path) else Finding("ledger", OK, ledger.name)


def _runs() -> Iterator[Finding]:
    runs = paths.runs()
    yield _folder("runs", runs, "work in a folder that you can write")
    free = shutil.disk_usage(_existing(runs)).free
    state = OK if free > _LEAST_FREE else WARNING
    mend = None if state == OK else "make room: `condorctl clean` takes away what runs left"
    yield Finding("disk", state, f"{free / 1e9:.1f} GB free for runs", mend)


def _folder(check: str, folder: Path, mend: str) -> Finding:
    existing = _existing(folder)
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        return Finding(check, PROBLEM, f"{folder} cannot be written", mend)
    kind = _file_system(existing)
    if kind in _SHARED:
        told = f"{folder} is on {kind}, where locks and logs may come late"
        return Finding(check, WARNING, told, "a local disk is safer")
    return Finding(check, OK, f"{folder} ({kind or 'file system not known'})")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _file_system(folder: Path) -> str | None:
    """Its type, from /proc (proc(5), mountinfo); None where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    device = folder.stat().st_dev
    best = None
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            best = after.split()[0]
    return best


def _programs() -> Iterator[Finding]:
    try:
        pool.activate()
    except UserError:
        return
    tools = ("condor_q", "condor_ssh_to_job", "condor_dag_checker", "condor_history")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if "condor_q" in missing:
        mend = "put HTCondor's bin folder on PATH"
        yield Finding("tools", WARNING, "HTCondor's tools are not on PATH", mend)
    elif missing:
        yield Finding("tools", WARNING, f"there is no {', '.join(missing)}", "update HTCondor")
    else:
        yield Finding("tools", OK, f"HTCondor's tools are in {_place('condor_q')}")
    if not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        yield Finding(
            "ssh",
            WARNING,
            "there is no ssh (or ssh-keygen): files of running jobs cannot be reached",
            "install OpenSSH's client",
        )
    else:
        yield Finding("ssh", OK, f"ssh and ssh-keygen are in {_place('ssh')}")
    if sftp := _sftp_server():
        yield Finding("sftp", OK, f"sftp-server is {sftp}")
    else:
        told = "there is no sftp-server: sftp and sshfs do not reach jobs on this machine"
        yield Finding("sftp", WARNING, told, "install OpenSSH's sftp-server")
    git = shutil.which("git")
    state = OK if git else WARNING
    what = "git is there" if git else "there is no git: runs do not record their commit"
    yield Finding("git", state, what, None if git else "install git")
    images = [name for name in ("docker", "podman", "apptainer", "singularity") if _has(name)]
    told = f"{', '.join(images)} here" if images else "no docker, podman or apptainer here"
    yield Finding("images", OK, f"{told} (to build images; jobs use those of their node)")


def _sftp_server() -> Path | None:
    """This machine's sftp-server, or the personal pool's own; None where there is none."""
    master = PersonalPool().master()
    own = [master.release.usr / "lib/openssh/sftp-server"] if master else []
    return next((path for path in (*own, *map(Path, paths.SFTP_SERVERS)) if path.exists()), None)


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _place(program: str) -> str:
    return str(Path(shutil.which(program) or "").parent)


def _tokens() -> Iterator[Finding]:
    now = time.time()
    found = elsewhere.tokens()
    ended = [name for name, end in found if end is not None and end < now]
    soon = [
        f"{name} in {(end - now) / _DAY_S:.1f} days"
        for name, end in found
        if end is not None and now <= end < now + 7 * _DAY_S
    ]
    mend = "`condor_token_request` asks for one, or ask the pool's administrator"
    if ended:
        yield Finding("tokens", WARNING, f"expired: {', '.join(ended)}", mend)
    if soon:
        yield Finding("tokens", WARNING, f"will expire: {', '.join(soon)}", mend)
    if found and not ended and not soon:
        yield Finding("tokens", OK, f"{len(found)} in {elsewhere.tokens_dir()}, none expires soon")
    elif not found and elsewhere.schedd():
        yield Finding("tokens", WARNING, f"none in {elsewhere.tokens_dir()}", mend)


def _site() -> Iterator[Finding]:
    """What `condorctl site test` has learnt of the site that the environment names."""
    name = profiles.preferred()
    if not name:
        return
    try:
        profiles.load(name, "$CONDORCTL_SITE")
    except UserError as error:
        yield Finding("site", PROBLEM, str(error), "`condorctl site list` shows what there is")
        return
    learnt = profiles.learnt(name)
    mend = f"`condorctl site test {name}` tries what works there"
    if not learnt:
        yield Finding("site", OK, f"{name}, never tried", mend)
        return
    days = (time.time() - learnt["time"]) / _DAY_S
    lacking = [check["check"] for check in learnt["checks"] if check["state"] != OK]
    told = f"{name}, tried {days:.0f} days ago on {learnt['schedd']}"
    if lacking:
        told += f"; it lacks {', '.join(lacking)}"
    state = OK if learnt["ok"] else WARNING
    yield Finding("site", state, told, mend if lacking or days > _OLD_TRIAL_DAYS else None)


def _pool() -> Iterator[Finding]:
    from condorctl.condor import cluster

    try:
        found = pool.activate()
        htcondor, schedd, location = cluster.connection()
    except UserError as error:
        if pool.find() is None and not elsewhere.collector():
            mend = "`condorctl pool up`, or set CONDOR_CONFIG"
            yield Finding("pool", PROBLEM, "there is no HTCondor here", mend)
        else:
            yield Finding("pool", PROBLEM, str(error))
        return
    yield Finding("pool", OK, f"{found.where} pool, configured by {found.config}")
    version = str(location.get("CondorVersion", "$CondorVersion: ? $"))
    asked = time.time()
    try:
        [summary] = schedd.query(opts=htcondor.QueryOpt.SummaryOnly)
    except Exception as error:
        yield Finding("schedd", PROBLEM, f"{location.get('Name')} does not answer: {error}",
                      "`condorctl pool status`; is its machine up?")  # fmt: skip
        return
    yield Finding("schedd", OK, f"{location['Name']} answers, HTCondor {_number(version)}")
    yield _versions(_number(htcondor.version()), _number(version))
    yield from _rights(htcondor, location)
    yield _dagman(htcondor)
    server = float(summary.get("ServerTime", asked))
    yield _clock("clock", "the schedd's", server - (asked + time.time()) / 2)
    yield from _offer(htcondor)


def _versions(bindings: str, schedd: str) -> Finding:
    ours, theirs = bindings.split("."), schedd.split(".")
    if ours[0] != theirs[0]:
        mend = f"`pip install 'htcondor=={theirs[0]}.*'`"
        told = f"bindings {bindings} and schedd {schedd} are of different series"
        return Finding("versions", WARNING, told, mend)
    return Finding("versions", OK, f"bindings {bindings}, schedd {schedd}")


def _rights(htcondor: Any, location: Any) -> Iterator[Finding]:
    """Who the schedd takes us for and whether that user may submit, by HTCondor's own ping."""
    try:
        answer = htcondor.ping(location, "WRITE")
    except Exception as error:
        mend = elsewhere.refusal(str(error)) or "see SEC_CLIENT_AUTHENTICATION_METHODS, and tokens"
        yield Finding("rights", PROBLEM, f"the schedd does not know us: {_short(error)}", mend)
        return
    user = str(answer.get("MyRemoteUserName", "nobody"))
    method = str(answer.get("AuthMethods", "no authentication"))
    if not answer.get("AuthorizationSucceeded"):
        mend = "have its administrator allow this user to WRITE (ALLOW_WRITE)"
        yield Finding("rights", PROBLEM, f"{user} ({method}) may not submit", mend)
    elif user.startswith("root@"):
        mend = "submit as an ordinary user; `condorctl pool up` starts a pool that takes root, too"
        yield Finding("rights", PROBLEM, "HTCondor runs no jobs of root", mend)
    else:
        yield Finding("rights", OK, f"the schedd knows us as {user} ({method}), who may submit")


def _dagman(htcondor: Any) -> Finding:
    limits = {
        name: htcondor.param.get(f"DAGMAN_{name}")
        for name in ("MAX_JOBS_IDLE", "MAX_JOBS_SUBMITTED", "MAX_SUBMITS_PER_INTERVAL")
    }
    told = ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
    if not _has("condor_dag_checker"):
        told += "; without condor_dag_checker mistakes in a DAG show when it runs"
    return Finding("dagman", OK, told)


def _clock(check: str, whose: str, skew: float) -> Finding:
    if abs(skew) <= _SKEW_S:
        return Finding(check, OK, f"{whose} clock agrees with ours ({skew:+.0f} s)")
    told = f"{whose} clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
    return Finding(check, WARNING, told, "have both keep time by NTP")


def _offer(htcondor: Any) -> Iterator[Finding]:
    from condorctl.condor import cluster
    from condorctl.explain import matchmaking

    try:
        slots = matchmaking.Slots()
        negotiators = htcondor.Collector().query(htcondor.AdType.Negotiator, projection=["Name"])
    except Exception as error:
        mend = "is its machine up? `condorctl pool run condor_status`"
        told = str(error) if isinstance(error, cluster.Unreachable) else _short(error)
        yield Finding("collector", PROBLEM, told, mend)
        return
    if not negotiators:
        mend = "start it (DAEMON_LIST), or ask the pool's administrator"
        yield Finding("negotiator", PROBLEM, "there is none: no job gets a slot", mend)
    if not len(slots):
        mend = "start an execute node, or ask the pool's administrator"
        yield Finding("slots", PROBLEM, "the pool has no slots: jobs will wait for ever", mend)
        return
    cores, memory = slots.total("Cpus"), slots.total("Memory")
    yield Finding(
        "slots",
        OK,
        f"{len(slots)} on {len(slots.values('Machine'))} machines: {cores:g} cores "
        f"({slots.free_cpus:g} free), {memory / 1024:.0f} GB; the largest has "
        f"{slots.most('Cpus'):g} cores, {slots.most('Memory') / 1024:.0f} GB",
    )
    systems = ", ".join(slots.values("OpSysAndVer"))
    older = [_number(v) for v in slots.values("CondorVersion")]
    yield Finding("nodes", OK, f"{systems or '?'}; HTCondor {', '.join(sorted(set(older)))}")
    yield _gpus(slots)
    count = slots.count("HasSshd")
    if count < len(slots):
        mend = "`condorctl logs` still shows their output; ask for sshd on them"
        told = f"{len(slots) - count} of {len(slots)} slots let nobody into a running job"
        yield Finding("ssh to jobs", WARNING, told, mend)
    else:
        yield Finding("ssh to jobs", OK, "every slot has an sshd for its jobs")
    containers = {
        kind: slots.count(attribute)
        for kind, attribute in (("Docker", "HasDocker"), ("Apptainer", "HasSingularity"))
    }
    some = ", ".join(f"{kind} on {n} of {len(slots)} slots" for kind, n in containers.items() if n)
    if some:
        yield Finding("containers", OK, some)
    else:
        mend = "a stage with an image finds no slot: `universe: vanilla` needs none"
        yield Finding("containers", WARNING, "no slot runs Docker or Apptainer", mend)
    yield _clock("node clocks", "the most different slot's", slots.skew())


def _gpus(slots: Any) -> Finding:
    total = slots.total("GPUs")
    if not total:
        return Finding("gpus", OK, "the pool has none; a stage with request_gpus waits for ever")
    kinds = Counter(
        f"{gpu.get('DeviceName', 'GPU')}"
        + (f" {gpu['GlobalMemoryMb'] / 1024:.0f} GB" if gpu.get("GlobalMemoryMb") else "")
        for gpu in slots.gpus()
    )
    named = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    return Finding(
        "gpus", OK, f"{total:g} ({slots.free_gpus:g} free){': ' if named else ''}{named}"
    )


def _number(version: str) -> str:
    """``25.14.1`` of ``$CondorVersion: 25.14.1 2026-…``."""
    words = version.split()
    return words[1] if len(words) > 1 else version


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _job(seconds: float) -> Iterator[Finding]:
    from condorctl.explain import probe

    yield from probe.try_slot(seconds)
