"""What runs took, against sums by hand. Seconds in the cases; hours in what is printed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condorctl.ledger import Job, Stage, executions
from condorctl.view import cost
from tests.unit.runs_made import job, progress, run, stage


def kinds(*jobs: Job, now: float = 1000.0, outcome: str | None = None) -> dict[str, float]:
    """CPU-seconds by kind, those of no kind left out."""
    of = stage("one", *jobs, outcome=outcome)
    run(of)
    found = cost.of_stage(of, now)
    return {kind: seconds for kind, seconds in found.cpu_s.items() if seconds}


def test_a_plain_job_is_useful_and_its_wait_is_not_paid() -> None:
    of = stage("one", job(("idle", 0), ("running", 30), ("completed", 130), cpus=4, gpus=2))
    run(of)
    found = cost.of_stage(of)
    assert found.cpu_s["useful"] == 400
    assert found.gpu_s["useful"] == 200
    assert (found.queue_s, found.on_machines_s, found.first_start, found.last_end) == (
        30, 100, 30, 130,
    )  # fmt: skip


def test_what_was_evicted_twice_is_repeated() -> None:
    states = [("idle", 0.0), ("running", 10.0), ("idle", 40.0), ("running", 50.0), ("idle", 55.0)]
    of = stage("one", job(*states, ("running", 60.0), ("completed", 160.0)))
    run(of)
    found = cost.of_stage(of)
    assert found.cpu_s == {
        "useful": 100, "repeated": 35, "wasted": 0, "open": 0, "suspended": 0,
    }  # fmt: skip
    assert found.queue_s == 10 + 10 + 5


@pytest.mark.parametrize("ending", ["failed", "removed", "held"])
def test_an_attempt_that_came_to_nothing_is_wasted(ending: str) -> None:
    assert kinds(job(("idle", 0), ("running", 10), (ending, 25))) == {"wasted": 15}


def test_a_hold_is_waste_even_when_the_job_is_released_and_ends_well() -> None:
    released = job(
        ("idle", 0), ("running", 10), ("held", 30), ("idle", 90), ("running", 95),
        ("completed", 105),
    )  # fmt: skip
    assert kinds(released) == {"wasted": 20, "useful": 10}
    assert executions.waited(released, "held", 1000) == 60
    assert executions.waited(released, "idle", 1000) == 15


def test_an_eviction_that_comes_with_a_removal_or_a_hold_is_none() -> None:
    # What HTCondor 25.14 logs for `condor_rm` and `condor_hold` of a job that runs.
    assert kinds(job(("idle", 0), ("running", 10), ("idle", 25), ("removed", 25))) == {"wasted": 15}
    held = [("idle", 0.0), ("running", 10.0), ("idle", 25.0), ("held", 26.0)]
    again = [("idle", 50.0), ("running", 60.0), ("completed", 70.0)]
    assert kinds(job(*held, *again)) == {"wasted": 15, "useful": 10}
    # Evicted, and held while it waited: the work was lost to the eviction.
    held[-1] = ("held", 45.0)
    assert kinds(job(*held, *again)) == {"repeated": 15, "useful": 10}


def test_a_retry_pays_for_the_failure_before_it() -> None:
    first = job(("idle", 0), ("running", 10), ("failed", 40))
    second = job(("idle", 50), ("running", 60), ("completed", 160), cluster=2, attempt=2)
    assert kinds(first, second) == {"wasted": 30, "useful": 100}


def test_what_nobody_ran_costs_nothing() -> None:
    assert kinds(job(("idle", 0), ("removed", 500))) == {}
    assert kinds(job(("idle", 0), ("held", 5))) == {}
    assert kinds() == {}


def test_what_runs_is_open_up_to_the_moment_that_is_known() -> None:
    assert kinds(job(("idle", 0), ("running", 10)), now=70) == {"open": 60}


def test_suspended_seconds_are_kept_apart() -> None:
    paused = job(
        ("idle", 0), ("running", 10), ("suspended", 20), ("running", 50), ("completed", 60)
    )
    assert kinds(paused) == {"useful": 20, "suspended": 30}
    assert kinds(job(("idle", 0), ("running", 10), ("suspended", 20)), now=50) == {
        "open": 10, "suspended": 30,
    }  # fmt: skip


def test_a_disconnected_job_goes_on_and_a_lost_one_ends_when_it_was_last_seen() -> None:
    back = job(
        ("idle", 0), ("running", 10), ("disconnected", 20), ("running", 50), ("completed", 60)
    )
    assert kinds(back) == {"useful": 50}
    lost = job(
        ("idle", 0), ("running", 10), ("disconnected", 20), ("idle", 500), ("running", 510),
        ("completed", 520),
    )  # fmt: skip
    assert kinds(lost) == {"repeated": 10, "useful": 10}


def test_a_start_after_a_start_means_that_the_first_was_lost() -> None:
    twice = job(("idle", 0), ("running", 10), ("running", 40), ("completed", 60))
    assert kinds(twice) == {"repeated": 30, "useful": 20}


def test_processes_of_a_cluster_add_up() -> None:
    one = job(("idle", 0), ("running", 10), ("completed", 20))
    two = job(("idle", 0), ("running", 10), ("failed", 40), proc=1)
    assert kinds(one, two) == {"useful": 10, "wasted": 30}
    # DAGMan runs the whole node again when one of them fails.
    assert kinds(one, two, outcome="failed") == {"wasted": 40}


def test_dagmans_verdict_stands_above_the_exit_code() -> None:
    assert kinds(job(("idle", 0), ("running", 0), ("completed", 9)), outcome="failed") == {
        "wasted": 9
    }
    assert kinds(job(("idle", 0), ("running", 0), ("failed", 9)), outcome="done") == {"useful": 9}


def test_what_a_later_start_went_on_from_is_not_repeated() -> None:
    # Epochs 1 to 6 end at 20, 30, ... 70; evicted at 75; the next start begins with epoch 5.
    states = [("idle", 0.0), ("running", 10.0), ("idle", 75.0), ("running", 100.0)]
    told = progress(8, (1, 1, 20.0, 6, 70.0), (2, 5, 110.0, 8, 140.0))
    ended = job(*states, ("completed", 145.0), progress=told)
    # Epoch 4 was done at 50: 40 s are kept, 25 s are done again.
    assert kinds(ended) == {"useful": 40 + 45, "repeated": 25}
    # As long as nobody knows how it ends, what is kept is open; if it fails, it was for nothing.
    assert kinds(job(*states, progress=told), now=145) == {"open": 85, "repeated": 25}
    failed = job(*states, ("failed", 145.0), progress=told)
    assert kinds(failed) == {"wasted": 85, "repeated": 25}


def test_a_start_that_begins_anew_repeats_everything() -> None:
    states = [("idle", 0.0), ("running", 10.0), ("idle", 75.0), ("running", 100.0)]
    told = progress(8, (1, 1, 20.0, 6, 70.0), (2, 1, 110.0, 8, 180.0))
    assert kinds(job(*states, ("completed", 185.0), progress=told)) == {
        "useful": 85, "repeated": 65,
    }  # fmt: skip


def test_an_older_checkpoint_undoes_what_was_kept_before() -> None:
    # 1..6, then 5..8, then back to 3: only the first two epochs of all that were kept.
    told = progress(9, (1, 1, 10.0, 6, 60.0), (2, 5, 110.0, 8, 140.0), (3, 3, 210.0, 9, 270.0))
    of = job(
        ("idle", 0), ("running", 0), ("idle", 65), ("running", 100), ("idle", 145),
        ("running", 200), ("completed", 275), progress=told,
    )  # fmt: skip
    assert kinds(of) == {"useful": 20 + 75, "repeated": 45 + 45}


def test_a_retry_may_go_on_where_the_failed_attempt_was() -> None:
    first = job(
        ("idle", 0), ("running", 0), ("failed", 55), progress=progress(8, (1, 1, 10.0, 5, 50.0))
    )
    second = job(
        ("idle", 60), ("running", 100), ("completed", 150), cluster=2, attempt=2,
        progress=progress(8, (1, 5, 110.0, 8, 140.0)),
    )  # fmt: skip
    assert kinds(first, second) == {"useful": 40 + 50, "wasted": 15}


def test_where_an_evicted_start_told_nothing_the_later_pace_stands_in() -> None:
    states = [("idle", 0.0), ("running", 10.0), ("idle", 75.0), ("running", 100.0)]
    told = progress(8, (2, 4, 110.0, 8, 150.0))
    assert kinds(job(*states, ("completed", 155.0), progress=told)) == {
        "useful": 30 + 55, "repeated": 35,
    }  # fmt: skip


def test_a_slot_that_is_not_known_is_what_the_submit_file_asks_for(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "stage.sub").write_text(
        "request_cpus            = 3\nrequest_gpus = 2\nrequest_memory = 2 GB\n"
    )
    of = stage("one", job(("idle", 0), ("running", 0), ("completed", 10), cpus=None, gpus=None))
    run(of, folder=tmp_path)
    found = cost.of_stage(of)
    assert (found.cpu_s["useful"], found.gpu_s["useful"]) == (30, 20)
    assert found.memory_request_mb == 2048


def test_use_is_measured_against_what_the_slot_had() -> None:
    used = job(
        ("idle", 0), ("running", 0), ("completed", 100), cpus=4,
        usage={"cpu_s": 100.0, "memory_mb": 300},
    )  # fmt: skip
    unknown = job(("idle", 0), ("running", 0), ("completed", 900), cluster=2)
    found = run(stage("one", used), stage("two", unknown))
    told = cost.of_run(found).as_json()
    assert told["cpu_efficiency"] == 0.25
    assert told["memory_peak_mb"] == 300
    assert told["cpu_h"]["total"] == round(1300 / 3600, 6)
    assert told["wall_s"] == 900
    assert told["on_machines_s"] == 1000


def test_a_reused_stage_costs_nothing_and_says_what_it_saved() -> None:
    source = stage("train", job(("idle", 0), ("running", 0), ("idle", 50), ("running", 60),
                                ("completed", 160), gpus=2))  # fmt: skip
    run(source)
    middle = stage("train", source=source)
    run(middle, name="p-2")
    again = stage("train", source=middle)
    found = cost.of_run(run(again, stage("eval"), name="p-3")).as_json()
    assert (found["cpu_h"]["total"], found["wall_s"]) == (0, None)
    assert found["saved"] == {"cpu_h": round(100 / 3600, 6), "gpu_h": round(200 / 3600, 6)}


def test_the_end_of_a_run_ends_what_its_log_left_running() -> None:
    of = stage("one", job(("idle", 0), ("running", 10)))
    run(of, finished=40.0)
    assert cost.of_stage(of, 1000.0).cpu_s["open"] == 30


@given(
    st.lists(
        st.sampled_from(["idle", "running", "suspended", "disconnected", "held"]), max_size=12
    ),
    st.sampled_from(["completed", "failed", "removed", "running"]),
    st.lists(st.integers(0, 100), min_size=14, max_size=14),
)
def test_no_second_is_lost_or_counted_twice(states: list[str], last: str, steps: list[int]) -> None:
    times = list(itertools.accumulate(steps))
    of = job(*zip(["idle", *states, last], map(float, times), strict=False))
    now = float(times[-1] + 10)
    run(one := stage("one", of))
    found = cost.of_stage(one, now)
    assert sum(found.cpu_s.values()) == pytest.approx(found.on_machines_s)
    assert found.on_machines_s + found.queue_s + found.held_s <= now - times[0] + 1e-9
    assert all(seconds >= 0 for seconds in found.cpu_s.values())
    assert isinstance(one, Stage)
