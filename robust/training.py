"""The loop of every training stage, and what a stage has to say to it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condorctl import job
from condorctl.errors import UserError
from robust import checkpoint
from robust.attacks import correct, withstands
from robust.checkpoint import Checkpoint, DataCard
from robust.data import Dataset, Part, batches, shuffled
from robust.graphs import Replay
from robust.models import ResNet, Twin
from robust.optim import Average, build, perturbed
from robust.options import Adversary, Averaged, Config, Optimisation, Pretrain, Supervised
from robust.resume import Loop


class Stage(ABC):
    """One training stage, as `fit` drives it.

    `network` is what is trained, averaged and saved, `twin` what its attacks run. A step is
    `attack`, which needs no weight gradient, then `loss` of what it returned.
    """

    name: str

    def __init__(
        self, network: ResNet, options: Optimisation, config: Config, seed: int, dataset: Dataset
    ) -> None:
        self.network, self.options, self.config = network, options, config
        self.seed, self.dataset = seed, dataset
        device = network.conv1.weight.device
        half = _half(config.compute.attack, device)
        self.twin = Twin(network, torch.bfloat16 if half else torch.float32)
        self.replay = Replay(device)
        self._mixed = partial(
            torch.autocast,
            device.type,
            torch.bfloat16,
            enabled=_half(config.compute.training, device),
        )

    def refuse_lone_image(self) -> None:
        """UserError when BN, in train mode, would meet one value a channel: it has no deviation.

        That is a last batch of one image in a network that narrows images to one pixel.
        """
        halvings = len(self.config.model.widths) - 1
        narrowest = max(self.dataset.train.pixels.shape[2:]) / 2**halvings
        size = self.options.batch_size
        if len(self.dataset.train) % size == 1 and narrowest <= 1:
            raise UserError(
                f"{self.name}.batch_size = {size}: leaves a last batch of one image, which BN "
                "cannot normalise in a network that narrows images to one pixel; take another"
            )

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""

    def begin(self, epoch: int) -> None:
        """Before each epoch (1-based): set the modes of the modules."""
        self.network.train()

    @abstractmethod
    def attack(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The batch as `loss` takes it; images (B, C, H, W) in [0, 1], labels (B,)."""

    @abstractmethod
    def loss(self, *batch: Tensor) -> Tensor:
        """A scalar, the mean over the batch. With AWP it is asked for twice a step."""

    def mixed_loss(self, *batch: Tensor) -> Tensor:
        """`loss` in the precision that training has (`compute.training`)."""
        with self._mixed():
            return self.loss(*batch).float()

    def before_step(self) -> None:  # noqa: B027, most stages do nothing here
        """After `backward`, before the optimiser."""

    def after_step(self) -> None:  # noqa: B027
        """After the optimiser."""

    def modules(self) -> dict[str, nn.Module]:
        """All modules that training changes, by name."""
        return {"network": self.network}

    def state(self) -> dict[str, Any]:
        """What else training changes: tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Put back what `state` returned."""

    def measure(self, network: ResNet) -> dict[str, float]:
        """Figures of the validation part for the epoch's report."""
        return accuracies(network, self.dataset.validation, self.config.adversary)

    def snapshot(self, network: ResNet, epoch: int) -> Checkpoint:
        """What to save; `network` is the one to take weights from, averaged or not."""
        return Checkpoint(
            stage=self.name,
            seed=self.seed,
            epoch=epoch,
            config=self.config,
            data=DataCard.of(self.dataset),
            weights=network.state_dict(),
        )


def fit(stage: Stage, part: Part, out: str) -> str:
    """Train on `part`, save to `out` after each epoch (the best alone with `select = best`).

    An interrupted run of the same work goes on where its last checkpoint stands (`resume`).
    Returns the content hash of the last checkpoint saved. Raises UserError when the loss diverges.
    """
    options = stage.options
    steps = options.epochs * math.ceil(len(part) / options.batch_size)
    trust = options.trust if isinstance(options, Pretrain) and options.optimizer == "lars" else None
    optimizer, scheduler = build(stage.parameters(), options, steps, lars_trust=trust)
    decay = options.ema if isinstance(options, Averaged) else 0.0
    average = Average(stage.network, decay) if decay else None
    kept = stage.network if average is None else average.model
    loop = Loop(stage, optimizer, scheduler, average, torch.zeros((), device=part.labels.device))
    loop.begin_or_go_on()
    while loop.epoch <= options.epochs:
        stage.begin(loop.epoch)
        gamma = _awp(options, loop.epoch)
        if loop.order is None:
            loop.order = shuffled(part)
        for images, labels in batches(part, options.batch_size, loop.order, loop.batch):
            batch = stage.attack(images, labels)
            optimizer.zero_grad()
            with perturbed(stage.network, partial(stage.mixed_loss, *batch), gamma):
                loss = stage.mixed_loss(*batch)
                loss.backward()
            stage.before_step()
            optimizer.step()
            stage.after_step()
            scheduler.step()
            if average is not None:
                average.update(stage.network)
            loop.total += loss.detach() * len(images)
            loop.batch += 1
            loop.save_if_due(out)
        metrics = stage.measure(kept)
        _report(stage.name, loop.epoch, options.epochs, loop.total.item() / len(part), metrics)
        if _is_to_be_saved(options, metrics, loop):
            loop.digest = checkpoint.save(stage.snapshot(kept, loop.epoch), out)
        loop.next_epoch()
    loop.end()
    return loop.digest


def _is_to_be_saved(options: Optimisation, metrics: dict[str, float], loop: Loop) -> bool:
    """Whether this epoch is the one to keep: any that is the last so far, or the best so far."""
    if not (isinstance(options, Supervised) and options.select == "best"):
        return True
    better = metrics["val_pgd"] > loop.best
    loop.best = max(loop.best, metrics["val_pgd"])
    return better


def seed_everything(seed: int) -> None:
    """Same seed, same number of threads, same machine type: the same weights, bit by bit."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is filled with NaN first, for programs that read what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def accuracies(network: ResNet, part: Part, adversary: Adversary) -> dict[str, float]:
    """Accuracy of `part` on clean images and under a short PGD, both 0 to 1, in fp32."""
    clean = robust = 0
    for images, labels in batches(part, 512):
        clean += int(correct(network, images, labels).sum())
        standing = withstands(
            network,
            images,
            labels,
            epsilon=adversary.epsilon,
            alpha=adversary.alpha,
            steps=adversary.validation_steps,
        )
        robust += int(standing.sum())
    return {"val_clean": clean / len(part), "val_pgd": robust / len(part)}


def _half(chosen: str, device: torch.device) -> bool:
    """Whether a precision of `options.Compute` means bf16 on `device`."""
    return chosen == "bf16" or (chosen == "auto" and device.type == "cuda")


def _awp(options: Optimisation, epoch: int) -> float:
    """The size of the weight perturbation in `epoch` (1-based)."""
    if not isinstance(options, Supervised) or epoch <= options.awp_start * options.epochs:
        return 0.0
    return options.awp


def _report(stage: str, epoch: int, epochs: int, loss: float, metrics: dict[str, float]) -> None:
    """One line on stdout and one progress record; UserError when the loss diverged."""
    job.progress(epoch=epoch, epochs=epochs, loss=loss, **metrics)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in {"loss": loss, **metrics}.items())
    print(f"{stage}  epoch {epoch}/{epochs}  {shown}", flush=True)
    if not math.isfinite(loss):
        raise UserError(f"{stage}: the loss is {loss} in epoch {epoch}; lower {stage}.lr")
