"""What a GPU does alike at every step, recorded once and replayed as a CUDA graph.

An attack of ten steps on a ResNet-18 is more than a thousand small kernels, which a small batch
leaves the GPU waiting for when they are launched one by one. A graph is launched whole (CUDA
programming guide, "CUDA Graphs"; torch.cuda.CUDAGraph).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result", Tensor, None)


class Run(Protocol):
    """How to run a function of tensors: as it is (`plain`), or as `Replay` does."""

    def __call__(self, function: Callable[..., Result], *tensors: Tensor) -> Result: ...


def plain(function: Callable[..., Result], *tensors: Tensor) -> Result:
    """`function` as it is."""
    return function(*tensors)


class Replay:
    """Runs functions of tensors, on a GPU as a CUDA graph from the second time on.

    A function is known by its qualified name and the shapes of `tensors`. It must do the same
    whenever these are the same: draw no random number, never wait for the GPU, and read beside its
    arguments only what stays where it is in memory, as parameters do that are changed in place.
    """

    def __init__(self, device: torch.device) -> None:
        self._records = device.type == "cuda"
        self._recorded: dict[object, _Graph | None] = {}

    def __call__(self, function: Callable[..., Result], *tensors: Tensor) -> Result:
        if not self._records:
            return function(*tensors)
        key = (function.__qualname__, *((t.shape, t.stride(), t.dtype) for t in tensors))
        if key not in self._recorded:
            # Plainly at first: an epoch's last, smaller batch may never come again.
            self._recorded[key] = None
            return function(*tensors)
        graph = self._recorded[key]
        if graph is None:
            graph = self._recorded[key] = _record(function, tensors)
        return graph.replay(tensors)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Graph:
    """A recorded function; it reads and writes the same memory at every replay."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    output: Tensor | None

    def replay(self, tensors: Sequence[Tensor]) -> Tensor | None:
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given)
        self.graph.replay()
        return None if self.output is None else self.output.clone()


def _record(function: Callable[..., Tensor | None], tensors: Sequence[Tensor]) -> _Graph:
    inputs = [tensor.clone() for tensor in tensors]
    # What the libraries set up on a stream's first use cannot be recorded.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = function(*inputs)
    return _Graph(graph, inputs, output)
