"""What was found at a look at this machine, a pool, a site or an image."""

from __future__ import annotations

from typing import NamedTuple

# A problem keeps a pipeline from being submitted or from running; a warning takes something away,
# such as files out of running jobs.
OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """What was looked at, how it stands, what was found in words, what mends it (None: nothing)."""

    check: str
    state: str
    what: str
    mend: str | None = None
