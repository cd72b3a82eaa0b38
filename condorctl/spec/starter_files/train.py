"""Teach a small network to tell two spirals apart: plain Python, a few seconds on one core.

A network of one hidden layer, trained by gradient descent. `job.progress`, `job.save` and
`job.result` are all that condorctl asks of a script, and none of them is a must.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

from condorctl import job

Point = tuple[float, float]


def spirals(points: int, seed: int) -> list[tuple[Point, int]]:
    """Points in the plane, half of them on each of two spirals, with their class 0 or 1."""
    chance = random.Random(seed)
    found = []
    for index in range(points):
        label = index % 2
        turn = 0.4 + 4.0 * chance.random()
        angle = turn + math.pi * label
        x = 0.2 * turn * math.cos(angle) + chance.gauss(0, 0.03)
        y = 0.2 * turn * math.sin(angle) + chance.gauss(0, 0.03)
        found.append(((x, y), label))
    return found


class Network:
    """Two numbers in, `width` hidden tanh units, the probability of class 1 out."""

    def __init__(self, width: int, seed: int) -> None:
        chance = random.Random(seed)
        self.hidden = [[chance.gauss(0, 2.0) for _ in range(3)] for _ in range(width)]
        self.out = [chance.gauss(0, 0.1) for _ in range(width + 1)]

    @classmethod
    def load(cls, path: Path) -> Network:
        """A network that `save` wrote."""
        saved = json.loads(path.read_text())
        network = cls(len(saved["hidden"]), seed=0)
        network.hidden, network.out = saved["hidden"], saved["out"]
        return network

    def save(self, path: str) -> None:
        Path(path).write_text(json.dumps({"hidden": self.hidden, "out": self.out}))

    def units(self, point: Point) -> list[float]:
        return [math.tanh(a * point[0] + b * point[1] + c) for a, b, c in self.hidden]

    def probability(self, units: list[float]) -> float:
        total = sum(w * u for w, u in zip(self.out, units, strict=False)) + self.out[-1]
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))

    def step(self, point: Point, label: int, rate: float) -> float:
        """One step of gradient descent on one example; return the loss before it."""
        units = self.units(point)
        probability = self.probability(units)
        error = probability - label
        for index, unit in enumerate(units):
            back = error * self.out[index] * (1 - unit * unit)
            self.out[index] -= rate * error * unit
            weights = self.hidden[index]
            weights[0] -= rate * back * point[0]
            weights[1] -= rate * back * point[1]
            weights[2] -= rate * back
        self.out[-1] -= rate * error
        return -math.log(max(1e-12, probability if label else 1 - probability))

    def accuracy(self, data: list[tuple[Point, int]]) -> float:
        hits = sum((self.probability(self.units(p)) > 0.5) == bool(label) for p, label in data)
        return hits / len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    data = spirals(200, seed=0)
    network = Network(options.width, options.seed)
    chance = random.Random(options.seed)
    for epoch in range(1, options.epochs + 1):
        chance.shuffle(data)
        loss = sum(network.step(point, label, rate=0.1) for point, label in data) / len(data)
        job.progress(epoch=epoch, epochs=options.epochs, loss=loss)

    job.save("model.json", network.save, epoch=options.epochs)
    accuracy = network.accuracy(spirals(200, seed=1))
    print(f"accuracy {accuracy:.3f}")
    job.result(width=options.width, seed=options.seed, accuracy=accuracy)


if __name__ == "__main__":
    main()
