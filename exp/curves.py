"""Curves of a run of jobs/tables.yaml: `python exp/curves.py exp/small` draws its `metrics.csv`.

`condorctl results --metrics --csv > exp/small/metrics.csv` wrote that file. A line is the mean over
the seeds, its band their standard deviation. All of it is measured on images held out of the
training part. The picture is `curves.svg` beside the figures, the same bytes each time.
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "condorctl", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402

# Title, metric, what the y axis says, and the stages with what the legend calls them.
PANELS = [
    ("Pretraining", "val_knn", "accuracy by nearest neighbour (%)", {"pretrain": "RoCL"}),
    (
        "Adversarial training", "val_pgd", "under PGD, held out (%)",
        {"train-ours": "ours", "train-rocl_hydra": "RoCL + HYDRA", "train-hydra": "HYDRA"},
    ),
    (
        "Fine-tuning, 90 % pruned", "val_pgd", "under PGD, held out (%)",
        {"finetune-ours-90": "ours", "finetune-rocl_hydra-90": "RoCL + HYDRA",
         "finetune-hydra-90": "HYDRA", "lwm-90": "ours, magnitudes"},
    ),
    (
        "Fine-tuning, 99 % pruned", "val_pgd", "under PGD, held out (%)",
        {"finetune-ours-99": "ours", "finetune-rocl_hydra-99": "RoCL + HYDRA",
         "finetune-hydra-99": "HYDRA", "lwm-99": "ours, magnitudes"},
    ),
]  # fmt: skip
# One colour a method in all panels: those of Okabe and Ito, which the colour-blind tell apart.
COLOURS = {
    "RoCL": "#000000", "ours": "#0072B2", "RoCL + HYDRA": "#009E73", "HYDRA": "#D55E00",
    "ours, magnitudes": "#CC79A7",
}  # fmt: skip

folder = Path(sys.argv[1])
# [stage without its seed][metric][epoch] = the figures of the seeds
curves: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(
    lambda: defaultdict(lambda: defaultdict(list))
)
with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
        stage = re.sub(r"-\d+$", "", row["stage"])
        for metric in ("val_knn", "val_pgd"):
            if row[metric]:
                curves[stage][metric][int(row["epoch"])].append(100 * float(row[metric]))

figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
for axis, (title, metric, label, stages) in zip(axes.flat, PANELS, strict=True):
    for stage, method in stages.items():
        points = sorted(curves[stage][metric].items())
        epochs = [epoch for epoch, _ in points]
        means = [statistics.fmean(found) for _, found in points]
        spread = [statistics.stdev(found) if len(found) > 1 else 0.0 for _, found in points]
        axis.plot(epochs, means, color=COLOURS[method], label=method)
        axis.fill_between(
            epochs,
            [mean - sd for mean, sd in zip(means, spread, strict=True)],
            [mean + sd for mean, sd in zip(means, spread, strict=True)],
            color=COLOURS[method], alpha=0.15, linewidth=0,
        )  # fmt: skip
    axis.set(title=title, xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
figure.savefig(folder / "curves.svg", metadata={"Date": None})
