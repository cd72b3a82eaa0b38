"""How long the user wants to wait."""

from __future__ import annotations

import time

from condorctl.errors import UserError


class Deadline:
    """The end of the time that the user gave; None gives all there is."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float) -> float:
        """Seconds that a wait may last: `most`, or what is left. Raises UserError after the end."""
        if self._end is None:
            return most
        left = self._end - time.monotonic()
        if left <= 0:
            raise UserError(
                f"not done after {self._seconds:g} s: what has come is kept, the same command "
                "goes on from there; --timeout gives it longer",
                124,
            )
        return min(most, left)

    def sleep(self, seconds: float) -> None:
        time.sleep(self.left(seconds))
