"""Environment variables whose values nobody but the job may read: tokens, passwords.

A value comes from the user's environment, or from a private file of the user's. It travels in a
file of its own, which stage.sh reads and removes before the command starts, and stands in no
submit file, ledger, log or JSON. The file stays in the run's folder, for its owner alone, as long
as the stage may have to start again.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from condorctl import paths
from condorctl.errors import UserError

if TYPE_CHECKING:
    from condorctl.spec.pipeline import Stage

# What stage.sh looks for in the job's sandbox.
FILE = "_condorctl_secrets"


def write(stage: Stage, folder: Path) -> None:
    """Write what `stage` names under ``secrets:`` into its folder in `folder`, the run's.

    Raises UserError for one that is nowhere, is not private, or holds a line break or NUL.
    """
    if not stage.secrets:
        return
    text = "".join(f"{name}={_value(stage.name, name)}\n" for name in stage.secrets)
    file = folder / stage.name / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)


# What a shell runs to have them, where stage.sh does not.
SHELL = f"""\
[ -f {FILE} ] && while IFS= read -r secret; do export "$secret"; done <{FILE}; rm -f {FILE}; """


def forget(stage_folder: Path) -> None:
    """Remove the secrets of a stage that need not start again."""
    with suppress(OSError):
        (stage_folder / FILE).unlink()


def _value(stage: str, name: str) -> str:
    value = os.environ.get(name)
    file = paths.config() / "secrets" / name
    if value is None:
        value = _read(stage, name, file)
    if any(character in value for character in "\0\r\n"):
        raise UserError(f"stage {stage!r}: secret {name}: a value is one line, without NUL")
    return value


def _read(stage: str, name: str, file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
                raise UserError(f"{file}: others can read it: chmod 600 {file}")
            return stream.read().rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(
            f"stage {stage!r}: secret {name}: set it in your environment, or write it into {file}"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
