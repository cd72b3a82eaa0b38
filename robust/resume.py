"""Where a training loop stands, whole: what makes an interrupted run end as an undisturbed one.

Between two steps everything that the rest depends on is in a few places: the modules with their
batch norm statistics, the optimiser with its momenta, the schedule, the moving average, the random
generators, the order in which this epoch takes the images and how far it has come, the sum of its
losses, and the best epoch so far. Put back, the next step is the next step, bit by bit, on the same
machine with as many threads. `condorctl.job.checkpoint` keeps it and says when.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from condorctl.job import checkpoint
from robust.checkpoint import write
from robust.config import to_dict
from robust.models import ResNet
from robust.optim import Average

if TYPE_CHECKING:
    from robust.training import Stage

State = dict[str, Any]


@dataclass
class Loop:
    """A stage's loop. `epoch` (1-based) is being done, `batch` of its batches are.

    `order` (N,) int64 on the CPU is that of the epoch's images, None before it is drawn; `total` a
    scalar, the sum of the losses of its images. `best` is the best validation accuracy so far, -1
    for none, `digest` the content hash of the output that was saved last.
    """

    stage: Stage
    optimizer: Optimizer
    scheduler: LambdaLR
    average: Average[ResNet] | None
    total: Tensor
    epoch: int = 1
    batch: int = 0
    order: Tensor | None = None
    best: float = -1.0
    digest: str = ""

    def begin_or_go_on(self) -> None:
        """Take up the checkpoint of this very work, if there is one."""
        self._of = identity(self.stage)
        state = checkpoint.load(read=_read, of=self._of)
        if state is not None:
            self._restore(state)

    def save_if_due(self, out: str) -> None:
        """Leave a checkpoint when it is time; ends the process when it must leave its machine.

        The best epoch's output, at `out`, belongs to it.
        """
        if not checkpoint.due():
            return
        path = Path(out)
        inside = not path.is_absolute() and ".." not in path.parts
        files = [out] if self.best >= 0 and inside else []
        state = self._state()
        checkpoint.save(
            write=lambda partial: write(state, partial),
            epoch=self.epoch - 1,
            of=self._of,
            files=files,
        )

    def next_epoch(self) -> None:
        """This one is done, measured and saved."""
        self.epoch, self.batch, self.order = self.epoch + 1, 0, None
        self.total.zero_()

    def end(self) -> None:
        """The output is written: there is nothing to go on from."""
        checkpoint.clear(self._of)

    def _state(self) -> State:
        average = self.average
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "order": self.order,
            "total": self.total,
            "best": self.best,
            "digest": self.digest,
            "modules": {name: m.state_dict() for name, m in self.stage.modules().items()},
            "stage": self.stage.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": average and (average.model.state_dict(), average.updates),
            "generators": _generators(),
        }

    def _restore(self, state: State) -> None:
        for name, module in self.stage.modules().items():
            module.load_state_dict(state["modules"][name])
        self.stage.restore(state["stage"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            weights, self.average.updates = state["average"]
            self.average.model.load_state_dict(weights)
        self.epoch, self.batch, self.order = state["epoch"], state["batch"], state["order"]
        self.total = state["total"].to(self.total.device)
        self.best, self.digest = state["best"], state["digest"]
        # Last: whatever was built before has drawn from them.
        _set_generators(state["generators"])


def identity(stage: Stage) -> dict[str, str]:
    """What a checkpoint must agree in with `stage` before its first step, each by its SHA-256.

    `start` is what it starts from, masks applied: the source's weights, or what the seed drew.
    """
    start = hashlib.sha256()
    for name, module in stage.modules().items():
        for key, tensor in module.state_dict().items():
            start.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            start.update(tensor.cpu().contiguous().numpy().tobytes())
    config = json.dumps(to_dict(stage.config), sort_keys=True)
    return {
        "stage": stage.name,
        "seed": str(stage.seed),
        "configuration": hashlib.sha256(config.encode()).hexdigest(),
        "data": stage.dataset.fingerprint,
        "start": start.hexdigest(),
        "code": _code(),
    }


@cache
def _code() -> str:
    """The hash of this package's sources: another code need not take the same next step."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _read(path: str) -> State:
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _generators() -> State:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def _set_generators(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
