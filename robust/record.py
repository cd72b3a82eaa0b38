"""The file that an evaluation grows: which test images stand under which attack, batch by batch.

JSON. `evaluation` says whose record it is, `machines` where it was made, `models` holds for each
network and attack one character an image (`1` stands, `0` does not, `.` not attacked yet or not
meant to be) and the seconds spent; at the end also the finished rows. An evaluation that is
started again with the same checkpoints and options continues from it. In a job that may start
again elsewhere it is also what the job's checkpoints hold.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condorctl.errors import UserError
from condorctl.job import checkpoint

_SAVE_INTERVAL_S = 3.0
_OPEN, _BROKEN, _STANDING = b".01"


class Record:
    """One evaluation's file. Images are named by their position in the test part."""

    def __init__(
        self, path: str, evaluation: Mapping[str, Any], machine: Mapping[str, Any], images: int
    ) -> None:
        """Read `path` if it is there, else begin it. (A job's outputs are there at once, empty.)

        `evaluation` is JSON that names all that the figures depend on, `machine` describes this
        one. Raises UserError, one line, when the file is damaged or belongs to another evaluation.
        """
        self.path = Path(path)
        self.evaluation = dict(evaluation)
        self.machines: list[Any] = []
        self._machine = dict(machine)
        self.rows: dict[str, dict[str, Any]] = {}
        self._images = images
        self._flags: dict[tuple[str, str], bytearray] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._saved = -_SAVE_INTERVAL_S
        text = json.dumps(self.evaluation, sort_keys=True)
        self._identity = {"evaluation": hashlib.sha256(text.encode()).hexdigest()}
        checkpoint.load(read=lambda kept: shutil.copyfile(kept, self.path), of=self._identity)
        if self.path.exists() and self.path.stat().st_size:
            self._read()

    def done(self, model: str, attack: str, index: Sequence[int]) -> bool:
        """Whether every image of `index` was attacked."""
        flags = self._of(model, attack)
        return all(flags[i] != _OPEN for i in index)

    def standing(self, model: str, attack: str) -> Tensor:
        """Which images are known to stand: bool (images,), on the CPU."""
        return torch.tensor(list(self._of(model, attack))) == _STANDING

    def attacked(self, model: str, attack: str) -> Tensor:
        """Which images were attacked: bool (images,), on the CPU."""
        return torch.tensor(list(self._of(model, attack))) != _OPEN

    def seconds(self, model: str, attack: str) -> float:
        return self._seconds.get((model, attack), 0.0)

    def add(
        self,
        model: str,
        attack: str,
        index: Sequence[int],
        standing: Sequence[bool],
        seconds: float,
    ) -> None:
        """The verdict on a batch; it reaches the disk within seconds, see `save`."""
        if self._machine not in self.machines:
            self.machines.append(self._machine)
        flags = self._of(model, attack)
        for image, stands in zip(index, standing, strict=True):
            flags[image] = _STANDING if stands else _BROKEN
        self._seconds[model, attack] = self.seconds(model, attack) + seconds
        if time.monotonic() - self._saved >= _SAVE_INTERVAL_S:
            self.save()

    def save_checkpoint_if_due(self) -> None:
        """Between two batches: ends the process when the job must leave its machine."""
        if checkpoint.due():
            self.save()
            checkpoint.save(lambda partial: shutil.copyfile(self.path, partial), 0, self._identity)

    def finish(self) -> None:
        """Write the file for the last time; there is nothing more to go on from."""
        self.save()
        checkpoint.clear(self._identity)

    def save(self) -> None:
        """Write the file atomically: a crash leaves the former one."""
        models: dict[str, dict[str, Any]] = {}
        for (model, attack), flags in self._flags.items():
            entry = models.setdefault(model, {"standing": {}, "seconds": {}})
            entry["standing"][attack] = flags.decode("ascii")
            entry["seconds"][attack] = self.seconds(model, attack)
        for model, row in self.rows.items():
            models[model]["row"] = row
        content = {"evaluation": self.evaluation, "machines": self.machines, "models": models}
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            partial.write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def _of(self, model: str, attack: str) -> bytearray:
        return self._flags.setdefault((model, attack), bytearray(b"." * self._images))

    def _read(self) -> None:
        """Take over what the file holds; rows are made again from it."""
        damaged = UserError(f"{self.path}: no record of an evaluation; remove it or name another")
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            recorded, machines, models = (
                content[key] for key in ("evaluation", "machines", "models")
            )
            differing = [k for k, v in self.evaluation.items() if recorded[k] != v]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise damaged from None
        if differing:
            raise UserError(
                f"{self.path}: the record of another evaluation, its {' and '.join(differing)} "
                "differ from what was asked for; name another file or remove it"
            )
        try:
            self.machines = list(machines)
            for model, entry in models.items():
                for attack, text in entry["standing"].items():
                    flags = bytearray(text, "ascii")
                    if len(flags) != self._images or set(flags) - set(b".01"):
                        raise damaged
                    self._flags[model, attack] = flags
                    self._seconds[model, attack] = float(entry["seconds"][attack])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
