"""A disk that is full, a real one: a small file system, which needs root to be mounted."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from condorctl.errors import UserError
from condorctl.job.folder import Folder
from condorctl.ledger import Ledger, Run
from tests.chaos.damage import fill
from tests.chaos.world import can_mount


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if not can_mount(tmp_path):
        pytest.skip("needs root, to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        # The ledger's connections are closed some time later.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_on_a_full_disk_the_ledger_says_so_in_a_line_and_keeps_what_it_had(disk: Path) -> None:
    ledger = Ledger(disk / "ledger.sqlite")

    def enter(*names: str) -> None:
        with ledger.session() as session:
            for name in names:
                session.add(
                    Run(name=name, pipeline="p", folder="/nowhere", params={"text": "x" * 50_000},
                        owner="me", schedd="s", submitted=0.0)
                )  # fmt: skip
                session.flush()

    def names() -> list[str]:
        with ledger.session() as session:
            return list(session.scalars(select(Run.name)))

    enter("p-1")
    # The first of them would find room.
    os.truncate(disk / "filler", fill(disk) - 300_000)
    with pytest.raises(UserError, match=r"^ledger \S+: database or disk is full$"):
        enter("p-2", *(f"q-{number}" for number in range(20)))
    (disk / "filler").unlink()
    assert names() == ["p-1"]
    enter("p-2")
    assert names() == ["p-1", "p-2"]
    with closing(sqlite3.connect(disk / "ledger.sqlite")) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_on_a_full_disk_a_checkpoint_is_whole_or_not_there(disk: Path) -> None:
    folder = Folder(disk / "checkpoints")
    made = folder.add(lambda path: Path(path).write_bytes(bytes(300_000)), 1, {}, [])
    fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        folder.add(lambda path: Path(path).write_bytes(b"x" * 300_000), 2, {}, [])
    assert {file.name for file in folder.path.iterdir()} == set(made.names)
    assert (folder.checkpoints(), folder.fault(made)) == ([made], None)
