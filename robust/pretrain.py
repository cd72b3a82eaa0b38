"""Stage 1: robust contrastive pretraining, RoCL (Kim, Tack, Hwang 2020).

Each image gives two random views t1, t2 and an instance-wise adversarial one made from t1. No
labels are used, except to measure progress on the validation part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust import checkpoint
from robust.attacks import instance_attack
from robust.config import Config, Pretrain
from robust.data import Dataset, shuffled_batches
from robust.losses import rocl
from robust.models import Projector, ResNet, encoder_weights, eval_mode
from robust.training import report, seed_everything, sgd
from robust.views import random_view


class Embedding(nn.Module):
    """Encoder and projector: images (B, C, H, W) to embeddings (B, D). `linear` takes no part."""

    def __init__(self, network: ResNet, projector: Projector) -> None:
        super().__init__()
        self.network, self.projector = network, projector

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.projector(self.network.features(x))
        return embedded


def pretrain(config: Config, seed: int, out: str) -> str:
    """Train the encoder, save it to `out` after every epoch; return the last content hash.

    The checkpoint holds the encoder alone: what comes next trains a head of its own.
    """
    options = config.pretrain
    seed_everything(seed)
    dataset = checkpoint.load_data(config)
    network = checkpoint.build(config, dataset)
    embed = Embedding(
        network,
        Projector(config.model.widths[-1], options.projector_hidden, options.projector_out),
    )
    trained = [p for name, p in embed.named_parameters() if not name.startswith("network.linear.")]
    optimizer, scheduler = sgd(trained, options, len(dataset.train), options.warmup)
    digest = ""
    for epoch in range(1, options.epochs + 1):
        embed.train()
        total = 0.0
        for images, _ in shuffled_batches(dataset.train, options.batch_size):
            t1, t2 = random_view(images, config.views), random_view(images, config.views)
            loss = rocl_step(embed, t1, t2, options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(images)
        loss_mean = total / len(dataset.train)
        report("pretrain", epoch, options.epochs, loss_mean, val_knn=neighbour(network, dataset))
        state = checkpoint.Checkpoint(
            "pretrain", seed, config, dataset.fingerprint, encoder_weights(network)
        )
        digest = checkpoint.save(state, out, epoch)
    return digest


def rocl_step(embed: nn.Module, t1: Tensor, t2: Tensor, options: Pretrain) -> Tensor:
    """The loss of one batch of view pairs; 24 forward-equivalents an image with its backward.

    1 for the attack's target, 2 a step for 7 steps, 9 for one forward and backward of all three
    views together, from which both terms of the loss are computed.
    """
    adversarial = instance_attack(embed, t1, t2, options)
    clean1, clean2, attacked = embed(torch.cat([t1, t2, adversarial])).chunk(3)
    return rocl(clean1, clean2, attacked, options.temperature, options.regulariser)


@torch.no_grad()
def neighbour(network: ResNet, dataset: Dataset) -> float:
    """Accuracy on the validation part by the label of the nearest training image (cosine)."""
    with eval_mode(network):
        known = F.normalize(network.features(dataset.train.images), dim=1)
        asked = F.normalize(network.features(dataset.validation.images), dim=1)
    nearest = dataset.train.labels[(asked @ known.T).argmax(dim=1)]
    return (nearest == dataset.validation.labels).float().mean().item()
