"""What a run takes along as it is at its submission: the code of its stages, their local inputs.

Both are copied into the run's folder, so what is edited while the run is queued changes nothing in
it. An input of more than `LARGE` bytes is used where it is; its hash tells later what it was.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from condorctl import paths
from condorctl.errors import UserError
from condorctl.ledger import ContentHash, Ledger
from condorctl.spec.pipeline import Pipeline, is_url
from condorctl.spec.venv import is_venv
from condorctl.submit import content, venvs

# Bytes: what takes longer to copy than a submission may take.
LARGE = 1_000_000_000
# Bytes: less is read again as quickly as it is looked up.
_WORTH_KEEPING = 10_000_000

_JOB_SIDE = ("__init__.py", "errors.py", "gpus.sh", "job", "stage.sh", "venv.sh")
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".venv")


@dataclass(frozen=True)
class Input:
    """A local file or folder that stages get under its base name.

    `place` is where its copy is in the run's folder, None where the original is used.
    """

    source: Path
    bytes: int
    sha256: str
    place: str | None


@dataclass(frozen=True)
class Snapshot:
    """The code's files with their SHA-256, and the inputs by what the spec calls them."""

    code: dict[str, str]
    inputs: dict[str, Input]
    # Those of them that are environments, each a file in the cache that never changes.
    packed: frozenset[str] = frozenset()

    def finals(self, folder: Path) -> dict[str, str]:
        """Where HTCondor finds each input once the run's folder is `folder`."""
        return {
            # To HTCondor a slash at the end means what the folder holds.
            text: f"{folder / one.place if one.place else one.source}{'/' * text.endswith('/')}"
            for text, one in self.inputs.items()
        }

    @property
    def in_place(self) -> list[Input]:
        """The user's own files that were not copied, each once."""
        own = [one for text, one in self.inputs.items() if not (one.place or text in self.packed)]
        return list({one.source: one for one in own}.values())


def take(
    ledger: Ledger,
    pipeline: Pipeline,
    folder: Path,
    tell: Callable[[str], object] = lambda _: None,
) -> Snapshot:
    """Copy code and inputs of `pipeline` into `folder`.

    `tell` gets a line before what takes long. Raises UserError for what cannot be read or copied.
    """
    code(pipeline, folder / "code")
    files = content.manifest(folder / "code", lambda path: path == folder / "code" / "condorctl")
    found: dict[Path, Input] = {}
    texts = _environments(ledger, pipeline, tell)
    packed = frozenset(texts)
    for text in dict.fromkeys(
        t for s in pipeline.stages.values() for t in s.local(pipeline.stages)
    ):
        if text in packed:
            continue
        source = Path(os.path.abspath(text))  # noqa: PTH100 (`..` has no name)
        try:
            if source not in found:
                found[source] = _input(ledger, source, folder, len(found))
        except OSError as error:
            raise UserError(
                f"input {text!r}: {error.filename or source}: {error.strerror or error}"
            ) from None
        texts[text] = found[source]
    return Snapshot(files, texts, packed)


def _environments(
    ledger: Ledger, pipeline: Pipeline, tell: Callable[[str], object]
) -> dict[str, Input]:
    """The virtual environments that stages take along, packed, by what the spec calls them."""
    found = {}
    for text in dict.fromkeys(s.venv for s in pipeline.stages.values() if s.venv):
        if not is_url(text) and is_venv(Path(text)):
            file = Path(venvs.pack(Path(text), tell=tell)["file"])
            found[text] = Input(file, file.stat().st_size, _sha256(ledger, file, file), None)
    return found


def job_side(target: Path) -> None:
    """Copy the part of this package that a job imports into a new folder."""
    target.mkdir(parents=True)
    for name in _JOB_SIDE:
        source = paths.PACKAGE / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=_NOT_CODE)
        else:
            shutil.copy2(source, target / name)


def code(pipeline: Pipeline, target: Path) -> None:
    """Copy the packages of all stages, and what runs on the job's side, into a new folder."""
    job_side(target / "condorctl")
    for name in dict.fromkeys(name for stage in pipeline.stages.values() for name in stage.code):
        source = paths.package(name)
        try:
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=_NOT_CODE, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target / source.name)
        except shutil.Error as error:
            file, _, reason = error.args[0][0]
            raise UserError(f"code: {file}: {reason}") from None


def sha256(ledger: Ledger, path: Path) -> str:
    """The hash of a file or folder, from the ledger when it has not changed since it was read.

    Raises OSError.
    """
    return _sha256(ledger, path, path)


def _input(ledger: Ledger, source: Path, folder: Path, number: int) -> Input:
    size = content.stamp(source, _not_ours)[1]
    if size > LARGE:
        return Input(source, size, _sha256(ledger, source, source), None)
    place = f"inputs/{number}/{source.name}"
    target = folder / place
    target.parent.mkdir(parents=True)
    before = content.stamp(source, _not_ours)[0]
    content.copy(source, target, _not_ours)
    same = before is not None and content.stamp(source, _not_ours)[0] == before
    # A copy made while the original changed is neither what was nor what is: it alone counts.
    digest = _sha256(ledger, source, target) if same else content.tree_sha256(target)
    return Input(source, size, digest, place)


def _not_ours(path: Path) -> bool:
    """Runs are left out of a folder that holds them: a copy would hold itself."""
    return path == paths.runs()


def _sha256(ledger: Ledger, source: Path, copy: Path) -> str:
    """The hash of `source`, read from its equal `copy`."""
    key = (socket.gethostname(), str(source))
    stamp, size = content.stamp(source, _not_ours)
    if not stamp or size < _WORTH_KEEPING:
        return content.tree_sha256(copy, _not_ours)
    with ledger.session() as session:
        known = session.get(ContentHash, key)
        if known and known.stamp == stamp:
            return known.sha256
    digest = content.tree_sha256(copy, _not_ours)
    if content.stamp(source, _not_ours)[0] == stamp:
        with ledger.session() as session:
            row = ContentHash(host=key[0], path=key[1], stamp=stamp, sha256=digest)
            session.merge(row)
    return digest
