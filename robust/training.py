"""What every training stage shares: seeds, the optimiser with its schedule, the epoch report."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from condorctl import job
from condorctl.errors import UserError
from robust.config import Optimisation


def seed_everything(seed: int) -> None:
    """Same seed, same number of threads, same machine type: the same weights, bit by bit."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def sgd(
    parameters: Iterable[Tensor], options: Optimisation, images: int, warmup: float = 0
) -> tuple[SGD, LambdaLR]:
    """SGD with momentum and its learning rate by step; call `scheduler.step()` after each step.

    `images` is the size of the training part, `warmup` the fraction of all steps in which the
    rate rises linearly to `options.lr`, from which it falls to 0 along half a cosine.
    """
    steps = options.epochs * math.ceil(images / options.batch_size)
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2

    optimizer = SGD(
        parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    return optimizer, LambdaLR(optimizer, factor)


def report(stage: str, epoch: int, epochs: int, loss: float, **metrics: float) -> None:
    """One line on stdout and one progress record an epoch; UserError when the loss diverged."""
    job.progress(epoch=epoch, epochs=epochs, loss=loss, **metrics)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in {"loss": loss, **metrics}.items())
    print(f"{stage}  epoch {epoch}/{epochs}  {shown}", flush=True)
    if not math.isfinite(loss):
        raise UserError(f"{stage}: the loss is {loss} in epoch {epoch}; lower {stage}.lr")
