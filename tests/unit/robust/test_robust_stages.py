"""The stages one after the other: what each changes, what it leaves, what it records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from robust_tiny import run_tiny

from robust import checkpoint
from robust.checkpoint import Checkpoint, content_hash
from robust.config import load_preset
from robust.masks import ScoredPruning, magnitude_masks
from robust.models import ResNet

SMOKE = load_preset("smoke")
ANY = ("pretrain", *checkpoint.CLASSIFIERS)


def stored(run: Path, stage: str) -> Checkpoint:
    return checkpoint.load(str(run / stage / "checkpoint.pt"), ANY)


def content(run: Path) -> str:
    """A hash of weights and masks; that of the checkpoint differs with its configuration, too."""
    payload = torch.load(run / "checkpoint.pt", weights_only=True)
    rest = {name: None for name in payload if name not in ("weights", "masks")}
    return content_hash({**payload, **rest})


def records(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_pretraining_stores_the_encoder_and_the_projector(run: Path) -> None:
    weights = stored(run, "pretrain").weights
    assert "conv1.weight" in weights
    assert weights["projector.2.weight"].shape == (8, 16)
    assert not any(name.startswith("linear") for name in weights)


def test_training_starts_from_the_pretrained_encoder(run: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the weights are those that training started from."""
    init = str(run / "pretrain" / "checkpoint.pt")
    assert run_tiny(tmp_path, "train", "--init", init, "--set", "train.lr=0") == 0
    started = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["train"]).weights
    pretrained = stored(run, "pretrain").weights
    for name in ("conv1.weight", "blocks.1.shortcut.0.weight", "bn1.bias"):
        assert torch.equal(started[name], pretrained[name])


def started_from(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """The weights that a training began with: one epoch at a learning rate of 0 moves none."""
    still = ["train.lr=0", "train.epochs=1"]
    flags = [word for setting in still for word in ("--set", setting)]
    assert run_tiny(folder, "train", *arguments, *flags) == 0
    return checkpoint.load(str(folder / "checkpoint.pt"), ["train"]).weights


def test_complete_brings_the_classifier_along_and_unused_brings_nothing(
    run: Path, tmp_path: Path
) -> None:
    linear = str(run / "linear" / "checkpoint.pt")
    probed = stored(run, "linear").weights
    complete = started_from(tmp_path / "c", "--init", linear, "--transfer", "complete")
    extractor = started_from(tmp_path / "e", "--init", linear)
    unused = started_from(tmp_path / "u", "--transfer", "unused")
    for name in ("conv1.weight", "blocks.1.conv2.weight"):
        assert torch.equal(complete[name], probed[name])
        assert torch.equal(extractor[name], probed[name])
        assert not torch.equal(unused[name], probed[name])
    assert torch.equal(complete["linear.weight"], probed["linear.weight"])
    assert torch.equal(extractor["linear.weight"], unused["linear.weight"])


def test_linear_evaluation_leaves_the_encoder_alone_and_trains_the_classifier(run: Path) -> None:
    pretrained, probed = stored(run, "pretrain").weights, stored(run, "linear").weights
    shared = [name for name in pretrained if not name.startswith("projector.")]
    assert all(torch.equal(pretrained[name], probed[name]) for name in shared)
    assert probed["linear.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    "flags",
    [["--robust"], ["--finetune"], ["--finetune", "--ss"], ["--robust", "--finetune"]],
    ids=" ".join,
)
def test_the_variants_of_linear_evaluation(run: Path, tmp_path: Path, flags: list[str]) -> None:
    init = str(run / "pretrain" / "checkpoint.pt")
    assert run_tiny(tmp_path, "linear", "--init", init, *flags) == 0
    made = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["linear"])
    moved = not torch.equal(
        made.weights["conv1.weight"], stored(run, "pretrain").weights["conv1.weight"]
    )
    assert moved == ("--finetune" in flags)
    assert made.config.linear.robust == ("--robust" in flags)
    assert not torch.equal(
        made.weights["linear.weight"], stored(run, "linear").weights["linear.weight"]
    )


def test_features_are_computed_once_when_they_do_not_change(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = ResNet.features

    def counted(self: ResNet, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(ResNet, "features", counted)
    init = str(run / "pretrain" / "checkpoint.pt")
    measured = ["--set", "adversary.validation_steps=0"]
    assert run_tiny(tmp_path, "linear", "--init", init, *measured, "--set", "linear.epochs=5") == 0
    # 5 epochs, yet each training image once; 50 validation images, clean and under no steps
    assert 320 <= sum(seen) <= 320 + 5 * 4 * 50


def test_scores_leave_the_kept_weights_and_the_bias_as_they_were(run: Path) -> None:
    dense, scored = stored(run, "train"), stored(run, "score")
    assert scored.keep == 0.1
    for name, mask in scored.masks.items():
        assert torch.equal(scored.weights[name], dense.weights[name] * mask)
    assert torch.equal(scored.weights["linear.bias"], dense.weights["linear.bias"])
    assert not torch.equal(scored.weights["bn1.weight"], dense.weights["bn1.weight"])
    assert not torch.equal(scored.weights["bn1.running_mean"], dense.weights["bn1.running_mean"])


def test_scores_move_the_mask_away_from_magnitudes(run: Path) -> None:
    dense = ResNet(1, [4, 8], [1, 1], 10)
    dense.load_state_dict(stored(run, "train").weights)
    magnitudes, masks = magnitude_masks(dense, 0.1, SMOKE.prune), stored(run, "score").masks
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


def test_fine_tuned_weights_are_what_half_precision_holds(run: Path) -> None:
    tuned = stored(run, "finetune")
    for name in tuned.masks:
        halved = tuned.weights[name].numpy().astype("float16").astype("float32")
        assert (tuned.weights[name].numpy() == halved).all()


def test_fine_tuning_at_keep_1_is_dense(run: Path, tmp_path: Path) -> None:
    init = str(run / "train" / "checkpoint.pt")
    assert run_tiny(tmp_path, "finetune", "--init", init, "--keep", "1") == 0
    made = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["finetune"])
    assert made.keep == 1
    assert all(mask.all() for mask in made.masks.values())


def test_finetuning_a_dense_checkpoint_prunes_by_magnitude(run: Path) -> None:
    dense = ResNet(1, [4, 8], [1, 1], 10)
    dense.load_state_dict(stored(run, "train").weights)
    expected, tuned = magnitude_masks(dense, 0.1, SMOKE.prune), stored(run, "magnitude")
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
        ("linear", {"loss", "val_clean", "val_pgd"}),
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


@pytest.mark.parametrize("trainer", ["pgd", "plain"])
def test_every_stage_knows_the_other_trainers(run: Path, tmp_path: Path, trainer: str) -> None:
    hashes = {content(run / "train")}
    assert run_tiny(tmp_path / "train", "train", "--trainer", trainer) == 0
    init = str(tmp_path / "train" / "checkpoint.pt")
    assert run_tiny(tmp_path / "score", "score", "--init", init, "--keep", "0.05") == 0
    adversarial = content(tmp_path / "score")
    assert (
        run_tiny(
            tmp_path / "score", "score", "--init", init, "--keep", "0.05", "--trainer", trainer
        )
        == 0
    )
    assert content(tmp_path / "score") != adversarial
    hashes.add(content(tmp_path / "train"))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "setting",
    [
        *("train.awp=0.01", "train.ema=0.9", "train.awp_start=0.5"),
        *("compute.attack=bf16", "compute.training=bf16"),
    ],
)
def test_options_of_training_change_the_weights(tmp_path: Path, setting: str) -> None:
    """A later start of AWP is a change against AWP from the start, not against none."""
    first = ["--set", "train.awp=0.01"] if "start" in setting else []
    assert run_tiny(tmp_path / "a", "train", *first) == 0
    assert run_tiny(tmp_path / "b", "train", *first, "--set", setting) == 0
    assert content(tmp_path / "a") != content(tmp_path / "b")


def test_averaged_pruned_weights_keep_their_zeros(run: Path, tmp_path: Path) -> None:
    init = str(run / "score" / "checkpoint.pt")
    flags = ["--set", "finetune.ema=0.9", "--set", "finetune.awp=0.01"]
    assert run_tiny(tmp_path, "finetune", "--init", init, *flags) == 0
    made = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["finetune"])
    assert all(not made.weights[name][~mask].any() for name, mask in made.masks.items())


@pytest.mark.parametrize("budget", ["erk", "lamp", "learned"])
def test_every_budget_runs_through_scores_and_fine_tuning(
    run: Path, tmp_path: Path, budget: str
) -> None:
    init = str(run / "train" / "checkpoint.pt")
    choice = ["--keep", "0.2", "--set", f"prune.budget={budget}"]
    assert run_tiny(tmp_path / "score", "score", "--init", init, *choice) == 0
    init = str(tmp_path / "score" / "checkpoint.pt")
    assert run_tiny(tmp_path / "finetune", "finetune", "--init", init) == 0
    made = checkpoint.load(str(tmp_path / "finetune" / "checkpoint.pt"), ["finetune"])
    kept = sum(int(mask.sum()) for mask in made.masks.values())
    assert kept == math.ceil(sum(mask.numel() for mask in made.masks.values()) / 5)


def test_the_best_epoch_on_validation_is_kept(run: Path, tmp_path: Path) -> None:
    flags = ["--set", "train.select=best", "--set", "train.epochs=4", "--set", "train.lr=0.05"]
    assert run_tiny(tmp_path, "train", *flags) == 0
    accuracies = [record["metrics"]["val_pgd"] for record in records(tmp_path, "progress")]  # type: ignore[index]
    made = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["train"])
    assert made.epoch == 1 + accuracies.index(max(accuracies))
    saved = [record["epoch"] for record in records(tmp_path, "checkpoint")]
    assert saved == [e for e, a in enumerate(accuracies, 1) if a > max([-1, *accuracies[: e - 1]])]


@pytest.mark.parametrize("setting", ["pretrain.adversarial=false", "pretrain.optimizer=lars"])
def test_variants_of_pretraining_change_the_weights(
    run: Path, tmp_path: Path, setting: str
) -> None:
    assert run_tiny(tmp_path, "pretrain", "--set", setting) == 0
    assert content(tmp_path) != content(run / "pretrain")


def test_a_diverged_loss_ends_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tiny(tmp_path, "train", "--set", "train.lr=1e30", "--trainer", "plain") == 2
    assert "the loss is nan in epoch 1; lower train.lr" in capsys.readouterr().err
    assert len(records(tmp_path, "progress")) == 1
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_last_batch_that_bn_cannot_normalise_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """320 images in batches of 319 leave one, which four stages narrow from 8×8 to one pixel."""
    narrow = ["--set", "model.widths=[2,2,2,2]", "--set", "model.blocks=[1,1,1,1]"]
    lone = ["--set", "train.batch_size=319", "--set", "train.epochs=1"]
    assert run_tiny(tmp_path / "narrow", "train", *narrow, *lone) == 2
    assert "train.batch_size = 319: leaves a last batch of one image" in capsys.readouterr().err
    assert not list((tmp_path / "narrow").iterdir())
    assert run_tiny(tmp_path / "wide", "train", *lone) == 0

    # Three views of it are three values, and a frozen encoder normalises by its statistics.
    words = ["--set", "pretrain.batch_size=319", "--set", "pretrain.epochs=1"]
    assert run_tiny(tmp_path / "pretrain", "pretrain", *narrow, *words) == 0
    words = ["--set", "linear.batch_size=319", "--set", "linear.epochs=1", "--init"]
    words.append(str(tmp_path / "pretrain/checkpoint.pt"))
    assert run_tiny(tmp_path / "frozen", "linear", *words) == 0
    assert run_tiny(tmp_path / "freed", "linear", "--finetune", *words) == 2
    assert "linear.batch_size = 319: leaves a last" in capsys.readouterr().err
