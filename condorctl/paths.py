"""Where things are: the user's folder, what the package ships, the ledger."""

from __future__ import annotations

import os
from pathlib import Path

from condorctl.errors import UserError

PACKAGE = Path(__file__).parent
# What stage.sh calls a job's record, in its sandbox (`ledger.record`).
JOB_RECORD = "_condorctl_job"
# Where distributions put OpenSSH's, on nodes, in images and here.
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server",
)  # fmt: skip


def project() -> Path:
    """The user's folder: the one in which condorctl was called."""
    return Path.cwd()


def runs() -> Path:
    """The folder that holds a folder for each run."""
    return project() / "exp" / "runs"


def images() -> Path:
    """The file that says which images were built and pushed from the user's folder."""
    return project() / "exp" / "images.json"


def ledger() -> Path | str:
    """The ledger: the URL ``$CONDORCTL_DB``, else the file ``$CONDORCTL_LEDGER``, else the user's.

    One ledger a user, not one a folder: a job id must be found again from wherever one stands.
    """
    shared = os.environ.get("CONDORCTL_DB")
    if shared:
        return shared
    chosen = os.environ.get("CONDORCTL_LEDGER")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return data() / "ledger.sqlite"


def data() -> Path:
    """The folder of what is kept for the user, in the XDG data folder."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "condorctl"


def config() -> Path:
    """The folder of the user's own settings, in the XDG configuration folder."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "condorctl"


def search(kind: str) -> list[Path]:
    """Folders that may hold `kind` ("jobs" or "templates"), the user's own first."""
    # A wheel carries them inside the package; a checkout has them beside it.
    shipped = PACKAGE / "share" / kind
    if not shipped.is_dir():
        shipped = PACKAGE.parent / kind
    return [project() / kind, shipped]


def spec(name: str) -> Path:
    """The file of the pipeline `name`: a path to a YAML file, or a name found in ``jobs/``.

    Raises UserError when there is none, with the names that there are.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if path.is_file():
            return path
        raise UserError(f"{name}: no such pipeline file")
    for folder in search("jobs"):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path.relative_to(project()) if path.is_relative_to(project()) else path
    known = sorted({path.stem for folder in search("jobs") for path in folder.glob("*.yaml")})
    raise UserError(f"no pipeline {name!r} in jobs/: there is {', '.join(known) or 'none'}")


def dockerfile() -> Path:
    """The Dockerfile of the user's folder, else the one that the package ships."""
    here = project() / "Dockerfile"
    shipped = PACKAGE / "share" / "Dockerfile"
    return next(f for f in (here, shipped, PACKAGE.parent / "Dockerfile") if f.is_file())


def package(name: str) -> Path:
    """The source folder or file that a spec's ``code:`` entry names.

    The user's own folder wins over a package installed beside condorctl.
    Raises UserError when neither has it, and for a path that leads out of them.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"code: {name!r}: name a package or file of the folder you are in")
    for base in (project(), PACKAGE.parent):
        if (base / name).exists():
            return base / name
    raise UserError(f"code: there is no {name!r} in {project()} nor beside condorctl")
