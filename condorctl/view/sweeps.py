"""The stages of a sweep told as one: grouped by what their names have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What tells the stages of a sweep apart: from the first digit on, else all but the first word.
_STEMS = (re.compile(r"^(.*?)(?:[-_.]?\d.*)$"), re.compile(r"^([A-Za-z]+)"))


def grouped(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """`names` by their stems (``train-1-0.1``, ``train-2-0.1``: ``train``), in their order.

    By shorter stems where there would be more than `most` groups; there may be more still.
    """
    for stem in _STEMS:
        groups: dict[str, list[str]] = {}
        for name in names:
            match = stem.match(name)
            groups.setdefault((match and match[1]) or name, []).append(name)
        if len(groups) <= most:
            break
    return groups


def label(stem: str, members: Sequence[str]) -> str:
    """``train* (12)``; the name itself where it is the only one."""
    return members[0] if len(members) == 1 else f"{stem}* ({len(members)})"
