"""What a run takes along: copies that do not change with the tree, and hashes that tell it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Ledger
from condorctl.spec import reader
from condorctl.spec.pipeline import Pipeline
from condorctl.submit import content, provenance, snapshot, universe


@pytest.fixture
def ledger(project: Path) -> Ledger:
    return Ledger(paths.ledger())


def load(*inputs: str) -> Pipeline:
    stages = {f"s{i}": {"command": ["true"], "inputs": list(inputs)} for i in range(3)}
    Path("jobs/p.yaml").write_text(f"stages: {stages}")
    return reader.load(Path("jobs/p.yaml"))


def age(*files: Path) -> None:
    for file in files:
        os.utime(file, (1, 1))


def test_an_input_is_copied_once_however_it_is_called(project: Path, ledger: Ledger) -> None:
    data = project / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "x").write_text("1")
    (data / "link").symlink_to("sub/x")
    (data / "run.sh").write_text("#!/bin/sh\n")
    (data / "run.sh").chmod(0o755)
    (project / "draft").mkdir()
    taken = snapshot.take(ledger, load("data", "./data", "data/"), project / "draft")
    finals = taken.finals(Path("/runs/p-1"))
    assert finals["data"] == finals["./data"] == "/runs/p-1/inputs/0/data"
    assert finals["data/"] == "/runs/p-1/inputs/0/data/"
    copy = project / "draft" / "inputs" / "0" / "data"
    assert [path.name for path in copy.parent.parent.iterdir()] == ["0"]
    (data / "sub" / "x").write_text("2")
    assert (copy / "sub" / "x").read_text() == (copy / "link").read_text() == "1"
    assert os.access(copy / "run.sh", os.X_OK)
    assert taken.inputs["data"].sha256 == content.tree_sha256(copy)
    (copy / "run.sh").chmod(0o644)
    assert taken.inputs["data"].sha256 != content.tree_sha256(copy)


def test_a_folder_that_holds_the_runs_is_copied_without_them(project: Path, ledger: Ledger) -> None:
    (project / "x").write_text("1")
    draft = paths.runs() / ".new-1"
    draft.mkdir(parents=True)
    taken = snapshot.take(ledger, load("."), draft)
    copy = draft / "inputs" / "0" / project.name
    assert (copy / "x").read_text() == "1"
    assert not (copy / "exp" / "runs").exists()
    assert taken.inputs["."].sha256 == content.tree_sha256(copy)


def test_a_large_input_is_used_where_it_is_and_read_once(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "LARGE", 20_000_000)
    large = project / "large"
    with large.open("wb") as file:
        file.truncate(30_000_000)
    age(large)
    read: list[Path] = []
    hashed = content.sha256
    monkeypatch.setattr(content, "sha256", lambda file: (read.append(file), hashed(file))[1])
    monkeypatch.setattr(content, "_COARSE_S", -60.0)  # as if it had been there for a minute
    for number in range(3):
        (project / f"draft{number}").mkdir()
        taken = snapshot.take(ledger, load("large"), project / f"draft{number}")
        assert taken.finals(Path("/runs/p-1")) == {"large": str(large)}
        assert [one.source for one in taken.in_place] == [large]
        assert not (project / f"draft{number}" / "inputs").exists()
    assert read.count(large) == 1
    before = taken.inputs["large"].sha256
    with large.open("r+b") as file:
        file.write(b"x")
    age(large)
    (project / "last").mkdir()
    changed = snapshot.take(ledger, load("large"), project / "last")
    assert changed.inputs["large"].sha256 != before
    assert read.count(large) == 2


def test_what_cannot_be_copied_is_one_line(project: Path, ledger: Ledger) -> None:
    for name, make in {
        "loop": lambda p: (p.mkdir(), (p / "in").symlink_to("..")),
        "dangling": lambda p: (p.mkdir(), (p / "x").symlink_to("nowhere")),
        "pipe": lambda p: os.mkfifo(p),
    }.items():
        make(project / name)
        (project / f"draft-{name}").mkdir()
        with pytest.raises(UserError, match=f"input '{name}'"):
            snapshot.take(ledger, load(name), project / f"draft-{name}")


def git(*words: str) -> None:
    name = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *name, *words], check=True, capture_output=True)


def test_the_commit_and_what_was_not_committed_are_recorded(project: Path, ledger: Ledger) -> None:
    pipeline = load()
    draft = paths.runs() / "p-1"
    draft.mkdir(parents=True)
    taken = snapshot.take(ledger, pipeline, draft)
    file = Path("jobs/p.yaml")
    assert provenance.gather(pipeline, file, taken, "s", draft, {})["git"] is None
    git("init", "-q", "-b", "trunk")
    empty = provenance.gather(pipeline, file, taken, "s", draft, {})["git"]
    assert (empty["commit"], empty["branch"], empty["dirty"]) == (None, "trunk", True)
    (project / "code.py").write_text("one\n")
    git("add", "code.py", "jobs")
    git("commit", "-qm", "first")
    clean = provenance.gather(pipeline, file, taken, "s", draft, {})["git"]
    assert (len(clean["commit"]), clean["dirty"], clean["diff"]) == (40, False, None)
    (project / "code.py").write_text("two\n")
    (project / "new \n name").touch()
    (project / "jobs").mkdir(exist_ok=True)
    dirty = provenance.gather(pipeline, file, taken, "s", draft, {})
    assert dirty["git"]["commit"] == clean["commit"]
    assert dirty["git"]["untracked"] == ["new \n name"]
    diff = (draft / "uncommitted.diff").read_text()
    assert "-one\n+two\n" in diff
    assert dirty["git"]["diff"] == {
        "file": "uncommitted.diff", "bytes": len(diff), "complete": True,
    }  # fmt: skip
    assert dirty["packages"]["pytest"] == pytest.__version__
    texts = {"s0": "docker_image = x@sha256:" + "a" * 64 + "\n", "s1": "container_image = y\n"}
    images = universe.used(ledger, texts)
    found = provenance.gather(pipeline, file, taken, "s", draft, images)["images"]
    assert found["s0"]["digest"] == "sha256:" + "a" * 64
    assert found["s1"] == {"image": "y", "digest": None}
