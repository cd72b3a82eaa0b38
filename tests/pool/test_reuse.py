"""What a run takes along and leaves behind, and what a later run need not do again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Condorctl, one_error_line
from tests.pool.conftest import Status

Wait = Callable[..., Status]

SPEC = """
params: {width: 3}
defaults: {request_memory: 64 MB, request_disk: 50 MB}
stages:
  train:
    command: [python, -m, train, "{{ width }}", FIRST]
    code: [train.py]
    inputs: [data.txt]
    outputs: [model, metrics.jsonl]
    retries: 1
  test:
    command: [python, -m, measure]
    code: [measure]
    inputs: [train/model]
    outputs: [metrics.jsonl]
  log: {command: ["true"], needs: [train]}
"""
TRAIN = """
import os, pathlib, sys
if not os.path.exists(sys.argv[2]):
    open(sys.argv[2], "w").close()
    sys.exit(1)
folder = pathlib.Path("model")
folder.unlink()
folder.mkdir()
(folder / "weights").write_text(int(sys.argv[1]) * open("data.txt").read())
(folder / "name").write_text("m")
from condorctl import job
job.progress(epoch=1, epochs=1, loss=0.25)
"""
MEASURE = """
from condorctl import job
job.result(model=open("train/model/name").read(), clean=0.5)
"""


def done(view: Status) -> bool:
    return bool(view["finished"])


def test_stages_that_have_not_changed_are_taken_over_once_their_files_are_checked(
    pool: Path, wait: Wait, condorctl: Condorctl, project: Path, tmp_path: Path
) -> None:
    def submit(*words: str) -> tuple[str, list[str | None], list[str]]:
        answer = condorctl("submit", "test", "--json", *words)
        assert answer.returncode == 0, answer
        view = json.loads(answer.stdout)
        stages = view["stages"]
        return view["run"], [s["reused_from"] for s in stages], [s["why"] for s in stages]

    def ask(*words: str) -> Any:
        answer = condorctl(*words, "--json")
        assert answer.returncode == 0, answer
        return json.loads(answer.stdout)

    runs = project / "exp" / "runs"
    (project / "jobs" / "test.yaml").write_text(SPEC.replace("FIRST", str(tmp_path / "first")))
    (project / "train.py").write_text(TRAIN)
    (project / "measure").mkdir()
    (project / "measure" / "__main__.py").write_text(MEASURE)
    (project / "data.txt").write_text("abc")

    one, taken, why = submit()
    # The run is queued: what happens to the tree now is nothing to it.
    (project / "data.txt").write_text("other")
    (project / "train.py").unlink()
    assert taken == [None, None, None]
    assert set(why) == {"runs: there is no finished run of it"}
    view = wait(one, done)
    assert view["state"] == "done", view
    assert (runs / one / "train" / "model" / "weights").read_text() == "abcabcabc"

    shown = ask("show", one)
    train = shown["stages"][0]
    assert {o["path"] for o in train["outputs"]} == {"model/name", "model/weights", "metrics.jsonl"}
    assert train["machine"]["host"] == os.uname().nodename
    assert train["machine"]["start"] <= train["machine"]["end"]
    assert view["stages"]["train"]["attempt"] == 2
    assert list(shown["inputs"]) == ["data.txt"]
    assert sorted(shown["code"]["files"]) == ["measure/__main__.py", "train.py"]
    assert len(list((runs / one / "train").glob("*.job"))) == 2
    assert max(map(len, condorctl("show", one).stdout.splitlines())) <= 80

    # Nothing has changed: the second run's own jobs are those without outputs.
    (project / "data.txt").write_text("abc")
    (project / "train.py").write_text(TRAIN)
    two, taken, why = submit()
    assert taken == [f"{one}/train", f"{one}/test", None]
    assert why[0] == f"unchanged since {one}, not run again"
    assert "no outputs" in why[2]
    view = wait(two, done)
    assert (view["state"], view["stages"]["train"]["state"]) == ("done", "done")
    rows = [{"run": two, "stage": "test", "model": "m", "clean": 0.5}]
    assert ask("results", two)["results"] == rows
    weights = runs / two / "train" / "model" / "weights"
    assert weights.samefile(runs / one / "train" / "model" / "weights")

    # Other code for the second stage; the first comes from where it was really made.
    (project / "measure" / "__main__.py").write_text(MEASURE.replace("0.5", "0.75"))
    answer = condorctl("submit", "test", "--set", "width=3")
    assert answer.returncode == 0
    assert f"train: unchanged since {one}, not run again" in answer.stderr
    assert f"test: runs: its code changed since {two}" in answer.stderr
    three = answer.stdout.split(":")[0]
    assert wait(three, done)["state"] == "done"
    compared = ask("diff", one, three, "--code")
    assert compared["code"] == {"measure/__main__.py": "changed"}
    assert '+job.result(model=open("train/model/name").read(), clean=0.75)' in compared["code_diff"]
    assert compared["results"] == {"test m clean": [0.5, 0.75]}
    assert compared["metrics"] == {"train loss": [0.25, 0.25]}
    assert compared["stages"]["test"]["changed"] == ["code"]

    # The files of a run are its own, also when the run that made them is cleaned away.
    assert [r["run"] for r in ask("clean", one)["runs"]] == [one]
    assert not (runs / one).exists()
    assert weights.read_text() == "abcabcabc"
    assert ask("results", one)["results"][0]["clean"] == 0.5

    # By name, from a run that had itself reused: the same origin.
    four, taken, why = submit("--from", "te*", "--reuse", two, "--set", "width=4")
    assert taken == [f"{one}/train", None, f"{two}/log"]
    assert why[0] == f"taken from {one}, although its command changed since {two}"
    assert why[1] == "runs: it was to start here"
    assert wait(four, done)["state"] == "done"
    for words, expected in [
        (["--from", "tets", "--reuse", two], "did you mean 'test'?"),
        (["--reuse", two], "--from STAGE"),
        (["--from", "test", "--force"], "leave out"),
        (["--from", "test", "--reuse", "x"], "no run 'x'"),
        (["--from", "test", "--reuse", one], f"{one} has no model/name any more"),
    ]:
        assert expected in one_error_line(condorctl("submit", "test", *words))

    # A file that is not what was recorded is not taken.
    weights.write_text("abcabcabX")
    (runs / two / "train" / "model" / "more").touch()
    assert "model/more" in one_error_line(condorctl("submit", "test", "--from", "test",
                                                    "--reuse", two))  # fmt: skip
    (runs / two / "train" / "model" / "more").unlink()
    refused = condorctl("submit", "test", "--from", "test", "--reuse", two)
    assert "model/weights of" in (line := one_error_line(refused))
    assert "is damaged" in line
    before = sorted(runs.iterdir())
    five, taken, why = submit()
    assert taken[0] is None
    assert "is damaged" in why[0]
    assert sorted(runs.iterdir()) == [*before, runs / five]
    assert condorctl("cancel", five).returncode == 0
