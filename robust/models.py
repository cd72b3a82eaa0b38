"""Residual networks, the contrastive projector, and the weight transfer between stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condorctl.errors import UserError

HEAD = "linear."


class BasicBlock(nn.Module):
    """Post-activation residual block with two 3×3 convolutions (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """3×3 stem without pooling, one BasicBlock for each width, average pool, `linear`.

    Input (N, channels, H, W) in [0, 1]; `features` gives (N, widths[-1]), `forward` logits
    (N, classes). Everything but `linear` is the encoder.
    """

    def __init__(self, channels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(
            *(
                BasicBlock(before, width, stride=1 if i == 0 else 2)
                for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
            )
        )
        self.linear = nn.Linear(widths[-1], classes)
        # A third faster than the default layout on CPUs for these sizes; same arithmetic.
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return out.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits


class Projector(nn.Sequential):
    """Features to contrastive embeddings: linear, ReLU, linear, biases, no BN (RoCL)."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside, in its former mode again after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def encoder_weights(model: ResNet) -> dict[str, Tensor]:
    """The encoder's part of the state: weights and BN statistics, without `linear`."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(HEAD)}


def transfer_extractor(model: ResNet, weights: Mapping[str, Tensor]) -> None:
    """Copy the whole encoder, BN statistics included, from `weights`; `linear` stays as it is.

    The study's `extractor`. It copies what matches; here a key that is missing or of another
    shape is a UserError, because a half-loaded encoder trains without complaint.
    """
    encoder = encoder_weights(model)
    for name, tensor in encoder.items():
        if name not in weights:
            raise UserError(f"--init: the checkpoint lacks the encoder's {name}")
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"--init: {name} is {tuple(weights[name].shape)} in the checkpoint, "
                f"{tuple(tensor.shape)} in this network; use the same model options"
            )
    model.load_state_dict({name: weights[name] for name in encoder}, strict=False)
