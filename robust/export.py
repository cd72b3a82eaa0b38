"""Small enough to deploy: a sparse file, an ONNX file, a report, the proof of equal predictions.

The sparse file (`robust.sparse`) holds the kept weights alone. The ONNX file holds the weights of
the checkpoint, dense and in fp32: it is no smaller than before. Read back from disk, both must
predict on every image of the test part the class that the checkpoint predicts, or nothing is
written: rounding to half precision turns a near-tie of two classes over now and then.
"""

from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch

from condorctl.errors import UserError, printable
from robust import checkpoint, cost, sparse
from robust.checkpoint import Checkpoint
from robust.data import Part
from robust.models import ResNet

SPARSE, ONNX, REPORT = "model.safetensors", "model.onnx", "report.json"

# onnxruntime reads it since 1.17 (January 2024).
_OPSET = 20
_PROOF_BATCH = 250

_NOTE = (
    "Pruned weights save bytes, not time: torch and onnxruntime multiply their zeros like any "
    "number. The sparse MACs are what a kernel for unstructured sparsity would be left with."
)
_MENDS = {
    SPARSE: "half precision turned near-ties over; use --dtype float32",
    ONNX: "near-ties that the order of additions decides; fine-tune for an epoch more",
}


class Report(dict[str, Any]):
    """What `report.json` holds."""

    def text(self) -> str:
        """The same as tables for a terminal, at most 80 columns wide."""
        return "\n".join(_lines(self))


def export(
    init: str, out: str, *, root: str | None, dtype: str, device: torch.device | str
) -> Report:
    """Write the classifier of checkpoint `init` into the folder `out`; return the report.

    `root`: where its data set lies. `dtype`: "float16" or "float32", of the kept weights in the
    sparse file. `device` computes the proof. Raises UserError, and leaves `out` as it was, when
    the checkpoint or the data do not fit or a prediction of a file differs.
    """
    folder = Path(out).absolute()
    if not folder.parent.is_dir():
        raise UserError(f"--out {out}: no folder {folder.parent} to make it in")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {out}: a file, name a folder")
    source = checkpoint.load(init, checkpoint.CLASSIFIERS)
    dataset = checkpoint.load_data(source.config, root, (init, source), device=device)
    model = checkpoint.restore(source, init).eval()
    card = _card(source, init)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        partial = Path(name)
        try:
            sparse.save(model, card, partial / SPARSE, sparse.DTYPES[dtype])
        except ValueError as error:
            raise UserError(f"{init}: {error}") from None
        write_onnx(model, card, partial / ONNX)
        proof = prove(init, model, partial, dataset.test, device)
        report = Report(
            checkpoint={"path": printable(init), "sha256": card.checkpoint, "stage": source.stage},
            data={"name": card.data, "fingerprint": card.fingerprint},
            keep=source.keep,
            dtype=dtype,
            proof=proof,
            bytes={
                "checkpoint": Path(init).stat().st_size,
                "dense_fp32": sum(t.nbytes for t in sparse.floats(source.weights).values()),
                "sparse": (partial / SPARSE).stat().st_size,
                "onnx": (partial / ONNX).stat().st_size,
            },
            **cost.size(model, source.masks, card.shape),
            latency=cost.latency(partial / SPARSE, partial / ONNX, card.shape),
            note=_NOTE,
        )
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (partial / REPORT).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for file in (SPARSE, ONNX, REPORT):
            (partial / file).replace(folder / file)
    return report


def write_onnx(model: ResNet, card: sparse.Card, path: Path) -> None:
    """Write `model`, in eval mode on the CPU: `images` (N, C, H, W) to `logits` (N, classes).

    N is free, all is fp32. The exporter folds BN into the convolutions, which leaves zeros zero.
    The file's properties hold the card, under the key that it has in the sparse file.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, *card.shape),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no path"
    proto = program.model_proto
    # The exporter notes which line of which file on this machine each node comes from.
    for noted in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        noted.ClearField("metadata_props")
    del proto.graph.value_info[:]
    onnx.helper.set_model_props(proto, {sparse.KEY: card.model_dump_json()})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


@torch.inference_mode()
def prove(
    init: str, model: ResNet, folder: Path, test: Part, device: torch.device | str
) -> dict[str, Any]:
    """Compare both files in `folder` with `model`, of `init`, on every image of `test`, in fp32.

    For each: how many predictions differ (0, or else UserError) and the largest difference of a
    logit. Raises UserError too when a logit of the checkpoint is no number.
    """
    reference = copy.deepcopy(model).to(device)
    restored = sparse.load(folder / SPARSE).to(device)
    in_onnx = cost.onnx_classifier(folder / ONNX, torch.get_num_threads())
    flips, largest = {SPARSE: 0, ONNX: 0}, {SPARSE: 0.0, ONNX: 0.0}
    # The TF32 of a GPU's convolutions would be coarser than the half precision on trial.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(test), _PROOF_BATCH):
            images = test.images(slice(start, start + _PROOF_BATCH))
            wanted = reference(images).cpu()
            if not wanted.isfinite().all():
                raise UserError(f"{init}: its logits are not finite; train it again")
            for file, logits in (
                (SPARSE, restored(images).cpu()),
                (ONNX, in_onnx(images.cpu())),
            ):
                flips[file] += int((logits.argmax(1) != wanted.argmax(1)).sum())
                largest[file] = max(largest[file], float((logits - wanted).abs().max()))
    for file, count in flips.items():
        if count:
            raise UserError(
                f"{file}: {count} of {len(test)} predictions differ from the checkpoint's, logits "
                f"by up to {largest[file]:.2g}: {_MENDS[file]}"
            )
    return {
        "images": len(test),
        "files": {
            file: {"differing": flips[file], "largest_logit_difference": largest[file]}
            for file in flips
        },
    }


def _card(source: Checkpoint, path: str) -> sparse.Card:
    return sparse.Card(
        widths=source.config.model.widths,
        blocks=source.config.model.blocks,
        normalise=source.config.model.normalise,
        shape=source.data.shape,
        classes=source.data.classes,
        data=source.data.name,
        fingerprint=source.data.fingerprint,
        keep=source.keep,
        checkpoint=checkpoint.file_hash(path),
    )


def _lines(report: Report) -> Iterator[str]:
    source, size, macs, bytes_ = (
        report[key] for key in ("checkpoint", "parameters", "macs", "bytes")
    )
    yield f"{source['path']}: {source['stage']}, keep {report['keep']:g}"
    yield ""
    yield f"{'':<22}{'all':>14}{'kept':>14}{'':>10}"
    for label, whole, kept in (
        ("parameters", size["total"], size["kept"]),
        ("  prunable", size["prunable"], size["prunable_kept"]),
        ("MACs of one image", macs["dense"], macs["sparse"]),
    ):
        yield f"{label:<22}{whole:>14,}{kept:>14,}{kept / whole:>9.2%}"
    yield ""
    yield f"{'':<22}{'bytes':>14}{'of dense fp32':>16}"
    for label, key in (
        ("checkpoint", "checkpoint"),
        ("dense fp32 state", "dense_fp32"),
        (f"{SPARSE}", "sparse"),
        (f"{ONNX} (dense)", "onnx"),
    ):
        yield f"{label:<22}{bytes_[key]:>14,}{bytes_[key] / bytes_['dense_fp32']:>16.2%}"
    yield ""
    yield f"{'layer':<28}{'weights':>11}{'kept':>9}{'MACs':>13}{'sparse':>12}"
    for layer in report["layers"]:
        yield (
            f"{layer['name']:<28}{layer['weights']:>11,}{layer['fraction']:>9.2%}"
            f"{layer['macs_dense']:>13,}{layer['macs_sparse']:>12,}"
        )
    yield ""
    yield f"Same predictions as the checkpoint on all {report['proof']['images']:,} test images:"
    for file, found in report["proof"]["files"].items():
        yield f"  {file:<20}logits differ by {found['largest_logit_difference']:.2g} at most"
    yield ""
    yield f"Latency on {report['latency']['cpu']}, ms a batch"
    yield f"{'':<16}{'threads':>8}{'batch':>7}{'median':>10}{'quartiles':>20}{'runs':>6}"
    for row in report["latency"]["measurements"]:
        spread = f"{row['quartile1_ms']:.3f} to {row['quartile3_ms']:.3f}"
        yield (
            f"{row['runtime']:<16}{row['threads']:>8}{row['batch']:>7}"
            f"{row['median_ms']:>10.3f}{spread:>20}{row['runs']:>6}"
        )
    yield from textwrap.wrap(report["note"], 80)
