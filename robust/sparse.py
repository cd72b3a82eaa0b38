"""The sparse file: a classifier in as few bytes as its kept weights need, for safetensors to read.

A weight that masks apply to is stored by its values other than zero, in half or single precision,
flattened in (out, in, row, column) order, under its name in the network. Beside them lies where
they belong, in whichever form is smaller for the tensor:

- `NAME.mask`: a bit for each weight, the first in the lowest bit of the first byte.
- `NAME.gaps`: how many zeros stand before each value, and after the last: a byte each, of which
  255 stands for 255 zeros and goes on in the next byte. 0.086 bits a weight at 1 % kept, where
  0.081 is the entropy and the mask takes 1; smaller than the mask below 12.5 % kept.

A weight with few zeros is stored dense, with neither. Biases, BN and the normalisation stay fp32:
next to the weights they are small. The header's `robust` holds a `Card` as JSON. The same network
and card give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from condorctl.errors import UserError
from robust.masks import prunable
from robust.models import ResNet

# One key: safetensors writes several in an order that changes from process to process.
KEY = "robust"
DTYPES = {"float16": torch.float16, "float32": torch.float32}

# A byte of gaps stands for up to 255 weights, so the size of a hostile file bounds too little.
# 1 GiB in fp32 is room for a WideResNet-70-16; a ResNet-18 takes a twenty-fourth of it.
_LARGEST = 1 << 28

_Width = Annotated[int, Field(gt=0, le=1 << 16)]


class Card(BaseModel):
    """What the file says besides the weights. The first five fields rebuild the network.

    `shape`: (channels, height, width) of an image. `fingerprint`: of the data set. `keep`: fraction
    of weights kept, as it was asked for. `checkpoint`: SHA-256 of the checkpoint's file, as the
    ledger and an evaluation's record have it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1] = 1
    widths: tuple[_Width, ...] = Field(min_length=1)
    blocks: tuple[_Width, ...]
    normalise: bool
    shape: tuple[_Width, _Width, _Width]
    classes: tuple[str, ...] = Field(min_length=1)
    data: str
    fingerprint: str
    keep: float
    checkpoint: str


class _Header(Card):
    """`content`: SHA-256 over the card and every tensor, so that one changed bit is noticed."""

    content: str


def save(model: ResNet, card: Card, path: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Write `model`, on the CPU, to `path`: its kept weights as `dtype`, all else as fp32.

    Raises ValueError, one clause, when a value is not finite in `dtype`.
    """
    tensors: dict[str, Tensor] = {}
    state = model.state_dict()
    for name, tensor in floats(state).items():
        narrow = _rounded(tensor, dtype) if name in prunable(state) else tensor
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite; train it again")
        if not narrow.isfinite().all():
            raise ValueError(f"{name} is too large for half precision; use --dtype float32")
        tensors |= _smallest(name, narrow) if name in prunable(state) else {name: narrow}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = _Header(**card.model_dump(), content=_content(card, tensors))
    # Not `save_file`, which leaves a file that nobody else may read.
    Path(path).write_bytes(safetensors.torch.save(tensors, {KEY: header.model_dump_json()}))


def load(path: str | os.PathLike[str]) -> ResNet:
    """The network of the sparse file `path`, fp32 on the CPU, in eval mode.

    Images (N, C, H, W), float32 in [0, 1], to logits (N, classes).
    Raises UserError, one line that names `path`, when it is missing, damaged or not such a file.
    """
    return _checked(path)[1]


def read_card(path: str | os.PathLike[str]) -> Card:
    """What the sparse file `path` says besides the weights. Raises UserError as `load` does."""
    return _checked(path)[0]


def _checked(path: str | os.PathLike[str]) -> tuple[Card, ResNet]:
    header, stored = _read(path)
    card = Card(**header.model_dump(exclude={"content"}))
    try:
        return card, _network(card, header.content, stored)
    except ValueError as error:
        raise UserError(f"{path}: {error}; export the network again") from None


def _read(path: str | os.PathLike[str]) -> tuple[_Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            # Copies: the file may change under what safetensors maps into memory.
            stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file fails in whatever way its bytes happen to
        raise UserError(f"{path}: not a safetensors file ({type(error).__name__})") from None
    if text is None:
        raise UserError(f"{path}: a safetensors file, but not of `python -m robust export`")
    try:
        return _Header.model_validate_json(text), stored
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(["header", *(str(part) for part in first["loc"])])
        raise UserError(f"{path}: {where}: {first['msg']}") from None


def _network(card: Card, content: str, stored: dict[str, Tensor]) -> ResNet:
    """The network of `card` with the tensors of `stored`; ValueError unless they fit exactly."""
    for name, tensor in stored.items():
        if tensor.dtype not in (torch.uint8, *DTYPES.values()):
            raise ValueError(f"{name} is of type {tensor.dtype}")
    if content != _content(card, stored):
        raise ValueError("content does not match its hash")
    if len(card.widths) != len(card.blocks) or sum(card.blocks) > len(stored):
        raise ValueError("holds fewer tensors than its architecture has")
    with torch.device("meta"):  # shapes alone: nothing is allocated before the file has proved them
        model = ResNet(card.shape[0], card.widths, card.blocks, len(card.classes), card.normalise)
    state = model.state_dict()
    if sum(tensor.numel() for tensor in state.values()) > _LARGEST:
        raise ValueError(f"claims more than {_LARGEST:,} weights")
    filled = {
        name: _restored(name, tensor.shape, stored, sparse=name in prunable(state))
        for name, tensor in floats(state).items()
    }
    if stored:
        raise ValueError(f"holds {min(stored)}, which its architecture has not")
    counts = {name: torch.zeros((), dtype=torch.int64) for name in state.keys() - filled.keys()}
    model.load_state_dict(filled | counts, assign=True)
    return model.to(memory_format=torch.channels_last).eval()


def floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that eval mode reads: without BN's count of training batches."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _content(card: Card, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(card.model_dump_json().encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, each output channel's rounding errors balanced to a sum near zero.

    Behind a ReLU a layer's inputs are never negative and largely rise and fall together, so errors
    that add up are what moves a logit. Each weight is rounded together with the error that the
    weights before it left, as error diffusion does: a third of the logit error of rounding to the
    nearest, measured on networks for CIFAR-10. Zeros and what `dtype` represents stay as they are.
    """
    if dtype == weight.dtype:
        return weight
    error = torch.zeros(len(weight))
    columns = []
    for column in weight.flatten(1).T.contiguous():
        target = torch.where(column != 0, column + error, 0)
        columns.append(target.to(dtype))
        error = torch.where(column != 0, target - columns[-1].float(), error)
    return torch.stack(columns, dim=1).view(weight.shape)


def _smallest(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors to store for `weight`: the form of the fewest bytes, dense when none is fewer."""
    flat = weight.flatten()
    kept = flat != 0
    values = flat[kept]
    forms = (
        {name: weight},
        {name: values, f"{name}.mask": pack_mask(kept)},
        {name: values, f"{name}.gaps": pack_gaps(kept)},
    )
    return min(forms, key=lambda form: sum(tensor.nbytes for tensor in form.values()))


def _restored(name: str, shape: torch.Size, stored: dict[str, Tensor], sparse: bool) -> Tensor:
    """Take the float32 tensor `name` out of `stored`; ValueError unless all its parts fit."""
    if name not in stored:
        raise ValueError(f"holds no {name}")
    values = stored.pop(name)
    if values.dtype not in (DTYPES.values() if sparse else (torch.float32,)):
        raise ValueError(f"{name} is of type {values.dtype}")
    if sparse and f"{name}.mask" in stored:
        kept = unpack_mask(stored.pop(f"{name}.mask"), shape.numel())
    elif sparse and f"{name}.gaps" in stored:
        kept = unpack_gaps(stored.pop(f"{name}.gaps"), shape.numel())
    elif values.shape == shape:
        return values.float()
    else:
        raise ValueError(f"{name} is {tuple(values.shape)}, the network's {tuple(shape)}")
    if kept is None or values.dim() != 1 or int(kept.sum()) != len(values):
        raise ValueError(f"the places of {name} do not fit its {values.numel()} values")
    weight = torch.zeros(shape)
    weight.view(-1)[kept] = values.float()
    return weight


def pack_mask(kept: Tensor) -> Tensor:
    """Bools (n,) as uint8 (⌈n/8⌉,), the first in the lowest bit."""
    bits = F.pad(kept.to(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, count: int) -> Tensor | None:
    """The `count` bools that `pack_mask` packed; None when `packed` is not of that many."""
    if packed.dtype != torch.uint8 or packed.shape != (-(-count // 8),):
        return None
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
    return None if bits[count:].any() else bits[:count]


def pack_gaps(kept: Tensor) -> Tensor:
    """The runs of False in bools (n,) before each True and after the last, as uint8."""
    edge = torch.tensor([len(kept)])
    places = torch.cat([kept.nonzero().squeeze(1), edge])
    zeros = places.diff(prepend=torch.tensor([-1])) - 1
    lengths = zeros // 255 + 1
    packed = torch.full((int(lengths.sum()),), 255, dtype=torch.uint8)
    packed[lengths.cumsum(0) - 1] = (zeros % 255).to(torch.uint8)
    return packed


def unpack_gaps(packed: Tensor, count: int) -> Tensor | None:
    """The `count` bools that `pack_gaps` packed; None when `packed` is not of that many."""
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not len(packed) or packed[-1] == 255:
        return None
    ends = packed < 255
    places = packed.cumsum(0, dtype=torch.int64)[ends] + torch.arange(int(ends.sum()))
    if places[-1] != count:
        return None
    kept = torch.zeros(count, dtype=torch.bool)
    kept[places[:-1]] = True
    return kept
