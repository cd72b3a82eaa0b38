"""Specs, sites, and environments that travel with jobs; only `site_test` needs a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from condorctl.api.base import Json, Progress, open_ledger, silent


def init(folder: Path | None = None) -> Json:
    """Write a small pipeline that works into a folder, the current one by default.

    Returns `files`, what it wrote.
    """
    from condorctl.spec import starter

    return {"files": [str(path) for path in starter.init(folder or Path())]}


def lint(
    pipelines: Sequence[str] = (), set: Mapping[str, str] | None = None, site: str | None = None
) -> Json:
    """All that is wrong with pipelines, else with all in jobs/; needs no pool.

    Returns `pipelines` by their files, each a list of problems: `file`, `line`, `key`, `message`
    (None where a problem has none), and `text`, all of it in one line.
    """
    from condorctl.submit import lint as linting

    found = linting.lint(list(pipelines), set or {}, site)
    return {"pipelines": {file: list(map(linting.as_json, ps)) for file, ps in found.items()}}


def render(
    pipeline: str, to: Path, set: Mapping[str, str] | None = None, site: str | None = None
) -> Json:
    """Write the submit files and the DAG that `submit` would; submits nothing, needs no pool.

    Returns the `dag`, and the `files` of the folder `to`, which must be new or empty.
    """
    from condorctl.submit import dry_run

    return dry_run.write(pipeline, to, set or {}, site)


def schema(site: bool = False) -> Json:
    """The JSON Schema of a pipeline's spec, or of a site's profile."""
    from condorctl.spec import schema as schemas

    return schemas.site() if site else schemas.spec()


def site_list() -> Json:
    """The profiles of sites that there are: `sites`, with `name`, `file` and `description`.

    A profile that cannot be read has its `problem` instead of a description.
    """
    from condorctl.spec import site as profiles

    return profiles.listing()


def site_show(name: str) -> Json:
    """A site's profile: its keys as they are read, and the `file` that it is in.

    `learnt` is what `site_test` has learnt of it, None without.
    """
    from condorctl.spec import site as profiles

    found = profiles.load(name, "site show").model_dump(exclude_unset=True)
    return {**found, "learnt": profiles.learnt(name)}


def site_test(name: str | None = None, timeout: float = 300, progress: Progress = silent) -> Json:
    """Try a site with tiny jobs, for at most `timeout` seconds (`explain.trial`).

    Returns `site`, the `file` where what was learnt is kept, `time`, `schedd`, `version`, `ok`, and
    `checks` as `doctor` has them.
    """
    from condorctl.explain import trial

    return trial.test(name, timeout, progress)


def venv_pack(
    venv: Path | None = None, output: Path | None = None, progress: Progress = silent
) -> Json:
    """Pack a virtual environment, else `.venv`, into one file; as `submit` does for a `venv`.

    Returns `venv`, `file`, `bytes`, `sha256`, `python` (the minor version that the nodes need) and
    `packed`, whether it was not in the cache already.
    """
    from condorctl.submit import venvs

    return venvs.pack(venv or Path(".venv"), output, lambda what: progress(what, 0, 0))


def venv_list() -> Json:
    """The packed environments in the cache, and the runs that take them along.

    Returns `folder`, `bytes`, and `environments`: each `file`, `bytes`, `packed`, `used`, `venvs`,
    `runs` and `needed_by`.
    """
    from condorctl.steer import environments

    return environments.listing(open_ledger())


def venv_clean(older_than: float | None = None, dry_run: bool = False, force: bool = False) -> Json:
    """Remove the packed environments that no run needs; those unused for `older_than` days.

    Returns `removed`, `kept` and the `bytes` that this frees.
    """
    from condorctl.steer import environments

    return environments.clean(open_ledger(), older_than, dry_run, force)
