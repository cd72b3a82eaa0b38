"""ImageFolder's layout, from folders and archives, hostile and damaged ones among them."""

from __future__ import annotations

import io
import itertools
import lzma
import os
import random
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from condorctl.errors import UserError
from robust import imagefolder
from robust.data import load
from robust.options import Data

OPTIONS = Data(source="auto", split_seed=0, validation=4, train_images=0, test_images=0)

Files = dict[str, bytes]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def image_files(shape: tuple[int, ...] = (5, 4, 3), train: int = 6, test: int = 3) -> Files:
    """Two classes of `train` and `test` random images each, by path."""
    files = {}
    for part, count in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            for n in range(count):
                files[f"{part}/{name}/{n:04}.png"] = encoded(pixels(len(files), *shape))
    return files


def folder_of(root: Path, files: Files) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def regular(path: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(path)
    member.size = len(content)
    return member, content


def special(path: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(path)
    member.type, member.linkname = kind, target
    return member, b""


def archive_of(
    file: Path,
    members: Iterable[tuple[tarfile.TarInfo, bytes]],
    mode: str = "w",
) -> Path:
    with tarfile.open(file, mode) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return file


def members_of(files: Files) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [regular(path, content) for path, content in files.items()]


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as refused:
        imagefolder.read(root)
    message = str(refused.value)
    assert str(root) in message
    return message


def test_the_pixels_are_those_of_the_files_and_the_classes_take_turns(tmp_path: Path) -> None:
    files = image_files()
    classes, train, test = imagefolder.read(folder_of(tmp_path, files))
    assert classes == ("cat", "dog")
    assert train.pixels.dtype == torch.uint8
    assert train.labels.tolist() == [0, 1] * 6
    assert test.labels.tolist() == [0, 1] * 3
    for n, image in enumerate(test.pixels):
        path = f"test/{classes[n % 2]}/{n // 2:04}.png"
        expected = pixels(list(files).index(path), 5, 4, 3)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "mode"), [("set.tar", "w"), ("set.tar.gz", "w:gz"), ("set.tar.xz", "w:xz")]
)
@pytest.mark.parametrize("around", ["", "./", "cifar/", "./cifar/"])
def test_an_archive_in_any_order_is_its_folder(
    tmp_path: Path, name: str, mode: str, around: str
) -> None:
    files = image_files()
    reference = load(OPTIONS, str(folder_of(tmp_path / "set", files)))
    shuffled = list(files.items())
    random.Random(0).shuffle(shuffled)
    members = [special(f"{around}train", tarfile.DIRTYPE)]
    members += [regular(around + path, content) for path, content in shuffled]
    data = load(OPTIONS, str(archive_of(tmp_path / name, members, mode)))
    assert data.fingerprint == reference.fingerprint
    assert torch.equal(data.test.pixels, reference.test.pixels)
    assert (data.name, reference.name) == ("set", "set")


def test_the_format_is_told_by_the_bytes_not_by_the_name(tmp_path: Path) -> None:
    file = archive_of(tmp_path / "anything", members_of(image_files()), "w:xz")
    assert load(OPTIONS, str(file)).name == "anything"


def test_the_fingerprint_sees_pixels_labels_and_class_names(tmp_path: Path) -> None:
    files = image_files()

    def fingerprint(name: str, changed: Files) -> str:
        return load(OPTIONS, str(folder_of(tmp_path / name, changed))).fingerprint

    seen = {fingerprint("same", files), fingerprint("same again", files)}
    assert len(seen) == 1
    pixel = pixels(3, 5, 4, 3)
    pixel[4, 3, 2] ^= 1
    seen.add(fingerprint("pixel", {**files, "train/cat/0003.png": encoded(pixel)}))
    renamed = {path.replace("cat", "cow"): content for path, content in files.items()}
    seen.add(fingerprint("class", renamed))
    swapped = dict(files)
    swapped["train/cat/0000.png"] = files["train/dog/0000.png"]
    swapped["train/dog/0000.png"] = files["train/cat/0000.png"]
    seen.add(fingerprint("label", swapped))
    assert len(seen) == 4


def test_every_usual_format_is_read_whatever_the_case_of_its_name(tmp_path: Path) -> None:
    files = image_files()
    exact = ("bmp", "tiff", "ppm", "png")
    for part, name in itertools.product(("train", "test"), ("cat", "dog")):
        for n, kind in enumerate(exact):
            files[f"{part}/{name}/x{n}.{kind.upper()}"] = encoded(pixels(99, 5, 4, 3), kind)
        files[f"{part}/{name}/y.JPeG"] = encoded(pixels(99, 5, 4, 3), "jpeg")
    _, train, _ = imagefolder.read(folder_of(tmp_path, files))
    assert len(train.labels) == 2 * (6 + 5)
    expected = torch.from_numpy(pixels(99, 5, 4, 3)).permute(2, 0, 1)
    assert torch.equal(train.pixels[12:20], expected.expand(8, -1, -1, -1))


def test_grey_stays_one_channel_when_all_are_grey(tmp_path: Path) -> None:
    _, train, _ = imagefolder.read(folder_of(tmp_path, image_files((5, 4))))
    assert train.pixels.shape == (12, 1, 5, 4)
    assert np.array_equal(train.pixels[0, 0].numpy(), pixels(0, 5, 4))


def test_grey_among_colour_fills_all_channels(tmp_path: Path) -> None:
    files = image_files((5, 4))
    files["test/dog/9999.png"] = encoded(pixels(0, 5, 4, 3))
    _, train, test = imagefolder.read(folder_of(tmp_path, files))
    assert train.pixels.shape == (12, 3, 5, 4)
    for channel in train.pixels[0]:
        assert np.array_equal(channel.numpy(), pixels(0, 5, 4))
    assert np.array_equal(test.pixels[-1].permute(1, 2, 0).numpy(), pixels(0, 5, 4, 3))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    files = image_files()
    files["train/cat/0000.png"] = encoded(pixels(7, 5, 4, 4))
    _, train, _ = imagefolder.read(folder_of(tmp_path, files))
    assert np.array_equal(train.pixels[0].permute(1, 2, 0).numpy(), pixels(7, 5, 4, 4)[..., :3])


@pytest.mark.parametrize("packed", [False, True])
def test_other_files_are_passed_over(tmp_path: Path, packed: bool) -> None:
    files = image_files()
    others = {
        "README.txt": b"no image",
        "train/cat/notes.txt": b"no image",
        "train/cat/._0000.png": b"what macOS leaves behind",
        "train/.cache/0000.png": b"hidden",
        "validation/cat/0000.png": b"another part",
        "train/stray.png": b"in no class",
    }

    def root(name: str, content: Files) -> Path:
        if packed:
            return archive_of(tmp_path / f"{name}.tar", members_of(content))
        return folder_of(tmp_path / name, content)

    plain = imagefolder.read(root("plain", files))
    beside = imagefolder.read(root("beside", {**others, **files}))
    assert beside[0] == plain[0]
    assert torch.equal(beside[1].pixels, plain[1].pixels)
    assert torch.equal(beside[2].pixels, plain[2].pixels)


def test_folders_below_a_class_count(tmp_path: Path) -> None:
    files = {path.replace("cat/", "cat/images/a/"): c for path, c in image_files().items()}
    classes, train, _ = imagefolder.read(folder_of(tmp_path, files))
    assert classes == ("cat", "dog")
    assert len(train.labels) == 12


def test_of_two_members_with_one_path_the_later_counts_as_tar_has_it(tmp_path: Path) -> None:
    files = image_files()
    old = regular("train/cat/0000.png", encoded(pixels(1000, 5, 4, 3)))
    archive = archive_of(tmp_path / "set.tar", [old, *members_of(files)])
    _, train, _ = imagefolder.read(archive)
    assert np.array_equal(train.pixels[0].permute(1, 2, 0).numpy(), pixels(0, 5, 4, 3))


def test_links_in_a_folder_of_the_users_are_followed(tmp_path: Path) -> None:
    files = image_files()
    real = folder_of(tmp_path / "real", files)
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    (root / "test").symlink_to(real / "test")
    (root / "train/cat").symlink_to(real / "train/cat")
    (root / "train/dog").mkdir()
    for n in range(6):
        (root / f"train/dog/{n:04}.png").symlink_to(real / f"train/dog/{n:04}.png")
    assert load(OPTIONS, str(root)).fingerprint == load(OPTIONS, str(real)).fingerprint


def test_a_link_to_a_folder_around_it_is_named_and_its_images_never_taken_twice(
    tmp_path: Path,
) -> None:
    root = folder_of(tmp_path / "set", image_files())
    (root / "train/cat/again").symlink_to(root / "train")
    assert "train/cat/again: a link to a folder that holds it; remove it" in refusal(root)


def test_a_class_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    files = image_files()
    for part in ("train", "test"):
        files[os.fsdecode(f"{part}/".encode() + b"caf\xe9/0.png")] = encoded(pixels(0, 5, 4, 3))
    root = folder_of(tmp_path / "set", files)
    assert "class caf\N{REPLACEMENT CHARACTER} is not named in UTF-8; rename it" in refusal(root)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (regular("../train/cat/x.png", b""), "../train/cat/x.png points outside the archive"),
        (regular("train/../../x.png", b""), "points outside the archive"),
        (regular("/train/cat/x.png", b""), "/train/cat/x.png points outside the archive"),
        (special("train/cat/x.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (special("train/cat/x.png", tarfile.LNKTYPE, "train/cat/0000.png"), "is a link"),
        (special("train/cow", tarfile.SYMTYPE, "../elsewhere"), "train/cow is a link"),
        (special("train/cat/x.png", tarfile.CHRTYPE), "is a link or a device"),
        (special("train/cat/x.png", tarfile.FIFOTYPE), "is a link or a device"),
        (regular("other/train/cat/x.png", b""), "one data set too many"),
    ],
)
def test_an_archive_that_is_not_only_images_is_refused(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], said: str
) -> None:
    members = members_of(image_files())
    members.insert(5, member)
    assert said in refusal(archive_of(tmp_path / "set.tar", members))


def test_a_link_elsewhere_in_an_archive_is_passed_over(tmp_path: Path) -> None:
    members = [*members_of(image_files()), special("latest.png", tarfile.SYMTYPE, "/etc/passwd")]
    _, train, _ = imagefolder.read(archive_of(tmp_path / "set.tar", members))
    assert len(train.labels) == 12


def test_a_member_of_terabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = tarfile.TarInfo("train/cat/bomb.png")
    bomb.size = 2**42
    file = tmp_path / "set.tar"
    file.write_bytes(bomb.tobuf() + bytes(10240))
    assert f"bomb.png has {2**42} bytes" in refusal(file)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path, mode: str, share: float) -> None:
    file = archive_of(tmp_path / "set.tar", members_of(image_files(test=60)), mode)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert "damaged, cut short, or neither" in refusal(file)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    """tarfile alone reads such a one without an error, as a smaller data set."""
    files = image_files()
    file = archive_of(tmp_path / "set.tar", members_of(files))
    with tarfile.open(file) as archive:
        boundary = archive.getmembers()[-2].offset
    file.write_bytes(file.read_bytes()[:boundary])
    assert "damaged, cut short" in refusal(file)


def test_a_damaged_header_between_two_members_is_refused(tmp_path: Path) -> None:
    """tarfile alone takes it for the end of the archive."""
    file = archive_of(tmp_path / "set.tar", members_of(image_files()))
    with tarfile.open(file) as archive:
        header = archive.getmembers()[-2].offset
    content = bytearray(file.read_bytes())
    content[header + 3] ^= 0xFF
    file.write_bytes(content)
    assert "damaged" in refusal(file)


def test_the_checksum_behind_the_last_member_is_read(tmp_path: Path) -> None:
    """All images decode, but the bytes are not those that were packed."""
    file = archive_of(tmp_path / "set.tar", members_of(image_files()))
    record = bytes(2**20)  # an archive may be padded to records of any size
    packed = bytearray(lzma.compress(file.read_bytes() + record, check=lzma.CHECK_CRC64))
    (tmp_path / "set.tar.xz").write_bytes(packed)
    assert imagefolder.read(tmp_path / "set.tar.xz")[0] == ("cat", "dog")
    index_size = 4 * (1 + int.from_bytes(packed[-8:-4], "little"))
    packed[-12 - index_size - 1] ^= 0xFF  # the last byte of the block's CRC
    (tmp_path / "set.tar.xz").write_bytes(packed)
    assert "damaged" in refusal(tmp_path / "set.tar.xz")


@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(3), bytes(range(256)) * 8])
def test_any_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "set.tar"
    file.write_bytes(content)
    assert "neither a .tar" in refusal(file)


@pytest.mark.parametrize("content", [b"", b"no image", image_files()["train/cat/0000.png"][:60]])
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    files = {**image_files(), "train/dog/0002.png": content}
    assert "train/dog/0002.png: damaged, or no image" in refusal(folder_of(tmp_path / "a", files))
    packed = archive_of(tmp_path / "set.tar", members_of(files))
    assert "train/dog/0002.png: damaged, or no image" in refusal(packed)


def test_postscript_is_not_run_under_the_name_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: run.append(arguments))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\nshowpage\n"
    files = {**image_files(), "train/dog/0002.png": page}
    assert "damaged, or no image" in refusal(folder_of(tmp_path, files))
    assert not run


def test_the_first_image_of_another_size_is_named(tmp_path: Path) -> None:
    files = {**image_files(), "train/dog/0002.png": encoded(pixels(0, 5, 6, 3))}
    message = refusal(folder_of(tmp_path, files))
    assert "train/dog/0002.png has 6×5 pixels, train/cat/0000.png has 4×5" in message


def test_more_than_8_bits_are_refused_rather_than_cut_off(tmp_path: Path) -> None:
    deep = encoded(pixels(0, 5, 4).astype(np.uint16) * 256)
    message = refusal(folder_of(tmp_path, {**image_files(), "train/dog/0002.png": deep}))
    assert "train/dog/0002.png has more than 8 bits a channel" in message


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("test/dog", "class dog has no image in test/"),
        ("train/cat", "class cat has no image in train/"),
        ("test/", "no image in test/<class>/"),
        ("train/", "no image in train/<class>/"),
        ("cat/", "one class alone, dog"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, left_out: str, said: str) -> None:
    files = {path: content for path, content in image_files().items() if left_out not in path}
    assert said in refusal(folder_of(tmp_path / "set", files))
    assert said in refusal(archive_of(tmp_path / "set.tar", members_of(files)))


def test_a_pipe_and_a_dead_link_are_named_and_never_waited_for(tmp_path: Path) -> None:
    root = folder_of(tmp_path, image_files())
    os.mkfifo(root / "train/cat/0001.jpg")
    assert "train/cat/0001.jpg: neither a file" in refusal(root)
    (root / "train/cat/0001.jpg").unlink()
    (root / "train/cat/0001.jpg").symlink_to("nowhere")
    assert "train/cat/0001.jpg: neither a file" in refusal(root)


def test_a_long_load_counts_in_one_line_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path / "set", image_files())
    clock = itertools.count()
    monkeypatch.setattr(imagefolder.time, "monotonic", lambda: next(clock) * 0.6)
    imagefolder.read(root)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    imagefolder.read(root)
    shown = capsys.readouterr().err
    assert shown.startswith(f"\r{root}: ")
    assert "18 images read" in shown
    assert shown.endswith("read\n")
    assert shown.count("\n") == 1
    (root / "test/dog/0002.png").write_bytes(b"damaged")
    refusal(root)
    assert capsys.readouterr().err.endswith("read\n")  # before the error is said
