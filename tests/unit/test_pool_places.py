"""Where a personal pool lives, and what PATH it gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from condorctl.errors import UserError
from condorctl.pool.places import Release, pool_dir, software_dir


@pytest.fixture(autouse=True)
def no_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_xdg_folders_are_used_and_relative_ones_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert pool_dir() == Path("/home/me/.local/state/condorctl/pool")
    assert software_dir() == Path("/home/me/.cache/condorctl")
    monkeypatch.setenv("XDG_STATE_HOME", "/data/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert pool_dir() == Path("/data/state/condorctl/pool")
    assert software_dir() == Path("/home/me/.cache/condorctl")


@pytest.mark.parametrize("home", ["/home/my name", "/home/a,b", "/home/" + "x" * 60, "/home/ü"])
def test_a_home_that_htcondor_cannot_live_in_is_replaced(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    folder = pool_dir()
    try:
        assert folder.parent == Path("/var/tmp")
        assert folder.stat().st_mode & 0o077 == 0
        assert pool_dir() == folder
    finally:
        folder.rmdir()


def test_a_folder_under_var_tmp_that_is_somebody_elses_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/the one of this test")
    folder = pool_dir()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(UserError, match="belongs to someone else"):
            pool_dir()
    finally:
        folder.unlink()


def test_path_has_the_tools_first_and_ssh_last_once(tmp_path: Path) -> None:
    release = Release(tmp_path, "25.14.1")
    once = release.path("/usr/local/bin:/usr/bin")
    assert once == f"{tmp_path}/tools:/usr/local/bin:/usr/bin:{tmp_path}/ssh"
    assert release.path(once) == once


def test_the_systems_ssh_is_preferred(tmp_path: Path) -> None:
    for name in ("ssh", "mine/ssh"):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / "mine/ssh/ssh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    fallback = tmp_path / "ssh/ssh"
    shutil.copy(program, fallback)
    path = Release(tmp_path, "25.14.1").path(str(program.parent))
    assert shutil.which("ssh", path=path) == str(program)
    program.unlink()
    assert shutil.which("ssh", path=path) == str(fallback)
