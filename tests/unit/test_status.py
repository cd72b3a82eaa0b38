"""The tree that `status --json` prints: aggregated states, the job to show, what is not known."""

from __future__ import annotations

import json
import time

import pytest

from condorctl.ledger import Checkpoint, Run, progress
from condorctl.view import status
from tests.unit import runs_made
from tests.unit.runs_made import job, run, stage


def described(of: Run, unreachable: str | None = None) -> status.Json:
    view = status.describe(of, unreachable)
    json.dumps(view, allow_nan=False)
    return view


def only_stage(of: Run) -> status.Json:
    (found,) = described(of)["stages"]
    return dict(found)


def test_every_attempt_is_in_the_tree_with_what_it_left() -> None:
    first = job(("idle", 0), ("running", 5), ("failed", 9), cluster=3, exit_code=74)
    second = job(
        ("idle", 10), ("running", 15), ("completed", 19), cluster=4, attempt=2, cpus=2,
        usage={"cpu_s": 3.0}, machine={"host": "node"},
        checkpoints=[Checkpoint(path="c.pt", epoch=1, bytes=5, sha256="ab", place="/c.pt")],
    )  # fmt: skip
    found = only_stage(run(stage("one", first, second, retries=1), finished=20.0, state="done"))
    assert (found["state"], found["job"], found["attempt"]) == ("done", "4.0", 2)
    assert [(j["id"], j["state"], j["exit_code"]) for j in found["jobs"]] == [
        ("s#3.0", "failed", 74), ("s#4.0", "completed", 0),
    ]  # fmt: skip
    assert found["jobs"][0]["ended_with"] == "exit code 74: an output was not written"
    told = found["jobs"][1]
    assert (told["cpus"], told["usage"], told["machine"]) == (2, {"cpu_s": 3.0}, {"host": "node"})
    assert told["checkpoints"][0]["path"] == "c.pt"
    assert [entered["state"] for entered in told["states"]] == ["idle", "running", "completed"]


@pytest.mark.parametrize(
    ("states", "expected", "shown"),
    [
        (["completed", "completed"], "done", 0),
        (["completed", "running"], "running", 1),
        (["running", "held", "running"], "held", 1),
        (["running", "failed"], "running", 1),
        (["completed", "failed"], "failed", 1),
        (["completed", "removed"], "removed", 1),
        (["idle", "running"], "running", 1),
        (["disconnected", "idle"], "disconnected", 0),
    ],
)
def test_several_processes_have_one_state_and_the_one_that_needs_its_user_is_shown(
    states: list[str], expected: str, shown: int
) -> None:
    jobs = [job(("idle", 0), (state, 5), proc=n) for n, state in enumerate(states)]
    found = only_stage(run(stage("one", *jobs)))
    assert (found["state"], found["job"]) == (expected, f"1.{shown}")
    assert found["counts"] == {state: states.count(state) for state in states}


def test_a_hold_beside_a_job_that_runs_is_told_but_is_not_the_end() -> None:
    jobs = [
        job(("idle", 0), ("held", 5), hold_code=1, hold_subcode=0, hold_reason="x"),
        job(("idle", 0), ("running", 5), proc=1),
    ]
    view = described(run(stage("one", *jobs)))
    assert not status.is_stuck(view)
    assert "one (1.0) is held" in status.troubles(view)[0]
    assert status.is_stuck(described(run(stage("one", jobs[0]))))


def test_dagmans_verdict_stands_above_the_jobs() -> None:
    good = job(("idle", 0), ("running", 5), ("completed", 9))
    bad = job(("idle", 0), ("running", 5), ("failed", 9))
    assert only_stage(run(stage("one", good, outcome="failed")))["state"] == "failed"
    assert only_stage(run(stage("one", bad, outcome="done")))["state"] == "done"
    assert only_stage(run(stage("one", outcome="done"), finished=9.0))["state"] == "done"
    # A new attempt of a stage that failed before, as in a run that was resumed.
    again = job(("idle", 20), ("running", 25), cluster=2, attempt=2)
    assert only_stage(run(stage("one", bad, again, outcome="failed")))["state"] == "running"


def test_a_reused_stage_is_done_and_names_its_source() -> None:
    source = stage("train", job(("idle", 0), ("running", 5), ("completed", 9), cluster=7))
    run(source, name="p-1")
    later = stage("eval", needs=["train"])
    train, after = described(run(stage("train", source=source), later, name="p-2"))["stages"]
    assert (train["state"], train["reused_from"], train["job"]) == ("done", "p-1/train", "7.0")
    assert train["jobs"] == []
    assert after["state"] == "ready"


def test_what_is_not_known_is_never_a_failure() -> None:
    now = time.time()
    of = run(
        stage("one", job(("idle", now - 900), ("running", now - 600))), submitted=now - 900,
        seen=now - 180,
    )  # fmt: skip
    view = described(of, "the schedd does not answer")
    assert (view["state"], view["stages"][0]["state"]) == ("running", "running")
    assert view["unreachable"] == "the schedd does not answer"
    assert view["as_of"] == of.seen
    assert 179 < view["age_s"] < 200
    # What passed since nobody knows: it is not counted.
    assert view["elapsed_s"] == pytest.approx(720, abs=2)
    assert view["cost"]["cpu_h"]["open"] == pytest.approx(420 / 3600, abs=1e-3)
    ended = described(run(stage("one"), finished=5.0, state="failed"), "the schedd does not answer")
    assert (ended["unreachable"], ended["age_s"], ended["as_of"]) == (None, None, 5.0)


def test_a_schedd_that_was_not_asked_is_named() -> None:
    of = run(stage("one"), schedd="elsewhere", seen=50.0)
    assert status.doubt(of, None, since=40.0) is None
    assert "elsewhere" in str(status.doubt(of, None, since=60.0))
    assert status.doubt(of, "no answer", since=60.0) == "no answer"
    of.finished = 60.0
    assert status.doubt(of, "no answer", since=70.0) is None


def test_the_pace_is_that_of_the_present_start() -> None:
    now = time.time()
    of = job(("idle", now - 99), ("running", now - 90), ("idle", now - 50), ("running", now - 40))
    of.progress = runs_made.progress(
        10, (1, 1, now - 80, 4, now - 50), (2, 5, now - 30, 7, now - 10)
    )
    found = only_stage(run(stage("one", of)))
    assert found["s_per_epoch"] == pytest.approx(10)
    # Three epochs are left; the one at hand should be over by now.
    assert found["eta_s"] == pytest.approx(20, abs=1)
    assert described(run(stage("one", of)))["eta_s"] == found["eta_s"]
    # Of a stage that has not begun nobody knows.
    assert described(run(stage("one", of), stage("two", needs=["one"])))["eta_s"] is None


def test_progress_grows_as_the_job_tells_and_an_eviction_begins_anew() -> None:
    of = job(("idle", 0), ("running", 10))

    def tell(epoch: int, when: float, first: tuple[int, float]) -> None:
        record = {
            "epoch": epoch, "epochs": 9, "metrics": {}, "time": when,
            "first": {"epoch": first[0], "time": first[1]},
        }  # fmt: skip
        of.progress = progress.heard(of, record) or of.progress

    tell(3, 40.0, (1, 20.0))
    tell(5, 60.0, (1, 20.0))
    assert progress.seconds_per_epoch(of) == 10
    again = job(("idle", 0), ("running", 10), ("idle", 65), ("running", 80), progress=of.progress)
    of = again
    # The attribute of the first start is still in the queue.
    tell(5, 60.0, (1, 20.0))
    assert progress.seconds_per_epoch(of) is None
    # Seen late, but the job says that it had begun with epoch 1 again.
    tell(3, 120.0, (1, 90.0))
    assert of.progress is not None
    assert [(s["start"], s["first"], s["last"]) for s in of.progress["starts"]] == [
        (1, 1, 5), (2, 1, 3),
    ]  # fmt: skip
    assert progress.seconds_per_epoch(of) == 15


def test_lines_that_came_with_a_checkpoint_are_not_of_this_attempt() -> None:
    """A retry's record begins with the epochs of the attempt before; it went on with the third."""
    of = job(("idle", 50), ("running", 60), ("completed", 150), cluster=2, attempt=2)
    lines = [
        {"epoch": epoch, "epochs": 4, "metrics": {}, "time": when}
        for epoch, when in ((1, 20.0), (2, 30.0), (3, 80.0), (4, 90.0))
    ]
    found = progress.ended(of, lines)
    assert found is not None
    assert [(s["start"], s["first"], s["last"]) for s in found["starts"]] == [(1, 3, 4)]


def test_what_the_file_holds_replaces_what_was_overheard_of_the_same_start() -> None:
    of = job(("idle", 0), ("running", 10), ("idle", 65), ("running", 80), ("completed", 150))
    of.progress = runs_made.progress(9, (1, 2, 30.0, 4, 50.0), (2, 6, 100.0, 6, 100.0))
    lines = [
        {"epoch": epoch, "epochs": 9, "metrics": {}, "time": 80.0 + 10 * (epoch - 4)}
        for epoch in range(5, 10)
    ]
    found = progress.ended(of, lines)
    assert found is not None
    assert [(s["start"], s["first"], s["last"]) for s in found["starts"]] == [(1, 2, 4), (2, 5, 9)]
    assert progress.ended(of, []) == of.progress


@pytest.mark.parametrize(
    "record",
    [{}, {"epoch": 1}, {"epoch": "1", "epochs": 2, "metrics": {}},
     {"epoch": 1, "epochs": 1 << 70, "metrics": {}}, {"epoch": True, "epochs": 2, "metrics": {}}],
)  # fmt: skip
def test_a_record_that_is_no_progress_changes_nothing(record: status.Json) -> None:
    assert progress.heard(job(("idle", 0), ("running", 1)), record) is None


def test_a_foreign_record_without_a_time_gets_one_when_it_changes() -> None:
    of = job(("idle", 0), ("running", 1))
    record = {"epoch": 1, "epochs": 2, "metrics": {}, "first": {"epoch": "x"}}
    of.progress = progress.heard(of, record)
    assert of.progress is not None
    first = of.progress["time"]
    assert first == pytest.approx(time.time(), abs=5)
    assert (progress.heard(of, record) or {})["time"] == first


def test_how_often_in_a_row_nodes_gave_a_job_back_with_an_error() -> None:
    error, now = "Error from slot1@n1: Singularity test failed:FATAL: no", time.time()

    def back(*entered: tuple[str, float, str]) -> int:
        of = job(*((state, now - ago) for state, ago, _ in entered))
        for one, (_, _, detail) in zip(of.states, entered, strict=True):
            one.detail = detail
        view = described(run(stage("s", of)))
        found = view["stages"][0]["sent_back"]
        lines = status.troubles(view)
        assert any("was sent back" in line for line in lines) == bool(found and found["times"] > 1)
        return int(found["times"]) if found else 0

    start, ran = ("idle", 900, ""), ("running", 800, "n1")
    first, again = ("idle", 790, error), [("running", 80, "n1"), ("idle", 70, error)]
    assert back(start) == back(start, ran) == 0
    assert back(start, ran, ("idle", 700, "vacated by condor_vacate_job")) == 0
    assert back(start, ran, first) == 1
    assert back(start, ran, first, *again) == 2
    # What runs now may be given back within seconds, or run.
    assert back(start, ran, first, *again, ("running", 5, "n2")) == 2
    assert back(start, ran, first, *again, ("running", 65, "n2")) == 0
    assert back(start, ran, first, *again, ("idle", 1, "vacated by condor_vacate_job")) == 0
    assert back(start, ran, first, ("held", 90, ""), ("idle", 85, ""), *again) == 1
