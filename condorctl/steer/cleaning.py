"""Giving back the disk space of runs that have ended; the ledger keeps what they were.

Results, metrics, costs and provenance stay. Outputs that a later run took over are its own: the
same files under a second name, or copies.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl import drafts, paths
from condorctl.errors import UserError
from condorctl.ledger import Ledger, Run, events, find, runfile, sharing

Json = dict[str, Any]

_DAY_S = 86400


def clean(
    ledger: Ledger,
    names: Sequence[str],
    older_than: float | None = None,
    keep_outputs: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> Json:
    """Remove the folders of the runs called `names`, or of all that ended `older_than` days ago.

    With `keep_outputs` the stages' outputs stay. Returns `runs`, each `run`, `folder` and `bytes`
    (the disk space that this frees), and `bytes` in all. Raises UserError for a run that is going,
    that others need (unless `force`), or that condorctl did not make the files of.
    """
    if not names and older_than is None:
        raise UserError("name the runs to clean, or say --older-than DAYS")
    events.sync(ledger)
    found: list[tuple[Json, list[Path]]] = []
    with ledger.session() as session:
        chosen = [find.run(session, name) for name in dict.fromkeys(names)]
        if not names:
            query = select(Run).where(Run.owner == getpass.getuser(), Run.kind == "pipeline")
            chosen = [run for run in session.scalars(query) if run.finished and run.path.is_dir()]
        if older_than is not None:
            limit = time.time() - older_than * _DAY_S
            chosen = [run for run in chosen if not run.finished or run.finished < limit]
        for run in chosen:
            _check(session, ledger, run, force)
            kept = {run.path / s.name / output for s in run.stages for output in s.outputs}
            going = list(_leaves(run.path, kept if keep_outputs else set()))
            size = sum(state.st_blocks * 512 for state in _alone(going))
            found.append(({"run": run.name, "folder": run.folder, "bytes": size}, going))
    if not dry_run:
        # Removing takes its time: nobody waits for the ledger meanwhile.
        for one, going in found:
            folder = Path(one["folder"])
            with ledger.session() as session:
                find.run(session, one["run"]).cleaned = time.time()
            # It holds what the folder does, before that goes: a ledger may be lost later.
            runfile.keep(ledger, one["run"])
            if keep_outputs:
                _remove(folder, going)
            elif folder.is_dir():
                drafts.remove(folder)
            with ledger.session() as session:
                _mark(find.run(session, one["run"]))
            runfile.keep(ledger, one["run"])
        for runs in {Path(one["folder"]).parent for one, _ in found} | {paths.runs()}:
            drafts.sweep(runs)
    freed = [one for one, _ in found]
    return {"runs": freed, "bytes": sum(one["bytes"] for one in freed), "dry_run": dry_run}


def _check(session: Session, ledger: Ledger, run: Run, force: bool) -> None:
    if run.kind != "pipeline":
        raise UserError(f"{run.name}: its files are yours: condorctl adopted it and removes none")
    if run.owner != getpass.getuser():
        raise UserError(f"{run.name} is {run.owner}'s: only they can clean it")
    if not run.finished:
        raise UserError(f"{run.name} is still going ({run.state}): `condorctl cancel {run.name}`")
    if run.path.is_dir() and not sharing.is_ours_to_read(ledger, run):
        raise UserError(f"{run.name}: its folder is on {run.host}: clean it there")
    whole = run.cleaned or (run.dag and run.dag.is_file())
    if run.path.is_symlink() or (run.path.is_dir() and not whole):
        raise UserError(f"{run.folder} is not the folder that {run.name} was given: look at it")
    if force:
        return
    for other in session.scalars(select(Run).where(Run.finished.is_(None))):
        for source in other.provenance.get("inputs", {}).values():
            if not source["copied"] and Path(source["source"]).is_relative_to(run.path):
                raise UserError(
                    f"{run.name}: {other.name}, which is going, reads {source['source']}; "
                    "--force removes it all the same"
                )


def _leaves(folder: Path, kept: set[Path]) -> Iterator[Path]:
    """What is to go at or below `folder`, links not followed, what a folder holds before it."""
    if not folder.is_dir() or folder in kept:
        return
    for path in folder.iterdir():
        if path in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _leaves(path, kept)
        yield path


def _alone(paths: Sequence[Path]) -> Iterator[os.stat_result]:
    """The state of each file that has no second name elsewhere: removing it frees its space."""
    names: dict[tuple[int, int], int] = {}
    for path in paths:
        found = path.lstat()
        key = (found.st_dev, found.st_ino)
        names[key] = names.get(key, 0) + 1
        if path.is_symlink() or not path.is_dir():
            if names[key] == found.st_nlink:
                yield found
        else:
            yield found


def _remove(folder: Path, going: Sequence[Path]) -> None:
    """Remove `going`, and what is empty then, with `folder` itself."""
    for path in going:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _mark(run: Run) -> None:
    """Checkpoints that are gone have no place any more."""
    for stage in run.stages:
        for job in stage.jobs:
            for checkpoint in job.checkpoints:
                if checkpoint.place and not Path(checkpoint.place).exists():
                    checkpoint.place = None
