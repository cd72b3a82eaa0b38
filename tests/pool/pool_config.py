"""The configuration of the tests' pool, otherwise for one test.

It bears a number, which each daemon tells when asked and the node's slot has in its ad: so it is
known when a change, or its end, is in force.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

_number = itertools.count(1)

_CHANGED = """
{text}
TEST_CONFIG = {number}
STARTD_ATTRS = $(STARTD_ATTRS) TEST_CONFIG
"""
_SLOT = "condor_status -const PartitionableSlot -af"
# At once: condor_restart has the master wait ten seconds and more. A node that ends takes its ad
# away: the one that is then there is of the node that was started anew.
_STOP_NODE = f"""
condor_off -startd -fast
until [ -z "$({_SLOT} Name)" ]; do sleep 0.2; done
"""
# Asked is the pool's own schedd, also where the test talks to another.
_TAKE = f"""
unset _CONDOR_SCHEDD_HOST
condor_reconfig
$1
for daemon in master collector negotiator schedd startd; do
    until condor_config_val -$daemon TEST_CONFIG 2>&1 | grep -qx "$2"; do sleep 0.2; done
done
until [ "$({_SLOT} TEST_CONFIG)" = "$3" ]; do sleep 0.2; done
"""


class PoolConfig:
    """The pool's configuration `file`, and `condor`, which runs a command on the pool."""

    def __init__(self, file: Path, condor: Callable[..., str]) -> None:
        self._file = file
        self._before = file.read_text()
        self._condor = condor
        self._changed = False
        self._restarts = False

    def change(self, text: str, without: str = "", restart: bool = False) -> None:
        """Have the pool go by what it had, but `without`, and then by `text`; returns when it does.

        The node takes some settings only when it starts: with `restart` it does, now and at the
        end.
        """
        assert without in self._before
        self._changed = True
        self._restarts |= restart
        number = str(next(_number))
        before = self._before.replace(without, "")
        self._take(before + _CHANGED.format(text=text, number=number), number, number, restart)

    def restore(self) -> None:
        """Have all as it was before; returns when it is."""
        if self._changed:
            self._take(self._before, "Not defined.*", "undefined", self._restarts)

    def _take(self, config: str, told: str, in_ad: str, restart: bool) -> None:
        if restart:
            self._run(_STOP_NODE)
        self._file.write_text(config)
        self._run(_TAKE, "condor_on -startd" if restart else "", told, in_ad)

    def _run(self, script: str, *words: str) -> None:
        self._condor("timeout", "180", "sh", "-c", script, "sh", *words)
