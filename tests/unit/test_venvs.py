"""Environments that travel: the same packages have the same name, and what cannot be packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from condorctl.errors import UserError
from condorctl.submit import venvs


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
