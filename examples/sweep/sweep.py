"""Softmax regression on scikit-learn's digits: split, train, pick the best of many."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from condorctl import job

EPOCHS = 40


def split() -> None:
    """800 images to train on, 400 to choose by, 597 to test with; 64 numbers in 0..1 each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.data[order] / 16, digits.target[order]
    parts = np.split(order, [800, 1200])
    bounds = np.cumsum([0, *map(len, parts)])
    names = ("train", "validation", "test")
    arrays = {}
    for name, begin, end in zip(names, bounds, bounds[1:], strict=False):
        arrays[f"{name}_x"], arrays[f"{name}_y"] = images[begin:end], labels[begin:end]
    np.savez("digits.npz", **arrays)


def accuracy(weights: np.ndarray, data: np.lib.npyio.NpzFile, part: str) -> float:
    return float(((data[f"{part}_x"] @ weights).argmax(1) == data[f"{part}_y"]).mean())


def train(rate: float, penalty: float, seed: int) -> None:
    data = np.load("split/digits.npz")
    x, y = data["train_x"], np.eye(10)[data["train_y"]]
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.01, (64, 10))
    for epoch in range(1, EPOCHS + 1):
        for batch in np.array_split(rng.permutation(len(x)), 16):
            logits = x[batch] @ weights
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            weights -= rate * (x[batch].T @ (p - y[batch]) / len(batch) + penalty * weights)
        job.progress(epoch=epoch, epochs=EPOCHS, accuracy=accuracy(weights, data, "validation"))
    np.savez("model.npz", weights=weights)
    found = accuracy(weights, data, "validation")
    job.result(model="one", rate=rate, penalty=penalty, seed=seed, validation=found)


def best() -> None:
    data = np.load("split/digits.npz")
    models = {path: np.load(path)["weights"] for path in sorted(Path().glob("train-*/model.npz"))}
    chosen = max(models, key=lambda path: accuracy(models[path], data, "validation"))
    weights = models[chosen]
    np.savez("best.npz", weights=weights)
    job.result(
        model="best",
        stage=chosen.parent.name,
        of=len(models),
        validation=accuracy(weights, data, "validation"),
        test=accuracy(weights, data, "test"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("split")
    training = stages.add_parser("train")
    training.add_argument("--rate", type=float, required=True)
    training.add_argument("--penalty", type=float, required=True)
    training.add_argument("--seed", type=int, required=True)
    stages.add_parser("best")
    given = vars(parser.parse_args())
    {"split": split, "train": train, "best": best}[given.pop("stage")](**given)


if __name__ == "__main__":
    main()
