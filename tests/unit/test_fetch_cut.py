"""A connection into a sandbox that ends before it has said a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from condorctl.files import sandbox


def test_a_connection_that_is_killed_before_the_first_byte_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "condor_ssh_to_job"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def ends(how: str) -> None:
        tool.write_text(f"#!/bin/sh\n{how}\n")
        tool.chmod(0o700)
        with sandbox.connect("1.0", "true", sandbox.Deadline()):
            pass

    with pytest.raises(sandbox.Broken):
        ends("kill -9 $$")
    with pytest.raises(sandbox.NoSsh, match="not authorized"):
        ends("echo not authorized >&2; exit 1")
