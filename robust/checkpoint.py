"""Checkpoints that cannot lie: weights with the mask, keep ratio and settings that made them.

The file is a `torch.save` of plain values and tensors, read with `weights_only=True`, so loading
executes nothing. A SHA-256 over the content guards it. Weights are stored multiplied by their
mask: the study's code kept the dense weights beside the scores, and its black-box table came from
evaluating a k = 0.1 checkpoint with k = 1, which put the stale weights back. Here no k can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condorctl import job
from condorctl.errors import UserError
from robust.config import Config, from_dict, to_dict
from robust.data import Dataset, digits
from robust.masks import Masks, kept_count, prunable
from robust.models import ResNet

_FIELDS = ("stage", "seed", "keep", "config", "data", "weights", "masks")
_PRUNED_STAGES = ("score", "finetune")


@dataclass(frozen=True)
class Checkpoint:
    """What one stage hands to the next.

    `weights`: state dict, zero wherever a mask is False; the encoder's alone after pretraining.
    `masks`: bool tensors by weight name, empty for a dense network. `keep`: fraction of weights
    kept, 1 when dense. `data`: fingerprint of the data set and its split.
    """

    stage: str
    seed: int
    config: Config
    data: str
    weights: dict[str, Tensor]
    keep: float = 1.0
    masks: Masks = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: str, epoch: int) -> str:
    """Write `checkpoint` atomically, record it as a job's checkpoint; return its content hash."""
    payload: dict[str, Any] = {
        "stage": checkpoint.stage,
        "seed": checkpoint.seed,
        "keep": checkpoint.keep,
        "config": to_dict(checkpoint.config),
        "data": checkpoint.data,
        "weights": _plain(checkpoint.weights),
        "masks": _plain(checkpoint.masks),
    }
    payload["hash"] = content_hash(payload)
    job.save(path, write=lambda partial: torch.save(payload, partial), epoch=epoch)
    return str(payload["hash"])


def load(path: str, stages: Iterable[str]) -> Checkpoint:
    """Read and verify a checkpoint that one of `stages` wrote.

    Raises UserError, one line that names `path`, when the file is missing or damaged, comes from
    another stage, or its keep ratio, masks and weights contradict each other.
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
    checkpoint = Checkpoint(
        stage=payload["stage"],
        seed=payload["seed"],
        keep=payload["keep"],
        config=from_dict(payload["config"], where=path),
        data=payload["data"],
        weights=payload["weights"],
        masks=payload["masks"],
    )
    if checkpoint.stage not in tuple(stages):
        raise UserError(
            f"{path}: written by stage {checkpoint.stage}, expected one of {', '.join(stages)}"
        )
    _check_masks(checkpoint, path)
    return checkpoint


def load_data(config: Config, *checkpoints: tuple[str, Checkpoint]) -> Dataset:
    """The data set of `config`; UserError unless each (path, checkpoint) was made on the same."""
    dataset = digits(config.data.split_seed)
    for path, checkpoint in checkpoints:
        if checkpoint.data != dataset.fingerprint:
            raise UserError(
                f"{path}: made on another data set or split (fingerprint {checkpoint.data[:12]}, "
                f"here {dataset.fingerprint[:12]})"
            )
    return dataset


def build(config: Config, dataset: Dataset) -> ResNet:
    """A freshly initialised network of `config` for `dataset`."""
    return ResNet(dataset.channels, config.model.widths, dataset.classes)


def restore(checkpoint: Checkpoint, dataset: Dataset, path: str) -> ResNet:
    """The network a checkpoint holds; UserError when its weights are not of its architecture."""
    model = build(checkpoint.config, dataset)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError:
        raise UserError(
            f"{path}: weights do not fit a network with widths {checkpoint.config.model.widths}"
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


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the default memory layout, free of the autograd graph."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


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
        count = kept_count(mask.shape, keep, checkpoint.config.prune.floor)
        if int(mask.sum()) != count:
            raise UserError(
                f"{path}: keep {keep} means {count} weights in {name}, its mask has "
                f"{int(mask.sum())}"
            )
        if weights[name][~mask].any():
            raise UserError(f"{path}: {name} has weights outside its mask")
