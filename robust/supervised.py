"""Stages 2 to 4: adversarial training, HYDRA's scores, fine-tuning under a frozen mask.

All three share the trainer (TRADES, PGD-AT or plain) and the loop; they differ in what the
optimiser holds and in what happens around its step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condorctl.errors import UserError
from robust import checkpoint
from robust.attacks import pgd_attack, trades_attack
from robust.checkpoint import Checkpoint, DataCard
from robust.data import Dataset
from robust.losses import trades
from robust.masks import Masks, ScoredPruning, apply_, magnitude_masks
from robust.models import ResNet, transfer
from robust.options import Config, Supervised
from robust.training import Stage, fit, seed_everything
from robust.views import augment


class Training(Stage):
    """Stage 2, and the ground of the two after it: all weights, one of three trainers.

    An image costs 27 forward-equivalents with TRADES and 10 steps: 1 for the attack's clean
    logits, 2 for each of its steps, 2·3 for the training passes (clean and adversarial images go
    through BN apart, as in TRADES and HYDRA). PGD-AT costs 2·steps + 3, plain training 3.
    """

    name = "train"

    def __init__(
        self, network: ResNet, config: Config, seed: int, dataset: Dataset, options: Supervised
    ) -> None:
        super().__init__(network, options, config, seed, dataset)
        self.refuse_lone_image()
        self.trainer = options.trainer

    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def attack(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        images = augment(images, self.config.augment)
        if self.trainer == "plain":
            return images, labels
        self.replay(self.twin.refresh)
        options = self.config.adversary
        if self.trainer == "pgd":
            return pgd_attack(self.twin, images, labels, options, self.replay), labels
        return images, labels, trades_attack(self.twin, images, options, self.replay)

    def loss(self, *batch: Tensor) -> Tensor:
        images, labels, *adversarial = batch
        logits = self.network(images)
        if not adversarial:
            return F.cross_entropy(logits, labels)
        return trades(logits, self.network(adversarial[0]), labels, self.config.adversary.beta)


class Scoring(Training):
    """Stage 3: weights frozen; one score a weight is trained, and BN's γ, β and statistics."""

    name = "score"

    def __init__(
        self, network: ResNet, config: Config, seed: int, dataset: Dataset, keep: float
    ) -> None:
        super().__init__(network, config, seed, dataset, config.score)
        self.keep = keep
        self.pruning = ScoredPruning(network, keep, config.prune)

    def parameters(self) -> list[Tensor]:
        norms = (module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d))
        return [*self.pruning.scores.values(), *(p for norm in norms for p in norm.parameters())]

    def before_step(self) -> None:
        self.pruning.route_gradients()

    def after_step(self) -> None:
        self.pruning.install()

    def state(self) -> dict[str, Any]:
        return {"scores": self.pruning.scores, "masks": self.pruning.masks}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for name, score in self.pruning.scores.items():
            score.copy_(state["scores"][name])
            self.pruning.masks[name].copy_(state["masks"][name])

    def snapshot(self, network: ResNet, epoch: int) -> Checkpoint:
        made = super().snapshot(network, epoch)
        return replace(made, keep=self.keep, masks=self.pruning.masks)


class Finetuning(Training):
    """Stage 4: the kept weights under a mask that stays as it is.

    Pruned weights go back to zero after each step: the kept ones move exactly as if the mask were
    part of the forward pass, which it then need not be. They are saved as half precision holds
    them, so that what is evaluated is bit by bit what `export` writes.
    """

    name = "finetune"

    def __init__(
        self,
        network: ResNet,
        config: Config,
        seed: int,
        dataset: Dataset,
        keep: float,
        masks: Masks,
    ) -> None:
        super().__init__(network, config, seed, dataset, config.finetune)
        self.keep, self.masks = keep, masks
        apply_(network, masks)

    def after_step(self) -> None:
        apply_(self.network, self.masks)

    def snapshot(self, network: ResNet, epoch: int) -> Checkpoint:
        made = super().snapshot(network, epoch)
        rounded = {name: made.weights[name].half().float() for name in self.masks}
        weights = {**made.weights, **rounded}
        return replace(made, weights=weights, keep=self.keep, masks=self.masks)


def train(
    config: Config,
    seed: int,
    init: str | None,
    head: bool,
    out: str,
    *,
    root: str | None,
    device: torch.device,
) -> str:
    """Train all weights; return the hash of the checkpoint.

    From scratch without `init` (the study's `unused`); else from its encoder (`extractor`) and,
    with `head`, its classifier (`complete`).
    """
    seed_everything(seed)
    if init is None:
        dataset = checkpoint.load_data(config, root, device=device)
        model = checkpoint.build(config, DataCard.of(dataset)).to(device)
        checkpoint.set_normalisation(model, dataset)
    else:
        source = checkpoint.load(init, ["linear", "train"] if head else ["pretrain", "linear"])
        dataset = checkpoint.load_data(config, root, (init, source), device=device)
        model = checkpoint.build(config, DataCard.of(dataset)).to(device)
        transfer(model, source.weights, head, init)
    return fit(Training(model, config, seed, dataset, config.train), dataset.train, out)


def score(
    config: Config,
    keep: float,
    source: Checkpoint,
    init: str,
    out: str,
    *,
    root: str | None,
    device: torch.device,
) -> str:
    """Learn which fraction `keep` of the frozen dense weights stays; return the hash.

    `source` is the dense checkpoint at `init`. The new checkpoint holds w·m and m, which is all
    that fine-tuning needs.
    """
    seed_everything(source.seed)
    dataset = checkpoint.load_data(config, root, (init, source), device=device)
    model = checkpoint.restore(source, init).to(device)
    return fit(Scoring(model, config, source.seed, dataset, keep), dataset.train, out)


def finetune(
    config: Config,
    keep: float | None,
    source: Checkpoint,
    init: str,
    out: str,
    *,
    root: str | None,
    device: torch.device,
) -> str:
    """Train the kept weights under a mask that stays as it is; return the hash.

    The mask is that of `source`, the checkpoint at `init`; a dense one needs `keep` and gets a
    magnitude mask (LWM). Raises UserError when `keep` or the budget contradicts the checkpoint.
    """
    seed_everything(source.seed)
    dataset = checkpoint.load_data(config, root, (init, source), device=device)
    model = checkpoint.restore(source, init).to(device)
    if source.masks:
        if keep not in (None, source.keep):
            raise UserError(f"--keep {keep:g}: the mask in {init} keeps {source.keep:g}")
        if config.prune != source.config.prune:
            made = source.config.prune
            raise UserError(
                f"--set prune: the mask in {init} was made with budget {made.budget} and floor "
                f"{made.floor}"
            )
        masks = {name: mask.to(device) for name, mask in source.masks.items()}
        keep = source.keep
    elif keep is None:
        raise UserError(f"{init}: dense; say --keep for a magnitude mask, or score it first")
    else:
        masks = magnitude_masks(model, keep, config.prune)
    return fit(Finetuning(model, config, source.seed, dataset, keep, masks), dataset.train, out)
