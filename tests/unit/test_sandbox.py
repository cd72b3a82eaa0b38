"""What the far side of a fetch sends is not trusted: 2,000 streams that no honest one sends."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condorctl.deadline import Deadline
from condorctl.errors import UserError
from condorctl.files import receive
from condorctl.files.sandbox import Broken, Missing, Refused, Stream, Want

NAMES = ("a", "sub/b.pt", "c d")
# All that a stream that makes no sense may end in, each of which `fetch` turns into one line.
SAID = (Broken, Missing, Refused, UserError)

name = st.sampled_from(
    ["./a", "./sub/b", "/etc/passwd", "../x", "./a/../../x", "./\udcff", "-", ".", "./" + "n" * 300]
).map(os.fsencode)
odd = st.sampled_from(
    [b"", b"0", b"-1", b"-2", b"\0", b"\0\0", b"..", b"\n", b"9" * 5000, b"0 - 0"]
)
listing = st.lists(name | odd | st.binary(max_size=20), max_size=8).map(b"\0".join)


@pytest.fixture(autouse=True, scope="module")
def no_disk_is_waited_for() -> Iterator[None]:
    """What is looked at is which names there are, not what outlives a power cut."""
    memory = "/dev/shm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        if os.access(memory, os.W_OK | os.X_OK):
            patch.setattr(tempfile, "tempdir", memory)
        yield


@contextmanager
def sent(raw: bytes) -> Iterator[Stream]:
    """A stream of `raw`."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as stderr:
        source.write(raw)
        source.seek(0)
        yield Stream(source, stderr, Deadline(20))


def answer(texts: list[bytes]) -> bytes:
    """What an honest far side sends for files with these contents."""
    parts = [
        f"{len(text)} {hashlib.sha256(text).hexdigest()} 0\0".encode() + text for text in texts
    ]
    return b"".join(parts) + b"-2 - 0\0"


def bring(raw: bytes, root: Path) -> None:
    """Receive `NAMES` into `root` as a fetch does."""
    wanted = [Want(one) for one in NAMES]
    with sent(raw) as stream:
        for want, header in zip(wanted, stream.files(wanted), strict=True):
            if header.size >= 0:
                receive.receive(
                    stream, root, want.name, header, want, lambda *_: None, Deadline(20)
                )


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from([b"0\0", b""]), listing, st.sampled_from([b"\0\0", b""]))
def test_a_listing_names_nothing_outside(start: bytes, middle: bytes, end: bytes) -> None:
    with sent(start + middle + end) as stream, suppress(*SAID):
        for found in stream.names("."):
            assert not found.startswith("/")
            assert ".." not in PurePosixPath(found).parts


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_file_is_there_under_its_name_unless_it_is_what_was_announced(
    data: st.DataObject,
) -> None:
    texts = data.draw(st.lists(st.binary(max_size=40), min_size=3, max_size=3))
    raw = bytearray(answer(texts))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        how = data.draw(st.sampled_from(["flip", "cut", "put", "end"]))
        if how == "flip" and raw:
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del raw[at : at + data.draw(st.integers(1, 30))]
        elif how == "put":
            raw[at:at] = data.draw(odd | st.binary(max_size=8))
        else:
            del raw[at:]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        with suppress(*SAID):
            bring(bytes(raw), root)
        assert [path.name for path in Path(folder).iterdir()] == ["root"]
        for path in root.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                assert str(path.relative_to(root)) in NAMES
                # Whole: the stream, honest or not, has its hash before its bytes.
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                assert f" {digest} ".encode() in raw


def test_an_honest_stream_is_received() -> None:
    texts = [b"", b"weights\0" * 1000, b"\n"]
    with tempfile.TemporaryDirectory() as folder:
        bring(answer(texts), Path(folder))
        assert [(Path(folder) / one).read_bytes() for one in NAMES] == texts
