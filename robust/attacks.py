"""L∞ attacks in fp32. Gradients are taken with respect to the images alone.

`torch.autograd.grad` with the images as its only input computes no weight gradient, which is a
third of a full backward pass, and leaves every `.grad` as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.config import Pretrain, Trades
from robust.losses import divergence, nt_xent
from robust.models import eval_mode


def pgd(
    images: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    alpha: float,
    steps: int,
) -> Tensor:
    """Projected gradient ascent on `loss` within ε of `images` and within [0, 1] (Madry et al.).

    `images`, `start` (B, C, H, W) in [0, 1]; `loss` maps such a batch to a scalar. Returns the
    last iterate, detached. Clipping to [0, 1] and projecting onto the ball are one clamp: both
    are intervals for each pixel, and they overlap.
    """
    low, high = _bounds(images, epsilon)
    adversarial = torch.clamp(start, low, high)
    for _ in range(steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(adversarial), adversarial)
        adversarial = torch.clamp(adversarial.detach() + alpha * gradient.sign(), low, high)
    return adversarial.detach()


def uniform_start(images: Tensor, epsilon: float) -> Tensor:
    """`images` plus uniform noise in [-ε, ε), not clipped."""
    return images + (torch.rand_like(images) * 2 - 1) * epsilon


def trades_attack(model: nn.Module, images: Tensor, options: Trades) -> Tensor:
    """The images that TRADES trains on: maximise KL(f(x) ‖ f(x')) from x + N(0, start²).

    1 + 2·steps forward-equivalents: the clean logits do not change during the attack.
    """
    with eval_mode(model):
        with torch.no_grad():
            clean = model(images)
        return pgd(
            images,
            images + options.start * torch.randn_like(images),
            lambda x: divergence(clean, model(x)),
            epsilon=options.epsilon,
            alpha=options.alpha,
            steps=options.steps,
        )


def instance_attack(embed: nn.Module, images: Tensor, target: Tensor, options: Pretrain) -> Tensor:
    """RoCL's instance-wise attack: push `images` (view t1) away from `target` (view t2).

    Maximises the 2-view NT-Xent. The target's embedding is computed once, which is exact: it
    enters the loss through stop-gradient and through rows that do not depend on the images.
    """
    with eval_mode(embed):
        with torch.no_grad():
            anchor = embed(target)
        return pgd(
            images,
            uniform_start(images, options.epsilon),
            lambda x: nt_xent([embed(x), anchor], options.temperature),
            epsilon=options.epsilon,
            alpha=options.alpha,
            steps=options.steps,
        )


def withstands(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
    restarts: int = 1,
) -> Tensor:
    """Which images a cross-entropy PGD with random starts does not break: bool (B,).

    An image is broken once the clean image or any iterate is misclassified; broken images drop
    out of the batch at once, so a weaker network is attacked in less time.
    """
    with eval_mode(model):
        with torch.no_grad():
            standing: Tensor = model(images).argmax(dim=1) == labels
        for _ in range(restarts):
            index = standing.nonzero().squeeze(1)
            standing[index] = _survives(
                model, images[index], labels[index], epsilon=epsilon, alpha=alpha, steps=steps
            )
    return standing


def _survives(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, alpha: float, steps: int
) -> Tensor:
    """One PGD from one random start; bool (B,)."""
    index = torch.arange(len(images))
    low, high = _bounds(images, epsilon)
    x = torch.clamp(uniform_start(images, epsilon), low, high)
    for _ in range(steps):
        if not len(index):
            break
        x.requires_grad_()
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[index]), x)
        right = logits.argmax(dim=1) == labels[index]
        index = index[right]
        step = x.detach()[right] + alpha * gradient[right].sign()
        x = torch.clamp(step, low[index], high[index])
    survives = torch.zeros(len(images), dtype=torch.bool)
    with torch.no_grad():
        survives[index] = model(x).argmax(dim=1) == labels[index]
    return survives


def _bounds(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
