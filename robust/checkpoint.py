"""Checkpoints that cannot lie: weights with the mask, keep ratio and settings that made them.

The file is a `torch.save` of plain values and tensors, read with `weights_only=True`, so loading
executes nothing. A SHA-256 over the content guards it. Weights are stored multiplied by their
mask: the study's code kept the dense weights beside the scores, and its black-box table came from
evaluating a k = 0.1 checkpoint with k = 1, which put the stale weights back. Here no k can.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from condorctl import job
from condorctl.errors import UserError
from robust import data
from robust.config import from_dict, to_dict
from robust.data import Dataset
from robust.masks import Masks, check_counts, prunable
from robust.models import ResNet
from robust.options import Config

_FIELDS = ("stage", "seed", "epoch", "keep", "config", "data", "weights", "masks")
_PRUNED_STAGES = ("score", "finetune")

# Stages whose checkpoint is a whole classifier.
CLASSIFIERS = ("linear", "train", "score", "finetune")


@dataclass(frozen=True)
class DataCard:
    """The data set that a checkpoint was made on: what identifies it, and its network's shape."""

    name: str
    fingerprint: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, dataset: Dataset) -> DataCard:
        channels, height, width = dataset.train.pixels.shape[1:]
        return cls(dataset.name, dataset.fingerprint, dataset.classes, (channels, height, width))


@dataclass(frozen=True)
class Checkpoint:
    """What one stage hands to the next.

    `weights`: state dict, zero wherever a mask is False; after pretraining the encoder's and,
    below `projector.`, the projector's. `masks`: bool tensors by weight name, empty for a dense
    network. `keep`: fraction of weights kept, 1 when dense. `epoch`: the one these weights are of.
    """

    stage: str
    seed: int
    epoch: int
    config: Config
    data: DataCard
    weights: dict[str, Tensor]
    keep: float = 1.0
    masks: Masks = field(default_factory=dict)


class _Values(BaseModel):
    """What a file holds besides tensors and configuration: types and ranges that stages write."""

    stage: str
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    epoch: Annotated[int, Field(ge=0)]
    keep: Annotated[float, Field(gt=0, le=1)]
    data: DataCard


def save(checkpoint: Checkpoint, path: str) -> str:
    """Write `checkpoint` atomically, record it as a job's checkpoint; return its content hash.

    Raises UserError when a weight is not finite (the loss of an epoch does not show where its last
    step leads), OSError when the disk is full; `path` is then as it was.
    """
    stray = _not_finite(checkpoint.weights)
    if stray:
        stage = checkpoint.stage
        raise UserError(
            f"{stage}: {stray} holds values that are not finite after epoch {checkpoint.epoch}; "
            f"lower {stage}.lr"
        )
    payload: dict[str, Any] = {
        "stage": checkpoint.stage,
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "keep": checkpoint.keep,
        "config": to_dict(checkpoint.config),
        "data": {name: _listed(value) for name, value in vars(checkpoint.data).items()},
        "weights": _plain(checkpoint.weights),
        "masks": _plain(checkpoint.masks),
    }
    payload["hash"] = content_hash(payload)
    job.save(path, write=lambda partial: write(payload, partial), epoch=checkpoint.epoch)
    return str(payload["hash"])


def write(content: Mapping[str, Any], path: str) -> None:
    """`torch.save`; OSError when the disk takes no more."""
    try:
        torch.save(content, path)
    except RuntimeError:
        # torch's own writer does not say why it failed; Python's does.
        whole = io.BytesIO()
        torch.save(content, whole)
        Path(path).write_bytes(whole.getbuffer())


def load(path: str, stages: Iterable[str], keep: float | None = None) -> Checkpoint:
    """Read and verify a checkpoint that one of `stages` wrote, on the CPU.

    Raises UserError, one line that names `path`, when the file is missing or damaged, comes from
    another stage, a value is out of its range or a weight not finite, its keep ratio, masks and
    weights contradict each other, or `keep` is given and is not the checkpoint's own.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        intact = payload["hash"] == content_hash(payload)
    except Exception as error:  # a damaged file fails in whatever way its bytes happen to
        raise UserError(f"{path}: not a checkpoint of ours ({type(error).__name__})") from None
    if not intact:
        raise UserError(f"{path}: content does not match its hash; fetch or make it again")
    try:
        values = _Values.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; make it again") from None
    checkpoint = Checkpoint(
        **dict(values),
        config=from_dict(payload["config"], where=path, old=True),
        weights=payload["weights"],
        masks=payload["masks"],
    )
    if checkpoint.stage not in tuple(stages):
        raise UserError(
            f"{path}: written by stage {checkpoint.stage}, expected one of {', '.join(stages)}"
        )
    stray = _not_finite(checkpoint.weights)
    if stray:
        raise UserError(f"{path}: {stray} holds values that are not finite; train it again")
    _check_masks(checkpoint, path)
    if keep not in (None, checkpoint.keep):
        raise UserError(f"--keep {keep:g}: {path} keeps {checkpoint.keep:g} of its weights")
    return checkpoint


def file_hash(path: str) -> str:
    """SHA-256 of the file itself, as the ledger lists it; by this a record names a checkpoint."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_data(
    config: Config,
    root: str | None,
    *checkpoints: tuple[str, Checkpoint],
    device: torch.device | str = "cpu",
) -> Dataset:
    """The data set of `config`; UserError unless each (path, checkpoint) was made on the same."""
    dataset = data.load(config.data, root, device)
    for path, checkpoint in checkpoints:
        if checkpoint.data.fingerprint != dataset.fingerprint:
            raise UserError(
                f"{path}: made on another data set or split ({checkpoint.data.name}, fingerprint "
                f"{checkpoint.data.fingerprint[:12]}; here {dataset.name}, "
                f"{dataset.fingerprint[:12]})"
            )
    return dataset


def build(config: Config, card: DataCard) -> ResNet:
    """A freshly initialised network of `config` for the images and classes of `card`."""
    options = config.model
    return ResNet(
        card.shape[0], options.widths, options.blocks, len(card.classes), options.normalise
    )


def set_normalisation(model: ResNet, dataset: Dataset) -> None:
    """Let `model` standardise by the statistics of the training part, when it standardises."""
    if model.normalise:
        model.mean.copy_(torch.tensor(dataset.mean).view(1, -1, 1, 1))
        # A constant channel deviates by 0: it is left at its mean.
        std = torch.tensor([deviation or 1.0 for deviation in dataset.std])
        model.std.copy_(std.view(1, -1, 1, 1))


def restore(checkpoint: Checkpoint, path: str) -> ResNet:
    """The network a checkpoint holds, on the CPU; UserError when its weights do not fit it."""
    model = build(checkpoint.config, checkpoint.data)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError:
        raise UserError(
            f"{path}: weights do not fit a network with widths {checkpoint.config.model.widths} "
            f"and blocks {checkpoint.config.model.blocks}"
        ) from None
    return model


def content_hash(payload: Mapping[str, Any]) -> str:
    """SHA-256 over every field but the hash itself: JSON of the values, bytes of the tensors."""
    values = {name: payload[name] for name in _FIELDS if name not in ("weights", "masks")}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for group in ("weights", "masks"):
        for name, tensor in sorted(payload[group].items()):
            digest.update(f"{group} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU in the default memory layout, free of the autograd graph."""
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None when all are finite."""
    return next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)


def _check_masks(checkpoint: Checkpoint, path: str) -> None:
    """Refuse masks that do not fit the stage, the weights or the keep ratio."""
    weights, masks, keep = prunable(checkpoint.weights), checkpoint.masks, checkpoint.keep
    if checkpoint.stage not in _PRUNED_STAGES:
        if masks or keep != 1:
            raise UserError(f"{path}: a dense checkpoint with keep {keep} and {len(masks)} masks")
        return
    if masks.keys() != weights.keys():
        raise UserError(f"{path}: masks are missing or do not name the network's weights")
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            raise UserError(f"{path}: the mask of {name} does not fit its weight")
        if weights[name][~mask].any():
            raise UserError(f"{path}: {name} has weights outside its mask")
    contradiction = check_counts(masks, keep, checkpoint.config.prune)
    if contradiction:
        raise UserError(f"{path}: {contradiction}")
