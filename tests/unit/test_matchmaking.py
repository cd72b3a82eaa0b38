"""HTCondor's analysis of why jobs do not match, recorded from condor_q 25.14.1."""

from __future__ import annotations

from pathlib import Path

from condorctl.explain import matchmaking
from condorctl.explain.matchmaking import Analysis

RECORDED = Path(__file__).parent / "recorded"


def _parsed(name: str) -> Analysis:
    found = matchmaking.parse((RECORDED / name).read_text())
    assert found
    return found


def test_clauses_that_no_slot_meets() -> None:
    found = _parsed("no_such_system.txt")
    assert (found.slots, found.machines, found.rejected, found.willing) == (1, 1, 1, 0)
    assert [c.condition for c in found.excluding] == ['OpSysAndVer == "AlmaLinux9"', "HasDocker"]
    assert found.reason == "no match found"
    assert [c.matched for c in found.clauses] == [0, 0, 1, 1]


def test_clauses_that_some_slot_meets_but_none_meets_together() -> None:
    found = _parsed("no_single_slot.txt")
    [joined] = found.excluding
    assert joined.joined
    assert joined.condition == "TARGET.Memory >= RequestMemory && TARGET.Cpus >= RequestCpus"
    assert {c.condition: c.matched for c in found.clauses}["TARGET.Cpus >= RequestCpus"] == 1


def test_a_busy_slot_is_not_one_that_never_fits() -> None:
    """With its second column, "If Drained", and slots that would match."""
    found = _parsed("busy.txt")
    assert (found.rejected, found.refused, found.willing) == (0, 0, 0)
    assert found.excluding == ()
    assert len(found.clauses) == 5


def test_what_is_no_analysis() -> None:
    for text in ("", "-- Schedd: x : <127.0.0.1:9618>\n", "Error: no such job"):
        assert matchmaking.parse(text) is None
    # A clause that refers to itself, which no condor_q prints, ends all the same.
    loop = "".join(f"    [{n}]    : [{n - 1}] && [{n}] && [{n - 1}]\n" for n in range(60))
    assert matchmaking.parse(loop + "\n[59]   0  [58] && [57]\nOf 1 slots on 1 machines")
