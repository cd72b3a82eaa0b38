"""A site tried out: tiny jobs with its profile's lines, and what they taught kept for later.

It is written beside the user's profiles, as ``NAME.learnt.json``: `time` (Unix seconds), `schedd`,
`version` (of HTCondor there), `ok`, and `checks` as `doctor` has them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from condorctl import pool
from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.explain import matchmaking, probe
from condorctl.explain.finding import OK, PROBLEM, WARNING, Finding
from condorctl.spec import image_record
from condorctl.spec import site as profiles
from condorctl.spec.pipeline import Site
from condorctl.submit import requests, universe
from condorctl.terminal import Progress

Json = dict[str, Any]


def test(name: str | None, seconds: float, progress: Progress) -> Json:
    """Try the site `name`, else the one that $CONDORCTL_SITE names, for at most `seconds`.

    Returns `site`, `file` (where it was written) and what the file holds. Raises UserError when
    there is no such profile, and when the pool does not answer.
    """
    name = name or profiles.preferred()
    if name is None:
        known = ", ".join(profiles.known())
        raise UserError(f"site test: name a profile: there is {known}; `personal` asks for nothing")
    site = profiles.load(name, "site test")
    pool.activate()
    _, _, location = cluster.connection()
    deadline = time.monotonic() + seconds
    found: list[Finding] = []
    for what, part in (("a job", _job), ("a GPU", _gpu), ("a container", _container)):
        if any(finding.state == PROBLEM for finding in found):
            # What keeps one job from running keeps the others, too.
            break
        progress(f"{name}: {what}", 0, 0)
        found += part(site, max(1.0, deadline - time.monotonic()))
    learnt: Json = {
        "time": round(time.time()),
        "schedd": str(location.get("Name")),
        "version": str(location.get("CondorVersion", "")).removeprefix("$CondorVersion: ")[:20],
        "ok": all(finding.state != PROBLEM for finding in found),
        "checks": [finding._asdict() for finding in found],
    }
    file = profiles.learnt_file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(learnt, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    return {"site": name, "file": str(file), **learnt}


def _job(site: Site, seconds: float) -> Iterator[Finding]:
    lines = _lines(site, False)
    yield from probe.try_slot(seconds, site.python or ["python3"], lines)


def _gpu(site: Site, seconds: float) -> Iterator[Finding]:
    if not matchmaking.Slots().total("GPUs"):
        yield Finding("gpu", OK, "no slot here has one")
        return
    yield from probe.try_gpu(seconds, _lines(site, True))


def _container(site: Site, seconds: float) -> Iterator[Finding]:
    defaults, image = site.defaults, site.defaults.image or image_record.latest()
    if defaults.universe != "vanilla" and image:
        stage = defaults.model_copy(update={"image": image})
        lines = [*_lines(site, False), *universe.lines(stage).splitlines()]
        yield from probe.try_container(seconds, lines)
        return
    slots = matchmaking.Slots()
    kinds = {"Docker": slots.count("HasDocker"), "Apptainer": slots.count("HasSingularity")}
    some = [f"{kind} on {number} of {len(slots)} slots" for kind, number in kinds.items() if number]
    if some:
        mend = "a profile whose defaults name `universe` and `image` has it tried"
        yield Finding("container", OK, f"{', '.join(some)}, as the slots tell it", mend)
    else:
        mend = "`venv` takes a Python environment along without a container"
        yield Finding("container", WARNING, "no slot says that it runs Docker or Apptainer", mend)


def _lines(site: Site, gpus: bool) -> list[str]:
    """What the profile adds to a submit file."""
    wanted = [f"requirements = {site.requirements}"] if site.requirements else []
    return [*wanted, *requests.site_lines(site, gpus)]
