"""Networks and images of random numbers, for tests of files and counts that learning is nothing to.

Of the digits' shape, so that the same sizes hold for what the tests of the command train.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from robust import sparse
from robust.models import ResNet

WIDTHS, BLOCKS, SHAPE, CLASSES = (4, 8), (1, 1), (1, 8, 8), tuple("0123456789")
CARD = sparse.Card(
    widths=WIDTHS,
    blocks=BLOCKS,
    normalise=True,
    shape=SHAPE,
    classes=CLASSES,
    data="random",
    fingerprint="f" * 64,
    keep=0.1,
    checkpoint="c" * 64,
)


def network(
    widths: tuple[int, ...] = WIDTHS, keep: float = 1.0, channels: int = SHAPE[0]
) -> ResNet:
    """Random weights of which a random `keep` stays, BN statistics far from their start."""
    generator = torch.Generator().manual_seed(1)
    model = ResNet(channels, widths, BLOCKS, len(CLASSES), normalise=True).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scales = name.endswith("weight") and tensor.dim() == 1
            if scales or name.endswith(("var", "std")):
                # BN that scales by little lets no image through: every logit would be the biases'.
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3, generator=generator)
            if name.endswith("weight") and tensor.dim() > 1:
                tensor.mul_(torch.rand(tensor.shape, generator=generator) < keep)
    return model


def in_halves(model: ResNet) -> ResNet:
    """`model` with every weight rounded to one that half precision represents."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model


def images(count: int = 5, channels: int = SHAPE[0]) -> torch.Tensor:
    """float32 (count, channels, 8, 8) in [0, 1]."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, channels, *SHAPE[1:], generator=generator)


def header_of(path: Path) -> dict[str, Any]:
    """What the sparse file `path` says besides its tensors."""
    with safe_open(path, framework="np") as file:
        header: dict[str, Any] = json.loads(file.metadata()[sparse.KEY])
    return header
