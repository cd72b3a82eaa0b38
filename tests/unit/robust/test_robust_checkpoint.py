"""A checkpoint that does not fit is refused with one line; none can be made to lie."""

from __future__ import annotations

import math
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from robust_tiny import run_tiny

from condorctl.errors import UserError
from robust import checkpoint
from robust.checkpoint import content_hash, load

PRUNED = ("score", "finetune")

Change = Callable[[dict[str, Any]], None]


def altered(source: Path, target: Path, change: Change, rehash: bool = True) -> str:
    """A copy of a checkpoint with `change` applied, by default with a hash that is right again."""
    payload = torch.load(source, weights_only=True)
    change(payload)
    if rehash:
        payload["hash"] = content_hash(payload)
    torch.save(payload, target)
    return str(target)


def refusal(path: str, *stages: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, stages or PRUNED)
    message = str(caught.value)
    assert path in message
    assert "\n" not in message
    return message


def test_an_unaltered_checkpoint_loads(run: Path, tmp_path: Path) -> None:
    path = altered(run / "finetune/checkpoint.pt", tmp_path / "same.pt", lambda payload: None)
    assert load(path, ["finetune"]).keep == 0.1


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(str(tmp_path / "none.pt"))
    assert "no such checkpoint" in refusal(str(tmp_path))


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps({"stage": "score"}, protocol=2)])
def test_another_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(data)
    assert "not a checkpoint of ours" in refusal(str(tmp_path / "other.pt"))


def test_a_tensor_file_of_another_make_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "other.pt")
    assert "not a checkpoint of ours" in refusal(str(tmp_path / "other.pt"))


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_file_is_refused(run: Path, tmp_path: Path, share: float) -> None:
    whole = (run / "finetune/checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    assert "not a checkpoint of ours" in refusal(str(tmp_path / "cut.pt"))


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_loading_executes_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"hash": Trap(trace)}, tmp_path / "trap.pt")
    assert "not a checkpoint of ours" in refusal(str(tmp_path / "trap.pt"))
    assert not trace.exists()


def flip_a_weight(payload: dict[str, Any]) -> None:
    payload["weights"]["bn1.weight"][0] += 1


@pytest.mark.parametrize(
    "change",
    [
        flip_a_weight,
        lambda payload: payload.update(keep=1.0),
        lambda payload: payload.update(seed=1),
        lambda payload: payload["config"]["adversary"].update(epsilon=0.3),
        lambda payload: payload["masks"].pop("conv1.weight"),
    ],
    ids=["weight", "keep", "seed", "config", "mask"],
)
def test_any_change_breaks_the_hash(run: Path, tmp_path: Path, change: Change) -> None:
    path = altered(run / "score/checkpoint.pt", tmp_path / "changed.pt", change, rehash=False)
    assert "does not match its hash" in refusal(path)


def test_the_wrong_stage_is_refused(run: Path) -> None:
    path = str(run / "pretrain/checkpoint.pt")
    assert "written by stage pretrain, expected one of train" in refusal(path, "train")


def test_the_studys_mistake_is_refused(run: Path, tmp_path: Path) -> None:
    """Its black-box table evaluates a k = 0.1 checkpoint with k = 1, with stale weights back.

    Here k is no argument of the evaluation, the stale weights are not in the file, and a file
    made to claim k = 1, or given the stale weights, with a hash that fits, is refused.
    """
    scored = run / "score/checkpoint.pt"
    dense = load(str(run / "train/checkpoint.pt"), ["train"]).weights

    assert run_tiny(tmp_path, "evaluate", "--model", f"m={scored}", "--keep", "1") == 2

    claimed = altered(scored, tmp_path / "claimed.pt", lambda payload: payload.update(keep=1.0))
    assert "keep 1" in refusal(claimed)
    assert run_tiny(tmp_path, "evaluate", "--model", f"m={claimed}") == 2

    def bring_back(payload: dict[str, Any]) -> None:
        payload["weights"]["conv1.weight"] = dense["conv1.weight"]

    stale = altered(scored, tmp_path / "stale.pt", bring_back)
    assert "conv1.weight has weights outside its mask" in refusal(stale)

    def open_the_masks(payload: dict[str, Any]) -> None:
        payload["keep"] = 1.0
        payload["masks"] = {name: torch.ones_like(m) for name, m in payload["masks"].items()}

    opened = altered(scored, tmp_path / "opened.pt", open_the_masks)
    weights = load(opened, PRUNED).weights
    assert (weights["conv1.weight"] == 0).any()  # even then nothing stale comes back
    assert not (run / "metrics.jsonl").exists()


def drop_a_mask(payload: dict[str, Any]) -> None:
    del payload["masks"]["conv1.weight"]


def reshape_a_mask(payload: dict[str, Any]) -> None:
    payload["masks"]["linear.weight"] = payload["masks"]["linear.weight"].T


def one_more(payload: dict[str, Any]) -> None:
    mask = payload["masks"]["linear.weight"].view(-1)
    mask[mask.long().argmin()] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda payload: payload.update(masks={}), "masks are missing"),
        (drop_a_mask, "masks are missing"),
        (reshape_a_mask, "the mask of linear.weight does not fit"),
        (one_more, "its mask has"),
        (lambda payload: payload["config"]["prune"].update(floor=0), "its mask has"),
        (lambda payload: payload["config"]["prune"].update(flor=0), "unknown key flor"),
        (lambda payload: payload.update(stage="train"), "a dense checkpoint with keep 0.1"),
    ],
)
def test_contradictions_are_refused(
    run: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = altered(run / "score/checkpoint.pt", tmp_path / "changed.pt", change)
    assert message in refusal(path, *PRUNED, "train")


def spoil(value: float) -> Change:
    def change(payload: dict[str, Any]) -> None:
        payload["weights"]["bn1.bias"][0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(math.nan), "bn1.bias holds values that are not finite; train it again"),
        (spoil(math.inf), "bn1.bias holds values that are not finite; train it again"),
        (lambda payload: payload["data"].pop("name"), "data.name: Field required"),
        (lambda payload: payload["data"].update(shape=[1, 8]), "data.shape.2: Field required"),
        (lambda payload: payload["data"].update(classes=[]), "data.classes: Tuple should have at"),
        (lambda payload: payload["data"].update(classes=7), "data.classes: Input should be"),
        (lambda payload: payload.update(seed="abc"), "seed: Input should be a valid integer"),
        (lambda payload: payload.update(seed=-1), "seed: Input should be greater"),
        (lambda payload: payload.update(epoch=None), "epoch: Input should be a valid integer"),
        (lambda payload: payload.update(keep=2.0), "keep: Input should be less than or equal"),
    ],
)
def test_values_that_no_stage_writes_are_refused(
    run: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = altered(run / "train/checkpoint.pt", tmp_path / "changed.pt", change)
    assert message in refusal(path, "train")


def test_a_projector_that_does_not_fit_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def halve(payload: dict[str, Any]) -> None:
        payload["weights"]["projector.0.bias"] = payload["weights"]["projector.0.bias"][::2]

    path = altered(run / "pretrain/checkpoint.pt", tmp_path / "changed.pt", halve)
    assert run_tiny(tmp_path / "linear", "linear", "--init", path) == 2
    assert f"error: {path}: projector does not fit" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_saved(run: Path, tmp_path: Path) -> None:
    made = load(str(run / "train/checkpoint.pt"), ["train"])
    made.weights["linear.bias"][3] = math.nan
    with pytest.raises(UserError, match=r"^train: linear\.bias .* after epoch 2; lower train\.lr$"):
        checkpoint.save(made, str(tmp_path / "checkpoint.pt"))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_says_so_and_leaves_the_former_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made, path = load(str(run / "train/checkpoint.pt"), ["train"]), tmp_path / "checkpoint.pt"
    path.write_bytes(b"former")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(made, str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_another_architecture_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def widen(payload: dict[str, Any]) -> None:
        payload["config"]["model"]["widths"] = [4, 16]

    path = altered(run / "train/checkpoint.pt", tmp_path / "wide.pt", widen)
    assert run_tiny(tmp_path, "score", "--init", path, "--keep", "0.1") == 2
    assert f"error: {path}: weights do not fit a network" in capsys.readouterr().err

    init = str(run / "pretrain/checkpoint.pt")
    assert run_tiny(tmp_path, "train", "--init", init, "--set", "model.widths=[8,8]") == 2
    assert "use the same model options" in capsys.readouterr().err


def test_another_data_set_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = str(run / "pretrain/checkpoint.pt")
    assert run_tiny(tmp_path, "train", "--init", init, "--set", "data.split_seed=1") == 2
    assert "made on another data set or split" in capsys.readouterr().err

    def other_data(payload: dict[str, Any]) -> None:
        payload["data"]["fingerprint"] = "0" * 64

    train = run / "train/checkpoint.pt"
    path = altered(train, tmp_path / "other.pt", other_data)
    models = ["--model", f"a={train}", "--model", f"b={path}"]
    assert run_tiny(tmp_path / "evaluate", "evaluate", *models) == 2
    assert "other.pt: made on another data set" in capsys.readouterr().err
    assert not (tmp_path / "evaluate/metrics.jsonl").exists()  # refused before the first attack


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("score", ["--keep", "1"], "keeps 0.1"),
        ("score", ["--keep", "0.01"], "keeps 0.1"),
        ("score", ["--set", "prune.floor=0"], "was made with budget uniform and floor 3"),
        ("train", [], "say --keep"),
        ("finetune", ["--keep", "1"], "keeps 0.1"),
        ("pretrain", ["--keep", "0.1"], "written by stage pretrain"),
    ],
)
def test_finetune_refuses_what_contradicts_its_checkpoint(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    arguments: list[str],
    message: str,
) -> None:
    init = str(run / source / "checkpoint.pt")
    assert run_tiny(tmp_path, "finetune", "--init", init, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_keep_ratio_of_the_checkpoint_may_be_repeated(run: Path, tmp_path: Path) -> None:
    init = str(run / "score/checkpoint.pt")
    assert run_tiny(tmp_path, "finetune", "--init", init, "--keep", "0.1") == 0
    made = checkpoint.load(str(tmp_path / "checkpoint.pt"), ["finetune"])
    assert made.keep == 0.1
