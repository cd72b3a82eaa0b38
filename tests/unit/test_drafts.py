"""Folders that are being made: whole under their name, and nothing stays of what was given up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from condorctl import drafts
from condorctl.errors import UserError

_MAKE = """\
import sys, time
from pathlib import Path
from condorctl import drafts
with drafts.new(Path(sys.argv[1])) as draft:
    (draft / "half").write_text("")
    print(draft, flush=True)
    time.sleep(100)
"""


def maker(runs: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE, str(runs)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_a_draft_is_swept_once_its_maker_is_dead(tmp_path: Path) -> None:
    runs = tmp_path / "exp" / "runs"
    process, draft = maker(runs)
    try:
        assert drafts.leftovers(runs) == []
        # What is about to get its name is under way; a lock says so, and no clock.
        assert drafts.is_under_way(runs / "p-1", time.time())
        with drafts.new(runs) as mine:
            assert draft.is_dir() and mine.is_dir()
    finally:
        process.kill()
        process.communicate()
    assert drafts.leftovers(runs) == [draft]
    assert not drafts.is_under_way(runs / "p-1", time.time())
    with drafts.new(runs) as mine:
        assert [*runs.iterdir()] == [mine]
    assert [*runs.iterdir()] == []


def test_who_works_on_a_run_is_seen_and_does_not_let_others(tmp_path: Path) -> None:
    with drafts.new(tmp_path) as draft:
        draft.rename(tmp_path / "p-1")
        assert drafts.is_under_way(tmp_path / "p-1", 0)
        refused = pytest.raises(UserError, match="p-1 is just being submitted")
        with refused, drafts.at_work(tmp_path / "p-1"):
            pass
    assert not drafts.is_under_way(tmp_path / "p-1", time.time())
    with drafts.at_work(tmp_path / "p-1"):
        assert drafts.is_under_way(tmp_path / "p-1", 0)
    assert (tmp_path / "p-1").is_dir()


def test_a_folder_is_removed_with_all_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "p-1" / "one").mkdir(parents=True)
    (tmp_path / "p-1" / "one" / "up").symlink_to(tmp_path)
    drafts.remove(tmp_path / "p-1")
    assert [*tmp_path.iterdir()] == []
