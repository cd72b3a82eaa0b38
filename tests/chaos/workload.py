"""The pipelines that run while faults happen, and what their work is compared with."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import chain

# Seconds between two checkpoints of a chain, on the submit side, too.
INTERVAL_S = 5

_CHAIN = """\
params: {{witness: "", steps: {steps}, pace: {pace}}}
defaults:
  template: train.sub.j2
  inputs: [chain.py]
  outputs: [chain.txt, metrics.jsonl]
  request_memory: 64 MB
  request_disk: 150 MB
  retries: 3
  checkpoint_copy_interval: 5 s
stages:
"""
_FIRST = (
    '  first: {command: [python, chain.py, first, "{{ steps }}", "{{ pace }}", "{{ witness }}"]}\n'
)
_NEXT = """\
  {name}:
    command: [python, chain.py, {name}, "{{{{ steps }}}}", "{{{{ pace }}}}", "{{{{ witness }}}}",
              {before}/chain.txt]
    inputs: [chain.py, {before}/chain.txt]
"""
# HTCondor's self-checkpointing, by exit code 85.
_SELF = "    checkpoint_interval: 10 s\n"

# The method's first stages, small.
_ROBUST = """\
defaults:
  template: train.sub.j2
  code: [robust]
  outputs: [checkpoint.pt, metrics.jsonl]
  environment: {OMP_NUM_THREADS: 1}
  request_memory: 500 MB
  request_disk: 200 MB
  retries: 3
  checkpoint_copy_interval: 5 s
stages:
  pretrain:
    command: [python, -m, robust, pretrain, --preset, smoke, --set, pretrain.epochs=2]
  train:
    command: [python, -m, robust, train, --preset, smoke, --init, pretrain/checkpoint.pt,
              --set, train.epochs=3]
    inputs: [pretrain/checkpoint.pt]
"""

# Pipelines of chains by their name, and of their stages the one before.
CHAINS: dict[str, dict[str, str]] = {
    "pair": {"first": "", "second": "first"},
    "three": {"first": "", "second": "first", "third": "second"},
}
ROBUST = "robust"
_ROBUST_STAGES = ("pretrain", "train")
_FINAL = {ROBUST: "checkpoint.pt"}


def stages(pipeline: str) -> list[str]:
    return list(_ROBUST_STAGES if pipeline == ROBUST else CHAINS[pipeline])


def write(project: Path, steps: int, pace: float) -> None:
    """The specs, into the user's folder."""
    (project / "jobs").mkdir(parents=True)
    (project / "chain.py").write_bytes(Path(chain.__file__).read_bytes())
    for name, made in CHAINS.items():
        text = _CHAIN.format(steps=steps, pace=pace)
        for stage, before in made.items():
            text += _NEXT.format(name=stage, before=before) if before else _FIRST
            text += _SELF if stage == "second" and name == "three" else ""
        (project / "jobs" / f"{name}.yaml").write_text(text)
    (project / "jobs" / f"{ROBUST}.yaml").write_text(_ROBUST)


@dataclass(frozen=True)
class Left:
    """What a stage has left: the SHA-256 of its final file, its metrics lines without times."""

    sha256: str
    metrics: tuple[str, ...]


def left(pipeline: str, folder: Path) -> Left | None:
    """What lies in the folder of a stage, None when it is not all there."""
    final, metrics = folder / _FINAL.get(pipeline, "chain.txt"), folder / "metrics.jsonl"
    try:
        digest = hashlib.sha256(final.read_bytes()).hexdigest()
        return Left(digest, tuple(map(_without_times, metrics.read_text().splitlines())))
    except (OSError, ValueError):
        return None


def _without_times(line: str) -> str:
    record: dict[str, Any] = json.loads(line)
    return json.dumps({k: v for k, v in record.items() if k != "time"}, sort_keys=True)


def chain_references(folder: Path, steps: int) -> dict[tuple[str, str], Left]:
    """What each stage of the chains leaves when nothing disturbs it: run here, without a pool."""
    found = {}
    for pipeline, made in CHAINS.items():
        digests: dict[str, str] = {}
        for stage, before in made.items():
            home = folder / pipeline / stage
            home.mkdir(parents=True)
            words = [stage, str(steps), "0", ""] + ([f"../{before}/chain.txt"] if before else [])
            subprocess.run([sys.executable, chain.__file__, *words], cwd=home, check=True)
            digests[stage] = chain.final(stage, steps, digests.get(before, ""))
            assert (home / "chain.txt").read_text() == digests[stage]
            one = left(pipeline, home)
            assert one
            found[pipeline, stage] = one
    return found


@dataclass
class Start:
    """One start of a chain's stage: from which step it went on, and its steps by their time."""

    pid: int
    step: int
    time: float
    steps: list[tuple[int, float]] = field(default_factory=list)

    def took(self) -> list[tuple[int, float, float]]:
        """Its steps, the seconds that each took, and when it ended."""
        ends = [self.time, *(when for _, when in self.steps)]
        return [(step, when - ends[at], when) for at, (step, when) in enumerate(self.steps)]


def starts(witness: Path, run: str, stage: str) -> list[Start]:
    """The starts of a stage of a run as they were told by the jobs themselves."""
    try:
        lines = (witness / f"{run}.{stage}").read_text().splitlines()
    except OSError:
        return []
    found: list[Start] = []
    by_pid: dict[int, Start] = {}
    for kind, pid, step, when in (line.split() for line in lines if line.count(" ") == 3):
        if kind == "start":
            by_pid[int(pid)] = Start(int(pid), int(step), float(when))
            found.append(by_pid[int(pid)])
        elif int(pid) in by_pid:
            by_pid[int(pid)].steps.append((int(step), float(when)))
    return found


@dataclass(frozen=True)
class Loss:
    """Work that a later start of a stage had to do again."""

    run: str
    stage: str
    kept: int  # steps of the start before that it did not have to do again
    steps: int
    seconds: float
    last_step: float  # when the work that was lost ended; Unix seconds
    again: float  # when the next start began


def losses(witness: Path, run: str, stage: str) -> list[Loss]:
    """What each start of a stage but the first threw away of the work that there was by then."""
    found = []
    # Seconds that each step took which has been done and not been lost since.
    held: dict[int, float] = {}
    last_step = 0.0
    every = starts(witness, run, stage)
    for at, start in enumerate(every):
        lost = [step for step in held if step > start.step]
        seconds = sum(held.pop(step) for step in lost)
        if at:
            kept = max(0, start.step - every[at - 1].step)
            found.append(Loss(run, stage, kept, len(lost), seconds, last_step, start.time))
        # One whose node could not be told to stop works on for nobody.
        until = every[at + 1].time if at + 1 < len(every) else float("inf")
        held |= {step: took for step, took, when in start.took() if when <= until}
        last_step = max([when for _, when in start.steps if when <= until], default=start.time)
    return found


def restarts(witness: Path) -> tuple[int, int]:
    """The starts of all chains but each one's first, and how many went on from a checkpoint."""
    every = went_on = 0
    for file in witness.iterdir():
        later = starts(witness, *file.name.rsplit(".", 1))[1:]
        every += len(later)
        went_on += sum(start.step > 0 for start in later)
    return every, went_on


def repeated(witness: Path) -> tuple[int, int]:
    """The steps of all chains, and how many of them were done again."""
    total = distinct = 0
    for file in witness.iterdir():
        told = [line.split() for line in file.read_text().splitlines() if line.count(" ") == 3]
        steps = [words[2] for words in told if words[0] == "step"]
        total += len(steps)
        distinct += len(set(steps))
    return total, total - distinct
