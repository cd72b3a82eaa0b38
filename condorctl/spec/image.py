"""What `image:` of a spec may name: an image in a registry, a file or a folder, a URL.

The grammar of a registry's references is that of the distribution project ("reference"): a name in
lower case, with a host before it where that has a dot, a port or is ``localhost``, a tag or a
digest after it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from condorctl.errors import UserError

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+(?=:\d))(?::\d{1,5})?"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_SHAPE = "[HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], the name in lower case"

Kind = Literal["registry", "path", "url"]


class Image(NamedTuple):
    """What an image is: `text` without its ``docker://`` when a registry has it."""

    kind: Kind
    text: str

    @property
    def travels(self) -> bool:
        """Whether it is a file of the submit machine that is sent to the job.

        HTCondor refuses to send a folder with links to folders, which a root file system has: that
        must be one of the nodes, too. CernVM-FS shows the same files everywhere.
        """
        if self.kind != "path" or self.text.startswith("/cvmfs/"):
            return False
        return Path(self.text).is_file()

    @property
    def missing(self) -> bool:
        """Whether it is a path of the submit machine with nothing there."""
        path = Path(self.text)
        return self.kind == "path" and not path.is_absolute() and not path.exists()


class Reference(NamedTuple):
    """The parts of a registry's reference; without a tag a registry takes ``latest``."""

    name: str
    tag: str | None
    digest: str | None


def parse(text: str) -> Image:
    """The image that `text` names. Raises UserError where it can be none."""
    if text.startswith("docker://"):
        return Image("registry", _check(text.removeprefix("docker://")))
    if _SCHEME.match(text):
        return Image("url", text)
    if text.endswith((".sif", "/")) or text.startswith(("/", "./", "../")) or Path(text).is_dir():
        return Image("path", text)
    return Image("registry", _check(text))


def reference(text: str) -> Reference:
    """The parts of a registry's reference. Raises UserError where it is none."""
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is no image in a registry: write {_SHAPE}")
    return Reference(found["name"], found["tag"], found["digest"])


def check(universe: str, text: str) -> str:
    """`text` where a stage of the `universe` can have it as its image.

    Raises UserError with what is wrong with the two together.
    """
    if universe == "vanilla":
        if text:
            raise UserError(
                "a vanilla stage runs on the node itself: say `universe: docker` or `container` "
                "to have an image"
            )
        return text
    if not text:
        raise UserError(
            f"a {universe} stage needs an image: name one, or let `condorctl image push` record one"
        )
    image = parse(text)
    if universe == "docker" and image.kind != "registry":
        raise UserError(
            f"{text!r}: docker takes images from a registry: `universe: container` runs this one"
        )
    if image.missing:
        raise UserError(f"there is no {text!r} here; a path on the nodes begins with '/'")
    return text


def _check(text: str) -> str:
    reference(text)
    return text
