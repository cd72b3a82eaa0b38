"""Stage 1: robust contrastive pretraining, RoCL (Kim, Tack, Hwang 2020).

Each image gives two random views t1, t2 and an instance-wise adversarial one made from t1. No
labels are used, except to measure progress on the validation part.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust import checkpoint, views
from robust.attacks import instance_attack
from robust.checkpoint import Checkpoint, DataCard
from robust.data import Dataset, Part, batches
from robust.losses import nt_xent, rocl
from robust.models import (
    HEAD,
    PROJECTOR,
    Embedding,
    Projector,
    ResNet,
    encoder_weights,
    eval_mode,
)
from robust.options import Config
from robust.training import Stage, fit, seed_everything


def pretrain(config: Config, seed: int, out: str, *, root: str | None, device: torch.device) -> str:
    """Train the encoder, save it with its projector to `out` after every epoch; return the hash."""
    seed_everything(seed)
    dataset = checkpoint.load_data(config, root, device=device)
    return fit(Pretraining(config, seed, dataset, device), dataset.train, out)


class Pretraining(Stage):
    """RoCL's step: 24 forward-equivalents an image for 7 steps.

    1 for the attack's target, 2 for each of its steps, 3·3 for one forward and backward of all
    three views together, from which both terms of the loss are computed.
    """

    name = "pretrain"

    def __init__(self, config: Config, seed: int, dataset: Dataset, device: torch.device) -> None:
        network = checkpoint.build(config, DataCard.of(dataset)).to(device)
        checkpoint.set_normalisation(network, dataset)
        super().__init__(network, config.pretrain, config, seed, dataset)
        self.projector = projector(config).to(device)
        self.embed = Embedding(network, self.projector)
        self.attacked = Embedding(self.twin, self.projector)
        self.strength = 1.0

    def parameters(self) -> list[Tensor]:
        # `linear` takes no part: it gets neither gradient nor decay.
        encoder = (p for n, p in self.network.named_parameters() if not n.startswith(HEAD))
        return [*encoder, *self.projector.parameters()]

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "projector": self.projector}

    def begin(self, epoch: int) -> None:
        self.embed.train()
        self.strength = views.strength(self.config.views.anneal, epoch, self.config.pretrain.epochs)

    def attack(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        t1, t2 = (views.random_view(images, self.config.views, self.strength) for _ in range(2))
        if not self.config.pretrain.adversarial:
            return t1, t2
        self.replay(self.twin.refresh)
        attacked = instance_attack(self.attacked, t1, t2, self.config.pretrain, self.replay)
        return t1, t2, attacked

    def loss(self, *batch: Tensor) -> Tensor:
        options = self.config.pretrain
        embedded = self.embed(torch.cat(batch)).chunk(len(batch))
        if not options.adversarial:
            return nt_xent(embedded, options.temperature)
        clean1, clean2, attacked = embedded
        return rocl(clean1, clean2, attacked, options.temperature, options.regulariser)

    def measure(self, network: ResNet) -> dict[str, float]:
        return {"val_knn": neighbour(network, self.dataset)}

    def snapshot(self, network: ResNet, epoch: int) -> Checkpoint:
        head = {PROJECTOR + name: t for name, t in self.projector.state_dict().items()}
        made = super().snapshot(network, epoch)
        return replace(made, weights={**encoder_weights(network), **head})


def projector(config: Config) -> Projector:
    """A freshly initialised projector for the encoder of `config`."""
    options = config.pretrain
    return Projector(config.model.widths[-1], options.projector_hidden, options.projector_out)


@torch.no_grad()
def neighbour(network: ResNet, dataset: Dataset) -> float:
    """Accuracy on the validation part by the label of the nearest training image (cosine)."""
    with eval_mode(network):
        known = F.normalize(features(network, dataset.train), dim=1)
        asked = features(network, dataset.validation)
    # Its own length does not change which neighbour of an image is nearest.
    nearest = torch.cat([(rows @ known.T).argmax(dim=1) for rows in asked.split(512)])
    hits = dataset.train.labels[nearest] == dataset.validation.labels
    return hits.float().mean().item()


def features(network: ResNet, part: Part) -> Tensor:
    """The encoder's output for every image of `part`, (N, widths[-1])."""
    return torch.cat([network.features(images) for images, _ in batches(part, 512)])
