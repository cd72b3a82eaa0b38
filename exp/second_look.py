"""Networks under PGD-20 a second time, by foolbox: `python exp/second_look.py CHECKPOINT ...`.

Prints the share of test images that stand, by ours and by foolbox's attack with the same ε, step
and number of steps. Ours counts an image as broken once any step has broken it, foolbox's by its
last step alone, so ours is to be lower by a little. ROBUST_DATA_ROOT says where images are.
"""

from __future__ import annotations

import os
import sys

import foolbox
import torch

from robust import checkpoint
from robust.attacks import correct, reported, withstands

STEPS = 20
BATCH = 250

for path in sys.argv[1:]:
    source = checkpoint.load(path, checkpoint.CLASSIFIERS, None)
    model = checkpoint.restore(source, path).eval()
    root, cpu = os.environ.get("ROBUST_DATA_ROOT"), torch.device("cpu")
    test = checkpoint.load_data(source.config, root, (path, source), device=cpu).test
    epsilon = source.config.evaluate.epsilon
    torch.manual_seed(source.seed)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 10, steps=STEPS, random_start=True)
    clean = ours = theirs = 0
    for index in torch.arange(len(test)).split(BATCH):
        images, labels = test.images(index), test.labels[index]
        right = correct(model, images, labels)
        clean += int(right.sum())
        stands = withstands(model, images, labels, epsilon=epsilon, alpha=epsilon / 10, steps=STEPS)
        ours += int(stands.sum())
        with reported(model, images):
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
            _, _, broken = attack(wrapped, images, labels, epsilons=epsilon)
        theirs += int((~broken & right).sum())
    share = [f"{100 * count / len(test):.2f} %" for count in (clean, ours, theirs)]
    print(f"{path}: clean {share[0]}, PGD-{STEPS} {share[1]}, by foolbox {share[2]}")
