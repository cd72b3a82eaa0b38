"""What `venv:` of a spec may name: a virtual environment, or one that is packed as a PEX."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".pex"


def is_venv(path: Path) -> bool:
    """Whether the folder is a virtual environment (venv, virtualenv, uv)."""
    return (path / "pyvenv.cfg").is_file()
