"""A published result made again from nothing: `python exp/repeat.py exp/small/RESULT.json ...`.

Runs the commands of its lineage one after the other, with the code of their commit and without a
pool, and compares: each checkpoint by its SHA-256, then the figures. ROBUST_DATA_ROOT says where
images are. The same bytes are only promised on one kind of machine with as many threads
(OMP_NUM_THREADS=1 is what a job had); elsewhere figures differ as between seeds. Exit code 1 if
anything differs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKPOINT = "checkpoint.pt"


def code(commit: str, folder: Path) -> Path:
    """A folder with the packages as `commit` has them, below `folder`."""
    place = folder / commit
    if not place.exists():
        packed = subprocess.run(
            ["git", "-C", ROOT, "archive", commit, "robust", "condorctl"],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(place, filter="data")
    return place


def repeat(result: Path, folder: Path) -> bool:
    """Whether `result`, made again below `folder`, is what was published."""
    record = json.loads(result.read_text("utf-8"))
    environment = dict(os.environ)
    if "ROBUST_DATA_ROOT" in environment:
        environment["ROBUST_DATA_ROOT"] = str(Path(environment["ROBUST_DATA_ROOT"]).absolute())
    same = True
    for step in record["lineage"]:
        environment["PYTHONPATH"] = str(code(step["commit"], folder.with_name("code")))
        place = folder / step["stage"]
        place.mkdir()
        # A job finds the outputs of other stages in folders of their names.
        for other in folder.iterdir():
            if other != place:
                (place / other.name).symlink_to(other)
        command = [sys.executable, *step["command"][1:]]
        subprocess.run(command, cwd=place, env=environment, stdout=sys.stderr, check=True)
        if CHECKPOINT in step["outputs"]:
            found = hashlib.sha256((place / CHECKPOINT).read_bytes()).hexdigest()
            equal = found == step["outputs"][CHECKPOINT]
            same &= equal
            print(f"{step['stage']}: {'the same bytes' if equal else 'other bytes'}", flush=True)
    lines = (place / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [row["values"] for row in map(json.loads, lines) if row["kind"] == "result"]
    again = next(row for row in rows if row["model"] == record["values"]["model"])
    for name, figure in record["values"].items():
        if name != "details" and again.get(name) != figure:
            same = False
            print(f"{name}: published {figure}, now {again.get(name)}")
    print(f"{result.name}: {'repeated' if same else 'NOT repeated'}")
    return same


if __name__ == "__main__":
    results = [Path(name) for name in sys.argv[1:]]
    done = []
    for one in results:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made, "stages")
            folder.mkdir()
            done.append(repeat(one, folder))
    sys.exit(not all(done))
