"""The command line. Each command is a thin layer over the function of its name in `api`.

Modules are imported inside the commands: `condorctl --help` must not wait for SQLAlchemy.
"""

from __future__ import annotations

import sys

from condorctl.cli import (  # each adds its commands
    adopted,
    files,
    images,
    ledgers,
    look,
    messages,
    pools,
    runs,
    serve,
    specs,
    venvs,
    why,
)
from condorctl.cli.app import app
from condorctl.errors import UserError

__all__ = [
    "adopted",
    "app",
    "files",
    "images",
    "ledgers",
    "look",
    "main",
    "messages",
    "pools",
    "runs",
    "serve",
    "specs",
    "venvs",
    "why",
]


def main() -> None:
    """Entry point: turns an expected failure into one line and an exit code."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`condorctl status | head`): not an error, and nothing to flush.
        sys.stdout = None
        sys.exit(141)
    except OSError as error:
        # A full disk, a folder without rights: said as plainly as a mistake in a spec.
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
