"""Networks under PGD-20 a second time, by foolbox: `python exp/second_look.py NETWORK ...`.

NETWORK is a checkpoint, or the sparse file of an export with `--preset`, which says on what test
part. Prints the share of test images that stand, by ours and by foolbox's attack with the same ε,
step and number of steps. Ours counts an image as broken once any step has broken it, foolbox's by
its last step alone, so ours is to be lower by a little. ROBUST_DATA_ROOT says where images are.
"""

from __future__ import annotations

import argparse
import os

import foolbox
import torch

import robust
from robust import checkpoint, data
from robust.attacks import correct, reported, withstands
from robust.config import load_preset
from robust.data import Part
from robust.models import ResNet

STEPS = 20
BATCH = 250


def opened(path: str, preset: str) -> tuple[ResNet, Part, float, int]:
    """The network at `path`, the test part it is to be judged on, ε, and a seed for the starts."""
    root = os.environ.get("ROBUST_DATA_ROOT")
    if path.endswith(".safetensors"):
        config = load_preset(preset)
        return robust.load(path), data.load(config.data, root).test, config.evaluate.epsilon, 0
    source = checkpoint.load(path, checkpoint.CLASSIFIERS, None)
    test = checkpoint.load_data(source.config, root, (path, source)).test
    model = checkpoint.restore(source, path).eval()
    return model, test, source.config.evaluate.epsilon, source.seed


parser = argparse.ArgumentParser(description="networks under foolbox's PGD-20 beside our own")
parser.add_argument("networks", nargs="+", help="checkpoints, or sparse files")
parser.add_argument("--preset", default="smoke", help="of a sparse file: whose test part and ε")
parser.add_argument("--images", type=int, help="how many of the test part, the first; else all")
options = parser.parse_args()
for path in options.networks:
    model, test, epsilon, seed = opened(path, options.preset)
    torch.manual_seed(seed)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 10, steps=STEPS, random_start=True)
    clean = ours = theirs = 0
    count = min(len(test), options.images or len(test))
    for index in torch.arange(count).split(BATCH):
        images, labels = test.images(index), test.labels[index]
        right = correct(model, images, labels)
        clean += int(right.sum())
        stands = withstands(model, images, labels, epsilon=epsilon, alpha=epsilon / 10, steps=STEPS)
        ours += int(stands.sum())
        with reported(model, images):
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
            _, _, broken = attack(wrapped, images, labels, epsilons=epsilon)
        theirs += int((~broken & right).sum())
    share = [f"{100 * some / count:.2f} %" for some in (clean, ours, theirs)]
    print(f"{path}: clean {share[0]}, PGD-{STEPS} {share[1]}, by foolbox {share[2]}", flush=True)
