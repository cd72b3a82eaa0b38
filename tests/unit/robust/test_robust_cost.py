"""Costs: MACs are those that torch and arithmetic count, a latency is the time of a real run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from robust_random import CARD, SHAPE, images, network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robust import cost, sparse
from robust.cost import Classify
from robust.export import write_onnx
from robust.models import ResNet


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One network as a sparse and as an ONNX file."""
    folder = tmp_path_factory.mktemp("files")
    sparse_file, onnx_file = folder / "model.safetensors", folder / "model.onnx"
    model = network(keep=0.1)
    sparse.save(model, CARD, sparse_file, torch.float32)
    write_onnx(model, CARD, onnx_file)
    return sparse_file, onnx_file


def test_resnet18_has_the_published_size() -> None:
    model = ResNet(3, (64, 128, 256, 512), (2, 2, 2, 2), 10)
    size = cost.size(model, {}, (3, 32, 32))
    assert size["parameters"]["total"] == 11_173_962
    # Places × out × in × 9, the four stages at 32², 16², 8² and 4²; their shortcuts; the head.
    stem = 32**2 * 64 * 3 * 9
    first = 32**2 * 64 * 64 * 9 * 4
    later = sum(
        side**2 * (width * width // 2 * 9 + width * width * 9 * 3 + width * width // 2)
        for side, width in ((16, 128), (8, 256), (4, 512))
    )
    assert size["macs"]["dense"] == stem + first + later + 512 * 10 == 555_422_720


@pytest.mark.parametrize("shape", [SHAPE, (3, 12, 7)])
def test_macs_agree_with_torchs_counter_layer_by_layer(shape: tuple[int, int, int]) -> None:
    model = network(channels=shape[0])
    size = cost.size(model, {}, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    assert counter.get_total_flops() == 2 * size["macs"]["dense"]
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    for layer in size["layers"]:
        module = "ResNet." + layer["name"].removesuffix(".weight")
        assert by_module[module] == 2 * layer["macs_dense"], layer["name"]


def test_a_multiply_by_a_pruned_weight_is_not_counted() -> None:
    model = network()
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    masks = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    masks["conv1.weight"][0, 0, 0, :2] = True  # used at each of 8 × 8 places
    masks["blocks.1.conv2.weight"][3, 1, 1, 1] = True  # 4 × 4
    masks["linear.weight"][2, 5] = True  # once
    size = cost.size(model, masks, SHAPE)
    assert size["macs"]["sparse"] == 2 * 64 + 16 + 1
    assert size["parameters"]["prunable_kept"] == 4
    others = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert size["parameters"]["kept"] == 4 + others
    assert {layer["name"]: layer["kept"] for layer in size["layers"] if layer["kept"]} == {
        "conv1.weight": 2,
        "blocks.1.conv2.weight": 1,
        "linear.weight": 1,
    }


def test_latency_is_measured_for_both_runtimes_and_batch_sizes(files: tuple[Path, Path]) -> None:
    found = cost.latency(*files, SHAPE)
    assert found["torch"] == torch.__version__
    rows = found["measurements"]
    wanted = {(runtime, 1, batch) for runtime in ("torch", "onnxruntime") for batch in (1, 64)}
    assert {(row["runtime"], row["threads"], row["batch"]) for row in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert 0 < row["quartile1_ms"] <= row["median_ms"] <= row["quartile3_ms"]
        assert 5 <= row["runs"] <= 100


class Sleeper:
    """A classifier whose every run takes `seconds`, after the two that warm it up."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.batches = seconds, list[Tensor]()

    def __call__(self, batch: Tensor) -> Tensor:
        self.batches.append(batch)
        time.sleep(self.seconds if len(self.batches) > 2 else 0)
        return batch


def test_latency_is_the_time_of_a_run() -> None:
    """Four runs take the two seconds that end a measurement, and are too few for quartiles."""
    sleeper = Sleeper(0.51)
    row = cost._timed(sleeper, images())
    assert 510 <= row["quartile1_ms"] <= row["median_ms"] <= row["quartile3_ms"] < 1000
    assert row["runs"] == len(sleeper.batches) - 2 == 5, "the warm-up is not measured"


def test_a_hundred_runs_end_a_measurement() -> None:
    sleeper, batch = Sleeper(0), images()
    assert cost._timed(sleeper, batch)["runs"] == len(sleeper.batches) - 2 == 100
    assert all(given is batch for given in sleeper.batches)


def test_threads_are_measured_at_one_and_at_what_torch_has(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    timed = cost._timed

    def watched(classify: Classify, batch: Tensor) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return timed(classify, batch)

    monkeypatch.setattr(cost, "_timed", watched)
    torch.set_num_threads(2)
    try:
        rows = cost.latency(*files, SHAPE)["measurements"]
        assert torch.get_num_threads() == 2
        assert seen == [row["threads"] for row in rows] == [1] * 4 + [2] * 4
        with pytest.raises(RuntimeError):  # the network's images have one channel
            cost.latency(*files, (2, *SHAPE[1:]))
        assert seen[8:] == [1], "it broke off while one thread was set"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_onnxruntime_runs_in_the_threads_that_it_is_given(files: tuple[Path, Path]) -> None:
    def started(threads: int) -> int:
        before = set(Path("/proc/self/task").iterdir())
        classify = cost.onnx_classifier(files[1], threads)
        classify(images())
        return len(set(Path("/proc/self/task").iterdir()) - before)

    assert [started(threads) for threads in (1, 2, 4)] == [0, 1, 3]  # besides the caller's own
