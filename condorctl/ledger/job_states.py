"""The states that the ledger knows a job in, and which of them have something in common.

To HTCondor's own, idle, running, suspended, held and removed, come: "disconnected", when its node
does not answer; "completed" and "failed", when it has ended with exit code 0 and with anything
else; "unknown", when neither the queue nor the history of its schedd knows it any more.
"""

from __future__ import annotations

from condorctl.condor.codes import JobStatus

# What a job's ad means, but for the exit code. While it sends its output it still has its slot.
OF_STATUS: dict[int, str] = {
    JobStatus.IDLE: "idle",
    JobStatus.RUNNING: "running",
    JobStatus.REMOVED: "removed",
    JobStatus.COMPLETED: "completed",
    JobStatus.HELD: "held",
    JobStatus.TRANSFERRING_OUTPUT: "running",
    JobStatus.SUSPENDED: "suspended",
}

ENDED = frozenset({"completed", "failed", "removed"})
# It has a sandbox on a node that answers.
REACHABLE = frozenset({"running", "suspended"})
# It has its slot, as far as anybody can tell.
ON_NODE = REACHABLE | {"disconnected"}
# It will go on, by itself or when it is released.
OPEN = ON_NODE | {"idle", "held"}
# Of such a job, what it has written is at best in the schedd's spool.
OUT_OF_REACH = OPEN - REACHABLE
