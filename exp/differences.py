"""Two methods seed by seed: `python exp/differences.py exp/small "ours 90 %" "hydra 90 %"`.

Methods share seeds, split and surrogate, so the differences of a seed say more than two means with
their deviations. Prints, for each attack that both have, the first less the second in points of
accuracy: the mean, then each seed's.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from condorctl.view.results import from_folder

folder, *methods = sys.argv[1:]
# [method][seed] = the row
rows: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
for record in from_folder(Path(folder), []).records:
    if record.values["model"] in rows:
        rows[record.values["model"]][record.values["details"]["seed"]] = record.values
first, second = rows.values()
seeds = sorted(first.keys() & second.keys())
if not seeds:
    known = ", ".join(f"{method!r}: seeds {sorted(of)}" for method, of in rows.items())
    raise SystemExit(f"error: {folder}: no seed has both ({known})")
attacks = [a for a in first[seeds[0]] if all(a in of[s] for s in seeds for of in (first, second))]
for attack in attacks:
    if attack in ("model", "keep", "kept", "details"):
        continue
    points = [100 * (first[seed][attack] - second[seed][attack]) for seed in seeds]
    each = ", ".join(f"{point:+.1f}" for point in points)
    print(f"{attack:10}  {statistics.fmean(points):+.1f}  ({each})")
