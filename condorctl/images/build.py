"""An image from a Dockerfile, and from here to a registry, where jobs can have it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from condorctl import paths
from condorctl.errors import UserError
from condorctl.images import engine as engines
from condorctl.images.engine import Tell
from condorctl.spec import image as images
from condorctl.spec import image_record
from condorctl.spec.image_record import Record


def build(
    tag: str | None,
    file: Path | None,
    args: Mapping[str, str],
    options: Sequence[str],
    engine: str | None,
    tell: Tell,
) -> Record:
    """Build the image of the Dockerfile `file`, else of the project's, else of the shipped one.

    `args` are the build's arguments, `options` further words for the engine. The Dockerfile's
    folder is the build's context, but for the shipped one, which copies nothing. Raises UserError.
    """
    dockerfile = file or paths.dockerfile()
    if not dockerfile.is_file():
        raise UserError(f"{dockerfile}: there is no such Dockerfile")
    name = tag or f"{_plain(paths.project().name)}:latest"
    if images.reference(name).digest:
        raise UserError(f"--tag {name}: a digest is what a build ends with, not a name for it")
    chosen = engines.find(engine)
    given = [word for key, value in args.items() for word in ("--build-arg", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as empty:
        ours = dockerfile.parent != paths.project() and file is None
        context = empty if ours else str(dockerfile.absolute().parent)
        words = ["build", "--file", str(dockerfile.absolute()), "--tag", name, *given, *options]
        chosen.watch([*words, context], tell)
    built = Record(
        tag=name,
        id=chosen.id(name) or "",
        image=None,
        engine=chosen.name,
        dockerfile=hashlib.sha256(dockerfile.read_bytes()).hexdigest(),
        args=dict(args),
        time=time.time(),
    )
    image_record.add(built)
    return built


def push(tag: str | None, to: str | None, engine: str | None, tell: Tell) -> Record:
    """Push the image `tag`, else the one built last, under the name `to`, else its own.

    The record that is returned, and kept, has the digest that the registry gave it: from then on
    a stage without an image of its own takes this one. Raises UserError.
    """
    built = image_record.built(tag)
    name = tag or (built.tag if built else None)
    if name is None:
        raise UserError("nothing was built here yet: `condorctl image build`, or name an image")
    target = images.reference(to or name)
    if target.digest:
        raise UserError(f"{to or name}: push to a name and a tag; the registry makes the digest")
    chosen = engines.find(engine or (built.engine if built else None))
    identity = chosen.id(name)
    if identity is None:
        raise UserError(f"{chosen.name} has no image {name}: build it first, or pull it", 1)
    place = f"{target.name}:{target.tag or 'latest'}"
    if place != name:
        chosen.ask("tag", identity, place)
    digest = chosen.push(place, tell)
    pushed = replace(
        built or Record("", "", None, "", "", {}, 0.0),
        tag=place,
        id=identity,
        image=f"{target.name}@{digest}",
        engine=chosen.name,
        time=time.time(),
    )
    image_record.add(pushed)
    return pushed


def _plain(folder: str) -> str:
    """A folder's name as that of an image."""
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.lower())
    return "-".join(filter(None, words.split("-"))) or "image"
