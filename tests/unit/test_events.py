"""Event logs into the ledger: real log text, read by HTCondor's own parser."""

from __future__ import annotations

import getpass
import json
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from condorctl import paths
from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.job.folder import Folder
from condorctl.ledger import Job, Ledger, Metric, Result, Run, Stage, ads, events, find, leavings
from condorctl.view import checkpoints, screen, status

SUBMIT = """\
000 ({0:03}.000.000) 2026-03-01 10:00:0{2} Job submitted from host: <127.0.0.1:9618>
    [ DAGNodeName = "{1}"; JobBatchName = "p-1" ]
...
"""
EXECUTE = """\
001 ({0:03}.000.000) 2026-03-01 10:01:0{1} Job executing on host: <127.0.0.1:9618?addrs=x>
\tSlotName: slot1_1@node
...
"""
EVICTED = """\
004 ({0:03}.000.000) 2026-03-01 10:02:00 Job was evicted.
\t(0) CPU times
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage
\t0  -  Run Bytes Sent By Job
\t0  -  Run Bytes Received By Job
...
"""
HELD = """\
012 ({0:03}.000.000) 2026-03-01 10:03:00 Job was held.
\tError from slot1_1@node: memory usage exceeded request_memory
\tCode 34 Subcode 102
...
"""
ENDED = """\
005 ({0:03}.000.000) 2026-03-01 10:09:00 Job terminated.
\t(1) Normal termination (return value {1})
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Remote Usage
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Local Usage
...
"""


@pytest.fixture
def ledger(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger with a run of two stages whose DAG job is not known yet; no pool answers."""
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    ledger = Ledger(paths.ledger())
    with ledger.session() as session:
        session.add(
            Run(
                name="p-1", pipeline="p", folder=str(project), dag_file=str(project / "p.dag"),
                params={}, owner=getpass.getuser(), schedd="s",
                submitted=time.time(),
                stages=[
                    Stage(name="one", position=0, needs=[], retries=1),
                    Stage(name="two", position=1, needs=["one"], retries=0),
                ],
            )
        )  # fmt: skip
    (project / "one").mkdir()
    return ledger


def write(project: Path, log: str, text: str) -> None:
    with (project / f"p.dag.{log}").open("a") as file:
        file.write(text)


def view(ledger: Ledger) -> status.Json:
    events.sync(ledger)
    with ledger.session() as session:
        return status.describe(find.run(session, None))


def states(ledger: Ledger) -> list[str]:
    return [stage["state"] for stage in view(ledger)["stages"]]


def test_a_run_moves_as_its_logs_grow(ledger: Ledger, project: Path) -> None:
    assert states(ledger) == ["ready", "waiting"]
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + EXECUTE.format(7, 0))
    write(project, "nodes.log", SUBMIT.format(8, "one", 1))
    assert view(ledger)["dag"] == "s#7.0"
    assert states(ledger) == ["idle", "waiting"]
    write(project, "nodes.log", EXECUTE.format(8, 1))
    assert view(ledger)["stages"][0]["host"] == "slot1_1@node"
    write(project, "nodes.log", EVICTED.format(8))
    assert states(ledger) == ["idle", "waiting"]
    write(project, "nodes.log", EXECUTE.format(8, 5))
    one = view(ledger)["stages"][0]
    assert (one["state"], one["starts"], one["attempt"]) == ("running", 2, 1)
    write(project, "nodes.log", HELD.format(8))
    hold = view(ledger)["stages"][0]["hold"]
    assert hold["cause"] == "it used more memory than it asked for"
    assert status.is_stuck(view(ledger))


def test_a_retry_is_a_job_of_its_own(ledger: Ledger, project: Path) -> None:
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 1))
    assert states(ledger) == ["retrying", "waiting"]
    write(project, "nodes.log", SUBMIT.format(9, "one", 2) + ENDED.format(9, 0))
    assert states(ledger) == ["done", "ready"]
    with ledger.session() as session:
        jobs = [(j.cluster, j.attempt, j.state) for j in session.scalars(select(Job))]
    assert jobs == [(8, 1, "failed"), (9, 2, "completed")]


def test_what_is_read_twice_is_recorded_once(ledger: Ledger, project: Path) -> None:
    log = SUBMIT.format(8, "one", 1) + EXECUTE.format(8, 1) + ENDED.format(8, 0)
    write(project, "nodes.log", log)
    assert states(ledger)[0] == "done"
    # Another file under the same name, as after a restore: it is read from its beginning. One that
    # is made where none is may get the number of the one before.
    write(project, "nodes.log.other", log + SUBMIT.format(9, "two", 3))
    (project / "p.dag.nodes.log.other").replace(project / "p.dag.nodes.log")
    assert states(ledger) == ["done", "idle"]
    with ledger.session() as session:
        [one, _] = session.scalars(select(Job).order_by(Job.cluster))
        assert [s.state for s in one.states] == ["idle", "running", "completed"]
        assert one.starts == 1


def test_what_was_written_before_a_log_was_renamed_is_read(ledger: Ledger, project: Path) -> None:
    write(project, "nodes.log", SUBMIT.format(8, "one", 1))
    assert states(ledger)[0] == "idle"
    write(project, "nodes.log", EXECUTE.format(8, 1) + ENDED.format(8, 0))
    (project / "p.dag.nodes.log").rename(project / "p.dag.nodes.log.1")
    write(project, "nodes.log", SUBMIT.format(9, "two", 3))
    for _ in range(2):
        assert states(ledger) == ["done", "idle"]
    with ledger.session() as session:
        assert [job.starts for job in session.scalars(select(Job))] == [1, 0]


def test_a_job_whose_submission_was_lost_is_found_in_its_stages_log(
    ledger: Ledger, project: Path
) -> None:
    (project / "one" / "events.log").write_text(ENDED.format(8, 1))
    write(project, "nodes.log", ENDED.format(8, 1) + ENDED.format(77, 0))
    assert states(ledger)[0] == "retrying"
    with ledger.session() as session:
        [job] = session.scalars(select(Job))
        assert (job.cluster, job.state, job.exit_code) == (8, "failed", 1)
        assert job.submitted == job.finished


def test_checkpoints_go_when_the_run_is_done_and_all_but_the_newest_with_the_stage(
    ledger: Ledger, project: Path
) -> None:
    folder = Folder(project / "one" / "checkpoints")
    folder.add(lambda path: Path(path).write_text("first"), 0, {}, [])
    folder.add(lambda path: Path(path).write_text("state"), 1, {}, [])
    (folder.path / f"{'0' * 16}.part.partial").touch()
    (folder.path / "mine").touch()
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 1))
    assert states(ledger)[0] == "retrying"
    row, _ = checkpoints.load(ledger, None)["checkpoints"]
    assert (row["stage"], row["epoch"], row["bytes"], row["places"], row["newest"]) == (
        "one", 1, 5, ["run folder"], True,
    )  # fmt: skip
    write(project, "nodes.log", SUBMIT.format(9, "one", 2) + ENDED.format(9, 0))
    assert states(ledger)[0] == "done"
    [kept] = folder.checkpoints()
    assert (kept.epoch, folder.fault(kept)) == (1, None)
    assert {file.name for file in folder.path.iterdir()} == {"mine", *kept.names}
    # A run that has failed may go on; one that is done does not.
    for number, code in ((20, 1), (30, 0)):
        with ledger.session() as session:
            session.scalars(select(Run)).one().finished = None
        write(project, "nodes.log", SUBMIT.format(number + 1, "two", 3))
        write(project, "nodes.log", ENDED.format(number + 1, code))
        write(project, "dagman.log", SUBMIT.format(number, "", 1) + ENDED.format(number, code))
        assert view(ledger)["state"] == ("failed" if code else "done")
        assert bool(folder.checkpoints()) == (code == 1)
    assert [file.name for file in folder.path.iterdir()] == ["mine"]
    assert checkpoints.load(ledger, None)["checkpoints"] == []


def test_of_what_a_job_goes_on_from_the_latest_is_in_its_sandbox() -> None:
    job = Job(checkpoints=[])
    for number, name in enumerate(("checkpoints/a.part", "best.pt", "checkpoints/b.part")):
        told = {"path": name, "epoch": number, "bytes": 1, "sha256": str(number)}
        leavings.add_checkpoint(job, told, "sandbox")
    assert [one.place for one in job.checkpoints] == [None, "sandbox", "sandbox"]


def test_what_no_log_could_take_is_told_by_queue_and_history(ledger: Ledger, project: Path) -> None:
    log = "".join(SUBMIT.format(n, "one", 1) + EXECUTE.format(n, 1) for n in (8, 9, 10))
    write(project, "nodes.log", SUBMIT.format(6, "two", 1) + SUBMIT.format(7, "two", 1) + log)
    assert states(ledger)[0] == "running"
    (project / "one" / "metrics.jsonl").write_text('{"kind": "result", "values": {"model": "m"}}')
    now = time.time()
    ended = {"JobStatus": 4, "ExitCode": 0, "EnteredCurrentStatus": now - 30, "NumJobStarts": 1}
    held = {"JobStatus": 5, "HoldReasonCode": 1, "HoldReason": "mine"}
    live = [
        {"ClusterId": 8, "ProcId": 0, **held, "EnteredCurrentStatus": now - 30},
        # Its event may be on its way; and one that is being started has not run yet.
        {"ClusterId": 9, "ProcId": 0, **held, "EnteredCurrentStatus": now - 1},
        {"ClusterId": 7, "ProcId": 0, "JobStatus": 2, "EnteredCurrentStatus": now - 30},
        {
            "ClusterId": 6,
            "ProcId": 0,
            "JobStatus": 2,
            "EnteredCurrentStatus": now - 30,
            "JobCurrentStartExecutingDate": now - 20,
            "RemoteHost": "slot1@n",
        },
    ]
    with ledger.session() as session:
        run = find.run(session, None)
        told = ads.Told(now, {run.id}, {run.id: live}, missing={run.id: frozenset({(10, 0)})})
        told.past[run.id] = [{"ClusterId": 10, "ProcId": 0, **ended}]
        assert len(list(ads.apply(session, run, told))) == 4
        assert [job.cluster for job in told.ended[run.id]] == [10]
    with ledger.session() as session:
        jobs = {job.cluster: job for job in session.scalars(select(Job))}
        assert {n: job.state for n, job in jobs.items()} == {
            6: "running", 7: "idle", 8: "held", 9: "running", 10: "completed",
        }  # fmt: skip
        assert (jobs[8].hold_reason, jobs[10].finished) == ("mine", now - 30)
        assert (jobs[10].starts, jobs[6].starts, jobs[6].host) == (1, 1, "slot1@n")


def test_half_an_event_waits_for_its_other_half(ledger: Ledger, project: Path) -> None:
    text = SUBMIT.format(8, "one", 1)
    write(project, "nodes.log", text[:60])
    assert states(ledger)[0] == "ready"
    write(project, "nodes.log", text[60:])
    assert states(ledger)[0] == "idle"


@pytest.mark.parametrize(
    "garbage",
    [SUBMIT.format(9, "tw?", 2).encode().replace(b"?", b"\xff"), b"000 (what is this\n...\n"],
)
def test_a_damaged_log_is_named_and_stops_nothing_else(
    ledger: Ledger, project: Path, garbage: bytes
) -> None:
    write(project, "dagman.log", SUBMIT.format(7, "", 0))
    write(project, "nodes.log", SUBMIT.format(8, "one", 1))
    with (project / "p.dag.nodes.log").open("ab") as log:
        log.write(garbage)
    assert "p.dag.nodes.log: no event after byte" in str(events.sync(ledger))
    assert states(ledger) == ["idle", "waiting"]


def test_what_follows_an_event_that_was_cut_off_is_read(ledger: Ledger, project: Path) -> None:
    # As HTCondor leaves it when the disk is full, and then is not.
    cut = SUBMIT.format(8, "one", 1) + EVICTED.format(8)[:40] + EXECUTE.format(8, 2)
    write(project, "nodes.log", cut + ENDED.format(8, 1) + SUBMIT.format(9, "one", 3))
    assert "p.dag.nodes.log: no event after byte 13" in str(events.sync(ledger))
    assert str(events.sync(ledger)).count("no event") == 0
    with ledger.session() as session:
        assert [job.state for job in session.scalars(select(Job))] == ["failed", "idle"]


def test_an_exit_code_of_zero_is_not_success_while_a_stage_has_not_run(
    ledger: Ledger, project: Path
) -> None:
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 0))
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + ENDED.format(7, 0))
    assert (view(ledger)["state"], states(ledger)) == ("failed", ["done", "not run"])


def test_what_a_killed_writer_left_in_the_folder_is_gone_when_the_run_ends(
    ledger: Ledger, project: Path
) -> None:
    drafts = [project / ".run.json-old", project / ".run.json-new"]
    for draft in drafts:
        draft.touch()
    os.utime(drafts[0], (0, 0))
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + ENDED.format(7, 1))
    assert view(ledger)["state"] == "failed"
    assert [draft.exists() for draft in drafts] == [False, True]


def test_a_dag_that_never_started_tells_what_dagman_said(ledger: Ledger, project: Path) -> None:
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + ENDED.format(7, 1))
    write(project, "dagman.out", "03/01/26 10:00:00 It is bad\n03/01/26 10:00:00 ERROR: worse\n")
    assert view(ledger)["problem"] == "It is bad; ERROR: worse"


def test_metrics_checkpoints_and_results_are_read_when_a_job_ends(
    ledger: Ledger, project: Path
) -> None:
    records = [
        {"kind": "progress", "time": 1.0, "epoch": 1, "epochs": 2, "metrics": {"loss": 3.0}},
        {"kind": "progress", "time": 2.0, "epoch": 1, "epochs": 2, "metrics": {"loss": 2.0}},
        {"kind": "progress", "time": 3.0, "epoch": 2, "epochs": 2, "metrics": {"loss": None}},
        {"kind": "checkpoint", "path": "c.pt", "epoch": 2, "bytes": 5, "sha256": "ab"},
        {"kind": "checkpoint", "path": "c.pt", "epoch": 1, "bytes": 5, "sha256": "aa"},
        {"kind": "result", "values": {"model": "m", "clean": 0.5}},
        {"kind": "result", "values": {"details": {"a": [1, {"b": None}]}}},
    ]
    hostile = [
        "", "{", "[1]", "null", '{"kind": "progress"}', '{"kind": "progress", "epoch": "x"}',
        '{"kind": "progress", "epoch": 1, "metrics": [1]}',
        '{"kind": "checkpoint", "path": 5}', '{"kind": "result", "values": 3}',
        '{"kind": "progress", "epoch": 1, "epochs": 2, "time": [1], "metrics": {"a": 1}}',
        '{"kind": "progress", "epoch": 1, "epochs": "[/x]\\u001b[2J", "metrics": {"a": 1}}',
        f'{{"kind": "progress", "epoch": {10**30}, "epochs": {10**30}, "metrics": {{"a": 1}}}}',
        f'{{"kind": "progress", "epoch": 1, "epochs": 2, "metrics": {{"a": {10**400}}}}}',
        '{"kind": "progress", "epoch": 1, "epochs": 2, "metrics": {"\\ud800": 1}}',
        '{"kind": "progress", "epoch": 1, "epochs": 2, "metrics": {"a": NaN}}',
        f'{{"kind": "checkpoint", "path": "c", "epoch": 1, "bytes": {10**30}, "sha256": "x"}}',
        '{"kind": "checkpoint", "path": "\\ud800", "epoch": 1, "bytes": 1, "sha256": "x"}',
        '{"kind": "result", "values": {"model": "\\ud800"}}',
        '{"kind": "result", "values": {"clean": 1e999}}',
        json.dumps({"kind": "result", "values": {"text": "é" * 40_000}}, ensure_ascii=False),
        f'{{"kind": "result", "values": {{"deep": {"[" * 20}{"]" * 20}}}}}',
        "[" * 100_000, "\x1b[2J", '{"kind": "progress", "epoch": 1, "metrics": {"a": "b"}}',
    ]  # fmt: skip
    lines = [*map(json.dumps, records), *hostile]
    (project / "one" / "metrics.jsonl").write_text("\n".join(lines))
    write(project, "nodes.log", SUBMIT.format(8, "one", 1) + ENDED.format(8, 0))
    one = view(ledger)["stages"][0]
    assert (one["checkpoint"]["epoch"], one["checkpoint"]["place"]) == (2, f"{project}/one/c.pt")
    with ledger.session() as session:
        metrics = [(m.epoch, m.name, m.value) for m in session.scalars(select(Metric))]
        results = [r.values for r in session.scalars(select(Result))]
    assert metrics == [(1, "loss", 2.0), (2, "loss", None), (1, "a", 1.0)]
    assert results == [{"model": "m", "clean": 0.5}, {"details": {"a": [1, {"b": None}]}}]


def test_a_run_or_a_ledger_that_is_not_there_is_one_line(ledger: Ledger, project: Path) -> None:
    with ledger.session() as session, pytest.raises(UserError, match="latest is p-1"):
        find.run(session, "p-2")
    (project / "file").write_text("x" * 2000)
    with pytest.raises(UserError, match=r"ledger .*file is not a database"):
        Ledger(project / "file")
    with pytest.raises(UserError, match="CONDORCTL_LEDGER"):
        Ledger(project / "file" / "below")
    with ledger.session() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '99'"))
    with pytest.raises(UserError, match="its layout is 99"):
        Ledger(paths.ledger())


def test_what_a_job_says_cannot_drive_the_terminal() -> None:
    stage = {"epoch": 1, "epochs": 2, "metrics": {"\x1b[2Jloss": 0.5}}
    assert screen.progress_text(stage) == "epoch 1/2 \N{REPLACEMENT CHARACTER}[2Jloss=0.5"
    assert str(UserError("has no \x1b]0;x\x07")) == "has no \ufffd]0;x\ufffd"


def test_a_long_log_is_read_in_bits_and_the_end_of_its_run_last(
    ledger: Ledger, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.session() as session:
        run = session.scalars(select(Run)).one()
        run.stages += [Stage(name=f"n{number}", position=number, needs=[]) for number in range(30)]
    write(project, "dagman.log", SUBMIT.format(7, "", 0) + ENDED.format(7, 1))
    for number in range(30):
        job = number + 10
        text = SUBMIT.format(job, f"n{number}", 1) + EXECUTE.format(job, 2) + ENDED.format(job, 0)
        write(project, "nodes.log", text)
    monkeypatch.setattr(events, "_BATCH", 1500)
    read, bits = events.read_logs, []

    def watched(session: sa.orm.Session, run: Run, most: int | None = None) -> bool:
        more = read(session, run, most)
        bits.append((more, run.state, session.scalar(select(sa.func.count(Job.id)))))
        return more

    monkeypatch.setattr(events, "read_logs", watched)
    found = view(ledger)
    assert found["state"] == "failed"
    assert [stage["state"] for stage in found["stages"]].count("done") == 30
    # Until all of it is read, nobody takes the run for ended, and others get at the ledger.
    assert len(bits) > 4 and all(state == "idle" for more, state, _ in bits if more)
    counts = [count for more, _, count in bits if more]
    assert all(1 <= second - first <= 6 for first, second in pairwise(counts))


def test_what_a_later_attempt_wrote_is_not_taken_for_an_earlier_ones(
    ledger: Ledger, project: Path
) -> None:
    line = {"kind": "progress", "epoch": 1, "epochs": 1, "metrics": {"loss": 0.5}, "time": 1.0}
    (project / "one" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    first = SUBMIT.format(8, "one", 1) + ENDED.format(8, 1)
    write(project, "nodes.log", first + SUBMIT.format(9, "one", 2) + ENDED.format(9, 0))
    assert states(ledger)[0] == "done"
    # An end that is told again, a little later, is no second one.
    write(project, "nodes.log", ENDED.format(9, 0).replace("10:09:00", "10:09:04"))
    view(ledger)
    with ledger.session() as session:
        told = [(job.cluster, len(job.metrics)) for job in session.scalars(select(Job))]
    assert told == [(8, 0), (9, 1)]


def test_half_an_event_is_not_waited_for(ledger: Ledger, project: Path) -> None:
    took = []
    for size in (40, 42, 44):
        write(project, "nodes.log", SUBMIT.format(8, "one", 1) + EXECUTE.format(8, 1)[:size])
        began = time.monotonic()
        assert states(ledger)[0] == "idle"
        took.append(time.monotonic() - began)
    # HTCondor's own reader waits a second for the other half, each time, and the ledger's lock is
    # held; a busy machine is slow once.
    assert min(took) < 0.9, took


def test_an_event_of_no_job_is_passed_over(tmp_path: Path) -> None:
    """Those of an execution point, as a flipped bit makes one of a job's."""
    log = tmp_path / "events.log"
    log.write_text("1" + SUBMIT.format(3, "one", 0)[1:] + SUBMIT.format(4, "two", 0))
    position = cluster.Start()
    assert [event["Cluster"] for event in cluster.read_events(log, position)] == [4]
    assert position.offset == log.stat().st_size
