"""Why a node could not have a job's image, in the words of Docker, Podman and Apptainer."""

from __future__ import annotations

import re

_IMAGE = re.compile(r"(?:Cannot pull image|Failed to pull image)\s+(?P<image>\S+)")

_AGAIN = "then `condorctl release {job}`"
_CORRECT = "correct `image` and submit again; `condorctl image push` prints a name that is there"

# The first that fits; a registry that wants a login often says that there is no such image.
_CAUSES: list[tuple[re.Pattern[str], str, str]] = [
    (
        re.compile(r"pull access denied|repository does not exist or may require", re.I),
        "the registry has no {image}, or wants a login for it",
        f"{_CORRECT}; or make it public there",
    ),
    (
        re.compile(r"unauthorized|authentication required|denied|forbidden", re.I),
        "the registry wants a login for {image}, which the node does not have",
        "make it public there, or ask the pool's administrator for a login",
    ),
    (
        re.compile(r"manifest unknown|name unknown|not found: manifest|no such image", re.I),
        "the registry has no {image}",
        _CORRECT,
    ),
    (
        re.compile(r"x509|certificate|server gave HTTP response", re.I),
        "the node does not trust the registry of {image}",
        f"ask the pool's administrator to have it trusted, {_AGAIN}",
    ),
    (
        re.compile(
            r"no such host|connection refused|i/o timeout|no route to host|network is unreachable"
            r"|deadline exceeded|timed? ?out",
            re.I,
        ),
        "the node cannot reach the registry of {image}",
        f"see that it runs and that the nodes may talk to it, {_AGAIN}; or push to another",
    ),
    (
        re.compile(r"no space left on device", re.I),
        "the node has no room for {image}",
        f"{_AGAIN.removeprefix('then ')} tries again, perhaps on another; or make it smaller",
    ),
]


def explain(reason: str) -> tuple[str, str] | None:
    """The cause and the mend of a hold with code 35; None where the words are not known."""
    named = _IMAGE.search(reason)
    image = named["image"] if named else "its image"
    for pattern, cause, mend in _CAUSES:
        if pattern.search(reason):
            return cause.replace("{image}", image), mend
    if named:
        return f"the node could not pull {image}", _CORRECT
    return None
