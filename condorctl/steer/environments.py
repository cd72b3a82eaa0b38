"""The packed environments in the user's cache: which there are, which runs take them, freeing them.

A job takes its environment from there (`submit.venvs`), so the file stays while a run may need it.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, events
from condorctl.spec.venv import SUFFIX
from condorctl.submit import venvs

Json = dict[str, Any]

_DAY_S = 86400
# A run that is being submitted has no entry yet; a packing that takes longer was killed.
_UNDER_WAY_S = 3600


def listing(ledger: Ledger) -> Json:
    """The packed environments, those used last first.

    Returns `folder`, `bytes` in all, and `environments`: `file`, `bytes`, `packed` and `used` (Unix
    seconds), `venvs` (the folders that it was packed from, as specs call them), `runs` that took it
    along, and `needed_by`, those of them that are going or can be resumed.
    """
    events.sync(ledger)
    with ledger.session() as session:
        found = list(_environments(session))
    return {
        "folder": str(venvs.folder()),
        "environments": found,
        "bytes": sum(one["bytes"] for one in found),
    }


def clean(
    ledger: Ledger, older_than: float | None = None, dry_run: bool = False, force: bool = False
) -> Json:
    """Remove the packed environments that no run needs, or with `force` all.

    With `older_than`, only those that no submission has used for so many days. Returns `removed`
    and `kept`, as `environments` of `listing`, and the `bytes` that this frees. What a killed
    packing has left goes, too. Raises UserError for a file that cannot be removed.
    """
    known = listing(ledger)
    now = time.time()
    limit = now - (older_than * _DAY_S if older_than is not None else 0)
    going: list[Json] = []
    kept: list[Json] = []
    for one in known["environments"]:
        needed = one["needed_by"] or (one["packed"] > now - _UNDER_WAY_S and not one["runs"])
        (kept if one["used"] > limit or (needed and not force) else going).append(one)
    files = [Path(one["file"]) for one in going]
    left = [path for path in _unfinished() if path.stat().st_mtime < now - _UNDER_WAY_S]
    # One that `venv pack -o` gave a second name takes its room there.
    freed = sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
    freed += sum(entry.lstat().st_size for path in left for entry in path.rglob("*"))
    if not dry_run:
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}: {error.strerror}") from None
    return {"removed": going, "kept": kept, "bytes": freed, "dry_run": dry_run}


def _environments(session: Session) -> Iterator[Json]:
    files = {}
    with suppress(OSError):
        files = {str(path): path.stat() for path in venvs.folder().glob(f"*{SUFFIX}")}
    users: dict[str, list[tuple[Run, str]]] = defaultdict(list)
    for run in session.scalars(select(Run).order_by(Run.submitted)) if files else ():
        for text, source in run.provenance.get("inputs", {}).items():
            if source.get("source") in files:
                users[source["source"]].append((run, text))
    used = {
        file: max([found.st_mtime, *(run.resumed or run.submitted for run, _ in users[file])])
        for file, found in files.items()
    }
    for file in sorted(files, key=lambda file: -used[file]):
        yield {
            "file": file,
            "bytes": files[file].st_size,
            "packed": files[file].st_mtime,
            "used": used[file],
            "venvs": list(dict.fromkeys(text for _, text in users[file])),
            "runs": [run.name for run, _ in users[file]],
            "needed_by": [run.name for run, _ in users[file] if _may_go_on(run)],
        }


def _may_go_on(run: Run) -> bool:
    return not run.finished or (run.state != "done" and run.path.is_dir())


def _unfinished() -> list[Path]:
    with suppress(OSError):
        return [path for path in venvs.folder().glob(f"{venvs.PARTIAL}*") if path.is_dir()]
    return []
