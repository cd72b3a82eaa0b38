"""Evaluation: the row against arithmetic of its own, its record, its warnings, its refusals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from robust_trained import DATASET, digits, trained
from torch import Tensor, nn

from condorctl import job
from condorctl.errors import UserError
from robust import checkpoint, columns, evaluate, library
from robust.attacks import correct
from robust.checkpoint import Checkpoint, DataCard
from robust.config import load_preset
from robust.data import Part
from robust.masks import apply_, magnitude_masks
from robust.models import ResNet

CONFIG = load_preset("smoke")
SMALL = replace(CONFIG, model=replace(CONFIG.model, widths=(4, 8), blocks=(1, 1)))
ONLY_PGD = [
    'evaluate.attacks=["pgd"]',
    "evaluate.epsilon=0.1",
    "evaluate.epsilon_large=0.15",
    "evaluate.pgd_steps=[3, 5]",
    "evaluate.pgd_restarts=[1, 2]",
]
EVERYTHING = [
    *ONLY_PGD,
    'evaluate.attacks=["pgd", "l2", "l1", "square"]',
    "evaluate.norm_steps=3",
    "evaluate.square_queries=20",
    "evaluate.heavy_images=50",
    "evaluate.transfer_steps=3",
]


@pytest.fixture(autouse=True)
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(path: str, network: ResNet, seed: int = 0) -> str:
    """A checkpoint as stage `train` leaves it; its path."""
    card = DataCard.of(DATASET)
    checkpoint.save(Checkpoint("train", seed, 3, SMALL, card, network.state_dict()), path)
    return path


def pruned(path: str, network: ResNet, keep: float) -> str:
    """A checkpoint as stage `finetune` leaves it; its path."""
    masks = magnitude_masks(network, keep, SMALL.prune)
    weights = {n: w * masks[n] if n in masks else w for n, w in network.state_dict().items()}
    card = DataCard.of(DATASET)
    checkpoint.save(Checkpoint("finetune", 0, 3, SMALL, card, weights, keep, masks), path)
    return path


def run(
    paths: Mapping[str, str],
    settings: list[str] = ONLY_PGD,
    surrogate: str | None = None,
    keep: float | None = None,
    out: str = "evaluation.json",
) -> dict[str, evaluate.Row]:
    return evaluate.evaluate(
        paths, settings, root=None, surrogate=surrogate, keep=keep, out=out,
        device=torch.device("cpu"),
    )  # fmt: skip


def figures(row: evaluate.Row) -> dict[str, Any]:
    """A row without what a clock or a machine put into it."""
    details = {k: v for k, v in row["details"].items() if k not in ("seconds", "machines")}
    details["attacks"] = {
        name: {k: v for k, v in entry.items() if k != "seconds"}
        for name, entry in details["attacks"].items()
    }
    return {**row, "details": details}


def recorded(out: str = "evaluation.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out).read_text(encoding="utf-8"))
    return content


def test_a_row_holds_every_column_and_what_it_rests_on() -> None:
    path = pruned("c.pt", trained(0.1), 0.5)
    row = run({"mine": path}, EVERYTHING, surrogate=saved("s.pt", trained()))["mine"]
    accuracies = ["clean", "PGD-3", "PGD-5×2", "PGD-3 ε2", "PGD-5×2 ε2", "L2", "L1", "transfer",
                  "Square"]  # fmt: skip
    assert list(row) == ["keep", "kept", *accuracies, "details"]
    assert row["keep"] == 0.5
    attacks = row["details"]["attacks"]
    assert (attacks["PGD-3"]["epsilon"], attacks["PGD-3 ε2"]["epsilon"]) == (0.1, 0.15)
    assert 0.5 <= row["kept"] < 0.51

    network = checkpoint.restore(checkpoint.load(path, ["finetune"]), path).eval()
    images, labels = digits(len(DATASET.test), DATASET.test)
    with torch.no_grad():
        right = int((network(images).argmax(1) == labels).sum())
    assert row["clean"] == right / 360
    assert row["clean"] > row["PGD-3"] >= row["PGD-5×2"] > row["PGD-5×2 ε2"]
    assert all(0 <= row[name] <= row["clean"] for name in accuracies if name != "Square")

    details = row["details"]
    assert details["data"] == {"name": "digits", "fingerprint": DATASET.fingerprint}
    assert (details["stage"], details["seed"], details["epoch"]) == ("finetune", 0, 3)
    assert details["config"]["evaluate"]["pgd_steps"] == [3, 5]
    assert details["config"]["prune"]["floor"] == SMALL.prune.floor
    square = details["attacks"]["Square"]
    assert (square["images"], square["steps"], square["accuracy"]) == (50, 20, row["Square"])
    assert details["attacks"]["PGD-5×2 ε2"]["restarts"] == 2
    assert details["attacks"]["PGD-5×2 ε2"]["epsilon"] == 0.15
    total = sum(entry["seconds"] for entry in details["attacks"].values())
    assert details["seconds"] == pytest.approx(total, abs=0.1)
    assert details["machines"][0]["torch"] == torch.__version__
    assert details["machines"][0]["device"]

    assert recorded()["models"]["mine"]["row"] == row
    lines = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    progress = [(r["epoch"], r["epochs"]) for r in lines if r["kind"] == "progress"]
    # Three batches of up to 128 for 8 attacks on all 360 images, one for Square and the probe.
    assert progress == [(n, 26) for n in range(1, 27)]
    assert lines[-1]["values"] == {"model": "mine", **row}
    assert len(json.dumps(row)) < 65_536


def test_l2_and_l1_run_at_their_own_radius_on_what_is_classified_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, float, int, int]] = []

    def one_broken(
        norm: str, model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, steps: int, seed: int
    ) -> Tensor:
        assert correct(model, x, y).all()
        seen.append((norm, epsilon, steps, seed))
        return torch.arange(len(x)) > 0

    monkeypatch.setattr(library, "apgd", one_broken)
    settings = ['evaluate.attacks=["l1", "l2"]', "evaluate.l2_epsilon=0.3", "evaluate.l1_epsilon=4",
                "evaluate.norm_steps=7", "evaluate.batch_size=180"]  # fmt: skip
    row = run({"m": saved("c.pt", trained(), seed=5)}, settings)["m"]
    assert seen == [
        (norm, epsilon, 7, evaluate._seed(5, norm, position))
        for norm, epsilon in (("L2", 0.3), ("L1", 4.0))
        for position in (0, 1)
    ]
    assert row["L1"] == row["L2"] == pytest.approx(row["clean"] - 2 / 360)
    entries = [row["details"]["attacks"][norm] for norm in ("L2", "L1")]
    assert [(e["epsilon"], e["steps"], e["restarts"]) for e in entries] == [(0.3, 7, 1), (4, 7, 5)]


def test_too_few_steps_for_the_three_radii_of_l1_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluate\.norm_steps=2: must lie in \[3, "):
        run({"m": saved("c.pt", trained())}, ["evaluate.norm_steps=2"])


def test_the_transfer_images_are_the_surrogate_s_alone() -> None:
    """Every victim sees the images that PGD makes on the surrogate, all of them."""
    surrogate = trained()
    paths = {"a": saved("a.pt", trained(0.1), seed=1), "b": saved("b.pt", trained(0.1), seed=2)}
    settings = [*ONLY_PGD, "evaluate.attacks=[]", "evaluate.transfer_steps=4",
                "evaluate.batch_size=360"]  # fmt: skip
    rows = run(paths, settings, surrogate=saved("s.pt", surrogate, seed=9))
    assert rows["a"]["transfer"] == rows["b"]["transfer"]

    images, labels = digits(360, DATASET.test)
    draw = torch.Generator().manual_seed(evaluate._seed(9, "transfer", 0))
    x = (images + 0.1 * (2 * torch.rand(images.shape, generator=draw) - 1)).clamp(0, 1)
    for _ in range(4):
        x = x.detach().requires_grad_()
        F.cross_entropy(surrogate(x), labels).backward()
        assert x.grad is not None
        x = x + CONFIG.evaluate.transfer_alpha * x.grad.sign()
        x = x.clamp(images - 0.1, images + 0.1).clamp(0, 1)
    standing = (trained(0.1)(x).argmax(1) == labels).float().mean().item()
    assert rows["a"]["transfer"] == pytest.approx(standing, abs=1 / 360)
    assert rows["a"]["transfer"] < rows["a"]["clean"]


def test_autoattack_runs_each_attack_on_the_survivors(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(0.1)
    seen: list[tuple[str, int]] = []

    def one_broken(name: str, model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Tensor:
        assert correct(model, x, y).all()
        seen.append((name, len(x)))
        return torch.arange(len(x)) > 0

    monkeypatch.setattr(library, "autoattack", one_broken)
    settings = ['evaluate.attacks=["autoattack"]', "evaluate.heavy_images=40"]
    row = run({"m": saved("c.pt", network)}, settings)["m"]
    standing = seen[0][1]
    assert seen == [(name, standing - i) for i, name in enumerate(library.STANDARD)]
    assert row["AutoAttack"] == (standing - 4) / 40
    parts = {n: e["accuracy"] for n, e in row["details"]["attacks"].items()}
    assert parts["AutoAttack apgd-t"] == (standing - 2) / 40
    assert [c for c in row if c.startswith("AutoAttack")] == ["AutoAttack"]


def test_heavy_images_mix_the_classes_and_are_the_same_for_every_network() -> None:
    """A folder's test part comes sorted by class."""
    by_class = DATASET.test.labels.argsort()
    part = Part(DATASET.test.pixels[by_class], DATASET.test.labels[by_class], 16)
    paths = {"a": saved("a.pt", trained(), seed=1), "b": saved("b.pt", trained(0.1), seed=2)}
    settings = ['evaluate.attacks=["square"]', "evaluate.square_queries=1",
                "evaluate.heavy_images=50"]  # fmt: skip
    networks = {n: evaluate._Network.load(p) for n, p in paths.items()}
    config = evaluate.override(SMALL, settings, "evaluate")
    record = evaluate.Record("r.json", {}, {}, len(part))
    attacks = columns.plan(config.evaluate, len(part), None, 0)
    evaluate._attack(networks, attacks, part, config, record)
    a, b = (record.attacked(name, "Square") for name in ("a", "b"))
    assert a.sum() == 50
    assert torch.equal(a, b)
    assert len(part.labels[a].unique()) >= 9


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    a, b = saved("a.pt", trained(0.1), seed=1), saved("b.pt", trained(), seed=2)
    alone = run({"b": b}, EVERYTHING, out="alone.json")["b"]
    torch.manual_seed(99)
    among = run({"a": a, "b": b}, EVERYTHING, out="among.json")["b"]
    assert figures(alone) == figures(among)


def test_each_batch_of_each_attack_of_each_run_draws_for_itself() -> None:
    seeds = {
        evaluate._seed(seed, attack, position)
        for seed in (0, 1)
        for attack in ("PGD-10", "PGD-10 ε2")
        for position in (0, 1, 10)
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


class Interrupted(Exception):
    pass


def interruptible(out: str) -> dict[str, evaluate.Row]:
    """One network on every attack: 26 batches."""
    paths = {"m": pruned("c.pt", trained(0.1), 0.5)}
    return run(paths, EVERYTHING, saved("s.pt", trained()), out=out)


@cache
def uninterrupted() -> tuple[dict[str, Any], list[Any]]:
    """Its figures, and what stood."""
    row = interruptible("whole.json")["m"]
    return figures(row), recorded("whole.json")["models"]["m"]["standing"]


@pytest.mark.parametrize("batches", [1, 5, 16, 25])
def test_an_interrupted_evaluation_ends_with_the_same_figures(
    batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, standing = uninterrupted()
    one, done = evaluate._batch, []

    def limited(*arguments: Any) -> None:
        if len(done) == batches:
            raise Interrupted
        done.append(arguments)
        one(*arguments)

    monkeypatch.setattr(evaluate, "_batch", limited)
    with pytest.raises(Interrupted):
        interruptible("parts.json")
    assert "row" not in recorded("parts.json")["models"]["m"]
    monkeypatch.setattr(evaluate, "_batch", lambda *a: done.append(a) or one(*a))
    resumed = interruptible("parts.json")["m"]
    assert figures(resumed) == whole
    assert recorded("parts.json")["models"]["m"]["standing"] == standing
    assert len(done) == 26
    assert interruptible("parts.json")["m"] == resumed
    assert len(done) == 26


def test_a_checkpoint_brings_the_record_and_the_metrics_to_where_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {"m": pruned("c.pt", trained(0.1), 0.5)}
    Path("metrics.jsonl").unlink()
    whole = run(paths, EVERYTHING, out="record.json")
    assert not Path("checkpoints").exists()
    lines = metrics()
    Path("metrics.jsonl").unlink()
    Path("record.json").unlink()

    one, done = evaluate._batch, []

    def stopping(*arguments: Any) -> None:
        one(*arguments)
        done.append(arguments)
        if len(done) == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluate, "_batch", stopping)
    with pytest.raises(SystemExit) as left:
        run(paths, EVERYTHING, out="record.json")
    assert left.value.code == 128 + signal.SIGTERM
    # On another node there is what was sent to the submit side, and nothing else.
    Path("record.json").unlink()
    Path("metrics.jsonl").unlink()
    job.checkpoint._stop.clear()
    assert figures(run(paths, EVERYTHING, out="record.json")["m"]) == figures(whole["m"])
    assert len(done) == len(lines) - 1
    assert metrics() == lines
    assert not Path("checkpoints").exists()


def metrics() -> list[Any]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time")
        line.get("values", {}).pop("details", None)
    return lines


def test_a_record_of_other_checkpoints_options_or_surrogate_is_refused() -> None:
    paths = {"m": saved("c.pt", trained())}
    run(paths)
    with pytest.raises(UserError, match=r"evaluation\.json: .* its options differ"):
        run(paths, [*ONLY_PGD, "evaluate.epsilon=0.2"])
    with pytest.raises(UserError, match="its surrogate differ"):
        run(paths, surrogate="c.pt")
    saved("c.pt", trained(0.1))
    with pytest.raises(UserError, match="its networks differ"):
        run(paths)


def test_a_network_that_masks_its_gradients_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Logits so large that the softmax is exactly one-hot: the cross-entropy has no slope."""
    masked = trained()
    with torch.no_grad():
        masked.linear.weight.mul_(1e5)
        masked.linear.bias.mul_(1e5)
    settings = [*ONLY_PGD, 'evaluate.attacks=["pgd", "square"]', "evaluate.square_queries=150",
                "evaluate.heavy_images=100"]  # fmt: skip
    rows = run({"masked": saved("m.pt", masked), "plain": saved("p.pt", trained())}, settings)
    assert rows["masked"]["clean"] == rows["plain"]["clean"]
    assert rows["masked"]["PGD-5×2"] > rows["plain"]["PGD-5×2"] + 0.3
    assert rows["plain"]["details"]["warnings"] == []
    warnings = rows["masked"]["details"]["warnings"]
    assert any("an attack without its gradient does better" in w for w in warnings)
    assert any("at ε 0.5 nothing can withstand" in w for w in warnings)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"warning: masked: gradient masking? {w}" for w in warnings]


def test_autoattack_needs_enough_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LEAST_CLASSES", 11)
    with pytest.raises(UserError, match="autoattack needs 11 classes, digits has 10; leave it out"):
        run({"m": saved("c.pt", trained())}, ['evaluate.attacks=["autoattack"]'])
    assert not Path("evaluation.json").exists()


def test_a_surrogate_must_be_a_classifier_on_the_same_data() -> None:
    paths = {"m": saved("c.pt", trained())}
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint"):
        run(paths, surrogate="none.pt")
    other = replace(DataCard.of(DATASET), fingerprint="0" * 64)
    checkpoint.save(Checkpoint("train", 0, 1, SMALL, other, trained().state_dict()), "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: made on another data set or split"):
        run(paths, surrogate="other.pt")


def test_the_study_s_black_box_mistake() -> None:
    """Its file keeps dense weights and scores, with k beside them: k = 1 puts stale weights back.

    The study's black-box table rests on such an evaluation. There it goes through; here neither
    way of asking for it does.
    """
    images, labels = digits(360, DATASET.test)
    network = trained()
    dense = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks = magnitude_masks(network, 0.3, SMALL.prune)

    def evaluated_at(k: float) -> float:
        """What the study's evaluation gives for a k that is typed in."""
        kept = masks if k == 0.3 else {}
        network.load_state_dict({n: w * kept[n] if n in kept else w for n, w in file.items()})
        with torch.no_grad():
            return (network.eval()(images).argmax(1) == labels).float().mean().item()

    # Fine-tuning under the mask: the weights that it hides stay those of the dense network.
    apply_(network, masks)
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1, momentum=0.9)
    for x, y in 8 * list(zip(*(tensor.split(64) for tensor in digits(512)), strict=True)):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        apply_(network, masks)
    honest = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    file = {n: w.where(masks[n], dense[n]) if n in masks else w for n, w in honest.items()}
    right, wrong = evaluated_at(0.3), evaluated_at(1.0)
    assert right > 0.8
    assert wrong < right - 0.2

    card = DataCard.of(DATASET)
    checkpoint.save(Checkpoint("finetune", 0, 3, SMALL, card, honest, 0.3, masks), "c.pt")
    assert run({"m": "c.pt"}, keep=0.3)["m"]["clean"] == pytest.approx(right)
    with pytest.raises(UserError, match=r"--keep 1: c\.pt keeps 0\.3 of its weights"):
        run({"m": "c.pt"}, keep=1.0, out="other.json")

    checkpoint.save(Checkpoint("finetune", 0, 3, SMALL, card, file, 0.3, masks), "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: .* has weights outside its mask"):
        run({"m": "c.pt"}, out="other.json")
    checkpoint.save(Checkpoint("finetune", 0, 3, SMALL, card, file, 1.0, masks), "c.pt")
    with pytest.raises(UserError, match=r"^c\.pt: "):
        run({"m": "c.pt"}, out="other.json")
    assert not Path("other.json").exists()
