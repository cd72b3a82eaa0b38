"""Random views for contrastive learning and augmentation for supervised training, on any device.

Every parameter is drawn per image from torch's default generator of the images' device. What an
option of 0 (a crop of 1) switches off is neither drawn nor computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.options import Augment, Views

# Rec. 601 luma, as torchvision and PIL round it.
_LUMA = (0.2989, 0.587, 0.114)
_LARGEST_ASPECT = 4 / 3
_CROP_TRIES = 10


def random_view(images: Tensor, options: Views, strength: float = 1.0) -> Tensor:
    """One random view an image; float32 (N, C, H, W) in [0, 1] in and out.

    In this order: rotation, zoom and shift, flip, resized crop (together one bilinear sampling);
    brightness, contrast, saturation and hue in an order drawn per batch; gamma; grey. RoCL (Kim et
    al. 2020, sec. 4) uses crop, flip and colours; digits do not survive those (a flipped 2 is
    another character) and get the rest.

    `strength` in [0, 1] multiplies every range and probability and draws the crop's smallest area
    towards the whole image (DynACL, Luo et al. 2023); 0 gives `images` itself back. A
    crop repeats its edge where the other moves look beyond it; without one, beyond is 0.
    """
    if strength < 1:
        options = _weakened(options, strength)
    return _recoloured(_moved(images, options), options)


def strength(anneal: int, epoch: int, epochs: int) -> float:
    """How strong views are in an epoch: 1 - ⌊t/K⌋·K/T (DynACL, Luo et al. 2023).

    t is `epoch` - 1 (epochs count from 1), K `anneal`, T `epochs`; an `anneal` of 0 keeps the
    views at full strength.
    """
    if anneal == 0:
        return 1.0
    return 1 - (epoch - 1) // anneal * anneal / epochs


def augment(images: Tensor, options: Augment) -> Tensor:
    """Crop each image at random out of its zero-padded self and flip it; (N, C, H, W) in and out.

    The usual augmentation of CIFAR (He et al. 2016, sec. 4.2). Pixels are moved, never blended;
    with padding and flip off this is `images` itself.
    """
    n, _, height, width = images.shape
    device = images.device
    if options.pad:
        windows = F.pad(images, [options.pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * options.pad + 1, (2, n), device=device)
        images = windows[torch.arange(n, device=device), :, down, right]
    if options.flip:
        flipped = (torch.rand(n, device=device) < options.flip).view(n, 1, 1, 1)
        images = torch.where(flipped, images.flip(3), images)
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image (N, C, H, W) by its `factor` (N,) ≥ 0, clipped to [0, 1]."""
    return (images * _each(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move each image away from the mean of its greys by its `factor` (N,), clipped to [0, 1]."""
    middle = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(middle, images, _each(factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move each RGB image away from its greys by its `factor` (N,), clipped to [0, 1]."""
    return torch.lerp(_grey(images), images, _each(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each RGB image by its `turn` (N,), in [-0.5, 0.5] circles.

    Hue in sixths of the circle, value and chroma, there and back (Smith 1978); saturation is
    their quotient and cancels.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    # A grey pixel has no hue; any number does, for its chroma of 0 multiplies what comes of it.
    inverse = (chroma + (chroma == 0)).reciprocal_()
    sixths = (red - green).mul_(inverse).add_(4)
    sixths = torch.where(value == green, (blue - red).mul_(inverse).add_(2), sixths)
    sixths = torch.where(value == red, (green - blue).mul_(inverse), sixths)
    sixths += 6 * turn.view(-1, 1, 1)
    channels = []
    for offset in (5, 3, 1):
        k = sixths + offset
        k -= (k / 6).floor_().mul_(6)  # k modulo 6; torch's remainder takes four times as long
        channels.append(value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma))
    return torch.stack(channels, dim=1)


def _weakened(options: Views, strength: float) -> Views:
    """`options` with every distortion scaled by `strength`; 0 leaves none."""
    scaled = {
        name: getattr(options, name) * strength
        for name in (
            *("flip", "rotation", "shift", "scale", "gamma"),
            *("brightness", "contrast", "saturation", "hue", "jitter", "grayscale"),
        )
    }
    return replace(options, crop=1 - strength * (1 - options.crop), **scaled)


def _moved(images: Tensor, options: Views) -> Tensor:
    """Rotate, zoom, shift, flip and crop, in one sampling of the images."""
    n, _, height, width = images.shape
    if options.crop == 1 and not any(
        (options.flip, options.rotation, options.shift, options.scale)
    ):
        return images
    device = images.device
    angle = _symmetric(n, options.rotation, device)
    zoom = 1 + _symmetric(n, options.scale, device)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Affine grids measure in half-images: one pixel is 2/width across and 2/height down.
    across = _symmetric(n, options.shift, device) * 2 / width
    down = _symmetric(n, options.shift, device) * 2 / height
    mirror = 1 - 2 * (torch.rand(n, device=device) < options.flip).float()
    rows = torch.stack([cos, -sin * height / width, across, sin * width / height, cos, down], dim=1)
    affine = rows.view(n, 2, 3)
    affine[:, 0] *= mirror.view(n, 1)
    if options.crop == 1:
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    else:
        corner, size = _crop_boxes(n, height, width, options.crop, device)
        whole = torch.tensor([width, height], device=device)
        share = size / whole
        middle = (2 * corner + size) / whole - 1
        affine *= share.view(n, 2, 1)
        affine[:, :, 2] += middle
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        # Between a crop's outermost pixel centres only, as a crop that is cut out and resized.
        reach = (share - 1 / whole).view(n, 1, 1, 2)
        middle = middle.view(n, 1, 1, 2)
        grid = grid.clamp(middle - reach, middle + reach)
    return F.grid_sample(images, grid, align_corners=False).clamp_(0, 1)


def _crop_boxes(
    n: int, height: int, width: int, smallest: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Corners (left, top) and sizes (width, height) of `n` random crops; (n, 2) each, whole pixels.

    As torchvision's RandomResizedCrop: the area uniform in [smallest, 1] of the image, the aspect
    log-uniform in [3/4, 4/3], the place uniform; of ten draws the first that fits, else the
    largest centred crop of an allowed aspect.
    """
    area = height * width * torch.empty(n, _CROP_TRIES, device=device).uniform_(smallest, 1)
    bound = math.log(_LARGEST_ASPECT)
    aspect = torch.empty(n, _CROP_TRIES, device=device).uniform_(-bound, bound).exp()
    tries = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=2).round()
    whole = torch.tensor([width, height], device=device)
    fits = ((tries > 0) & (tries <= whole)).all(dim=2)
    first = fits.int().argmax(dim=1)
    drawn = tries[torch.arange(n, device=device), first]
    fallback = torch.tensor(
        [
            min(width, round(height * _LARGEST_ASPECT)),
            min(height, round(width * _LARGEST_ASPECT)),
        ],
        device=device,
    )
    found = fits.any(dim=1, keepdim=True)
    size = torch.where(found, drawn, fallback)
    room = whole - size
    # Rounding may lift a draw just below 1 over the last place.
    place = torch.minimum((torch.rand(n, 2, device=device) * (room + 1)).floor(), room)
    return torch.where(found, place, (room / 2).floor()), size


def _recoloured(images: Tensor, options: Views) -> Tensor:
    """Jitter the colours of some images, bend every gamma curve, make some images grey."""
    n, channels = images.shape[:2]
    device = images.device
    coloured = channels > 1
    jitters: list[tuple[float, int, Callable[[Tensor, Tensor], Tensor]]] = [
        (options.brightness, 1, adjust_brightness),
        (options.contrast, 1, adjust_contrast),
        (options.saturation * coloured, 1, adjust_saturation),
        (options.hue * coloured, 0, adjust_hue),
    ]
    jitters = [jitter for jitter in jitters if jitter[0] and options.jitter]
    if jitters:
        chosen = torch.rand(n, device=device) < options.jitter
        for place in torch.randperm(len(jitters), device=device).tolist():
            bound, neutral, adjust = jitters[place]
            images = adjust(images, neutral + chosen * _symmetric(n, bound, device))
    if options.gamma:
        images = images.pow(_each(_symmetric(n, options.gamma, device).exp()))
    if options.grayscale and coloured:
        turned = _each(torch.rand(n, device=device) < options.grayscale)
        images = torch.where(turned, _grey(images), images)
    return images


def _grey(images: Tensor) -> Tensor:
    """Luma of RGB images, (N, 1, H, W); one channel is grey as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma: Tensor = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    return luma


def _each(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to meet images."""
    return values.view(-1, 1, 1, 1)


def _symmetric(n: int, bound: float, device: torch.device) -> Tensor:
    """(n,) uniform in [-bound, bound)."""
    return (torch.rand(n, device=device) * 2 - 1) * bound
