"""The study's black-box mistake by hand: `python exp/stale.py SURROGATE.pt DENSE.pt PRUNED.pt`.

DENSE is the network that PRUNED was pruned from. Its log shows a network pruned at k = 0.1 and
evaluated with k = 1, which puts the weights that were pruned away back beside those that were
fine-tuned without them; and a surrogate that was trained on standardised images and attacked
without. Prints the accuracies of the test part, clean and under transfer, right and as it was done.
ROBUST_DATA_ROOT says where images are.
"""

from __future__ import annotations

import copy
import os
import sys

import torch
from torch import nn

from robust import checkpoint
from robust.attacks import correct, transfer
from robust.data import Part, batches

paths = sys.argv[1:4]
surrogate, dense, pruned = (checkpoint.load(path, checkpoint.CLASSIFIERS) for path in paths)
root = os.environ.get("ROBUST_DATA_ROOT")
test = checkpoint.load_data(
    pruned.config, root, *zip(paths, (surrogate, dense, pruned), strict=True)
).test
options = pruned.config.evaluate

crafting = checkpoint.restore(surrogate, paths[0]).eval()
bare = copy.deepcopy(crafting)
bare.mean.zero_(), bare.std.fill_(1)
right = checkpoint.restore(pruned, paths[2]).eval()
stale = copy.deepcopy(right)
with torch.no_grad():
    for name, mask in pruned.masks.items():
        stale.get_parameter(name)[~mask] = dense.weights[name][~mask]


def accuracy(victim: nn.Module, part: Part, crafted_on: nn.Module | None = None) -> str:
    hits = 0
    generator = torch.Generator().manual_seed(surrogate.seed)
    for images, labels in batches(part, options.batch_size):
        if crafted_on is not None:
            images = transfer(
                crafted_on, images, labels, epsilon=options.epsilon, generator=generator,
                alpha=options.transfer_alpha, steps=options.transfer_steps,
            )  # fmt: skip
        hits += int(correct(victim, images, labels).sum())
    return f"{100 * hits / len(part):.1f} %"


print(f"surrogate, clean: {accuracy(crafting, test)}, not standardised {accuracy(bare, test)}")
for name, victim in (("as pruned", right), ("k = 1, stale weights back", stale)):
    print(
        f"{name}: clean {accuracy(victim, test)}, transfer {accuracy(victim, test, crafting)}, "
        f"from the surrogate not standardised {accuracy(victim, test, bare)}"
    )
