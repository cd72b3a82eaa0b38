"""docs/features.md names tests that are there, and no feature of a peer is left out."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "features.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", _PAGE)
    assert len(named) > 20
    for file, test in named:
        source = (_ROOT / "tests" / "pool" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file} has no {test}"


def test_every_row_names_a_test_or_says_what_is_missing() -> None:
    rows = [line for line in _PAGE.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        assert "::test_" in row or "*not yet*" in row, row
