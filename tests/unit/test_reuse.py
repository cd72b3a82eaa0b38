"""What makes a stage another one, which finished stage stands in for it, what cleaning leaves."""

from __future__ import annotations

import getpass
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Job, Ledger, Output, Run, Stage, find
from condorctl.spec import reader
from condorctl.steer import cleaning
from condorctl.submit import render, reuse, snapshot, universe

SPEC = """
params: {n: 1}
stages:
  a: {command: [go, "{{ n }}"], outputs: [out, dir], request_memory: 1 GB, code: [one], \
inputs: [data, "https://x/y"]}
  b: {command: [python, x], inputs: [a/out], outputs: [o.txt], code: [two]}
"""


@pytest.fixture
def ledger(project: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("CONDOR_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "none"))
    for package in ("one", "two"):
        (project / package).mkdir()
        (project / package / "__init__.py").write_text("x = 1")
    (project / "data").write_text("1")
    return Ledger(paths.ledger())


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Tree:
    """The user's folder: what a submission of its spec would decide now."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.drafts = 0

    def prints(self, text: str, n: int = 1) -> dict[str, reuse.Prints]:
        self.drafts += 1
        self.folder = Path(f"draft-{self.drafts}").absolute()
        self.folder.mkdir()
        Path("jobs/p.yaml").write_text(text)
        self.pipeline = reader.load(Path("jobs/p.yaml"), {"n": str(n)})
        taken = snapshot.take(self.ledger, self.pipeline, self.folder)
        stages = self.pipeline.stages
        texts = {
            name: render.submit_file(self.pipeline, stage, "p", ["python3"])
            for name, stage in stages.items()
        }
        images = universe.used(self.ledger, texts)
        return {
            name: reuse.fingerprint(
                stage, self.pipeline, taken, ["python3"], texts[name], images.get(name)
            )
            for name, stage in stages.items()
        }

    def plan(self, text: str = SPEC, n: int = 1, **wish: Any) -> reuse.Plan:
        prints = self.prints(text, n)
        return reuse.plan(self.ledger, self.pipeline, prints, reuse.Wish(**wish), self.folder)

    def done(self, name: str, **state: str) -> Path:
        """Enter a run of the spec that is done, with its files; of a stage `state` if it is not."""
        prints = self.prints(SPEC)
        folder = paths.runs() / name
        (folder / "a" / "dir").mkdir(parents=True)
        (folder / "b").mkdir()
        (folder / "p.dag").touch()
        files = {"a": {"out": "o", "dir/x": "x"}, "b": {"o.txt": "b"}}
        with self.ledger.session() as session:
            stages = []
            for position, stage in enumerate(files):
                job = Job(
                    schedd="s", cluster=position, proc=0, attempt=1, submitted=time.time(),
                    state=state.get(stage, "completed"),
                )  # fmt: skip
                for path, text in files[stage].items():
                    (folder / stage / path).write_text(text)
                    job.written.append(Output(path=path, bytes=1, sha256=sha256(text)))
                needs = ["a"] if stage == "b" else []
                stages.append(
                    Stage(name=stage, position=position, needs=needs, jobs=[job],
                          outputs=self.pipeline.stages[stage].outputs, fingerprint=prints[stage])
                )  # fmt: skip
            session.add(
                Run(name=name, pipeline="p", folder=str(folder), dag_file=str(folder / "p.dag"),
                    params={}, owner=getpass.getuser(), schedd="s", submitted=time.time(),
                    finished=time.time(), state="done", stages=stages)
            )  # fmt: skip
        return folder


IMAGE = f"host.example:5000/x@sha256:{'0' * 64}"


def changed(before: reuse.Prints, after: reuse.Prints) -> list[str]:
    return [part for part in before if before[part] != after[part]]


def test_each_part_of_a_stage_counts_for_itself_and_resources_do_not(ledger: Ledger) -> None:
    tree = Tree(ledger)
    first = tree.prints(SPEC)
    more = SPEC.replace("1 GB", "8 GB").replace("b: {", "b: {retries: 3, request_cpus: 2, ")
    assert tree.prints(more) == first
    for text, stage, expected in [
        (SPEC.replace("go, ", "go, -v, "), "a", ["command"]),
        (SPEC.replace("https://x/y", "https://x/z"), "a", ["inputs"]),
        (SPEC.replace("o.txt", "p.txt"), "b", ["outputs"]),
        (SPEC.replace("b: {", "b: {environment: {A: x}, "), "b", ["environment"]),
        (SPEC.replace("b: {", f"b: {{universe: docker, image: {IMAGE}, "), "b", ["image"]),
    ]:
        assert changed(first[stage], tree.prints(text)[stage]) == expected, text
    assert changed(first["a"], tree.prints(SPEC, n=2)["a"]) == ["command"]
    Path("one/__init__.py").write_text("x = 2")
    after = tree.prints(SPEC)
    assert (changed(first["a"], after["a"]), changed(first["b"], after["b"])) == (["code"], [])
    Path("data").write_text("2")
    assert changed(after["a"], tree.prints(SPEC)["a"]) == ["inputs"]


def test_an_image_counts_by_its_digest_or_by_its_bytes(ledger: Ledger, project: Path) -> None:
    tree = Tree(ledger)

    def image(universe: str, name: str) -> reuse.Prints:
        text = SPEC.replace("b: {", f"b: {{universe: {universe}, image: '{name}', ")
        return tree.prints(text)["b"]

    other = IMAGE.replace("0" * 64, "1" * 64)
    assert changed(image("docker", IMAGE), image("docker", other)) == ["image"]
    file = project / "x.sif"
    file.write_text("one")
    before = image("container", "x.sif")
    file.write_text("two")
    assert changed(before, image("container", "x.sif")) == ["image"]

    # A root file system's links lead into this machine when they are followed from here.
    box = project / "box"
    (box / "bin").mkdir(parents=True)
    (box / "etc").symlink_to("/nowhere")
    before = image("container", str(box))
    (box / "bin" / "sh").write_text("x")
    after = image("container", str(box))
    assert changed(before, after) == ["image"] and image("container", str(box)) == after
    (box / "etc").unlink()
    (box / "etc").symlink_to("/elsewhere")
    assert changed(after, image("container", str(box))) == ["image"]


def test_the_newest_run_that_is_whole_stands_in(ledger: Ledger) -> None:
    tree = Tree(ledger)
    old, new = tree.done("p-1"), tree.done("p-2")
    plan = tree.plan()
    assert {name: done.run for name, done in plan.taken.items()} == {"a": "p-2", "b": "p-2"}
    assert (tree.folder / "a" / "dir" / "x").samefile(new / "a" / "dir" / "x")
    assert reuse.explain(plan) == ["a and b: unchanged since p-2, not run again"]

    (new / "a" / "dir" / "x").write_text("y")
    plan = tree.plan()
    assert {name: done.run for name, done in plan.taken.items()} == {"a": "p-1", "b": "p-2"}
    assert (tree.folder / "a" / "dir" / "x").read_text() == "x"

    (old / "a" / "out").unlink()
    plan = tree.plan()
    assert not plan.taken
    assert not (tree.folder / "a").exists()
    assert plan.why["a"] == "runs: dir/x of p-2 is damaged: its hash is not the one recorded"
    assert plan.why["b"] == "runs: a runs"


def test_force_runs_all_and_a_run_that_is_named_must_have_the_files(ledger: Ledger) -> None:
    tree = Tree(ledger)
    folder = tree.done("p-1", b="failed")
    assert not tree.plan(force=True).taken
    assert list(tree.plan().taken) == ["a"]
    plan = tree.plan(n=5, start=["b"])
    assert plan.why["a"] == "taken from p-1, although its command changed since p-1"
    with ledger.session() as session:
        run = find.run(session, "p-1")
        session.delete(run.stages[0].jobs[0].written[0])
    with pytest.raises(UserError, match="the hash of out was never recorded in p-1"):
        tree.plan(start=["b"], run="p-1")
    assert "never recorded" in tree.plan().why["a"]
    (folder / "a").rename(folder / "z")
    with pytest.raises(UserError, match="--from a runs it again"):
        tree.plan(start=["b"], run="p-1")


def test_cleaning_counts_what_it_frees_and_leaves_what_is_not_ours(ledger: Ledger) -> None:
    tree = Tree(ledger)
    folder = tree.done("p-1")
    (folder / "a" / "out").write_bytes(b"x" * 100_000)
    alone = cleaning.clean(ledger, ["p-1"], dry_run=True)["bytes"]
    (folder.parent / "second name").hardlink_to(folder / "a" / "out")
    (folder / "link").symlink_to(folder.parent)
    shared = cleaning.clean(ledger, ["p-1"], dry_run=True)["bytes"]
    assert alone - shared > 90_000
    assert cleaning.clean(ledger, [], older_than=1)["runs"] == []
    cleaning.clean(ledger, ["p-1"], keep_outputs=True)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {"a/out", "a/dir/x", "b/o.txt"}
    cleaning.clean(ledger, [], older_than=0)
    assert not folder.exists()
    assert (folder.parent / "second name").exists()
    with pytest.raises(UserError, match="name the runs"):
        cleaning.clean(ledger, [])
    other = tree.done("p-2")
    for field, value, expected in [
        ("kind", "dag", "adopted it"), ("owner", "x", "only they"),
        ("finished", None, "cancel p-2"),
    ]:  # fmt: skip
        with ledger.session() as session:
            run = find.run(session, "p-2")
            before = getattr(run, field)
            setattr(run, field, value)
        with pytest.raises(UserError, match=expected):
            cleaning.clean(ledger, ["p-2"])
        with ledger.session() as session:
            setattr(find.run(session, "p-2"), field, before)
    (other / "p.dag").unlink()
    with pytest.raises(UserError, match="not the folder"):
        cleaning.clean(ledger, ["p-2"])
    assert (other / "a" / "out").exists()
