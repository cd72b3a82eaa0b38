"""Random views of a batch for contrastive learning, one draw of each parameter an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.config import Views


def random_view(images: Tensor, options: Views) -> Tensor:
    """Rotate, scale, shift, then change gamma and brightness; (N, C, H, W) in [0, 1] in and out.

    RoCL (Kim et al. 2020, sec. 4) uses crops, flips and colours, which digits do not survive:
    a flipped 2 is another character.
    """
    n, _, height, width = images.shape
    angle = _symmetric(n, options.rotation)
    zoom = 1 + _symmetric(n, options.scale)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Affine grids measure in half-images: one pixel is 2/width.
    across = _symmetric(n, options.shift) * 2 / width
    down = _symmetric(n, options.shift) * 2 / height
    affine = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(n, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False).clamp(0, 1)
    gamma = _symmetric(n, options.gamma).exp().view(n, 1, 1, 1)
    brightness = 1 + _symmetric(n, options.brightness).view(n, 1, 1, 1)
    return (moved**gamma * brightness).clamp(0, 1)


def _symmetric(n: int, bound: float) -> Tensor:
    """(n,) uniform in [-bound, bound)."""
    return (torch.rand(n) * 2 - 1) * bound
