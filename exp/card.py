"""The card of a published network: `python exp/card.py exp/models/NAME` writes its README.md.

Finds the one result below exp/ that was measured on the checkpoint which `model.safetensors` was
exported from. Every figure of the card is that result's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

import robust
from robust import sparse
from robust.masks import kept_fraction, prunable

HERE = Path(__file__).parent
CARD, MODEL, TEMPLATE = "README.md", "model.safetensors", "card.md.j2"
DATA = {
    "cifar10-jpeg": "CIFAR-10 (JPEG q75), CIFAR-10 whose images were stored as JPEGs of quality 75"
}
PICKED = {"last": "its last epoch", "best": "its epoch best under PGD on the held-out images"}


def results(folder: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The results below `folder`, a glob, each with its file."""
    for file in sorted(HERE.glob(f"{folder}/*.evaluate*.json")):
        yield file, json.loads(file.read_text("utf-8"))


def result_of(checkpoint: str) -> tuple[Path, dict[str, Any]]:
    """The result of the checkpoint whose file has the SHA-256 `checkpoint`, and where it is."""
    for file, result in results("*"):
        if result["values"]["details"]["checkpoint"] == checkpoint:
            return file, result
    raise SystemExit(f"error: no result below {HERE.name}/ is of checkpoint {checkpoint}")


def card(folder: Path) -> str:
    """The card in Markdown."""
    header = sparse.read_card(folder / MODEL)
    file, result = result_of(header.checkpoint)
    state = robust.load(folder / MODEL).state_dict()
    masks = {name: state[name] != 0 for name in prunable(state)}
    details = result["values"]["details"]
    pruned = [other for _, other in results(file.parent.name) if other["values"]["keep"] < 1]
    own = [step for step in result["lineage"] if "checkpoint.pt" in step["outputs"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template(TEMPLATE).render(
        name=folder.name,
        header=header,
        # A convolution at either end of each block, the stem and the classifier.
        depth=2 + 2 * sum(header.blocks),
        kept=kept_fraction(masks),
        weights=sum(mask.numel() for mask in masks.values()),
        size=(folder / MODEL).stat().st_size,
        data_name=DATA.get(header.data, header.data),
        picked=PICKED,
        only=len(pruned) == 1,
        device=details["machines"][0]["device"],
        epsilon=round(255 * details["config"]["evaluate"]["epsilon"]),
        lineage=[step for step in own if not step["stage"].startswith("surrogate")],
        file=file.relative_to(HERE.parent),
        preset=result["params"]["preset"],
        values=result["values"],
        details=details,
        config=details["config"],
    )


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        (place / CARD).write_text(card(place), "utf-8")
