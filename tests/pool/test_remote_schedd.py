"""A schedd that knows its users by ID tokens alone and shares no folder with them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

SMALL = "request_memory: 64 MB, request_disk: 50 MB"
SPEC = f"""\
defaults: {{{SMALL}}}
stages:
  train:
    command: [python, work.py, "20"]
    inputs: [sub/work.py, data/, "odd (1) x"]
    outputs: [model.pt, metrics.jsonl]
  test: {{command: [cp, train/model.pt, copy.pt], inputs: [train/model.pt], outputs: [copy.pt]}}
"""


@pytest.fixture
def there(remote: str, condorctl: Condorctl, project: Path) -> Condorctl:
    """The command line, told to use the remote schedd; a pipeline `test` is there to submit."""
    (project / "jobs" / "test.yaml").write_text(SPEC)
    (project / "sub").mkdir()
    (project / "work.py").rename(project / "sub" / "work.py")
    (project / "data").mkdir()
    (project / "data" / "x.csv").write_text("1\n")
    (project / "odd (1) x").mkdir()
    (project / "odd (1) x" / "y").write_text("2\n")
    return lambda *words: condorctl("--schedd", remote, *words)


def look(
    there: Condorctl, name: str, until: Callable[[Status], bool], seconds: float = 240
) -> Status:
    deadline = time.monotonic() + seconds
    while True:
        view: Status = json.loads(there("status", name, "--json").stdout)
        view["stages"] = {stage["stage"]: stage for stage in view["stages"]}
        if until(view):
            return view
        assert time.monotonic() < deadline, json.dumps(view, indent=2)
        time.sleep(1)


def test_a_pipeline_runs_on_a_schedd_elsewhere(
    there: Condorctl, condorctl: Condorctl, token: Callable[..., str], remote: str, pool: Path,
    project: Path,
) -> None:  # fmt: skip
    secret = token()
    submitted = there("submit", "test", "--json")
    name = json.loads(submitted.stdout)["run"]
    # Nothing of what was submitted can be reached from there any more.
    here = project / "exp" / "runs" / name
    here.rename(away := project / "away")
    (project / "sub" / "work.py").unlink()
    (project / "data" / "x.csv").unlink()
    deadline = time.monotonic() + 240
    query = (
        "pool",
        "run",
        "condor_q",
        "-name",
        remote,
        "-const",
        "JobStatus == 2 && DAGManJobId > 0",
    )
    while not (iwd := there(*query, "-af", "Iwd").stdout.strip()):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert Path(iwd).is_relative_to(pool / "remote" / "spool")
    away.rename(here)

    view = look(there, name, lambda view: (view["stages"]["train"]["epoch"] or 0) >= 3)
    train = view["stages"]["train"]
    assert (view["state"], train["state"], train["checkpoint"]["path"]) == (
        "running", "running", "model.pt",
    )  # fmt: skip
    assert view["dag"].startswith(f"{remote}#") and train["id"].startswith(f"{remote}#")
    fetched = json.loads(there("fetch", train["job"], "--json").stdout)["files"]
    told = {Path(file["target"]).name: Path(file["target"]).read_text() for file in fetched}
    assert told[f"{train['job'].split('.')[0]}.out"].startswith("epoch 1\nepoch 2\n")
    assert "Job executing" in told["events.log"]
    assert (
        there("fetch", "train", "model.pt", "x.csv", "odd (1) x", "--to", "running").returncode == 0
    )
    assert int(Path("running/model.pt").read_text()) >= 3
    assert Path("running/x.csv").read_text() == "1\n"
    assert Path("running/odd (1) x/y").read_text() == "2\n"

    assert there("follow", name).returncode == 0
    assert (here / "train" / "model.pt").read_text() == (here / "test" / "copy.pt").read_text()
    # From here on no schedd is needed.
    view = json.loads(condorctl("status", name, "--json").stdout)
    assert (view["state"], [s["state"] for s in view["stages"]]) == ("done", ["done", "done"])
    [row] = json.loads(condorctl("results", name, "--json").stdout)["results"]
    assert row["clean"] == 0.5
    assert condorctl("fetch", f"{name}/test", "copy.pt").returncode == 0
    # What was brought back need not stay there.
    deadline = time.monotonic() + 240
    while there("pool", "run", "condor_q", "-allusers", "-af", "ClusterId").stdout.strip():
        assert time.monotonic() < deadline
        time.sleep(1)
    # Nobody has written the token down.
    ledger = project.parent / "ledger.sqlite"
    found = subprocess.run(
        ["grep", "-rlF", secret.rpartition(".")[2], str(project), str(ledger)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == ""


def test_a_run_elsewhere_is_cancelled_or_lost(
    there: Condorctl, condorctl: Condorctl, token: Callable[..., str], remote: str, project: Path
) -> None:
    token()
    first = json.loads(there("submit", "test", "--json").stdout)
    second = json.loads(there("submit", "test", "--json").stdout)
    look(there, first["run"], lambda view: view["stages"]["train"]["state"] == "running")
    note = json.loads(condorctl("status", first["run"], "--json").stdout)
    assert remote in json.dumps(note["note"])
    for view, *force in ((first,), (second, "-forcex")):
        number = view["dag"].partition("#")[2]
        assert there("pool", "run", "condor_rm", number).returncode == 0
        if force:
            there("pool", "run", "condor_rm", *force, number)
    gone = look(there, first["run"], lambda view: bool(view["finished"]))
    assert (gone["state"], gone["stages"]["train"]["state"]) == ("removed", "removed")
    lost = look(there, second["run"], lambda view: bool(view["finished"]))
    assert lost["state"] == "removed"


def test_a_run_elsewhere_goes_on_after_it_failed(
    there: Condorctl, token: Callable[..., str], remote: str, project: Path, tmp_path: Path
) -> None:
    token()
    mended = tmp_path / "mended"
    (project / "jobs" / "test.yaml").write_text(
        f"""
        defaults: {{{SMALL}}}
        stages:
          a: {{command: [sh, -c, "echo a > a.txt"], outputs: [a.txt]}}
          b:
            command: [sh, -c, "cp a/a.txt b.txt; test -e '{mended}' || exit 5"]
            inputs: [a/a.txt]
            outputs: [b.txt]
        """
    )
    name = json.loads(there("submit", "test", "--json").stdout)["run"]
    assert there("follow", name).returncode == 1
    folder = project / "exp" / "runs" / name
    assert "DONE a" in (folder / "test.dag.rescue001").read_text()
    assert (folder / "a" / "a.txt").read_text() == "a\n"
    mended.touch()
    assert there("resume", name).returncode == 0
    view = look(there, name, lambda view: bool(view["finished"]))
    assert (view["state"], view["stages"]["a"]["attempt"], view["stages"]["b"]["attempt"]) == (
        "done", 1, 2,
    )  # fmt: skip
    assert (folder / "b" / "b.txt").read_text() == "a\n"


def test_a_run_elsewhere_goes_on_from_its_checkpoints(
    there: Condorctl, token: Callable[..., str], remote: str, project: Path, tmp_path: Path
) -> None:
    """They are copied into the spooled run, brought back with it, and sent along again."""
    token()
    # However long a look takes, the job is there to be vacated and cancelled.
    resumed = tmp_path / "resumed"
    (project / "count.py").write_text(
        "import os, time\n"
        "from condorctl.job import checkpoint, progress\n"
        "read = lambda path: int(open(path).read())\n"
        "count = checkpoint.load(read) or 0\n"
        "print('begins at', count, flush=True)\n"
        "while count < 20:\n"
        f"    while count == 12 and not os.path.exists({str(resumed)!r}):\n"
        "        time.sleep(0.1)\n"
        "    count += 1\n"
        "    time.sleep(0.5)\n"
        "    progress(epoch=count, epochs=20)\n"
        "    checkpoint.save(lambda path: open(path, 'w').write(str(count)), epoch=count)\n"
    )
    (project / "jobs" / "test.yaml").write_text(
        f"stages: {{a: {{{SMALL}, command: [python, count.py], inputs: [count.py], "
        "checkpoint_copy_interval: 1 s, outputs: [metrics.jsonl]}}"
    )
    name = json.loads(there("submit", "test", "--json").stdout)["run"]
    folder = project / "exp" / "runs" / name / "a"
    view = look(there, name, lambda view: (view["stages"]["a"]["epoch"] or 0) >= 5)
    job = view["stages"]["a"]["job"].partition(".")[0]
    assert there("pool", "run", "condor_vacate_job", "-name", remote, "-fast", job).returncode == 0
    view = look(there, name, lambda view: (view["stages"]["a"]["epoch"] or 0) >= 10)
    assert there("cancel", name).returncode == 0
    look(there, name, lambda view: bool(view["finished"]))
    assert list((folder / "checkpoints").glob("*.json"))
    resumed.touch()
    assert there("resume", name).returncode == 0
    assert look(there, name, lambda view: bool(view["finished"]))["state"] == "done"
    # The second start has written no output, for it was removed.
    last = max(folder.glob("*.out"), key=lambda file: int(file.stem)).read_text().split()
    assert int(last[2]) >= 5
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    assert not list((folder / "checkpoints").glob("*.json"))


def test_who_is_not_known_there_is_told_what_to_do(
    there: Condorctl, condorctl: Condorctl, token: Callable[..., str], tmp_path: Path,
    project: Path,
) -> None:  # fmt: skip
    def refusal() -> str:
        line = one_error_line(there("submit", "test"))
        assert not list((project / "exp" / "runs").glob("test-*"))
        return line

    token(seconds=1)
    time.sleep(2)
    assert "has expired: `condor_token_request -name remote@" in refusal()
    secret = token("stranger")
    line = refusal()
    assert "not authorised" in line and secret[-20:] not in line
    other = condorctl("--schedd", "nobody@nowhere", "submit", "test")
    assert "schedd nobody@nowhere: the pool knows none of this name" in one_error_line(other)
    other = condorctl("--collector", "127.0.0.1:1", "--schedd", "x", "submit", "test")
    assert "no collector answers at 127.0.0.1:1" in one_error_line(other)
