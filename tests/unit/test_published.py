"""Every published table and card is what its command makes of the JSON files beside it."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robust
from robust import sparse

ROOT = Path(__file__).parents[2]

# A published table stands between the command that prints it and an end mark.
_BLOCK = re.compile(r"<!-- (condorctl results [^>]*) -->\n(.*?)<!-- end -->", re.DOTALL)


def published() -> list[tuple[str, str, str]]:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "exp").glob("*.md")]
    return [
        (file.name, command, text)
        for file in files
        for command, text in _BLOCK.findall(file.read_text(encoding="utf-8"))
    ]


def test_there_are_published_tables() -> None:
    assert published()


@pytest.mark.parametrize(("file", "command", "text"), published(), ids=lambda value: value[:60])
def test_a_published_table_is_what_its_command_prints(file: str, command: str, text: str) -> None:
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "condorctl", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert text.strip() == done.stdout.strip(), f"{file}: paste again what `{command}` prints"


NETWORKS = sorted((ROOT / "exp" / "models").glob("*/model.safetensors"))


def test_there_is_a_published_network() -> None:
    assert NETWORKS


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.parent.name)
def test_a_published_network_is_the_one_its_card_tells_of(network: Path) -> None:
    made = runpy.run_path(str(ROOT / "exp" / "card.py"))
    assert (network.parent / "README.md").read_text("utf-8") == made["card"](network.parent)
    # It is what the last stage before its evaluation wrote, and loads in two lines.
    _, result = made["result_of"](sparse.read_card(network).checkpoint)
    trained = [step["outputs"]["checkpoint.pt"] for step in result["lineage"][:-1]
               if step["stage"].startswith("finetune")]  # fmt: skip
    assert trained == [sparse.read_card(network).checkpoint]
    assert robust.load(network)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
