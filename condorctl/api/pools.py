"""The pool that this machine has."""

from __future__ import annotations

import dataclasses

from condorctl.api.base import Json, Progress, silent


def pool_up(cpus: int | None = None, progress: Progress = silent) -> Json:
    """Use the pool that is there; else fetch HTCondor and start a personal one, without root."""
    from condorctl import pool

    return dataclasses.asdict(pool.up(cpus, progress))


def pool_down() -> Json:
    """Stop the personal pool; leaves no process."""
    from condorctl import pool

    return dataclasses.asdict(pool.down())


def pool_status() -> Json:
    """Which pool there is and what it does; its `state` is "down" when none answers."""
    from condorctl import pool

    return dataclasses.asdict(pool.status())
