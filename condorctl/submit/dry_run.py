"""`condorctl render`: what a submission would write, and nothing submitted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condorctl import paths
from condorctl.errors import UserError
from condorctl.spec import reader
from condorctl.submit import render, submission


def write(
    name: str, to: Path, settings: Mapping[str, str], site: str | None = None
) -> dict[str, Any]:
    """Write what a submission of the pipeline `name` would into the folder `to`, new or empty.

    Raises UserError for whatever a submission would be refused for, then with nothing written.
    """
    found = reader.load(paths.spec(name), settings, site)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to}: is not an empty folder, and nothing is overwritten")
    to.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a template's mistake leaves no half of a run.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=to.parent) as draft:
        folder = Path(draft) / "run"
        folder.mkdir()
        dag = render.render(found, found.name, folder, submission.python())
        folder.replace(to)
    files = sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())
    return {"dag": str(to / dag.name), "files": files}
