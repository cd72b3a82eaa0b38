"""An export is small, predicts what the checkpoint predicts on real digits, or is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import chdir
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from robust_random import (
    BLOCKS,
    CARD,
    CLASSES,
    SHAPE,
    WIDTHS,
    header_of,
    images,
    in_halves,
    network,
)
from robust_trained import DATASET, trained
from torch import nn

from condorctl.errors import UserError
from robust import checkpoint, cost, sparse
from robust import export as exporting
from robust.checkpoint import Checkpoint, DataCard
from robust.config import load_preset
from robust.export import ONNX, REPORT, SPARSE, export
from robust.masks import magnitude_masks
from robust.models import ResNet

CONFIG = load_preset("smoke")
SMALL = replace(CONFIG, model=replace(CONFIG.model, widths=WIDTHS, blocks=BLOCKS, normalise=True))


@cache
def pruned() -> Checkpoint:
    """As fine-tuned: a tenth of the weights of a network that has learned the digits."""
    card = DataCard.of(DATASET)
    model = checkpoint.build(SMALL, card)
    model.load_state_dict(model.state_dict() | trained().state_dict())
    checkpoint.set_normalisation(model, DATASET)
    masks = magnitude_masks(model, 0.1, SMALL.prune)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        # BN sees what the remaining weights make of the digits: without, all look the same to it.
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model(DATASET.train.images())
    return Checkpoint("finetune", 0, 1, SMALL, card, model.state_dict(), 0.1, masks)


def make_checkpoint(path: Path) -> None:
    with chdir(path.parent):  # where job.save leaves its record
        checkpoint.save(pruned(), path.name)


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "in.pt")
    (tmp_path / "metrics.jsonl").unlink()
    return "in.pt"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, exporting.Report]:
    """The folder that an export wrote beside its checkpoint `in.pt`, and its report."""
    folder = tmp_path_factory.mktemp("exported")
    make_checkpoint(folder / "in.pt")
    report = run(str(folder / "in.pt"), folder / "out")
    return folder / "out", report


def run(init: str, out: Path | str = "out", dtype: str = "float32") -> exporting.Report:
    return export(init, str(out), root=None, dtype=dtype, device="cpu")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_command_writes_three_files_and_proves_them_equal(
    exported: tuple[Path, exporting.Report],
) -> None:
    folder, report = exported
    assert content(folder).keys() == {SPARSE, ONNX, REPORT}
    assert {path.name for path in folder.parent.iterdir()} == {"in.pt", "metrics.jsonl", "out"}
    assert json.loads((folder / REPORT).read_text(encoding="utf-8")) == report
    assert report["proof"]["images"] == len(DATASET.test) == 360
    assert report["proof"]["files"][SPARSE] == {"differing": 0, "largest_logit_difference": 0.0}
    assert report["proof"]["files"][ONNX]["differing"] == 0
    assert 0 < report["proof"]["files"][ONNX]["largest_logit_difference"] < 1e-4
    for key, path in (
        ("sparse", folder / SPARSE),
        ("onnx", folder / ONNX),
        ("checkpoint", folder.parent / "in.pt"),
    ):
        assert report["bytes"][key] == path.stat().st_size
    rows = report["latency"]["measurements"]
    wanted = {(runtime, 1, batch) for runtime in ("torch", "onnxruntime") for batch in (1, 64)}
    assert {(row["runtime"], row["threads"], row["batch"]) for row in rows} == wanted
    assert (folder / SPARSE).stat().st_mode == (folder / REPORT).stat().st_mode


def test_the_sparse_file_names_what_it_came_from(exported: tuple[Path, exporting.Report]) -> None:
    folder, report = exported
    card = header_of(folder / SPARSE)
    digest = hashlib.sha256((folder.parent / "in.pt").read_bytes()).hexdigest()
    assert card["checkpoint"] == report["checkpoint"]["sha256"] == digest
    assert (card["classes"], card["shape"]) == (list(CLASSES), list(SHAPE))
    assert (card["data"], card["fingerprint"], card["keep"]) == ("digits", DATASET.fingerprint, 0.1)


def test_the_onnx_file_gives_torchs_logits_for_any_batch(
    exported: tuple[Path, exporting.Report],
) -> None:
    path = exported[0] / ONNX
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    (card,) = proto.metadata_props
    assert (card.key, json.loads(card.value)["classes"]) == (sparse.KEY, list(CLASSES))
    assert b".py" not in path.read_bytes(), "a path on the machine that made it"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    init = str(path.parent.parent / "in.pt")
    model = checkpoint.restore(checkpoint.load(init, ["finetune"]), init).eval()
    for some in (images(1), images(7), DATASET.test.images()):
        (logits,) = session.run(None, {"images": some.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(some).numpy(), atol=1e-4)
    assert len(set(logits.argmax(1))) > 3, "what says one class to all would prove nothing"


def test_an_onnx_file_for_colour_images_gives_torchs_logits(tmp_path: Path) -> None:
    model, card = network(channels=3), CARD.model_copy(update={"shape": (3, 8, 8)})
    exporting.write_onnx(model, card, tmp_path / ONNX)
    some = images(20, channels=3)
    with torch.no_grad():
        wanted = model(some)
    assert wanted.std(0).min() > 0.01, "the images matter by far more than is allowed to differ"
    found = cost.onnx_classifier(tmp_path / ONNX, 1)(some)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-4)


def test_folding_bn_leaves_pruned_weights_zero(exported: tuple[Path, exporting.Report]) -> None:
    graph = onnx.load(exported[0] / ONNX).graph
    arrays_ = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    kept = sum(int(np.count_nonzero(a)) for a in arrays_ if a.ndim in (2, 4) and a.shape[0] > 1)
    assert kept == exported[1]["parameters"]["prunable_kept"]


@pytest.mark.parametrize(("file", "turned"), [(SPARSE, 1), (SPARSE, 200), (ONNX, 1), (ONNX, 200)])
def test_a_file_that_predicts_otherwise_is_refused_and_nothing_stays(
    init: str,
    file: str,
    turned: int,
    exported: tuple[Path, exporting.Report],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = checkpoint.restore(checkpoint.load(init, ["finetune"]), init).eval()
    with torch.no_grad():
        logits = source(DATASET.test.images())
    # So much more of a class that none is taken for turns this many images to it.
    loser = int(logits.mean(0).argmin())
    lacking = (logits.amax(1) - logits[:, loser]).sort().values
    push = float(lacking[turned - 1 : turned + 1].mean())
    assert lacking[0] > 0
    assert lacking[turned] - lacking[turned - 1] > 1e-4, "rounding could decide"
    where, name = (sparse, "save") if file == SPARSE else (exporting, "write_onnx")
    original = getattr(where, name)

    def tampered(model: ResNet, *rest: Any) -> None:
        other = network()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.linear.bias[loser] += push
        original(other.eval(), *rest)

    if file == SPARSE:  # of the same network an ONNX file is there already
        copied = exported[0] / ONNX
        monkeypatch.setattr(exporting, "write_onnx", lambda *rest: shutil.copy(copied, rest[-1]))
    monkeypatch.setattr(where, name, tampered)
    with pytest.raises(UserError, match=f"^{file}: {turned} of 360 predictions differ") as caught:
        run(init)
    assert ("--dtype float32" in str(caught.value)) == (file == SPARSE)
    assert [path.name for path in Path().iterdir()] == ["in.pt"]


def near_tie(init: str) -> str:
    """A checkpoint of two classes that differ by a quarter of a half's unit in the last place."""
    source = checkpoint.load(init, ["finetune"])
    weights = {name: tensor.clone() for name, tensor in source.weights.items()}
    weights["linear.bias"].zero_()
    weights["blocks.1.bn2.bias"].fill_(3)  # every feature lives
    weights["linear.weight"].fill_(1)
    weights["linear.weight"][1, -1] += 2**-12
    checkpoint.save(replace(source, stage="train", keep=1.0, masks={}, weights=weights), "tie.pt")
    return "tie.pt"


def test_half_precision_that_turns_a_tie_over_is_refused(init: str) -> None:
    tie = near_tie(init)
    with pytest.raises(UserError, match=rf"^{SPARSE}: .*predictions differ.*use --dtype float32$"):
        run(tie, dtype="float16")
    assert not Path("out").exists()


def test_a_refused_export_leaves_the_former_one(init: str) -> None:
    tie = near_tie(init)
    former = {SPARSE: b"former", REPORT: b"{}", "notes.txt": b"mine"}
    Path("out").mkdir()
    for name, data in former.items():
        Path("out", name).write_bytes(data)
    places = set(Path().iterdir())
    with pytest.raises(UserError, match="predictions differ"):
        run(tie, dtype="float16")
    assert content(Path("out")) == former
    assert set(Path().iterdir()) == places
    run(tie, dtype="float32")  # as the refusal advises
    after = content(Path("out"))
    assert after.keys() == {SPARSE, ONNX, REPORT, "notes.txt"}
    assert after[SPARSE] != b"former"
    assert after["notes.txt"] == b"mine"


def test_half_precision_that_changes_no_prediction_is_exported(
    init: str, exported: tuple[Path, exporting.Report]
) -> None:
    source = checkpoint.load(init, ["finetune"])
    weights = in_halves(checkpoint.restore(source, init)).state_dict()
    checkpoint.save(replace(source, weights=weights), "halves.pt")
    report = run("halves.pt", dtype="float16")
    assert report["dtype"] == "float16"
    assert report["proof"]["files"][SPARSE] == {"differing": 0, "largest_logit_difference": 0.0}
    # Two bytes fewer for each weight kept; the headers differ by a few digits.
    fewer = exported[1]["bytes"]["sparse"] - report["bytes"]["sparse"]
    assert fewer == pytest.approx(2 * report["parameters"]["prunable_kept"], abs=64)


def test_a_checkpoint_made_on_other_data_is_refused(init: str) -> None:
    source = checkpoint.load(init, ["finetune"])
    card = replace(source.data, name="others", fingerprint="f" * 64)
    checkpoint.save(replace(source, data=card), "other.pt")
    with pytest.raises(UserError, match=r"^other.pt: made on another data set .*others"):
        run("other.pt")
    assert not Path("out").exists()


def test_a_dense_checkpoint_is_exported_too(init: str) -> None:
    source = checkpoint.load(init, ["finetune"])
    dense = replace(source, stage="train", keep=1.0, masks={}, weights=network().state_dict())
    checkpoint.save(dense, "dense.pt")
    report = run("dense.pt")
    assert report["macs"]["dense"] == report["macs"]["sparse"]
    assert report["parameters"]["kept"] == report["parameters"]["total"]


@pytest.mark.parametrize(
    ("dtype", "complaint"),
    [("float16", "linear.weight is too large .*--dtype float32"), ("float32", "logits are not")],
)
def test_a_network_whose_logits_overflow_is_refused(dtype: str, complaint: str, init: str) -> None:
    source = checkpoint.load(init, ["finetune"])
    source.weights["blocks.1.bn2.bias"].fill_(100)
    source.weights["linear.weight"].mul_(1e38)
    checkpoint.save(source, "huge.pt")
    with pytest.raises(UserError, match=f"^huge.pt: .*{complaint}"):
        run("huge.pt", dtype=dtype)
    assert not Path("out").exists()


def test_a_bad_output_place_is_refused(init: str) -> None:
    Path("taken").write_text("mine")
    for out, complaint in (("taken", "name a folder"), ("none/out", "no folder")):
        with pytest.raises(UserError, match=f"^--out {out}: .*{complaint}"):
            run(init, out)
    assert Path("taken").read_text() == "mine"


def test_the_report_fits_a_terminal(exported: tuple[Path, exporting.Report]) -> None:
    report = exporting.Report(exported[1], checkpoint={"path": "in.pt", "stage": "finetune"})
    lines = report.text().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "Same predictions as the checkpoint on all 360 test images:" in lines
    assert "save bytes, not time" in report.text()
    prunable = sum(p.numel() for p in network().parameters() if p.dim() > 1)
    kept = report["parameters"]["prunable_kept"]
    row = f"prunable {prunable:,} {kept:,} {100 * kept / prunable:.2f}%"
    assert row in [" ".join(line.split()) for line in lines]
