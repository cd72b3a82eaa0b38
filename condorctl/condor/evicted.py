"""Files that the schedd keeps of a job: of one that was evicted or held, of one that was spooled.

See HTCondor's manual, "condor_evicted_files" and "condor_transfer_data".
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from condorctl.deadline import Deadline
from condorctl.errors import UserError

_ASK_S = 60.0
# The schedd sends everything at once, and says nothing meanwhile.
_TRANSFER_S = 3600.0


def folder(job: str) -> Path | None:
    """Where the schedd keeps what the job ``cluster.proc`` had when it last left its slot.

    None when it has kept nothing: its transfers are ON_EXIT, or it never started.
    """
    words = ["condor_evicted_files", "dir", job]
    try:
        answer = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    text = answer.stdout.decode(errors="surrogateescape").strip()
    found = Path(text.removeprefix(job).strip())
    return found if found.is_absolute() and found.is_dir() else None


def bring(job: str, deadline: Deadline) -> str | None:
    """Have the schedd send the files of a spooled job to the folder it was submitted from.

    A job that has ended leaves the queue with that. Returns what did not come, in HTCondor's own
    words; raises UserError when it does not get done.
    """
    words = ["condor_transfer_data", job]
    limit = deadline.left(_TRANSFER_S)
    try:
        answer = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except FileNotFoundError:
        raise UserError("condor_transfer_data is not on PATH", 1) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"job {job}: condor_transfer_data was not done in {limit:.0f} s", 124
        ) from None
    if answer.returncode == 0:
        return None
    lines = answer.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"condor_transfer_data ended with {answer.returncode}"
