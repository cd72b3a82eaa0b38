"""The stages one after the other: what each changes, what it leaves, what it records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from robust_tiny import run_tiny

from condorctl.errors import UserError
from robust import checkpoint
from robust.checkpoint import Checkpoint
from robust.config import load_preset
from robust.masks import ScoredPruning, magnitude_masks
from robust.models import ResNet, encoder_weights, transfer_extractor
from robust.training import report, sgd

ANY = ("pretrain", "train", "score", "finetune")


def stored(run: Path, stage: str) -> Checkpoint:
    return checkpoint.load(str(run / stage / "checkpoint.pt"), ANY)


def content(run: Path) -> str:
    payload = torch.load(run / "checkpoint.pt", weights_only=True)
    return str(payload["hash"])


def records(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_extractor_copies_the_encoder_with_its_statistics_and_leaves_the_head() -> None:
    source, target = (ResNet(channels=1, widths=[4, 8], classes=10) for _ in range(2))
    source(torch.rand(8, 1, 8, 8))  # moves the BN statistics
    head = target.linear.weight.detach().clone()
    transfer_extractor(target, source.state_dict())
    encoder = encoder_weights(source)
    assert "bn1.running_mean" in encoder
    state = target.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.items())
    assert state.keys() - encoder.keys() == {"linear.weight", "linear.bias"}
    assert torch.equal(target.linear.weight, head)


def test_extractor_refuses_what_does_not_match() -> None:
    model = ResNet(channels=1, widths=[4, 8], classes=10)
    with pytest.raises(UserError, match=r"lacks the encoder's conv1\.weight"):
        transfer_extractor(model, {"other": torch.zeros(1)})
    wider = ResNet(channels=1, widths=[4, 16], classes=10)
    with pytest.raises(UserError, match="same model options"):
        transfer_extractor(model, wider.state_dict())


def test_pretraining_stores_the_encoder_alone(run: Path) -> None:
    weights = stored(run, "pretrain").weights
    assert "conv1.weight" in weights
    assert not any(name.startswith(("linear", "projector")) for name in weights)


def test_training_starts_from_the_pretrained_encoder(run: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the weights are those that training started from."""
    init = str(run / "pretrain" / "checkpoint.pt")
    assert run_tiny(tmp_path, "train", "--init", init, "--set", "train.lr=0") == 0
    started = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["train"]).weights
    pretrained = stored(run, "pretrain").weights
    for name in ("conv1.weight", "blocks.1.shortcut.0.weight", "bn1.bias"):
        assert torch.equal(started[name], pretrained[name])


def test_scores_leave_the_kept_weights_and_the_bias_as_they_were(run: Path) -> None:
    dense, scored = stored(run, "train"), stored(run, "score")
    assert scored.keep == 0.1
    for name, mask in scored.masks.items():
        assert torch.equal(scored.weights[name], dense.weights[name] * mask)
    assert torch.equal(scored.weights["linear.bias"], dense.weights["linear.bias"])
    assert not torch.equal(scored.weights["bn1.weight"], dense.weights["bn1.weight"])
    assert not torch.equal(scored.weights["bn1.running_mean"], dense.weights["bn1.running_mean"])


def test_scores_move_the_mask_away_from_magnitudes(run: Path) -> None:
    dense = ResNet(channels=1, widths=[4, 8], classes=10)
    dense.load_state_dict(stored(run, "train").weights)
    magnitudes, masks = magnitude_masks(dense, 0.1, floor=3), stored(run, "score").masks
    assert any(not torch.equal(magnitudes[name], masks[name]) for name in masks)


def test_masks_are_made_once_an_optimiser_step(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    install = ScoredPruning.install

    def counted(self: ScoredPruning) -> None:
        calls.append(1)
        install(self)

    monkeypatch.setattr(ScoredPruning, "install", counted)
    init = str(run / "train" / "checkpoint.pt")
    assert run_tiny(tmp_path, "score", "--init", init, "--keep", "0.1") == 0
    assert len(calls) == 1 + 2 * 3  # the start, then two epochs of three steps


def test_finetuning_keeps_the_mask_and_the_zeros_and_moves_the_rest(run: Path) -> None:
    scored, tuned = stored(run, "score"), stored(run, "finetune")
    assert tuned.keep == scored.keep
    for name, mask in scored.masks.items():
        assert torch.equal(tuned.masks[name], mask)
        assert not tuned.weights[name][~mask].any()
        assert (tuned.weights[name][mask] != scored.weights[name][mask]).any()


def test_finetuning_a_dense_checkpoint_prunes_by_magnitude(run: Path) -> None:
    dense = ResNet(channels=1, widths=[4, 8], classes=10)
    dense.load_state_dict(stored(run, "train").weights)
    expected, tuned = magnitude_masks(dense, 0.1, floor=3), stored(run, "magnitude")
    assert tuned.keep == 0.1
    assert all(torch.equal(expected[name], mask) for name, mask in tuned.masks.items())


def test_plain_training_differs_and_says_so(run: Path, tmp_path: Path) -> None:
    init = str(run / "pretrain" / "checkpoint.pt")
    assert run_tiny(tmp_path, "train", "--init", init, "--trainer", "plain") == 0
    plain = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["train"])
    assert plain.config.train.trainer == "plain"
    assert stored(run, "train").config.train.trainer == "trades"
    assert content(tmp_path) != content(run / "train")


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_a_seed_decides_every_bit(stage: str, tmp_path: Path) -> None:
    hashes = []
    for folder, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert run_tiny(tmp_path / folder, stage, "--seed", seed) == 0
        hashes.append(content(tmp_path / folder))
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_score_and_finetune_repeat_bit_by_bit(run: Path, tmp_path: Path) -> None:
    init = str(run / "train" / "checkpoint.pt")
    assert run_tiny(tmp_path / "score", "score", "--init", init, "--keep", "0.1") == 0
    assert content(tmp_path / "score") == content(run / "score")
    init = str(tmp_path / "score" / "checkpoint.pt")
    assert run_tiny(tmp_path / "finetune", "finetune", "--init", init) == 0
    assert content(tmp_path / "finetune") == content(run / "finetune")


@pytest.mark.parametrize(
    ("stage", "metrics"),
    [
        ("pretrain", {"loss", "val_knn"}),
        ("train", {"loss", "val_clean", "val_pgd"}),
        ("score", {"loss", "val_clean", "val_pgd"}),
        ("finetune", {"loss", "val_clean", "val_pgd"}),
    ],
)
def test_every_epoch_leaves_progress_and_a_checkpoint(
    run: Path, stage: str, metrics: set[str]
) -> None:
    progress = records(run / stage, "progress")
    assert [record["epoch"] for record in progress] == [1, 2]
    assert all(record["metrics"].keys() == metrics for record in progress)  # type: ignore[attr-defined]
    assert [record["epoch"] for record in records(run / stage, "checkpoint")] == [1, 2]


def test_evaluation_records_one_row_a_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = (f"{run}/{stage}/checkpoint.pt" for stage in ("train", "finetune"))
    assert run_tiny(tmp_path, "evaluate", "--model", f"d={dense}", "--model", f"p={pruned}") == 0
    first, second = (record["values"] for record in records(tmp_path, "result"))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    columns = ["clean", "PGD-2 ε 0.1", "PGD-3×2 ε 0.2"]
    assert list(first) == list(second) == ["model", "keep", "kept", *columns]
    assert [first["model"], first["keep"], first["kept"]] == ["d", 1.0, 1.0]
    assert [second["model"], second["keep"]] == ["p", 0.1]
    assert 0.1 < second["kept"] < 0.25  # the floor asks for more than a tenth of a tiny network
    for row in (first, second):
        assert 1 >= row[columns[0]] >= row[columns[1]] >= row[columns[2]] >= 0
    assert [record["epoch"] for record in records(tmp_path, "progress")] == [1, 2, 3, 4, 5, 6]
    assert "6/6  p  PGD-3×2 ε 0.2" in capsys.readouterr().out


def test_a_row_does_not_depend_on_its_neighbours(run: Path, tmp_path: Path) -> None:
    dense, pruned = (f"{run}/{stage}/checkpoint.pt" for stage in ("train", "finetune"))
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert run_tiny(both, "evaluate", "--model", f"d={dense}", "--model", f"p={pruned}") == 0
    assert run_tiny(alone, "evaluate", "--model", f"p={pruned}") == 0
    assert records(both, "result")[1]["values"] == records(alone, "result")[0]["values"]


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    options = replace(load_preset("smoke").pretrain, epochs=20, batch_size=128, lr=0.1)
    # 20 epochs of ⌈1257/128⌉ steps, a tenth of them warm-up
    optimizer, scheduler = sgd([torch.zeros(1, requires_grad=True)], options, 1257, 0.1)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:20] == pytest.approx([0.1 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(0.1)
    assert rates[110] == pytest.approx(0.05)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_a_diverged_loss_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 3; lower train\.lr"):
        report("train", 3, 10, float("nan"))
    assert len(records(tmp_path, "progress")) == 1
