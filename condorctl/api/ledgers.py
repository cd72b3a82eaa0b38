"""The ledger itself: made again from the runs' folders, compared with HTCondor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from condorctl.api.base import Json, Progress, open_ledger, silent


def ledger_rebuild(folders: Sequence[Path] = (), progress: Progress = silent) -> Json:
    """Enter runs that the ledger does not have, from what lies in their folders.

    Without `folders`, from exp/runs and from what is kept beside the ledger. Returns `ledger` and
    the names of the runs that were `added`, `known` already, and `kept` (a run.json was written for
    them); `problems` name what could not be read, `remarks` what is missing (`ledger.rebuild`).
    """
    from condorctl.ledger import events, rebuild

    ledger = open_ledger()
    found = rebuild.rebuild(ledger, folders, progress)
    events.sync(ledger)
    return {"ledger": ledger.name, **dataclasses.asdict(found)}


def ledger_check() -> Json:
    """Compare the ledger with the queue and the history of the schedd, and with the runs' folders.

    Returns `ok`, `differences` (kind, run, job, text, mend), `checked` (the number of runs and
    jobs), `forgotten` (jobs that the history does not reach back to) and `remarks`.
    """
    from condorctl.ledger import check

    return check.check(open_ledger())
