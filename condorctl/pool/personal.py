"""A personal pool: configured, started, found again, stopped."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from condorctl.errors import UserError
from condorctl.pool import processes
from condorctl.pool.places import Release, pool_dir
from condorctl.pool.processes import Process

_START_TIMEOUT_S = 60
_KILL_TIMEOUT_S = 15


@dataclass(frozen=True)
class Master:
    """The pool's condor_master as recorded when it was started."""

    process: Process
    release: Release


class PersonalPool:
    """The user's own pool; everything of it is in one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or pool_dir()

    @property
    def config(self) -> Path:
        return self.folder / "condor_config"

    def master(self) -> Master | None:
        """The pool's condor_master when it runs. Costs a file or two: no daemon is asked."""
        recorded = self._recorded()
        return recorded if recorded and recorded.process.alive() else None

    def start(self, release: Release, cpus: int) -> None:
        """Start the daemons, with the queue there was, and wait until jobs can run: about 3 s.

        To be called with the lock held, and after `clear`: what an earlier master left behind
        (killed, or a power cut) would be in the way. Raises UserError when it does not come up.
        """
        (self.folder / "log").mkdir(exist_ok=True)
        self._configure(release, cpus)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("_CONDOR_")}
        environment["CONDOR_CONFIG"] = str(self.config)
        environment["PATH"] = release.path(environment.get("PATH", os.defpath))
        with (self.folder / "log" / "master.out").open("w") as output:
            # A session of its own: an interrupt typed at the terminal is not meant for the pool.
            started = subprocess.Popen(
                [str(release.usr / "sbin" / "condor_master"), "-f"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = processes.find(started.pid)
        if process:
            self._record(Master(process, release))
        deadline = time.monotonic() + _START_TIMEOUT_S
        try:
            while not self._ready(release, environment):
                if started.poll() is not None or time.monotonic() > deadline:
                    reason = self._complaint()
                    raise UserError(f"HTCondor did not start, see {self.folder}/log: {reason}")
        except BaseException:  # an interrupt too: half a pool must not be taken for one
            self.clear()
            raise

    def stop(self) -> None:
        """Stop the daemons and all that they run; the queue stays for the next start."""
        master = self.master()
        if master:
            # First gracefully: jobs may write a checkpoint, and their event logs record why they
            # stop. By signals, since a daemon that is stuck answers no command.
            for shutdown, seconds in ((signal.SIGTERM, 20), (signal.SIGQUIT, 5)):
                processes.kill(master.process, shutdown)
                if processes.wait_gone(master.process, seconds):
                    break
        self.clear()
        if master:
            # Its entry in the process table goes when init has looked: some take a second or two.
            processes.wait_collected(master.process, 5)

    def clear(self) -> None:
        """Kill whatever is left of the pool, within 15 s; the queue stays.

        As root this must come before `identity.leave_root`.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while left := self.processes():
            for process in left:
                processes.kill(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                pids = " ".join(str(process.pid) for process in left)
                raise UserError(f"these processes of the pool do not end: {pids}; kill -9 them")
            time.sleep(0.05)
        self._record_file.unlink(missing_ok=True)
        # Killed daemons leave word of where they can be reached; nobody shall look there.
        for stale in (*self.folder.glob("log/.*_address"), self.folder / "spool/.schedd_classad"):
            stale.unlink(missing_ok=True)

    def processes(self) -> list[Process]:
        """All that runs of the pool: daemons, DAGMan, jobs."""
        return processes.of_pool(self.config, self.folder / "execute")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One starts or stops the pool at a time; others wait."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / "condorctl.lock").open("w")
        except OSError as error:
            mend = "set XDG_STATE_HOME to a folder that you can write"
            raise UserError(f"{self.folder}: {error.strerror}: {mend}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def _record_file(self) -> Path:
        return self.folder / "condorctl.json"

    def _record(self, master: Master) -> None:
        record = asdict(master.process), str(master.release.root), master.release.version
        partial = self._record_file.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(self._record_file)

    def _recorded(self) -> Master | None:
        try:
            process, root, version = json.loads(self._record_file.read_text())
        except (OSError, ValueError):
            return None
        return Master(Process(**process), Release(Path(root), version))

    def _ready(self, release: Release, environment: dict[str, str]) -> bool:
        """Whether all daemons run and the startd offers its slot; waits a while for it."""
        if not (self.folder / "log" / "MasterLog").exists():
            time.sleep(0.1)
            return False
        who = subprocess.run(
            [str(release.tools / "condor_who"), "-wait:5", 'IsReady && STARTD_State =?= "Ready"'],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return "IsReady = true" in who.stdout and 'STARTD_State = "Ready"' in who.stdout

    def _complaint(self) -> str:
        """The master's last words."""
        log = self.folder / "log"
        for file in (log / "master.out", log / "MasterLog"):
            if file.exists() and (words := file.read_text(errors="replace").strip()):
                return words.splitlines()[-1]
        return "condor_master said nothing"

    def _configure(self, release: Release, cpus: int) -> None:
        import htcondor2.personal

        template = self.folder / "sshd_config_template"
        template.write_text(_SSHD_CONFIG.format(openssh=release.usr / "lib" / "openssh"))
        pool = htcondor2.personal.PersonalPool(
            self.folder, config=_settings(release, cpus, self.folder), use_config=False
        )
        pool.initialize()


def _settings(release: Release, cpus: int, folder: Path) -> dict[str, str]:
    """What is set on top of htcondor2.personal's own (HTCondor manual, "Configuration Macros")."""
    usr = release.usr
    return {
        "RELEASE_DIR": str(usr),
        "BIN": str(usr / "bin"),
        "SBIN": str(usr / "sbin"),
        "LIB": str(usr / "lib"),  # libgetpwnam.so is here: a shell for accounts that have none
        "LIBEXEC": str(usr / "libexec" / "condor"),
        "SHARE": str(usr / "share" / "condor"),
        # A file for the user's own settings: it is read after this one and never written.
        "LOCAL_CONFIG_FILE": str(folder / "condor_config.local"),
        "REQUIRE_LOCAL_CONFIG_FILE": "False",
        # Nobody on the network can reach the pool, and on this machine only its owner.
        "NETWORK_INTERFACE": "127.0.0.1",
        "SEC_DEFAULT_AUTHENTICATION_METHODS": "FS",
        "NUM_CPUS": str(cpus),
        # A job starts as soon as it can, not with the next of a large pool's slow cycles.
        "NEGOTIATOR_INTERVAL": "2",
        "NEGOTIATOR_MIN_INTERVAL": "1",
        "NEGOTIATOR_CYCLE_DELAY": "1",
        "SCHEDD_INTERVAL": "5",
        "SCHEDD_MIN_INTERVAL": "1",
        "PERIODIC_EXPR_INTERVAL": "10",
        # Seconds. A container that cannot be started (codes 45, 1021) would be tried again at once;
        # after a rest as long as between two looks at its policy the job is held in time.
        "SYSTEM_ON_VACATE_COOL_DOWN": "member(VacateReasonCode ?: 0, {45, 1021}) ? 10 : 0",
        "DAGMAN_USER_LOG_SCAN_INTERVAL": "1",
        "DAGMAN_QUEUE_UPDATE_INTERVAL": "5",  # DAGMan's counts of nodes, in its job's ad
        # A running job's progress reaches the queue within seconds, and condor_ssh_to_job finds
        # its starter: by default that takes a quarter of an hour and 20 s.
        "STARTER_INITIAL_UPDATE_INTERVAL": "1",
        "STARTER_UPDATE_INTERVAL": "2",
        "SHADOW_QUEUE_UPDATE_INTERVAL": "3",
        # After a kill -9 or a power cut the schedd looks for its running jobs at a startd that died
        # too, for as long as their leases hold: by default 40 minutes. (0 keeps jobs from running.)
        "JOB_DEFAULT_LEASE_DURATION": "60",
        # The sshd that runs inside a job.
        "SSH_TO_JOB_SSHD": str(usr / "sbin" / "sshd"),
        "SSH_TO_JOB_SSH_KEYGEN": str(usr / "bin" / "ssh-keygen"),
        "SSH_TO_JOB_SSHD_CONFIG_TEMPLATE": str(folder / "sshd_config_template"),
    }


# condor_ssh_to_job_sshd_setup fills in the two _INSERT_ words. Debian's own template names no
# sftp-server; OpenSSH 10 consists of three programs that look for each other under /usr/lib.
_SSHD_CONFIG = """\
HostKey _INSERT_HOST_KEY_
AuthorizedKeysFile _INSERT_AUTHORIZED_KEYS_FILE_
SshdSessionPath {openssh}/sshd-session
SshdAuthPath {openssh}/sshd-auth
Subsystem sftp {openssh}/sftp-server
AcceptEnv *
# The sandbox is under a folder like /tmp, where OpenSSH trusts no file by default.
StrictModes no
PermitEmptyPasswords no
PermitRootLogin no
IgnoreRhosts yes
IgnoreUserKnownHosts yes
PrintLastLog no
LogLevel DEBUG
"""
