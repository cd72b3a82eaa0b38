"""A Python environment without a container: a virtual environment as one file that travels along.

The file is a PEX (https://docs.pex-tool.org). On the node `venv.sh` makes a virtual environment of
it again, with a Python of the same minor version that it finds there; so nothing in it remembers
where it was packed, which a copied or a tarred environment does. What is made of the same packages
has the same name in the user's cache, and is made once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from condorctl.errors import UserError, printable
from condorctl.spec.venv import CONFIG, SUFFIX
from condorctl.submit import content

# How a folder in the cache is called in which one is being packed.
PARTIAL = ".new-"
# Where venv.sh puts it, in the job's sandbox.
FOLDER = "_condorctl_venv"
# Of pip's lists of files: what is compiled, and programs, which name their own folder.
_NOT_SAME = re.compile(r"\.pyc,|^\.\./\.\./\.\./")


def folder() -> Path:
    """The user's cache of packed environments."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "condorctl" / "venvs"


def cached(venv: Path) -> Path:
    """Where the packed environment is, or will be once `pack` has made it.

    Raises UserError for a folder that is no virtual environment, and for one with a package in it
    that is only a link to its source.
    """
    return folder() / f"{_identity(venv)[:32]}{SUFFIX}"


def pack(
    venv: Path, to: Path | None = None, tell: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Pack the virtual environment in the folder `venv`, into the file `to` if one is named.

    Returns `venv`, `file`, `bytes`, `sha256`, `python` (the minor version that the nodes need) and
    `packed`, whether it had to be. `tell` gets a line before what takes long. Raises UserError as
    `cached` does, and when it cannot be packed.
    """
    file = cached(venv)
    packed = not file.is_file()
    if packed:
        tell(f"packing {venv}")
        _make(venv, file)
    if to:
        try:
            to.unlink(missing_ok=True)
            content.link(file, to)
        except OSError as error:
            raise UserError(f"{to}: {error.strerror}") from None
    found = to or file
    return {
        "venv": str(venv),
        "file": str(found),
        "bytes": found.stat().st_size,
        "sha256": content.sha256(found),
        "python": _python(venv),
        "packed": packed,
    }


def _make(venv: Path, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=file.parent) as name:
            # A pex holds its own name: with the same one the bytes are the same, too.
            made = Path(name) / file.name
            _pex(venv.absolute(), made, Path(name) / "root")
            made.rename(file)
    except OSError as error:
        raise UserError(f"venv {venv}: {error.filename or file}: {error.strerror}") from None


def _pex(venv: Path, file: Path, root: Path) -> None:
    words = [
        sys.executable, "-m", "pex", "--venv-repository", str(venv), "--include-tools",
        # Else it keeps copies of all packages below the user's home.
        "--pex-root", str(root), "--output-file", str(file),
        # Else the pex holds where this user's caches are; venv.sh says otherwise in any case.
        "--runtime-pex-root", "~/.cache/pex",
    ]  # fmt: skip
    if venv.resolve() != Path(sys.prefix).resolve():
        # Of the environment that it runs in itself, pex takes no Python to be fit.
        words += ["--python", str(venv / "bin" / "python")]
    answer = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["pex says nothing"])[-1]
        raise UserError(f"venv {venv}: cannot be packed: {printable(last)[:300]}")


def _identity(venv: Path) -> str:
    """The hash of what is installed: pip's lists have the hash of each file."""
    lines = [platform.machine(), _python(venv)]
    for package in _packages(venv):
        lines.append(package.name)
        try:
            listed = (package / "RECORD").read_text(encoding="utf-8").splitlines()
        except OSError:
            raise UserError(
                f"venv {venv}: {package.name} has no list of its files: install it with pip"
            ) from None
        lines += sorted(line for line in listed if not _NOT_SAME.search(line))
    return content.text_sha256("\n".join(lines))


def _packages(venv: Path) -> Iterator[Path]:
    for package in sorted(venv.glob("lib/python3*/site-packages/*.dist-info")):
        origin = package / "direct_url.json"
        if origin.is_file():
            told = json.loads(origin.read_text(encoding="utf-8"))
            if told.get("dir_info", {}).get("editable"):
                name = package.name.partition("-")[0]
                raise UserError(
                    f"venv {venv}: {name} is a link to its source (pip install --editable), which "
                    "nodes do not have: install it without, or name it in `code`"
                )
        yield package


def _python(venv: Path) -> str:
    """``3.11``, of the environment."""
    try:
        text = (venv / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        mend = f"`python3 -m venv {venv}` makes one"
        raise UserError(f"{venv}: is no virtual environment: {mend}") from None
    found = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", text, re.M)
    if not found:
        raise UserError(f"{venv / CONFIG}: does not say of which Python it is")
    return found[1]
