"""Site profiles: what a site wants of every job, apart from the pipelines that run there.

``sites/NAME.yaml`` of the project is looked at first, then the user's own in
``~/.config/condorctl/sites`` (``$XDG_CONFIG_HOME``), then those that the package ships.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from condorctl import paths
from condorctl.errors import UserError, suggest
from condorctl.spec.pipeline import ABOUT_GPUS, Site, kilobytes
from condorctl.spec.spec_file import SpecFile, complaints, is_name

_VARIABLE = "CONDORCTL_SITE"


def folders() -> list[Path]:
    """Where profiles may be, the first that has one wins."""
    return [
        paths.project() / "sites",
        paths.config() / "sites",
        paths.PACKAGE / "sites",
    ]


def known() -> dict[str, Path]:
    """The profiles that there are: name and file."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            if is_name(file.stem):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def load(name: str, where: str) -> Site:
    """The profile `name`; `where` is who asks for it.

    Raises UserError when there is none, or for the first thing that is wrong with it.
    """
    profiles = known()
    if name not in profiles:
        there = suggest(name, profiles) or f"; there is none in {', '.join(map(str, folders()))}"
        raise UserError(f"{where}: no site {name!r}{there}")
    return read(profiles[name])


def read(path: Path) -> Site:
    """The profile in the file at `path`.

    Raises UserError, with the file, the line and the key, for the first thing that is wrong.
    """
    file = SpecFile(path)
    for own in ("name", "file"):
        if own in file.data:
            raise file.fail((own,), "unknown key: a profile is called as its file is")
    try:
        return Site.model_validate({**file.data, "name": path.stem, "file": str(path)})
    except ValidationError as error:
        first = complaints(error, Site)[0]
        raise file.fail(first.at, first.message) from None


def listing() -> dict[str, Any]:
    """All profiles for a listing, those that cannot be read with their problem."""
    sites = []
    for name, file in known().items():
        entry = {"name": name, "file": str(file), "description": "", "problem": None}
        try:
            entry["description"] = read(file).description
        except UserError as error:
            entry["problem"] = str(error)
        sites.append(entry)
    return {"sites": sites, "folders": [str(folder) for folder in folders()]}


def learnt_file(name: str) -> Path:
    """Where `condorctl site test` writes what it has learnt of the site `name`."""
    return paths.config() / "sites" / f"{name}.learnt.json"


def learnt(name: str) -> dict[str, Any] | None:
    """What `condorctl site test` has learnt of the site (`explain.trial`); None without."""
    try:
        found = json.loads(learnt_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def preferred() -> str | None:
    """The profile that ``$CONDORCTL_SITE`` names; None when it names none."""
    return os.environ.get(_VARIABLE) or None


def chosen(option: str | None, spec: SpecFile, written: Any) -> Site | None:
    """The profile that ``--site``, ``$CONDORCTL_SITE`` or the spec names, in this order."""
    if option:
        return load(option, "--site")
    if variable := preferred():
        return load(variable, f"${_VARIABLE}")
    if written is None:
        return None
    if not isinstance(written, str):
        raise spec.fail(("site",), "must be the name of a site's profile")
    return load(written, spec.place(("site",)))


def defaults(site: Site | None, stage: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `stage` as written, with what the `site` says where the stage says nothing.

    A site's limit below what the stage asks for is no limit of this stage, and what a site says of
    GPUs is for stages that ask for some.
    """
    if not site:
        return dict(stage)
    own: dict[str, Any] = site.defaults.model_dump(exclude_unset=True)
    # A parameter that nobody set says nothing.
    stage = {k: v for k, v in stage.items() if v != "" or k not in ("universe", "image")}
    for limit, request in (("max_memory", "request_memory"), ("max_disk", "request_disk")):
        asked = stage.get(request)
        if limit in own and isinstance(asked, str) and _more(asked, own[limit]):
            del own[limit]
    if not {**own, **stage}.get("request_gpus"):
        own = {key: value for key, value in own.items() if key not in ABOUT_GPUS}
    environment = stage.get("environment")
    merged = {**own, **stage}
    if isinstance(environment, dict):
        merged["environment"] = {**own.get("environment", {}), **environment}
    return merged


def _more(asked: str, limit: str) -> bool:
    try:
        return kilobytes(asked) >= kilobytes(limit)
    except (KeyError, ValueError, IndexError):
        # No amount at all, which the stage's own check will say.
        return False
