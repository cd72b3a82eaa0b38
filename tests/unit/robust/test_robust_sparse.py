"""The sparse file: its codes, that it gives back what it was given, that a bad one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from robust_random import CARD, SHAPE, header_of, images, in_halves, network
from safetensors.torch import load_file
from safetensors.torch import save_file as save_foreign

import robust
from condorctl.errors import UserError
from robust import sparse

FILE = "model.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        robust.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / FILE
    sparse.save(network(keep=0.1), CARD, path, torch.float16)
    return path


# The codes of the kept weights' places.


def gaps_by_hand(kept: np.ndarray) -> list[int]:
    """One weight at a time."""
    coded, zeros = [], 0
    for keeps in [*kept.tolist(), True]:
        if not keeps:
            zeros += 1
            continue
        while zeros >= 255:
            coded.append(255)
            zeros -= 255
        coded.append(zeros)
        zeros = 0
    return coded


@given(arrays.arrays(bool, st.integers(1, 700), elements=st.booleans(), fill=st.just(False)))
@settings(max_examples=60, deadline=None)
def test_places_are_coded_as_the_format_says(kept: np.ndarray) -> None:
    flags = torch.from_numpy(kept)
    assert sparse.pack_mask(flags).tolist() == np.packbits(kept, bitorder="little").tolist()
    assert sparse.pack_gaps(flags).tolist() == gaps_by_hand(kept)
    for unpacked in (
        sparse.unpack_mask(sparse.pack_mask(flags), len(kept)),
        sparse.unpack_gaps(sparse.pack_gaps(flags), len(kept)),
    ):
        assert unpacked is not None
        assert unpacked.tolist() == kept.tolist()


@pytest.mark.parametrize("zeros", [0, 1, 254, 255, 256, 510, 511])
def test_a_long_gap_goes_on_in_the_next_byte(zeros: int) -> None:
    flags = torch.tensor([False] * zeros + [True])
    assert sparse.pack_gaps(flags).tolist() == [255] * (zeros // 255) + [zeros % 255, 0]


def bad_bytes(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_places_that_do_not_fit_their_weight_are_noticed() -> None:
    assert sparse.unpack_mask(bad_bytes(0b0000_0101), 3) is not None
    assert sparse.unpack_mask(bad_bytes(0b0000_1101), 3) is None, "a bit beyond the last weight"
    assert sparse.unpack_mask(bad_bytes(1, 0), 3) is None
    assert sparse.unpack_mask(torch.tensor([5]), 3) is None
    assert sparse.unpack_gaps(bad_bytes(0, 1, 0), 3) is not None
    assert sparse.unpack_gaps(bad_bytes(0, 1, 0), 4) is None
    assert sparse.unpack_gaps(bad_bytes(0, 1, 0, 255), 3) is None, "an end that never comes"
    assert sparse.unpack_gaps(bad_bytes(), 0) is None
    assert sparse.unpack_gaps(torch.tensor([0, 1, 0]), 3) is None


# The file.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1, 0.01])
def test_what_half_precision_represents_comes_back_exactly(
    keep: float, channels: int, tmp_path: Path
) -> None:
    model = in_halves(network(keep=keep, channels=channels))
    card = CARD.model_copy(update={"shape": (channels, *SHAPE[1:])})
    sparse.save(model, card, tmp_path / FILE, torch.float16)
    loaded = robust.load(tmp_path / FILE)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    some = images(channels=channels)
    with torch.no_grad():
        assert torch.equal(loaded(some), model(some))


def test_single_precision_is_exact_for_any_weights(tmp_path: Path) -> None:
    model = network(keep=0.1)
    sparse.save(model, CARD, tmp_path / FILE, torch.float32)
    loaded = robust.load(tmp_path / FILE).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_rounding_errors_of_an_output_channel_cancel(tmp_path: Path) -> None:
    model = network(widths=(32, 32), keep=0.5)
    card = CARD.model_copy(update={"widths": (32, 32)})
    sparse.save(model, card, tmp_path / FILE, torch.float16)
    weight = model.blocks[1].conv2.weight.detach()
    error = robust.load(tmp_path / FILE).blocks[1].conv2.weight.detach() - weight
    nearest = weight.half().float() - weight
    # Half a unit in the last place of the largest weights, those between 1 and 2.
    assert float(error.sum(dim=(1, 2, 3)).abs().max()) <= 2**-11
    assert float(error.abs().max()) <= 2 * 2**-11
    assert error.sum(dim=(1, 2, 3)).norm() < nearest.sum(dim=(1, 2, 3)).norm() / 5
    assert not error[weight == 0].any()


# Bytes a weight: the values' 2 and the form that is smaller. 0.9^255 of the gaps at 10 %, nearly
# none, and 0.99^255 = 7.7 % of those at 1 % take a second byte.
@pytest.mark.parametrize(
    ("keep", "form", "bytes_a_weight"),
    [(0.5, "mask", 1 + 1 / 8), (0.1, "gaps", 0.2 + 0.1), (0.01, "gaps", 0.02 + 0.01083)],
)
def test_the_file_is_as_small_as_the_kept_weights(
    keep: float, form: str, bytes_a_weight: float, tmp_path: Path
) -> None:
    card = CARD.model_copy(update={"widths": (64, 64)})
    model = network(widths=(64, 64), keep=keep)
    sparse.save(model, card, tmp_path / FILE, torch.float16)
    name = "blocks.1.conv2.weight"
    stored = load_file(tmp_path / FILE)
    assert {n for n in stored if n.startswith(name)} == {name, f"{name}.{form}"}
    used = stored[name].nbytes + stored[f"{name}.{form}"].nbytes
    assert used / model.blocks[1].conv2.weight.numel() == pytest.approx(bytes_a_weight, rel=0.05)


@pytest.mark.parametrize(("keep", "share"), [(0.1, 0.09), (0.01, 0.03)])
def test_the_file_is_far_smaller_than_the_dense_one(
    keep: float, share: float, tmp_path: Path
) -> None:
    card = CARD.model_copy(update={"widths": (128, 128)})
    model = network(widths=(128, 128), keep=keep)
    sparse.save(model, card, tmp_path / FILE, torch.float16)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    sizes = [(tmp_path / name).stat().st_size for name in (FILE, "dense.pt")]
    assert sizes[0] < share * sizes[1]


def test_the_same_network_gives_the_same_bytes_in_another_process(good: Path) -> None:
    script = (
        "import sys, torch, robust.sparse as sparse\n"
        "card = sparse.Card.model_validate_json(sys.argv[1])\n"
        "sparse.save(sparse.load(sys.argv[2]), card, sys.argv[2] + '2', torch.float16)"
    )
    words = [sys.executable, "-c", script, CARD.model_dump_json(), str(good)]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert Path(f"{good}2").read_bytes() == good.read_bytes()


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.linear.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"^linear.weight is too large .*--dtype float32$"):
        sparse.save(model, CARD, tmp_path / FILE, torch.float16)
    sparse.save(model, CARD, tmp_path / FILE, torch.float32)
    assert robust.load(tmp_path / FILE).linear.weight[0, 0] == 1e5


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.bn1.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"^bn1.bias holds values that are not finite"):
        sparse.save(model, CARD, tmp_path / FILE, torch.float32)


def test_importing_robust_loads_no_torch() -> None:
    code = "import sys, robust; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Files that are not what they seem.


def altered(path: Path, tensors: dict[str, torch.Tensor | None], **card: Any) -> Path:
    """`path` with tensors replaced (None takes one out) and card fields, its hash right again."""
    header = header_of(path)
    del header["content"]
    header |= card
    stored = {n: t for n, t in (load_file(path) | tensors).items() if t is not None}
    digest = hashlib.sha256(json.dumps(header, separators=(",", ":")).encode())
    for name in sorted(stored):
        array = stored[name].numpy()
        digest.update(f"\n{name} {stored[name].dtype} {array.shape}\n".encode() + array.tobytes())
    save_foreign(stored, path, {sparse.KEY: json.dumps(header | {"content": digest.hexdigest()})})
    return path


def test_an_unaltered_file_loads(good: Path) -> None:
    robust.load(altered(good, {}))


def test_a_missing_file_a_folder_and_other_files_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")
    assert "not a safetensors file" in refusal(tmp_path)
    for content in (b"", b"nonsense", b"\xff" * 64, struct.pack("<Q", 2**62) + b"{}"):
        (tmp_path / "other").write_bytes(content)
        assert "not a safetensors file" in refusal(tmp_path / "other")
    save_foreign({"weight": torch.zeros(2)}, tmp_path / "other")
    assert "not of `python -m robust export`" in refusal(tmp_path / "other")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(good: Path, share: float) -> None:
    good.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])
    assert "not a safetensors file" in refusal(good)


def test_a_changed_bit_is_noticed_wherever_it_is(good: Path) -> None:
    whole = good.read_bytes()
    generator = np.random.default_rng(0)
    for place in (*generator.integers(len(whole), size=60), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        good.write_bytes(damaged)
        refusal(good)


# Where the file keeps its 576 weights by their gaps.
PRUNED = "blocks.1.conv2.weight"


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"linear.bias": None}, "holds no linear.bias"),
        ({"linear.bias": torch.zeros(11)}, "linear.bias is (11,), the network's (10,)"),
        ({"linear.bias": torch.zeros(10).half()}, "linear.bias is of type torch.float16"),
        ({"linear.bias": torch.zeros(10).double()}, "linear.bias is of type torch.float64"),
        ({"extra": torch.zeros(1)}, "holds extra, which its architecture has not"),
        ({f"{PRUNED}.gaps": bad_bytes(255, 255, 65, 0)}, f"the places of {PRUNED} do not fit"),
        ({f"{PRUNED}.gaps": bad_bytes(255, 255)}, f"the places of {PRUNED} do not fit"),
        ({f"{PRUNED}.gaps": None, f"{PRUNED}.mask": bad_bytes(*[255] * 72)}, "do not fit"),
        ({f"{PRUNED}.gaps": None}, f"{PRUNED} is ("),
        ({PRUNED: torch.zeros(2)}, f"the places of {PRUNED} do not fit its 2 values"),
        ({PRUNED: torch.zeros(2, 2)}, f"the places of {PRUNED} do not fit its 4 values"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    tensors: dict[str, torch.Tensor | None], complaint: str, good: Path
) -> None:
    assert complaint in refusal(altered(good, tensors))


def test_places_in_two_forms_are_refused(good: Path) -> None:
    kept = sparse.unpack_gaps(load_file(good)[f"{PRUNED}.gaps"], 576)
    assert kept is not None
    message = refusal(altered(good, {f"{PRUNED}.mask": sparse.pack_mask(kept)}))
    assert f"holds {PRUNED}.gaps, which its architecture has not" in message


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ({"format": 2}, "header format: Input should be 1"),
        ({"widths": []}, "header widths"),
        ({"widths": [4, 0]}, "header widths 1"),
        ({"widths": [4, 2**40]}, "header widths 1"),
        ({"widths": [4, 8.5]}, "header widths 1"),
        ({"widths": [4, 2**16]}, "claims more than 268,435,456 weights"),
        ({"widths": [4, 9]}, "the places of blocks.1.conv1.weight do not fit"),
        ({"blocks": [1, 2]}, "holds no blocks.2."),
        ({"blocks": [1, 2**16]}, "fewer tensors than its architecture"),
        ({"blocks": [1]}, "fewer tensors than its architecture"),
        ({"shape": [3, 8]}, "header shape"),
        ({"shape": [3, 8, 8]}, "mean is (1, 1, 1, 1), the network's (1, 3, 1, 1)"),
        ({"classes": list("abcd")}, "the places of linear.weight do not fit"),
        ({"surprise": 1}, "header surprise"),
    ],
)
def test_an_architecture_that_the_tensors_do_not_have_is_refused(
    card: dict[str, Any], complaint: str, good: Path
) -> None:
    assert complaint in refusal(altered(good, {}, **card))


def test_a_header_that_is_no_card_is_refused(good: Path) -> None:
    for text in ("", "[]", "{", "[" * 100_000, '{"widths": 3}', "null"):
        save_foreign(load_file(good), good, {sparse.KEY: text})
        assert "header" in refusal(good)
