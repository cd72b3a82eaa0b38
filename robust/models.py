"""Residual networks, the contrastive projector, and the weight transfer between stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from condorctl.errors import UserError

# What the names of the classifier's tensors begin with, and in a checkpoint the projector's.
HEAD, PROJECTOR = "linear.", "projector."


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
    """3×3 stem without pooling, residual stages of BasicBlocks, average pool, `linear`.

    Input (N, channels, H, W) in [0, 1]; `features` gives (N, widths[-1]), `forward` logits
    (N, classes), both fp32. Everything but `linear` is the encoder. Stage i has blocks[i] blocks
    of widths[i] channels; every stage after the first halves the image. Widths 64 to 512 with
    blocks 2,2,2,2 are the ResNet-18 for CIFAR; 16 to 64 with 3,3,3 the ResNet-20, here with 1×1
    convolutions as shortcuts (option B of He et al. 2016).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        if normalise:
            # Inside the network, so that attacks clip images in [0, 1] and no caller can forget.
            self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers, before = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                layers.append(BasicBlock(before, width, stride=2 if stage and not block else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)
        # A third faster than the default layout on CPUs for these sizes; same arithmetic.
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        if self.normalise:
            x = (x - self.mean) / self.std
        out = F.relu(self.bn1(self.conv1(x.to(self.conv1.weight.dtype))))
        out = self.blocks(out)
        return torch.mean(out, dim=(2, 3), dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits


class Twin(ResNet):
    """What a training attack runs: eval-mode BN folded into the convolutions, no weight gradients.

    During an attack the weights stand still and BN is affine, so folding changes nothing but
    rounding, and saves a tenth of a pass. With `dtype` bf16 the convolutions run in it, logits
    stay fp32: the direction of a training attack survives that, a reported figure might not.
    `refresh` after each optimiser step.
    """

    def __init__(self, source: ResNet, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.source = (source,)  # a tuple, so that it is no submodule of this one
        copied = copy.deepcopy(source)
        self.normalise = copied.normalise
        if self.normalise:
            self.mean, self.std = copied.mean, copied.std
        self.conv1, self.bn1, self.blocks = copied.conv1, copied.bn1, copied.blocks
        for host, _, norm in _convolutions(self):
            setattr(host, norm, nn.Identity())
        for host, convolution, _ in _convolutions(self):
            layer = getattr(host, convolution)
            layer.bias = nn.Parameter(torch.empty_like(layer.weight[:, 0, 0, 0]))
        self.to(dtype).to(memory_format=torch.channels_last)
        self.linear = copied.linear
        self.eval().requires_grad_(False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's present weights and BN statistics."""
        (source,) = self.source
        for (host, name, norm), (mine, _, _) in zip(
            _convolutions(source), _convolutions(self), strict=True
        ):
            bn = getattr(host, norm)
            weight, bias = fuse_conv_bn_weights(
                getattr(host, name).weight, None, bn.running_mean, bn.running_var, bn.eps,
                bn.weight, bn.bias,
            )  # fmt: skip
            layer = getattr(mine, name)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        self.linear.weight.copy_(source.linear.weight)
        self.linear.bias.copy_(source.linear.bias)


def _convolutions(model: ResNet) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, its convolution's name, the name of the BN behind it), stem first."""
    yield model, "conv1", "bn1"
    for block in model.blocks:
        assert isinstance(block, BasicBlock)
        yield block, "conv1", "bn1"
        yield block, "conv2", "bn2"
        if len(block.shortcut):
            yield block.shortcut, "0", "1"


class Embedding(nn.Module):
    """Encoder and projector: images (B, C, H, W) to embeddings (B, D). `linear` takes no part."""

    def __init__(self, network: ResNet, projector: Projector) -> None:
        super().__init__()
        self.network, self.projector = network, projector

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.projector(self.network.features(x))
        return embedded


class Projector(nn.Sequential):
    """Features to contrastive embeddings: linear, ReLU, linear, biases, no BN (RoCL)."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside; after it every module in its former mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def encoder_weights(model: ResNet) -> dict[str, Tensor]:
    """The encoder's part of the state: weights and BN statistics, without `linear`."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(HEAD)}


def transfer(model: ResNet, weights: Mapping[str, Tensor], head: bool, path: str) -> None:
    """Copy the encoder, BN statistics included, from `weights`; the classifier too with `head`.

    The study's `extractor` and `complete`. It copies what matches; here a tensor of the network
    that is missing at `path` or of another shape, or one of the encoder there that this network has
    not, is a UserError: half an encoder, or one without its normalisation, trains without
    complaint. A projector is left.
    """
    wanted = model.state_dict() if head else encoder_weights(model)
    for name, tensor in wanted.items():
        if name not in weights:
            raise UserError(f"{path}: holds no {name}")
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {tuple(weights[name].shape)} there, "
                f"{tuple(tensor.shape)} in this network; use the same model options"
            )
    for name in weights:
        if name not in wanted and not name.startswith((HEAD, PROJECTOR)):
            raise UserError(
                f"{path}: holds {name}, which this network has not; use the same model options"
            )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)
