"""Where a stage runs: on the node itself or in an image, as its submit file says it.

HTCondor manual, "Docker Universe Applications" and "Container Universe Jobs". In an image there is
nothing of the submit machine but what travels with the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from condorctl.condor import submit_language
from condorctl.condor.submit_language import Quoted
from condorctl.errors import UserError
from condorctl.ledger import Ledger
from condorctl.spec import image as images
from condorctl.spec.pipeline import Pipeline, Stage
from condorctl.submit import content, snapshot

_IMAGE = re.compile(r"^[ \t]*(?:docker|container)_image[ \t]*=[ \t]*(.*?)[ \t]*$", re.I | re.M)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def lines(stage: Stage) -> Quoted:
    """The submit file's lines on the universe and the image."""
    found = {"universe": stage.universe, **_image(stage)}
    texts = {name: submit_language.plain(text, "image") for name, text in found.items()}
    return Quoted("".join(f"{name:<23} = {text}\n" for name, text in texts.items()))


def python(pipeline: Pipeline, stage: Stage, here: Sequence[str]) -> list[str]:
    """What ``python`` at the head of the stage's command is: in an image, the image's own.

    `here` is what it is on a node of a pool whose site does not say.
    """
    if stage.universe != "vanilla":
        return ["python3"]
    return list((pipeline.site.python if pipeline.site else None) or here)


class Image(TypedDict):
    """An image and its ``sha256:…``: from its reference, or of the file or folder that it is.

    None where there is none: what is behind a tag, or a path on the nodes, may change.
    """

    image: str
    digest: str | None


def used(ledger: Ledger, texts: Mapping[str, str]) -> dict[str, Image]:
    """The images of stages' submit files, be they from the spec or from a template.

    Raises UserError for a file that cannot be read.
    """
    found = {name: image[1] for name, text in texts.items() if (image := _IMAGE.search(text))}
    # Stages share images, and to read one may take seconds.
    digests = {image: _digest(ledger, image) for image in set(found.values())}
    return {name: Image(image=image, digest=digests[image]) for name, image in found.items()}


def _digest(ledger: Ledger, image: str) -> str | None:
    if found := _DIGEST.search(image):
        return found[0]
    path = Path(image)
    try:
        if path.is_file():
            return f"sha256:{snapshot.sha256(ledger, path.absolute())}"
        # A name alone is that of an image in a registry, whatever folder is called so.
        if path.is_absolute() and path.is_dir():
            return f"sha256:{content.root_sha256(path)}"
    except OSError as error:
        raise UserError(f"image {image}: {error.filename}: {error.strerror}") from None
    return None


def _image(stage: Stage) -> dict[str, str]:
    if stage.universe == "vanilla":
        return {}
    image = images.parse(stage.image)
    if stage.universe == "docker":
        return {"docker_image": image.text}
    if image.kind == "registry":
        return {"container_image": f"docker://{image.text}"}
    if image.kind == "url":
        return {"container_image": image.text}
    path = {"container_image": str(Path(image.text).absolute())}
    return path if image.travels else {**path, "transfer_container": "false"}
