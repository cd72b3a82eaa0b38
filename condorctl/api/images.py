"""Images that stages run in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from condorctl.api.base import Json


def image_build(
    tag: str | None = None,
    file: Path | None = None,
    arg: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Build an image from a Dockerfile: `file`, else the project's, else the shipped one.

    `arg` are the Dockerfile's arguments, `options` further words of the engine's own build; `tell`
    gets each line that it says. Returns the record that is kept in exp/images.json: `tag`, `id`,
    `image` (None until it is pushed), `engine`, `dockerfile` (its SHA-256), `args`, `time`.
    """
    from condorctl.images import build

    return dataclasses.asdict(build.build(tag, file, arg or {}, options, engine, tell))


def image_push(
    tag: str | None = None,
    to: str | None = None,
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Push an image, else the one built last, to a registry.

    Returns its record as `image_build` does; `image` is NAME@sha256:DIGEST, which stages that have
    no image of their own take from then on.
    """
    from condorctl.images import build

    return dataclasses.asdict(build.push(tag, to, engine, tell))


def image_check(
    image: str | None = None,
    pipeline: Sequence[str] = (),
    engine: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Start an image as a job would be, and import what the stages of pipelines import.

    Returns `image`, `id`, `engine` and `findings`: `name`, `state` (ok, warning, problem), `text`
    and `mend` (None where nothing needs one).
    """
    from condorctl.images import check

    return check.check(image, pipeline, engine, tell)
