"""A schedd on another machine, which CONDORCTL_SCHEDD and CONDORCTL_COLLECTOR name.

Nothing but the network leads there: jobs are spooled (`spool`), and ID tokens say who one is
(HTCondor manual, "Security", "Token Authentication").
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import time
from pathlib import Path

# HTCondor's words for a client that it cannot tell who it is; SECMAN:2003 is about the network.
_UNKNOWN = re.compile(r"AUTHENTICATE:|SECMAN:20(04|05|10)")
# What a client may be asked for by a schedd that is not on this machine.
_METHODS = "IDTOKENS,SCITOKENS,SSL,KERBEROS,FS"


def schedd() -> str | None:
    """The name of the schedd elsewhere that this process talks to; None: the pool's own."""
    return os.environ.get("CONDORCTL_SCHEDD") or None


def collector() -> str | None:
    """The host of the collector that knows it; None: the one of the configuration."""
    return os.environ.get("CONDORCTL_COLLECTOR") or None


def settings() -> dict[str, str]:
    """What HTCondor must be told through its environment to talk to that schedd."""
    told = {}
    if host := collector():
        told["_CONDOR_COLLECTOR_HOST"] = host
    if name := schedd():
        told["_CONDOR_SCHEDD_HOST"] = name
    if told:
        # A personal pool knows but its owner, and keeps tokens of its own.
        told["_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS"] = _METHODS
        told["_CONDOR_SEC_TOKEN_DIRECTORY"] = str(tokens_dir())
    return {name: value for name, value in told.items() if name not in os.environ}


def tokens_dir() -> Path:
    """Where HTCondor looks for a user's tokens."""
    chosen = os.environ.get("_CONDOR_SEC_TOKEN_DIRECTORY")
    return Path(chosen) if chosen else Path.home() / ".condor" / "tokens.d"


def refusal(words: str) -> str | None:
    """What to do when a schedd elsewhere said `words`; None when they are about something else.

    Looks at when tokens end, and at nothing else in them.
    """
    folder, name = tokens_dir(), schedd()
    ask = f"`condor_token_request -name {name}` asks for one, its administrator approves it"
    if "DENIED" in words or "not authorized" in words.lower():
        return f"you are not authorised there: have its administrator allow you, or {ask}"
    if not _UNKNOWN.search(words):
        return None
    ends = [_end(file) for file in _files(folder)]
    if not ends:
        return f"no token in {folder}: {ask}"
    if all(end is not None and end < time.time() for end in ends):
        return f"every token in {folder} has expired: {ask}"
    return f"no token in {folder} is one of its pool's: {ask}"


def tokens() -> list[tuple[str, float | None]]:
    """Name and end (Unix seconds; None: it does not say) of each token, and nothing else of it."""
    return [(file.name, _end(file)) for file in sorted(_files(tokens_dir()))]


def _files(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.is_file()]
    except OSError:
        return []


def _end(file: Path) -> float | None:
    """When the token ends, in Unix seconds; None when it does not say."""
    try:
        _, payload, _ = file.read_text(encoding="ascii").strip().splitlines()[-1].split(".")
        text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return float(json.loads(text)["exp"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, binascii.Error):
        return None
