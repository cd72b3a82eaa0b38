"""Wildcards on lists of names, against what Python's own glob finds on disk."""

from __future__ import annotations

from glob import glob
from pathlib import Path

import pytest

from condorctl.files import patterns

NAMES = [
    "a.pt", "b.pt", ".c.pt", "log", "d/a.pt", "d/.h/x.pt", "d/e/f.pt", "d/e/g.txt", "[1].pt",
    "d/.k.pt", "x y/z.pt",
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    ["*.pt", "**/*.pt", "d/**", "d/*/f.pt", "?.pt", "[ab].pt", "[!a].pt", ".*.pt", "d/e*/*", "**",
     "d/**/f.pt", "*/*.pt", "x*/z.pt", "no*", "d/.*/*.pt", "*/**/g.txt"],
)  # fmt: skip
def test_files_are_those_that_glob_finds(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    expected = {p for p in glob(pattern, recursive=True) if Path(p).is_file()}  # noqa: PTH207
    assert set(patterns.select(NAMES, pattern)) == expected


def test_a_folder_stands_for_all_that_is_in_it() -> None:
    assert patterns.select(NAMES, "d") == [
        "d/.h/x.pt",
        "d/.k.pt",
        "d/a.pt",
        "d/e/f.pt",
        "d/e/g.txt",
    ]
    assert patterns.select(NAMES, "d/[e]") == ["d/e/f.pt", "d/e/g.txt"]
    assert patterns.select(NAMES, "./d//e/") == ["d/e/f.pt", "d/e/g.txt"]
    # A name that looks like a pattern is meant first of all as it is.
    assert "[1].pt" in patterns.select(NAMES, "[1].pt")


@pytest.mark.parametrize(
    ("pattern", "base"),
    [("*.pt", "."), ("d/*.pt", "d"), ("d/e/**", "d/e"), ("**/x", "."), ("a", "."), ("a/b", "a")],
)
def test_only_the_folder_that_can_match_is_listed(pattern: str, base: str) -> None:
    assert patterns.base(pattern) == base
