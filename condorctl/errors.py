"""The one error that a user is meant to see, and how foreign text is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file or object, the key and the mend. The command line
    prints it after ``error:`` and exits with ``exit_code``; nothing else is printed.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code


def printable(text: str) -> str:
    """`text` without control characters: what a job wrote must not drive the user's terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown `word`: the one that was meant, else all there are."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(known)}" if known else ""
