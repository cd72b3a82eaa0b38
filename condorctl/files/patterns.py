"""Paths with ``*``, ``?``, ``[...]`` and ``**``, as a shell reads them, on lists of names.

``*`` stands for a part of one name, ``**`` for folders in any depth; a name that begins with a dot
is only meant where the pattern has the dot. A folder stands for all files in it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import cache
from pathlib import PurePosixPath

_MAGIC = re.compile(r"[*?\[]")


def is_pattern(path: str) -> bool:
    """Whether `path` may stand for several names."""
    return bool(_MAGIC.search(path))


def base(pattern: str) -> str:
    """The folder that holds all that can match: the parts before the first with a wildcard."""
    parts = PurePosixPath(pattern).parts
    first = next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)
    return str(PurePosixPath(*parts[:first]))


def select(names: Iterable[str], pattern: str) -> list[str]:
    """Those of `names`, paths of files, that match, or are in a folder that does; sorted."""
    parts = PurePosixPath(pattern).parts
    literal = PurePosixPath(pattern)
    return sorted(
        name
        for name in names
        if PurePosixPath(name) == literal
        or literal in PurePosixPath(name).parents
        or _fits(PurePosixPath(name).parts, parts)
    )


def _fits(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return True
    if pattern == ("**",):
        return not any(part.startswith(".") for part in name)
    if not name:
        return False
    if pattern[0] == "**":
        hidden = name[0].startswith(".")
        return _fits(name, pattern[1:]) or (not hidden and _fits(name[1:], pattern))
    return _part(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def _part(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return bool(_compiled(pattern).match(name))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
