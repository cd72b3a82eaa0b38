"""Stages 2 to 4: TRADES training, HYDRA's scores, fine-tuning under a frozen mask.

All three run the same loop; they differ in what the optimiser holds and in what happens around
its step. Every stage saves after each epoch and ends with its last epoch: nothing is picked by a
result, so neither the validation part nor the test part can flatter a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from condorctl.errors import UserError
from robust import checkpoint
from robust.attacks import trades_attack, withstands
from robust.checkpoint import Checkpoint
from robust.config import Config, Optimisation, Trades
from robust.data import Dataset, Part, shuffled_batches
from robust.losses import trades
from robust.masks import ScoredPruning, apply_, magnitude_masks
from robust.models import ResNet, transfer_extractor
from robust.training import report, seed_everything, sgd

BatchLoss = Callable[[Tensor, Tensor], Tensor]


def train(config: Config, seed: int, init: str | None, out: str) -> str:
    """Train all weights, from a pretrained encoder when `init` names one; return the hash."""
    seed_everything(seed)
    if init is None:
        dataset = checkpoint.load_data(config)
        model = checkpoint.build(config, dataset)
    else:
        pretrained = checkpoint.load(init, stages=["pretrain"])
        dataset = checkpoint.load_data(config, (init, pretrained))
        model = checkpoint.build(config, dataset)
        transfer_extractor(model, pretrained.weights)
    losses: dict[str, BatchLoss] = {
        "trades": lambda images, labels: trades_step(model, images, labels, config.trades),
        "plain": lambda images, labels: F.cross_entropy(model(images), labels),
    }
    return _fit(
        model,
        model.parameters(),
        losses[config.train.trainer],
        dataset,
        config.train,
        config.trades,
        lambda: Checkpoint("train", seed, config, dataset.fingerprint, model.state_dict()),
        out,
    )


def score(config: Config, keep: float, source: Checkpoint, init: str, out: str) -> str:
    """Learn which fraction `keep` of the frozen dense weights stays; return the hash.

    `source` is the dense checkpoint at `init`. Trained: one score a weight, and BN's γ, β and
    statistics. The new checkpoint holds w·m and m, which is all that fine-tuning needs.
    """
    seed_everything(source.seed)
    dataset = checkpoint.load_data(config, (init, source))
    model = checkpoint.restore(source, dataset, init)
    pruning = ScoredPruning(model, keep, config.prune.floor)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def snapshot() -> Checkpoint:
        return Checkpoint(
            stage="score",
            seed=source.seed,
            config=config,
            data=dataset.fingerprint,
            weights=model.state_dict(),
            keep=keep,
            masks=pruning.masks,
        )

    return _fit(
        model,
        [*pruning.scores.values(), *(p for norm in norms for p in norm.parameters())],
        lambda images, labels: trades_step(model, images, labels, config.trades),
        dataset,
        config.score,
        config.trades,
        snapshot,
        out,
        before_step=pruning.route_gradients,
        after_step=pruning.install,
    )


def finetune(config: Config, keep: float | None, source: Checkpoint, init: str, out: str) -> str:
    """Train the kept weights under a mask that stays as it is; return the hash.

    The mask is that of `source`, the checkpoint at `init`; a dense one needs `keep` and gets a
    magnitude mask (LWM). Raises UserError when `keep` or the floor contradicts the checkpoint.
    """
    seed_everything(source.seed)
    dataset = checkpoint.load_data(config, (init, source))
    model = checkpoint.restore(source, dataset, init)
    if source.masks:
        if keep not in (None, source.keep):
            raise UserError(f"--keep {keep}: the mask in {init} keeps {source.keep}")
        if config.prune != source.config.prune:
            raise UserError(
                f"--set prune.floor={config.prune.floor}: the mask in {init} was made with "
                f"{source.config.prune.floor}"
            )
        kept, masks = source.keep, source.masks
    else:
        if keep is None:
            raise UserError(f"{init}: dense; say --keep for a magnitude mask, or score it first")
        kept, masks = keep, magnitude_masks(model, keep, config.prune.floor)
        apply_(model, masks)

    def snapshot() -> Checkpoint:
        return Checkpoint(
            stage="finetune",
            seed=source.seed,
            config=config,
            data=dataset.fingerprint,
            weights=model.state_dict(),
            keep=kept,
            masks=masks,
        )

    # Pruned weights go back to zero after each step: the kept ones move exactly as if the mask
    # were part of the forward pass, which it then need not be.
    return _fit(
        model,
        model.parameters(),
        lambda images, labels: trades_step(model, images, labels, config.trades),
        dataset,
        config.finetune,
        config.trades,
        snapshot,
        out,
        after_step=lambda: apply_(model, masks),
    )


def trades_step(model: nn.Module, images: Tensor, labels: Tensor, options: Trades) -> Tensor:
    """TRADES loss of a batch: 27 forward-equivalents an image with its backward for 10 steps.

    1 for the attack's clean logits, 2 for each of its steps, 2·3 for the training passes. Clean
    and adversarial images go through BN apart, as in TRADES and HYDRA.
    """
    adversarial = trades_attack(model, images, options)
    return trades(model(images), model(adversarial), labels, options.beta)


def _fit(
    model: ResNet,
    parameters: Iterable[Tensor],
    batch_loss: BatchLoss,
    dataset: Dataset,
    options: Optimisation,
    adversary: Trades,
    snapshot: Callable[[], Checkpoint],
    out: str,
    before_step: Callable[[], None] = lambda: None,
    after_step: Callable[[], None] = lambda: None,
) -> str:
    """The loop of every supervised stage: `snapshot` goes to `out` after each epoch."""
    optimizer, scheduler = sgd(parameters, options, len(dataset.train))
    digest = ""
    for epoch in range(1, options.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in shuffled_batches(dataset.train, options.batch_size):
            loss = batch_loss(images, labels)
            optimizer.zero_grad()
            loss.backward()
            before_step()
            optimizer.step()
            after_step()
            scheduler.step()
            total += loss.item() * len(images)
        state = snapshot()
        clean, robust = _validate(model, dataset.validation, adversary)
        report(
            state.stage,
            epoch,
            options.epochs,
            total / len(dataset.train),
            val_clean=clean,
            val_pgd=robust,
        )
        digest = checkpoint.save(state, out, epoch)
    return digest


def _validate(model: ResNet, part: Part, adversary: Trades) -> tuple[float, float]:
    """Accuracy on clean images and under a short PGD: to watch, not to choose by."""
    clean, robust = (
        withstands(
            model,
            part.images,
            part.labels,
            epsilon=adversary.epsilon,
            alpha=adversary.alpha,
            steps=adversary.validation_steps,
            restarts=restarts,
        )
        .float()
        .mean()
        .item()
        for restarts in (0, 1)
    )
    return clean, robust
