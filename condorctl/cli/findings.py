"""Findings for a terminal: lines that wrap beside their label, commands in them left whole."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from condorctl.errors import printable

_COMMAND = re.compile(r"`[^`]*`")


def lines(finding: dict[str, Any]) -> Iterator[str]:
    """One of the doctor's findings: its state, what was looked at, what was found, the mend."""
    mend = f" — {finding['mend']}" if finding["mend"] else ""
    label = f"{finding['state']:<8} {finding['check']:<12}"
    yield from filled(label, finding["what"] + mend)


def tell(checks: Iterable[dict[str, Any]]) -> None:
    """Print such findings."""
    for finding in checks:
        print("\n".join(lines(finding)))


def filled(label: str, text: str) -> Iterator[str]:
    """`text` beside `label`, as wide as the terminal."""
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", "\0"), printable(text))
    lines = textwrap.wrap(
        whole,
        max(40, _width()),
        initial_indent=f"{label} ",
        subsequent_indent=" " * (len(label) + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (line.replace("\0", " ") for line in lines)


def _width() -> int:
    # What a program reads is one line a fact.
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
