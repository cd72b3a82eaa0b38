"""Requests that may grow: the steps up to the limit, and the units that HTCondor counts in."""

from __future__ import annotations

import itertools
import re

import classad2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from condorctl.spec.pipeline import Stage, kilobytes
from condorctl.submit import requests


def growth(**keys: str) -> str:
    return requests.lines(None, Stage.model_validate({"name": "s", "command": ["x"], **keys}))[
        "growth"
    ]


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("1K", 1), ("1 KB", 1), ("1.5 MB", 1536), ("4 GB", 4 * 1024**2), ("0.3K", 1), ("2T", 2**31)],
)
def test_amounts_are_binary_and_rounded_up(amount: str, expected: int) -> None:
    assert kilobytes(amount) == expected


def test_a_stage_without_limits_says_nothing_of_growth() -> None:
    assert growth() == ""


@given(st.integers(1, 5000), st.integers(1, 500_000))
def test_each_step_doubles_and_the_limit_is_the_last(asked: int, more: int) -> None:
    most = asked + more
    text = growth(request_memory=f"{asked} MB", max_memory=f"{most} MB")
    steps = [asked, *map(int, re.findall(r"(\d+) MB", text))]
    assert steps[-1] == most
    assert all(b == 2 * a for a, b in itertools.pairwise(steps[:-1]))
    assert steps[-2] < most <= 2 * steps[-2]
    # The same limit for an HTCondor that knows no such command.
    assert f" {most} }})\n" in text


def test_memory_is_counted_in_mb_and_disk_in_kb() -> None:
    text = growth(request_memory="1 GB", max_memory="3 GB", request_disk="1 MB", max_disk="1.5 MB")
    assert "  retry_request_memory = 2048 MB, 3072 MB\n" in text
    assert "  retry_request_disk = 1536 KB\n" in text
    assert text.count("HoldReasonSubCode == 102") == text.count("HoldReasonSubCode == 104") == 1


def gpus(**keys: object) -> list[str]:
    stage = Stage.model_validate({"name": "s", "command": ["x"], **keys})
    lines = requests.lines(None, stage)
    return [" ".join(line.split()) for name in ("gpus", "requirements") for line in
            lines[name].splitlines()]  # fmt: skip


def test_gpus_are_asked_for_with_what_each_must_have() -> None:
    assert gpus() == gpus(request_gpus=0, gpus_minimum_memory="8 GB") == []
    found = gpus(request_gpus=2, gpus_minimum_memory="8.5 GB", gpus_minimum_capability=8)
    assert found == [
        "request_gpus = 2",
        "gpus_minimum_memory = 8704",
        "gpus_minimum_capability = 8.0",
    ]


def test_a_job_that_may_do_without_asks_by_its_age_and_takes_any_slot_then() -> None:
    lines = gpus(request_gpus=1, cpu_after="2 h", gpus_minimum_memory="8 GB", requirements="Mine")
    assert lines[:2] == [
        "MY.CondorctlCpuAfter = 7200",
        "request_gpus = time() - QDate < MY.CondorctlCpuAfter ? 1 : 0",
    ]
    some = "TARGET.GPUs >= RequestGPUs"
    count = "countMatches(MY.RequireGPUs, TARGET.AvailableGPUs) >= RequestGPUs"
    none = "TARGET.PartitionableSlot =?= true || (TARGET.GPUs ?: 0) == 0"
    both = f"RequestGPUs == 0 ? ({none}) : ({some} && {count})"
    assert lines[-1] == f"requirements = (Mine) && ({both})"


@pytest.mark.parametrize(
    ("failed", "starts", "holds", "held"),
    [
        (0, 0, 0, False),
        (2, 2, 0, False),
        (3, 3, 0, True),
        # While the fourth goes on nobody knows whether it failed.
        (3, 4, 0, False),
        # Each start that went well, and each hold, gives as many tries more.
        (5, 6, 0, False),
        (6, 7, 0, True),
        (5, 5, 1, False),
        (6, 6, 1, True),
    ],
)
def test_a_container_is_tried_so_often_and_no_eviction_counts(
    failed: int, starts: int, holds: int, held: bool
) -> None:
    keys = {"name": "s", "command": ["x"], "universe": "docker", "image": "x"}
    stage = Stage.model_validate({**keys, "container_tries": 3})
    lines = requests.lines(None, stage)["container"]
    ad = classad2.ClassAd(
        f'[ NumJobStarts = {starts}; VacateReasonCode = 45; VacateReason = "Error from x";'
        f"NumVacatesByReason = [ SingularityTestFailed = {failed}; ScheddVacate = 7 ];"
        f"NumHoldsByReason = [ JobPolicy = {holds}; UserRequest = 9 ] ]"
    )
    for line in lines.splitlines():
        name, _, expression = line.partition("=")
        ad[name.strip().removeprefix("MY.")] = classad2.ExprTree(expression)
    assert ad.eval("periodic_hold") is held
    told = ad.eval("periodic_hold_reason")
    assert told == f"its container could not be started {failed} times; Error from x" or not held
    for other in ({"container_tries": 0}, {"universe": "vanilla", "image": ""}):
        plain = requests.lines(None, Stage.model_validate({**keys, **other}))
        assert plain["container"] == ""
    # Of a schedd that does not count them, none is held.
    del ad["NumVacatesByReason"], ad["VacateReasonCode"], ad["VacateReason"]
    assert ad.eval("periodic_hold") is False
