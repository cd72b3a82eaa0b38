"""Which images were built and pushed from a folder: ``exp/images.json``, the newest first.

    tag          what it was called when it was built or pushed
    id           the engine's own name for it, ``sha256:…``
    image        NAME@sha256:DIGEST, as the registry has it; null until it is pushed
    engine       docker or podman
    dockerfile   SHA-256 of that file; args are the build arguments
    time         seconds since the epoch

The file may be kept in git: everyone who has it runs the same image.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from condorctl import paths
from condorctl.errors import UserError


@dataclass(frozen=True)
class Record:
    """One image, as the module says."""

    tag: str
    id: str
    image: str | None
    engine: str
    dockerfile: str
    args: dict[str, str]
    time: float


def read() -> list[Record]:
    """All records, the newest first. Raises UserError for a file that is none of ours."""
    file = paths.images()
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise ValueError
        return [Record(**one) for one in found]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise UserError(
            f"{file}: is not what `condorctl image` wrote: mend it, or delete it"
        ) from None


def add(record: Record) -> None:
    """Put `record` first, in place of one of the same image."""
    others = [one for one in read() if (one.tag, one.id) != (record.tag, record.id)]
    file = paths.images()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    text = json.dumps([asdict(one) for one in (record, *others)], indent=2)
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(file)


def built(tag: str | None) -> Record | None:
    """The newest record called `tag`, else the newest of all."""
    return next((one for one in read() if tag in (None, one.tag)), None)


def latest() -> str:
    """The image that was pushed last, by its digest; empty text when none was."""
    return next((one.image for one in read() if one.image), "")
