"""Hostile event logs, metrics and records of runs: a clear message, or passed over; nothing half.

Hypothesis tries 40 logs, 40 files of metrics and 40 records, others each time;
CONDORCTL_EXAMPLES=1000 has it try as many of each.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from condorctl.errors import UserError
from condorctl.ledger import Job, JobState, Ledger, Run, Stage, events, rebuild, runfile
from condorctl.view import status
from tests.unit.test_events import ENDED, EVICTED, EXECUTE, HELD, SUBMIT

ABORTED = """\
009 ({0:03}.000.000) 2026-03-01 10:08:00 Job was aborted.
\tvia condor_rm
...
"""
Json = dict[str, Any]

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
    | st.just("\udc00") | st.sampled_from([1 << 70, -1, "../../x", "\0", "\x1b]0;x\x07"])
)  # fmt: skip
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder without a pool, in which a ledger serves many inputs."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("CONDOR_CONFIG", "/dev/null")
        env.setenv("XDG_STATE_HOME", str(folder / "none"))
        env.setenv("CONDORCTL_LEDGER", str(folder / "ledger.sqlite"))
        env.delenv("CONDORCTL_DB", raising=False)
        env.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def book(home: Path) -> Ledger:
    return Ledger(home / "ledger.sqlite")


# Each input has a run of its own; those before are not looked at any more.
several = settings(
    max_examples=int(os.environ.get("CONDORCTL_EXAMPLES", "40")), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def new_run(ledger: Ledger, home: Path) -> tuple[str, Path]:
    with ledger.session() as session:
        session.execute(sa.update(Run).where(Run.finished.is_(None)).values(finished=1.0))
        name = f"p-{(session.scalar(select(sa.func.count(Run.id))) or 0) + 1}"
        folder = home / name
        (folder / "one").mkdir(parents=True)
        session.add(
            Run(
                name=name, pipeline="p", folder=str(folder), dag_file=str(folder / "p.dag"),
                params={}, owner=getpass.getuser(), schedd=name, submitted=time.time(), cluster=7,
                stages=[Stage(name="one", position=0, needs=[], retries=1),
                        Stage(name="two", position=1, needs=["one"])],
            )
        )  # fmt: skip
    return name, folder


def seen(ledger: Ledger, name: str) -> tuple[str, Json]:
    """What a look says of the run; it can be shown, and printed as JSON."""
    said = str(events.sync(ledger))
    with ledger.session() as session:
        run = session.scalars(select(Run).where(Run.name == name)).one()
        view = status.describe(run)
        json.dumps(view, allow_nan=False)
        rows = session.scalars(select(JobState).join(Job).join(Stage).where(Stage.run_id == run.id))
        view["states"] = [(row.job_id, row.state, row.time, row.detail) for row in rows]
    return said, {key: view[key] for key in ("state", "stages", "states")}


event = st.sampled_from([SUBMIT, EXECUTE, EVICTED, HELD, ENDED, ABORTED]).flatmap(
    lambda text: st.builds(
        text.format,
        st.integers(0, 12),
        st.sampled_from(["one", "two", "three", 'a" b', "0", "1", "9"]),
        st.integers(0, 9),
    )
)


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """Events as HTCondor writes them, with pieces gone, doubled, or not its own."""
    parts = draw(st.lists(event.map(str.encode) | st.binary(max_size=30), max_size=12))
    text = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 3))):
        if text:
            at = draw(st.integers(0, len(text) - 1))
            what = draw(st.sampled_from(["cut", "flip", "insert", "drop"]))
            if what == "cut":
                del text[at:]
            elif what == "flip":
                text[at] ^= 1 << draw(st.integers(0, 7))
            elif what == "insert":
                text[at:at] = draw(st.sampled_from([b"...\n", b"\0", b"\n", b"\x1b[2J", b"005 ("]))
            else:
                del text[at : at + 20]
    return bytes(text)


@several
@given(log=logs())
def test_no_event_log_stops_a_look(home: Path, book: Ledger, log: bytes) -> None:
    name, folder = new_run(book, home)
    (folder / "p.dag.nodes.log").write_bytes(log)
    said, first = seen(book, name)
    assert "\n" not in said
    # What follows a damage is not taken for anything, and nothing is counted twice. A damage that
    # could be passed over is told of once.
    again, second = seen(book, name)
    assert second == first
    assert said.endswith(again)


line = (
    anything.map(lambda value: json.dumps(value))
    | st.text(max_size=40)
    | st.fixed_dictionaries(
        {"kind": st.sampled_from(["progress", "checkpoint", "result", "x"]) | anything},
        optional={
            "epoch": st.integers(0, 5) | anything, "epochs": st.integers(0, 5) | anything,
            "metrics": st.dictionaries(st.text(max_size=3), anything) | anything,
            "time": st.floats(0, 1e9) | anything, "path": st.just("m.pt") | anything,
            "bytes": st.integers(0, 99) | anything, "sha256": st.just("ab") | anything,
            "values": st.dictionaries(st.text(max_size=3), anything) | anything,
        },
    ).map(json.dumps)
)  # fmt: skip


@several
@given(lines=st.lists(line, max_size=8), raw=st.binary(max_size=40))
def test_no_line_of_metrics_stops_a_look(
    home: Path, book: Ledger, lines: list[str], raw: bytes
) -> None:
    name, folder = new_run(book, home)
    text = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n" + raw
    (folder / "one" / "metrics.jsonl").write_bytes(text)
    (folder / "p.dag.nodes.log").write_text(SUBMIT.format(8, "one", 1) + ENDED.format(8, 0))
    said, view = seen(book, name)
    assert not said or "no event" not in said
    assert view["stages"][0]["state"] == "done"


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """The record of a run with something else in it, or no record at all."""
    job = {
        "schedd": "s", "cluster": 8, "proc": 0, "attempt": 1, "state": "failed", "submitted": 1.0,
        "progress": {"epoch": 1}, "starts": 1, "states": [
            {"state": "idle", "time": 1.0, "detail": ""}], "metrics": [
            {"epoch": 1, "name": "loss", "value": 0.5, "time": 1.0}], "results": [],
    }  # fmt: skip
    stage = {
        "position": 0, "name": "one", "needs": [], "retries": 1, "command": ["x"], "outputs": [],
        "source": {"run": "other", "stage": "one"}, "jobs": [job],
    }  # fmt: skip
    run = {
        "name": "p-1", "kind": "pipeline", "pipeline": "p", "folder": "/gone", "spooled": False,
        "dag_file": "/gone/p.dag", "params": {}, "tables": [], "owner": "me", "host": "h",
        "schedd": "s", "submitted": 1.0, "cluster": 7, "earlier": [], "provenance": {},
    }  # fmt: skip
    found: Any = {"condorctl": 1, "whole": draw(st.booleans()), "run": run, "stages": [stage]}
    for _ in range(draw(st.integers(0, 3))):
        place = found
        while draw(st.booleans()) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
            if not isinstance(place[key], dict | list):
                break
            place = place[key]
        if isinstance(place, dict) and place:
            place[draw(st.sampled_from(sorted(place)))] = draw(anything)
    text = json.dumps(found).encode()
    return draw(st.just(text) | st.just(text[: len(text) // 2]) | st.binary(max_size=60))


@several
@given(record=records())
def test_no_record_of_a_run_is_entered_half(home: Path, record: bytes) -> None:
    place = home / "again"
    place.mkdir(exist_ok=True)
    for old in home.glob("again.sqlite*"):
        old.unlink()
    (place / "p-1").mkdir(exist_ok=True)
    (place / "p-1" / runfile.FILE).write_bytes(record)
    ledger = Ledger(home / "again.sqlite")
    found = rebuild.rebuild(ledger, [place], lambda *_: None)
    with ledger.session() as session:
        runs = list(session.scalars(select(Run)))
        assert [run.name for run in runs] == found.added
        for run in runs:
            json.dumps(status.describe(run), allow_nan=False)
    assert bool(found.added) != any(line.startswith(f"{place}/p-1/") for line in found.problems), (
        found
    )
    assert all("\n" not in UserError(line).args[0] for line in found.problems)
