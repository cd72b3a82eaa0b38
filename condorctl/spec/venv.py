"""What `venv:` of a spec may name: a virtual environment, or one that is packed as a PEX."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".pex"
# The file that makes a folder one, and says of which Python (PEP 405).
CONFIG = "pyvenv.cfg"


def is_venv(path: Path) -> bool:
    """Whether the folder is a virtual environment (venv, virtualenv, uv)."""
    return (path / CONFIG).is_file()
