"""The training losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(views: Sequence[Tensor], temperature: float) -> Tensor:
    """NT-Xent over two or more views of the same images, as RoCL has it (Kim et al. 2020, eq. 1).

    `views`: embeddings (B, D) each, row i of every view from image i; scalar out. Softmax over
    every entry of a row but itself, so in the 3-view form the other positives stay in the
    denominator; summed over all ordered positive pairs, divided by the number of rows. Only the
    row side of the similarity receives gradient, as in RoCL's code.
    """
    z = F.normalize(torch.cat(list(views)), dim=1)
    rows, batch = len(z), len(views[0])
    image = torch.arange(rows, device=z.device) % batch
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    positive = (image[:, None] == image[None, :]) & ~itself
    similarity = (z @ z.detach().T / temperature).masked_fill(itself, -torch.inf)
    log_probability = similarity.log_softmax(dim=1)
    return -log_probability.where(positive, log_probability.new_zeros(())).sum() / rows


def rocl(clean1: Tensor, clean2: Tensor, adversarial: Tensor, temperature: float,
         regulariser: float) -> Tensor:  # fmt: skip
    """NT-Xent over (t1, t2, adv) plus 1/λ NT-Xent over (adv, t2); embeddings (B, D), scalar out."""
    three = nt_xent([clean1, clean2, adversarial], temperature)
    return three + nt_xent([adversarial, clean2], temperature) / regulariser


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(adversarial)), mean over the batch; logits (B, K), scalar out."""
    return F.kl_div(
        adversarial.log_softmax(dim=1),
        clean.log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


def trades(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """CE(clean, y) + β·KL(clean ‖ adv) (Zhang et al. 2019, eq. 5), neither side detached."""
    return F.cross_entropy(clean, labels) + beta * divergence(clean, adversarial)
