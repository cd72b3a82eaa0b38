"""Whose run it is, in a ledger that a group shares.

Whoever can read a run's files brings the ledger up to date for everybody. A run in a folder that
is closed to us, or on another machine, stays as its owner last recorded it.
"""

from __future__ import annotations

import os
import socket

from sqlalchemy import select
from sqlalchemy.orm import object_session

from condorctl.job import METRICS_FILE
from condorctl.ledger import Ledger, Run, Stage


def is_ours_to_read(ledger: Ledger, run: Run) -> bool:
    """Whether the run's logs, and all that they lead to, can be read by this process, here.

    All or nothing: an event is read once, and the files that it announces with it.
    """
    if not ledger.shared:
        return True  # one's own ledger names one's own folders
    try:
        inode = run.path.stat().st_ino
    except OSError:
        return False
    if run.host == socket.gethostname():
        run.inode = inode
    elif run.inode != inode:
        return False
    session = object_session(run)
    names = session.scalars(select(Stage.name).where(Stage.run_id == run.id)) if session else ()
    # As text: of a DAG of ten thousand stages, each look at the run does this.
    folders = [run.folder, *(f"{run.folder}/{name}" for name in names)]
    files = [f"{run.dag_file}.{name}" for name in ("dagman.log", "nodes.log")]
    files += [f"{folder}/{METRICS_FILE}" for folder in folders[1:]]
    return all(_is_open(folder, os.R_OK | os.X_OK) for folder in folders) and all(
        _is_open(file, os.R_OK) for file in files
    )


def _is_open(path: str, mode: int) -> bool:
    return os.access(path, mode) or not os.path.lexists(path)
