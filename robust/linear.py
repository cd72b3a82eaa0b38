"""Linear evaluation of a pretrained encoder: LE, r-LE and fine-tuning (RoCL, sec. 4).

LE trains a linear classifier on the frozen encoder's features of clean images, r-LE on those of
PGD images. `finetune` frees the encoder, `contrastive` adds NT-Xent of two clean views (--ss).
The result is a whole classifier: baseline 1 of the study, and what weight transfer `complete`
starts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condorctl.errors import UserError
from robust import checkpoint
from robust.attacks import pgd_attack
from robust.checkpoint import Checkpoint
from robust.data import Dataset, Part
from robust.losses import nt_xent
from robust.models import PROJECTOR, Embedding, transfer
from robust.options import Config
from robust.pretrain import features, projector
from robust.training import Stage, fit, seed_everything
from robust.views import augment, random_view


def linear(
    config: Config,
    source: Checkpoint,
    init: str,
    out: str,
    *,
    root: str | None,
    device: torch.device,
) -> str:
    """Train a classifier on the encoder of `source`, the checkpoint at `init`; return the hash."""
    seed_everything(source.seed)
    dataset = checkpoint.load_data(config, root, (init, source), device=device)
    stage = LinearEvaluation(config, source, init, dataset, device)
    return fit(stage, stage.features_once() or dataset.train, out)


class Features(Part):
    """A part whose `pixels` are the encoder's output already, float32 (N, widths[-1])."""

    def images(self, index: Tensor | slice = slice(None)) -> Tensor:
        return self.pixels[index]


class LinearEvaluation(Stage):
    """An image costs one forward (r-LE: 2 more a step of its PGD), with neither PGD nor
    augmentation one in all.
    """

    name = "linear"

    def __init__(
        self, config: Config, source: Checkpoint, init: str, dataset: Dataset, device: torch.device
    ) -> None:
        network = checkpoint.build(config, source.data).to(device)
        transfer(network, source.weights, head=False, path=init)
        super().__init__(network, config.linear, config, source.seed, dataset)
        if config.linear.finetune:
            self.refuse_lone_image()
        self.embed = Embedding(self.network, projector(config).to(device))
        head = {
            name.removeprefix(PROJECTOR): tensor
            for name, tensor in source.weights.items()
            if name.startswith(PROJECTOR)
        }
        try:
            self.embed.projector.load_state_dict(head)
        except RuntimeError:
            raise UserError(
                f"{init}: projector does not fit one of {config.pretrain.projector_hidden} hidden "
                f"units and {config.pretrain.projector_out} outputs; make it again"
            ) from None

    def features_once(self) -> Features | None:
        """The training part as features, when a frozen encoder sees the same images each epoch."""
        options, changing = self.config.linear, self.config.augment.pad or self.config.augment.flip
        if options.robust or options.finetune or changing:
            return None
        self.embed.eval()
        with torch.no_grad():
            known = features(self.network, self.dataset.train)
        return Features(known, self.dataset.train.labels, scale=1)

    def parameters(self) -> list[Tensor]:
        if not self.config.linear.finetune:
            return list(self.network.linear.parameters())
        head = self.embed.projector.parameters() if self.config.linear.contrastive else ()
        return [*self.network.parameters(), *head]

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "projector": self.embed.projector}

    def begin(self, epoch: int) -> None:
        self.embed.train(self.config.linear.finetune)

    def attack(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        if images.dim() == 2:  # of `features_once`
            return images, labels
        seen = augment(images, self.config.augment)
        if self.config.linear.robust:
            self.replay(self.twin.refresh)
            seen = pgd_attack(self.twin, seen, labels, self.config.adversary, self.replay)
        if not self.config.linear.finetune:
            with torch.no_grad():
                return self.network.features(seen), labels
        if not self.config.linear.contrastive:
            return seen, labels
        return seen, labels, *(random_view(images, self.config.views) for _ in range(2))

    def loss(self, *batch: Tensor) -> Tensor:
        seen, labels, *clean = batch
        classifier = self.network if self.config.linear.finetune else self.network.linear
        loss = F.cross_entropy(classifier(seen), labels)
        if clean:
            embedded = self.embed(torch.cat(clean)).chunk(2)
            loss = loss + nt_xent(embedded, self.config.pretrain.temperature)
        return loss
