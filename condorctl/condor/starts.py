"""Why a node gave a job back, in the words of HTCondor and of what runs its containers.

HTCondor tries such a job again, on any node and for ever: nothing but its event log tells.
"""

from __future__ import annotations

import re

# The subcode of the hold that `submit.requests` asks for; HTCondor's own code for such a start.
NOT_STARTED = 45

_SAYS = re.compile(r".*?\bError from (?P<slot>\S+?): (?P<words>.*)", re.DOTALL)
_SLOT = re.compile(r"(?:slot\w+@)?(?P<node>.+)")

_ELSEWHERE = (
    'if other nodes can: `requirements: Machine != "{node}"`, and submit again; else ask the '
    "pool's administrator"
)
_CORRECT = "correct `image` and submit again: a path is one of the nodes, a .sif file here travels"

# The first that fits.
_CAUSES: list[tuple[re.Pattern[str], str, str]] = [
    (
        re.compile(
            r"could not open image (?P<what>[^\s:]+).*(?:no such file|failed to retrieve)", re.I
        ),
        "{slot} has no image {what}",
        _CORRECT,
    ),
    (
        re.compile(r"Singularity test failed:?.*no space left on device", re.I | re.DOTALL),
        "{slot} has no room to open its image",
        _ELSEWHERE,
    ),
    (
        re.compile(
            r"Singularity test failed:?.*"
            r"(?P<what>user namespace|newuidmap|newgidmap|operation not permitted|loop device)",
            re.I | re.DOTALL,
        ),
        "{slot} does not let Apptainer make a container ({what})",
        _ELSEWHERE,
    ),
    (
        re.compile(r"Singularity test failed:?\s*(?P<what>.*)", re.I | re.DOTALL),
        "Apptainer on {slot} cannot start its image: {what}",
        "see whether `apptainer test IMAGE` works there (a sandbox must be one that `apptainer "
        "build` made); " + _ELSEWHERE,
    ),
    (
        re.compile(r"Cannot inspect exited container"),
        "Docker on {slot} has lost its container",
        _ELSEWHERE,
    ),
]


def explain(reason: str) -> tuple[str, str]:
    """The cause and the mend, from what HTCondor says of the eviction or of the hold after it."""
    said = _SAYS.fullmatch(reason)
    words = " ".join((said["words"] if said else reason).split())
    slot = said["slot"] if said else "its node"
    node = _SLOT.fullmatch(slot)
    cause, mend = "{slot} gave it back: {what}", _ELSEWHERE
    what = words
    for pattern, known, remedy in _CAUSES:
        if found := pattern.search(words):
            cause, mend = known, remedy
            what = found.groupdict().get("what") or words
            break
    # What they say may hold anything, braces included: it is put in last.
    cause = cause.replace("{slot}", slot).replace("{what}", what)
    return cause, mend.replace("{node}", node["node"] if said and node else "NODE")
