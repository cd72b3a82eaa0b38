"""A pool whose node runs containers, and a registry: for a real ordinary account.

Rootless Podman behind a small wrapper is what HTCondor takes for Docker; Debian's registry on
loopback takes what is pushed, and the node pulls from there. The base image is made from Debian's
packages, once, and kept where condorctl keeps HTCondor.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condorctl.pool import debian
from condorctl.pool.places import software_dir
from tests.fork_server import ForkServer
from tests.pool import apptainer
from tests.pool.account import Account

ROOT = Path(__file__).parents[2]
# Beside podman: what it needs to run without root, what makes the base image, the registry.
PROGRAMS = ("podman", "runc", "newuidmap", "slirp4netns", "mmdebstrap", "docker-registry")
_CATATONIT = Path("/usr/libexec/podman/catatonit")
_OLDER_CATATONIT = Path("/usr/bin/catatonit")

_IN_MEMORY = Path("/dev/shm/condorctl-test")
_IMAGES_B = 4 << 30

_WRAPPER = """\
#!/bin/sh
export HOME={home} XDG_RUNTIME_DIR={run} PODMAN_USERNS=keep-id PATH={path}
exec podman "$@"
"""
_CONTAINERS = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "{address}"}}
log: {{level: error}}
"""
# The torch of the tests' own environment, for jobs that ask for it: an image with it has 6 GB.
_POOL = """\
DOCKER = {docker}
DOCKER_PERFORM_TEST = False
DOCKER_VOLUMES = PACKAGES
DOCKER_MOUNT_VOLUMES = PACKAGES
DOCKER_VOLUME_DIR_PACKAGES = {packages}:/usr/local/lib/python{version}/dist-packages:ro
DOCKER_VOLUME_DIR_PACKAGES_MOUNT_IF = WantPackages =?= true
"""
# Debian's HTCondor has no image to try whether a node can open files of images.
_APPTAINER = """\
DOCKER = /usr/bin/false
SINGULARITY = {program}
HasSIF = True
STARTD_ATTRS = $(STARTD_ATTRS) HasSIF
"""


def missing() -> str:
    """Why there can be no such pool on this machine; empty when there can."""
    if os.getuid():
        return "only root can make an account for rootless Podman"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if not (_CATATONIT.exists() or _OLDER_CATATONIT.exists()):
        absent.append("catatonit")
    return f"there is no {', '.join(absent)} (`make test` installs them)" if absent else ""


class ContainerPool:
    """The account, its registry at `registry` (host:port), and its pool, up until `down`."""

    def __init__(self) -> None:
        debian.fetch(lambda what, done, total: None)
        self.packages = Path(sysconfig.get_path("purelib"))
        self.account = Account([ROOT, Path(sys.prefix), Path(sys.base_prefix), software_dir()])
        self._registry: subprocess.Popen[bytes] | None = None
        self._commands: ForkServer | None = None
        try:
            self._set_up()
        except BaseException:
            self.down()
            raise

    def _set_up(self) -> None:
        account = self.account
        self.project = account.folder("a project")
        self.fast = _fast(account)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.registry = f"127.0.0.1:{free.getsockname()[1]}"
        account.write(".config/containers/containers.conf", _CONTAINERS)
        account.write(
            ".config/containers/storage.conf",
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.fast}/storage"\n',
        )
        account.write(
            ".config/containers/registries.conf",
            f'[[registry]]\nlocation = "{self.registry}"\ninsecure = true\n',
        )
        account.environment |= {
            "XDG_STATE_HOME": str(account.folder("state")),
            "XDG_CACHE_HOME": str(self._cache()),
            "CONDORCTL_LEDGER": str(account.home / "ledger.sqlite"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.pool = account.folder("state") / "condorctl" / "pool"
        docker = account.write(
            "bin/docker",
            _WRAPPER.format(
                home=account.home,
                run=account.environment["XDG_RUNTIME_DIR"],
                path=account.environment["PATH"],
            ),
            0o755,
        )
        self.configure(
            _POOL.format(
                docker=docker,
                packages=self.packages,
                version=".".join(platform.python_version_tuple()[:2]),
            )
        )
        self._serve()
        self.base = "localhost/base:latest"
        account.run("podman", "import", "--quiet", str(_base(account.home)), self.base)

    def _cache(self) -> Path:
        """A cache of the account's own, with the HTCondor in it that is unpacked already."""
        folder = self.account.folder("cache")
        self.account.folder("cache/condorctl")
        for release in software_dir().glob("htcondor-*"):
            (folder / "condorctl" / release.name).symlink_to(release)
        return folder

    def configure(self, text: str) -> None:
        """Add `text` to the pool's configuration: it holds from the next `up`."""
        file = self.pool / "condor_config.local"
        before = file.read_text() if file.exists() else ""
        self.account.write(str(file.relative_to(self.account.home)), before + text)

    def up(self, offers: str = "HasDocker") -> None:
        """Start the pool, and wait until its node `offers` what runs containers."""
        self.condorctl("pool", "up", "--cpus", "8")
        ask = ["pool", "run", "condor_status", "-af", offers]
        deadline = time.monotonic() + 60
        while self.condorctl(*ask).stdout.strip() != "true":
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def add_apptainer(self) -> None:
        """Start the pool anew, with Apptainer on its node in the place of Docker."""
        self.condorctl("pool", "down")
        programs = apptainer.fetch(software_dir() / "tests" / "apptainer")
        self.account.environment["PATH"] += f":{programs}"
        # HTCondor starts it without a PATH, and it looks for the tools of .sif files there.
        path = self.account.environment["PATH"]
        program = self.account.write(
            "bin/singularity", f'#!/bin/sh\nexport PATH={path}\nexec apptainer "$@"\n', 0o755
        )
        self.configure(_APPTAINER.format(program=program))
        self.up("HasSingularity")

    def words(self, *words: str) -> list[str]:
        """The command line, for root, that runs condorctl as the account."""
        return self.account.words([sys.executable, "-m", "condorctl", *words])

    def condorctl(
        self, *words: str, timeout: float = 240, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run condorctl in the project's folder; fails with what it said."""
        if not self._commands:
            self._commands = ForkServer(self.account.words)
        answer = self._commands.run(words, self.project, timeout, self.account.environment)
        assert not check or answer.returncode == 0, (words, answer.stdout, answer.stderr)
        return answer

    def json(self, *words: str) -> Any:
        """What condorctl prints with ``--json``."""
        return json.loads(self.condorctl(*words, "--json").stdout)

    def write(self, files: dict[str, str]) -> None:
        """Put files into the project's folder."""
        for name, text in files.items():
            self.account.write(f"{self.project.name}/{name}", text)

    def status(self, run: str) -> dict[str, Any]:
        """The stages of a run as `condorctl status --json` shows them, by name."""
        return {one["stage"]: one for one in self.json("status", run)["stages"]}

    def wait(self, run: str, stage: str, states: Sequence[str], timeout: float = 180) -> Any:
        """The stage once it is in one of `states`."""
        deadline = time.monotonic() + timeout
        while (found := self.status(run)[stage])["state"] not in states:
            assert time.monotonic() < deadline, (found, self.condorctl("explain", run).stdout)
            time.sleep(1)
        return found

    def down(self) -> None:
        """End the pool and the registry, which are the account's; nothing of it is left."""
        self.account.remove()
        shutil.rmtree(_IN_MEMORY, ignore_errors=True)
        if self._commands:
            self._commands.stop()
        if self._registry:
            self._registry.wait(timeout=20)

    def _serve(self) -> None:
        folder = self.account.folder("registry")
        file = self.account.write(
            "registry.yml", _REGISTRY.format(folder=folder, address=self.registry)
        )
        self._registry = subprocess.Popen(
            self.account.words(["docker-registry", "serve", str(file)]),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        host, _, port = self.registry.partition(":")
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as client:
                if client.connect_ex((host, int(port))) == 0:
                    return
            assert self._registry.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)


def _fast(account: Account) -> Path:
    """Where images are, of which each file is written to disk at once, and removed one by one."""
    shutil.rmtree(_IN_MEMORY, ignore_errors=True)
    if not _IN_MEMORY.parent.is_dir() or shutil.disk_usage(_IN_MEMORY.parent).free < _IMAGES_B:
        return account.folder("images")
    _IN_MEMORY.mkdir()
    account.own(_IN_MEMORY)
    return _IN_MEMORY


def _base(to: Path) -> Path:
    """A root file system of this Debian with Python in it, as a tar file in the folder `to`.

    It stands for an image from a public registry, and is made once: half a minute.
    """
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    kept = software_dir() / "tests" / f"base-{suite}.tar"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.tar")
        options = [
            "--aptopt=APT::Install-Recommends false",
            "--aptopt=Acquire::Languages none",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        ]
        words = ["mmdebstrap", "--variant=apt", "--include=python3,busybox-static", *options]
        subprocess.run([*words, suite, str(partial)], check=True, stdin=subprocess.DEVNULL)
        partial.replace(kept)
    copy = to / "base.tar"
    shutil.copy2(kept, copy)
    copy.chmod(0o644)
    return copy
