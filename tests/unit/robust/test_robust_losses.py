"""Losses against loops in NumPy, gradients against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robust import losses

TEMPERATURE = 0.5


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def loop_nt_xent(rows: np.ndarray, columns: np.ndarray, batch: int) -> float:
    """NT-Xent one similarity at a time; row and column sides apart, so one can be held still."""
    total = 0.0
    for i in range(len(rows)):
        scores = {
            j: cosine(rows[i], columns[j]) / TEMPERATURE for j in range(len(columns)) if j != i
        }
        denominator = sum(np.exp(s) for s in scores.values())
        for j, s in scores.items():
            if j % batch == i % batch:
                total -= np.log(np.exp(s) / denominator)
    return total / len(rows)


def embeddings(views: int, batch: int = 3, size: int = 4) -> list[torch.Tensor]:
    return [torch.randn(batch, size, dtype=torch.double) for _ in range(views)]


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_is_the_loop(views: int) -> None:
    z = embeddings(views)
    stacked = torch.cat(z).numpy()
    assert losses.nt_xent(z, TEMPERATURE).item() == pytest.approx(
        loop_nt_xent(stacked, stacked, batch=3), rel=1e-12
    )


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_sends_gradient_through_the_row_side_alone(views: int) -> None:
    z = embeddings(views)
    leaf = torch.cat(z).requires_grad_()
    losses.nt_xent(list(leaf.chunk(views)), TEMPERATURE).backward()
    columns, h = torch.cat(z).numpy(), 1e-6
    for i, d in ((0, 0), (2, 3), (len(columns) - 1, 1)):
        values = []
        for sign in (1, -1):
            rows = columns.copy()
            rows[i, d] += sign * h
            values.append(loop_nt_xent(rows, columns, batch=3))
        assert leaf.grad is not None
        assert leaf.grad[i, d].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_rocl_adds_the_two_view_term_divided_by_lambda() -> None:
    t1, t2, adversarial = (z.numpy() for z in embeddings(3))
    three, two = np.concatenate([t1, t2, adversarial]), np.concatenate([adversarial, t2])
    expected = loop_nt_xent(three, three, 3) + loop_nt_xent(two, two, 3) / 4
    given = torch.from_numpy(t1), torch.from_numpy(t2), torch.from_numpy(adversarial)
    assert losses.rocl(*given, TEMPERATURE, 4).item() == pytest.approx(expected)


def test_trades_is_cross_entropy_plus_beta_times_the_divergence_from_the_clean_side() -> None:
    clean, adversarial = np.random.default_rng(0).normal(size=(2, 3, 5))
    labels = [4, 0, 2]
    ce = kl = 0.0
    for i, label in enumerate(labels):
        p = np.exp(clean[i]) / np.exp(clean[i]).sum()
        q = np.exp(adversarial[i]) / np.exp(adversarial[i]).sum()
        ce -= np.log(p[label]) / 3
        kl += sum(p[k] * np.log(p[k] / q[k]) for k in range(5)) / 3
    given = torch.from_numpy(clean), torch.from_numpy(adversarial), torch.tensor(labels)
    assert losses.trades(*given, beta=6.0).item() == pytest.approx(ce + 6 * kl)
    assert losses.trades(*given, beta=0.0).item() == pytest.approx(ce)


def test_the_clean_side_of_trades_is_not_detached() -> None:
    clean = torch.randn(3, 5, requires_grad=True)
    adversarial, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    (both,) = torch.autograd.grad(losses.trades(clean, adversarial, labels, 6.0), clean)
    (ce,) = torch.autograd.grad(F.cross_entropy(clean, labels), clean)
    assert not torch.allclose(both, ce)
