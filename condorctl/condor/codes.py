"""The numbers by which HTCondor's job ads and event logs name what they mean.

HTCondor manual, "Job ClassAd Attributes" and "Job Event Log Codes". htcondor2 has such names too,
but importing it settles which pool this process talks to (`pool.activate`).
"""

from __future__ import annotations

from enum import IntEnum


class JobStatus(IntEnum):
    """`JobStatus` of a job's ad."""

    IDLE = 1
    RUNNING = 2
    REMOVED = 3
    COMPLETED = 4
    HELD = 5
    TRANSFERRING_OUTPUT = 6
    SUSPENDED = 7


# A job with one of these is in the queue only until its node, or whoever fetches it, has answered.
OVER = frozenset({JobStatus.REMOVED, JobStatus.COMPLETED})


class JobUniverse(IntEnum):
    """`JobUniverse` of a job's ad, where it makes a difference here."""

    # What the schedd starts itself, DAGMan above all.
    SCHEDULER = 7
    LOCAL = 12


ON_SUBMIT_MACHINE = frozenset({JobUniverse.SCHEDULER, JobUniverse.LOCAL})


class JobEvent(IntEnum):
    """The type of an event, by the number that stands in the log."""

    SUBMIT = 0
    EXECUTE = 1
    EVICTED = 4
    TERMINATED = 5
    IMAGE_SIZE = 6
    SHADOW_EXCEPTION = 7
    ABORTED = 9
    SUSPENDED = 10
    UNSUSPENDED = 11
    HELD = 12
    RELEASED = 13
    POST_SCRIPT_TERMINATED = 16
    REMOTE_ERROR = 21
    DISCONNECTED = 22
    RECONNECTED = 23
    RECONNECT_FAILED = 24
    PRE_SKIP = 34
    FILE_TRANSFER = 40
