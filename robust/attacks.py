"""L∞ attacks by projected gradient ascent: those training needs, and those that are reported.

Gradients are taken with respect to the images alone: `torch.autograd.grad` with the images as its
only input computes no weight gradient, which is a third of a full backward pass, and leaves every
`.grad` as it was. Indices and results lie on the images' device.

A training attack draws from torch's default generator and runs whatever precision its network
has; all that follows its start is one function of tensors, which `run` may replay (`graphs`).
What is reported (`correct`, `withstands`, `transfer`) runs in full fp32, see `reported`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robust.graphs import Run, plain
from robust.losses import divergence, nt_xent
from robust.models import eval_mode
from robust.options import Adversary, Pretrain


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

    `images` (B, C, H, W) in [0, 1]; `start` of the same shape is projected first; `loss` maps
    such a batch to a scalar; a step moves each pixel by `alpha`. Returns the last iterate,
    detached.
    """
    adversarial = _project(start, images, epsilon)
    for _ in range(steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(adversarial), adversarial)
        adversarial = adversarial.detach() + alpha * gradient.sign()
        adversarial = _project(adversarial, images, epsilon)
    return adversarial.detach()


def random_start(images: Tensor, epsilon: float, generator: Generator | None = None) -> Tensor:
    """`images` plus noise uniform in [-ε, ε), not yet cut to [0, 1]."""
    uniform = torch.rand(images.shape, generator=generator, device=images.device)
    return images + epsilon * (uniform * 2 - 1)


def _project(x: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """The nearest point within `epsilon` of `images` and within [0, 1].

    One clamp: both are intervals for each pixel, and they overlap.
    """
    return x.clamp((images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))


def trades_attack(model: nn.Module, images: Tensor, options: Adversary, run: Run = plain) -> Tensor:
    """The images that TRADES trains on: maximise KL(f(x) ‖ f(x')) from x + N(0, start²).

    1 + 2·steps forward-equivalents: the clean logits do not change during the attack.
    """

    def ascend_trades(images: Tensor, start: Tensor) -> Tensor:
        with torch.no_grad():
            clean = model(images)
        return _ascend(images, start, lambda x: divergence(clean, model(x)), options)

    with eval_mode(model):
        start = images + options.start * torch.randn_like(images)
        return run(ascend_trades, images, start)


def pgd_attack(
    model: nn.Module, images: Tensor, labels: Tensor, options: Adversary, run: Run = plain
) -> Tensor:
    """The images that PGD training and r-LE see: maximise the cross-entropy from a random start.

    2·steps forward-equivalents (Madry et al. 2018).
    """

    def ascend_pgd(images: Tensor, start: Tensor, labels: Tensor) -> Tensor:
        return _ascend(images, start, lambda x: F.cross_entropy(model(x), labels), options)

    with eval_mode(model):
        return run(ascend_pgd, images, random_start(images, options.epsilon), labels)


def instance_attack(
    embed: nn.Module, images: Tensor, target: Tensor, options: Pretrain, run: Run = plain
) -> Tensor:
    """RoCL's instance-wise attack: push `images` (view t1) away from `target` (view t2).

    Maximises the 2-view NT-Xent. The target's embedding is computed once, which is exact: it
    enters the loss through stop-gradient and through rows that do not depend on the images.
    """

    def ascend_instance(images: Tensor, start: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            anchor = embed(target)
        temperature = options.temperature
        return _ascend(images, start, lambda x: nt_xent([embed(x), anchor], temperature), options)

    with eval_mode(embed):
        return run(ascend_instance, images, random_start(images, options.epsilon), target)


def _ascend(
    images: Tensor, start: Tensor, loss: Callable[[Tensor], Tensor], options: Adversary | Pretrain
) -> Tensor:
    return pgd(
        images, start, loss, epsilon=options.epsilon, alpha=options.alpha, steps=options.steps
    )


def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images get their label: bool (B,)."""
    with reported(model, images), torch.no_grad():
        right: Tensor = model(images).argmax(dim=1) == labels
    return right


def withstands(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
    restarts: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """Which images a cross-entropy PGD with random starts does not break: bool (B,).

    An image is broken once the clean image or any iterate is misclassified; broken images drop
    out of the batch at once, so a weaker network is attacked in less time. `generator` (on the
    images' device; torch's own when None) draws the starts.
    """
    with reported(model, images):
        standing = correct(model, images, labels)
        for _ in range(restarts):
            index = standing.nonzero().squeeze(1)
            x, y = images[index], labels[index]
            start = _project(random_start(x, epsilon, generator), x, epsilon)
            standing[index] = _survives(
                model, x, y, start, epsilon=epsilon, alpha=alpha, steps=steps
            )
    return standing


def _survives(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    x: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
) -> Tensor:
    """One PGD from `x`; bool (B,)."""
    index = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        if not len(index):
            break
        x.requires_grad_()
        logits = model(x)
        # The sum, so that an image's gradient has one scale in a batch of any size.
        loss = F.cross_entropy(logits, labels[index], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        right = logits.argmax(dim=1) == labels[index]
        index = index[right]
        x = x.detach()[right]
        x = _project(x + alpha * gradient[right].sign(), images[index], epsilon)
    survives = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    survives[index] = correct(model, x, labels[index])
    return survives


def transfer(
    surrogate: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
    generator: Generator | None = None,
) -> Tensor:
    """L∞ PGD images crafted on `surrogate` from a uniform start, for another network to classify.

    All images are attacked for all steps: the surrogate's mistakes say nothing about the victim's.
    """
    with reported(surrogate, images):
        return pgd(
            images,
            random_start(images, epsilon, generator),
            lambda x: F.cross_entropy(surrogate(x), labels, reduction="sum"),
            epsilon=epsilon,
            alpha=alpha,
            steps=steps,
        )


@contextmanager
def reported(model: nn.Module, images: Tensor) -> Iterator[None]:
    """What a reported figure rests on: eval mode, frozen weights, fp32 all through, no chance.

    Autocast is off inside, and so is TF32, which convolutions on a GPU use by default and which
    keeps 10 of fp32's 23 bits; cuDNN takes algorithms that give the same result each time. Batches
    reach `model` in few sizes. All is as before on exit. Raises TypeError unless images and weights
    are float32.
    """
    for tensor in (images, *model.parameters()):
        if tensor.dtype != torch.float32:
            raise TypeError(f"a reported attack runs in float32, not in {tensor.dtype}")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = False, False, True
        for parameter in trained:
            parameter.requires_grad_(False)
        autocast = torch.autocast(images.device.type, enabled=False)
        with eval_mode(model), autocast, _few_sizes(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


@contextmanager
def _few_sizes(model: nn.Module) -> Iterator[None]:
    """Fill each batch that `model` gets with images of zeros, and drop their logits again.

    An attack that lets go of broken images comes by a batch of every size. Each is another set of
    large blocks to the allocator, whose heap grew by a gigabyte in 40 epochs, and another kernel to
    compile. With eight sizes from one power of two to the next it stays as it is. In eval mode no
    image depends on the others.
    """
    sizes: list[int] = []

    def fill(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (images,) = args
        size = len(images)
        sizes.append(size)
        unit = max(1, (1 << size.bit_length()) // 16)
        missing = -size % unit
        return (F.pad(images, (0, 0) * (images.dim() - 1) + (0, missing)) if missing else images,)

    def drop(_: nn.Module, __: tuple[Tensor], logits: Tensor) -> Tensor:
        return logits[: sizes.pop()]

    hooks = model.register_forward_pre_hook(fill), model.register_forward_hook(drop)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
