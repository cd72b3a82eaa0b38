"""Data sets and their split: digits, CIFAR as torchvision keeps it, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100

from condorctl.errors import UserError
from robust.data import Dataset, Part, batches, load, shuffled
from robust.options import Data

DIGITS = Data(source="digits", split_seed=0, validation=180, train_images=0, test_images=0)
AUTO = replace(DIGITS, source="auto", validation=20)


def parts(data: Dataset) -> tuple[Part, Part, Part]:
    return data.train, data.validation, data.test


def rows(*many: Part) -> set[bytes]:
    """The images as bytes: digits are all different from each other."""
    return {row.numpy().tobytes() for part in many for row in part.pixels}


def test_the_split_covers_the_digits_once_and_is_stratified() -> None:
    data = load(DIGITS, root=None)
    assert [len(part) for part in parts(data)] == [1257, 180, 360]
    assert len(rows(*parts(data))) == 1797
    for part in parts(data):
        assert part.pixels.dtype == torch.uint8
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert part.labels.dtype == torch.int64
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01
    assert (data.name, data.channels) == ("digits", 1)
    assert data.classes == tuple("0123456789")


def test_the_split_of_seed_0_is_the_one_that_results_were_published_on() -> None:
    source = load_digits()
    rest, test = train_test_split(
        np.arange(1797), test_size=360, stratify=source.target, random_state=0
    )
    train, validation = train_test_split(
        rest, test_size=180, stratify=source.target[rest], random_state=0
    )
    data = load(DIGITS, root="")  # an empty root is none
    for part, index in zip(parts(data), (train, validation, test), strict=True):
        assert np.array_equal(part.pixels[:, 0].numpy(), source.images[index])
        assert np.array_equal(part.labels.numpy(), source.target[index])


def test_images_are_the_pixels_over_the_scale_bit_by_bit() -> None:
    part = load(DIGITS, root=None).validation
    expected = part.pixels.numpy().astype(np.float32) / np.float32(16)
    assert part.images().dtype == torch.float32
    assert np.array_equal(part.images().numpy(), expected)
    assert part.images().max() == 1
    index = torch.tensor([3, 0, 3])
    assert np.array_equal(part.images(index).numpy(), expected[[3, 0, 3]])
    every = Part(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1), torch.zeros(256), 255)
    assert np.array_equal(
        every.images(slice(1, 256)).flatten().numpy(),
        np.arange(1, 256, dtype=np.float32) / np.float32(255),
    )


def test_the_test_part_of_digits_depends_on_nothing() -> None:
    reference = load(DIGITS, root=None)
    other = load(replace(DIGITS, split_seed=5, validation=300, train_images=100), root=None)
    assert torch.equal(other.test.pixels, reference.test.pixels)
    assert rows(other.validation) != rows(reference.validation)
    assert (len(other.train), len(other.validation)) == (100, 300)


def test_a_subset_is_stratified_and_leaves_the_validation_part_alone() -> None:
    whole = load(DIGITS, root=None)
    subset = load(replace(DIGITS, train_images=500, test_images=100), root=None)
    assert torch.equal(subset.validation.pixels, whole.validation.pixels)
    assert len(rows(subset.train)) == 500
    assert rows(subset.train) < rows(whole.train)
    assert len(rows(subset.test)) == 100
    assert rows(subset.test) < rows(whole.test)
    assert (torch.bincount(subset.train.labels) - 50).abs().max() <= 2
    assert (torch.bincount(subset.test.labels) - 10).abs().max() <= 1
    other = load(replace(DIGITS, train_images=500, split_seed=1), root=None)
    assert rows(other.train) != rows(subset.train)


def test_mean_and_deviation_are_those_of_the_training_part() -> None:
    data = load(replace(DIGITS, train_images=200), root=None)
    pixels = data.train.pixels.numpy().astype(np.float64) / 16
    assert data.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert data.std == pytest.approx((pixels.std(),), rel=1e-12)


def test_the_fingerprint_is_the_hash_of_what_it_says() -> None:
    data = load(DIGITS, root=None)
    digest = hashlib.sha256()
    for part, shape in zip(parts(data), (1257, 180, 360), strict=True):
        names = ", ".join(f'"{n}"' for n in range(10))
        digest.update(f"[16, [{names}], [{shape}, 1, 8, 8]]".encode())
        digest.update(bytes(part.pixels.flatten().tolist()))
        for label in part.labels.tolist():
            digest.update(label.to_bytes(8, "little"))
    assert data.fingerprint == digest.hexdigest()


@pytest.mark.parametrize(
    "change", [{"split_seed": 1}, {"validation": 181}, {"train_images": 999}, {"test_images": 300}]
)
def test_the_fingerprint_tells_splits_apart(change: dict[str, int]) -> None:
    changed = load(replace(DIGITS, **change), root=None)
    assert changed.fingerprint != load(DIGITS, root=None).fingerprint
    assert changed.fingerprint == load(replace(DIGITS, **change), root=None).fingerprint


def test_an_epoch_is_every_image_once_in_random_order() -> None:
    part = load(DIGITS, root=None).validation
    epochs = [list(batches(part, 64, shuffled(part))) for _ in range(2)]
    for epoch in epochs:
        assert [len(labels) for _, labels in epoch] == [64, 64, 52]
        images = torch.cat([images for images, _ in epoch])
        assert not torch.equal(images, part.images())
        assert torch.equal(images.unique(dim=0), part.images().unique(dim=0))
        label_of = {p.tobytes(): n for p, n in zip(part.images().numpy(), part.labels, strict=True)}
        for image, label in zip(images, torch.cat([labels for _, labels in epoch]), strict=True):
            assert label_of[image.numpy().tobytes()] == label
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_the_order_is_of_the_global_generator() -> None:
    part = load(DIGITS, root=None).validation
    torch.manual_seed(7)
    first = torch.cat([labels for _, labels in batches(part, 50, shuffled(part))])
    torch.manual_seed(7)
    assert torch.equal(
        first, torch.cat([labels for _, labels in batches(part, 50, shuffled(part))])
    )
    torch.manual_seed(8)
    assert not torch.equal(
        first, torch.cat([labels for _, labels in batches(part, 50, shuffled(part))])
    )


def test_batches_are_the_part_in_its_order() -> None:
    part = load(DIGITS, root=None).validation
    taken = list(batches(part, 100))
    assert [len(labels) for _, labels in taken] == [100, 80]
    assert torch.equal(torch.cat([images for images, _ in taken]), part.images())
    assert torch.equal(torch.cat([labels for _, labels in taken]), part.labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"validation": 1437}, "data.validation = 1437: of the 1437 images"),
        ({"validation": 9}, "choose 10 to 1427"),
        ({"train_images": 1258}, "data.train_images = 1258: of the 1257 images"),
        ({"train_images": 5}, "choose 10 to 1247, or 0 to take all"),
        ({"test_images": 361}, "data.test_images = 361: of the 360 images"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as refused:
        load(replace(DIGITS, **change), root=None)
    assert said in str(refused.value)


def test_as_many_images_as_there_are_is_all_of_them() -> None:
    every = replace(DIGITS, train_images=1257, test_images=360)
    assert load(every, root=None).fingerprint == load(DIGITS, root=None).fingerprint


def test_a_root_for_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits, which come with scikit-learn"):
        load(DIGITS, root=str(tmp_path))


@pytest.mark.parametrize("source", ["auto", "cifar10", "cifar100", "folder"])
def test_missing_data_are_named_with_the_way_to_get_them(source: str, tmp_path: Path) -> None:
    options = replace(DIGITS, source=source)
    for root in (None, "", str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path / ("x" * 300))):
        with pytest.raises(UserError) as refused:
            load(options, root)
        message = str(refused.value)
        assert "CIFAR10('DIR', download=True)" in message
        assert "train/<class>/" in message
        assert (root or "--data-root is missing") in message


Cifar = Callable[[Path, str, int], "dict[str, np.ndarray]"]


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Cifar:
    """Writes CIFAR's files with `count` random images each; torchvision is told their checksums."""

    def write(root: Path, folder: str, count: int) -> dict[str, np.ndarray]:
        kind, keys = {
            "cifar-10-batches-py": (CIFAR10, ("labels", "label_names")),
            "cifar-100-python": (CIFAR100, ("fine_labels", "fine_label_names")),
        }[folder]
        (root / folder).mkdir()

        def dump(name: str, content: dict[str, object]) -> str:
            data = pickle.dumps(content)
            (root / folder / name).write_bytes(data)
            return hashlib.md5(data).hexdigest()

        random = np.random.default_rng(0)
        written, sums = {}, {}
        for name, _ in kind.train_list + kind.test_list:
            written[name] = random.integers(256, size=(count, 3072), dtype=np.uint8)
            labels = [n % 5 for n in range(count)]
            sums[name] = dump(name, {"data": written[name], keys[0]: labels})
        meta = dump(kind.meta["filename"], {keys[1]: ["ant", "bee", "cow", "dog", "elk"]})
        for attribute in ("train_list", "test_list"):
            known = [[name, sums[name]] for name, _ in getattr(kind, attribute)]
            monkeypatch.setattr(kind, attribute, known)
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
        return written

    return write


def test_cifar10_is_read_as_its_files_have_it(tmp_path: Path, cifar: Cifar) -> None:
    written = cifar(tmp_path, "cifar-10-batches-py", 20)
    data = load(AUTO, str(tmp_path))
    assert data.name == "CIFAR-10"
    assert data.classes == ("ant", "bee", "cow", "dog", "elk")
    assert [len(part) for part in parts(data)] == [80, 20, 20]
    # A row of the files is the red plane, then green, then blue, each row by row.
    expected = written["test_batch"].reshape(20, 3, 32, 32)
    assert np.array_equal(data.test.pixels.numpy(), expected)
    assert data.test.labels.tolist() == [n % 5 for n in range(20)]
    assert data.test.scale == 255
    training = [row.tobytes() for name, batch in written.items() if "data" in name for row in batch]
    assert rows(data.train, data.validation) == set(training)


def test_cifar100_is_read_by_its_fine_labels(tmp_path: Path, cifar: Cifar) -> None:
    cifar(tmp_path, "cifar-100-python", 60)
    data = load(replace(AUTO, source="cifar100"), str(tmp_path))
    assert (data.name, data.channels, data.classes[1]) == ("CIFAR-100", 3, "bee")
    assert data.fingerprint == load(AUTO, str(tmp_path)).fingerprint


def test_a_root_with_two_data_sets_needs_a_choice(tmp_path: Path, cifar: Cifar) -> None:
    cifar(tmp_path, "cifar-10-batches-py", 20)
    cifar(tmp_path, "cifar-100-python", 60)
    with pytest.raises(UserError, match=r"holds cifar10 and cifar100; --set data.source="):
        load(AUTO, str(tmp_path))
    assert load(replace(AUTO, source="cifar10"), str(tmp_path)).name == "CIFAR-10"


def test_a_damaged_cifar_file_is_refused(tmp_path: Path, cifar: Cifar) -> None:
    cifar(tmp_path, "cifar-10-batches-py", 20)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"cifar-10-batches-py: incomplete or damaged"):
        load(AUTO, str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="download CIFAR-10 again"):
        load(AUTO, str(tmp_path))


def test_a_class_with_one_image_cannot_be_stratified(
    tmp_path: Path, cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(tmp_path, "cifar-10-batches-py", 20)
    folder = tmp_path / "cifar-10-batches-py"
    sums = []
    for name, _ in CIFAR10.train_list:
        batch = pickle.loads((folder / name).read_bytes())
        batch["labels"] = (
            [0] * 20 if name != "data_batch_5" else [0, 1, 1, 2, 2, 3, 3, 4] + [0] * 12
        )
        (folder / name).write_bytes(pickle.dumps(batch))
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", sums)
    with pytest.raises(UserError, match="class elk of CIFAR-10 has only 1 image"):
        load(AUTO, str(tmp_path))
