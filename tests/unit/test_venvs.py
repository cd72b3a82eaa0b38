"""Environments that travel: the same packages have the same name, and what cannot be packed."""

from __future__ import annotations

import getpass
import json
import os
import time
from pathlib import Path

import pytest

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import Ledger
from condorctl.submit import venvs
from tests.conftest import Condorctl
from tests.unit import runs_made

DAY_S = 86400


@pytest.fixture
def venv(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's lists, with one package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    folder = project / ".venv"
    package = folder / "lib" / "python3.11" / "site-packages" / "tiny-1.0.dist-info"
    package.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    (package / "RECORD").write_text("tiny.py,sha256=abc,3\n")
    return folder


def test_the_name_is_that_of_what_is_installed(venv: Path) -> None:
    before = venvs.cached(venv)
    assert before.parent == venv.parent / "cache" / "condorctl" / "venvs"
    [listed] = venv.rglob("RECORD")
    # Compiled on the first import; and programs name their own folder.
    listed.write_text("../../../bin/tiny,sha256=xyz,9\n__pycache__/tiny.pyc,,\n"
                      "tiny.py,sha256=abc,3\n")  # fmt: skip
    assert venvs.cached(venv) == before
    listed.write_text("tiny.py,sha256=abd,3\n")
    assert venvs.cached(venv) != before
    (venv / "pyvenv.cfg").write_text("version_info = 3.12.1.final.0\n")
    assert len({before, venvs.cached(venv)}) == 2


def test_what_nodes_would_not_have_is_refused(venv: Path) -> None:
    [listed] = venv.rglob("RECORD")
    link = listed.with_name("direct_url.json")
    link.write_text(json.dumps({"dir_info": {"editable": True}, "url": "file:///x"}))
    with pytest.raises(UserError, match=r"tiny is a link to its source .* name it in `code`"):
        venvs.cached(venv)
    link.unlink()
    listed.unlink()
    with pytest.raises(UserError, match=r"tiny-1\.0\.dist-info has no list of its files"):
        venvs.cached(venv)
    with pytest.raises(UserError, match="is no virtual environment"):
        venvs.pack(venv / "lib")


def test_a_failed_packing_leaves_nothing_in_the_cache(venv: Path) -> None:
    with pytest.raises(UserError, match=r"venv .*: cannot be packed: "):
        venvs.pack(venv)
    assert list((venv.parent / "cache" / "condorctl" / "venvs").iterdir()) == []


def test_the_cache_is_shown_and_freed_but_for_what_runs_need(
    venv: Path, condorctl: Condorctl
) -> None:
    now, cache = time.time(), venvs.folder()
    old = {name: cache / f"{name}.pex" for name in ("going", "failed", "done", "late", "nobodys")}
    fresh, killed = cache / "fresh.pex", cache / f"{venvs.PARTIAL}xyz"
    killed.mkdir(parents=True)
    (killed / "half.pex").write_bytes(b"x" * 500)
    for file in (*old.values(), fresh):
        file.write_bytes(b"x" * 1000)
    for path in (*old.values(), killed):
        os.utime(path, (now - 9 * DAY_S, now - 9 * DAY_S))
    with Ledger(paths.ledger()).session() as session:
        for name, state, days in (
            ("going", "running", 5), ("failed", "failed", 5), ("done", "done", 5),
            ("late", "done", 1),
        ):  # fmt: skip
            ended = None if state == "running" else now - days * DAY_S + 60
            inputs = {".venv": {"source": str(old[name]), "copied": False}}
            run = runs_made.run(
                name=name, state=state, submitted=now - days * DAY_S, finished=ended,
                folder=venv.parent, provenance={"inputs": inputs}, owner=getpass.getuser(),
            )  # fmt: skip
            session.add(run)
    listed = json.loads(condorctl("venv", "list", "--json").stdout)
    assert [Path(one["file"]).stem for one in listed["environments"]][:2] == ["fresh", "late"]
    assert listed["bytes"] == 6000 and listed["folder"] == str(cache)
    needed = {one["needed_by"][0]: one for one in listed["environments"] if one["needed_by"]}
    assert needed.keys() == {"going", "failed"} and needed["going"]["venvs"] == [".venv"]

    def clean(*words: str) -> tuple[int, set[str]]:
        told = json.loads(condorctl("venv", "clean", *words, "--json").stdout)
        return told["bytes"], {Path(one["file"]).stem for one in told["removed"]}

    assert clean("--dry-run") == (3500, {"done", "late", "nobodys"})
    assert all(file.exists() for file in (*old.values(), fresh, killed))
    assert clean("--older-than", "3") == (2500, {"done", "nobodys"})
    assert not killed.exists() and not old["done"].exists()
    assert "kept for going: going.pex  1 kB  .venv, 1 run, used 5 d ago" in (
        condorctl("venv", "clean").stdout
    )
    assert clean("--force") == (3000, {"going", "failed", "fresh"})
    assert condorctl("venv", "list").stdout == f"0 B in {cache}\n"
