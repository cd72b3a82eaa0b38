"""What a stage's submit file says about checkpoints, as the job reads it in its own ad.

Attributes of the ad are not part of what a stage's result depends on, as its environment is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# Seconds between two checkpoints, and two copies of them, where nothing else is said.
EVERY_S = 60.0

_ATTRIBUTE = re.compile(
    r'(Condorctl\w+|ClusterId|ProcId|WhenToTransferOutput) = (?:"([^"]*)"|(\d+))'
)


@dataclass(frozen=True)
class Settings:
    """`folder` is where copies go, relative to the job's Iwd, None outside a job of condorctl's.

    `interval_s` is the time after which the job exits with 85, None when HTCondor would take that
    for a failure; `copy_s` the least time between two copies; `brought` whether HTCondor itself
    brings the files along when it evicts the job. `job` is ``cluster.proc``.
    """

    folder: str | None = None
    interval_s: float | None = None
    copy_s: float = EVERY_S
    brought: bool = False
    job: str | None = None
    in_pool: bool = False

    @property
    def every_s(self) -> float:
        """How long after a checkpoint the next one is due."""
        return min(self.copy_s, self.interval_s or self.copy_s)

    @classmethod
    def of_this_job(cls) -> Settings:
        """Those in the ad of the job that this process is of."""
        try:
            text = Path(os.environ.get("_CONDOR_JOB_AD", "")).read_text(errors="replace")
        except OSError:
            return cls(in_pool="_CONDOR_SCRATCH_DIR" in os.environ)
        found = {m[1]: m[2] or m[3] for m in map(_ATTRIBUTE.fullmatch, text.splitlines()) if m}
        interval, copy = (found.get(f"Condorctl{name}Interval") for name in ("Checkpoint", "Copy"))
        return cls(
            folder=found.get("CondorctlCheckpoints"),
            interval_s=float(interval) if interval else None,
            copy_s=float(copy) if copy else EVERY_S,
            brought=found.get("WhenToTransferOutput") == "ON_EXIT_OR_EVICT",
            job=f"{found.get('ClusterId')}.{found.get('ProcId')}",
            in_pool=True,
        )
