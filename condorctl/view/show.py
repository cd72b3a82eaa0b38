"""Where a run comes from, and what its stages left: the provenance in the ledger, to be read."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from condorctl.errors import printable
from condorctl.ledger import Stage, find, gpus
from condorctl.units import size
from condorctl.view.compare import section
from condorctl.view.status import reused_from

Json = dict[str, Any]


def show(session: Session, name: str | None) -> Json:
    """Where the run called `name`, else the latest, comes from.

    The keys of `provenance`, and `run`, `pipeline`, `run_folder`, `submitted`, `state`, `cleaned`;
    `resumes` (time, dag: the DAGMan before) if there were any; `stages`: `stage`, `command`,
    `why`, `reused_from`, `job`, `exit_code`, `machine` (its `gpus`: name, memory_mb,
    capability, cuda), `usage`, `fingerprint` and `outputs` (path, bytes, sha256).
    """
    run = find.run(session, name)
    origin = dict(run.provenance)
    why = origin.pop("why", {})
    return {
        "run": run.name,
        "pipeline": run.pipeline,
        "state": run.state,
        "submitted": run.submitted,
        "run_folder": run.folder,
        "cleaned": run.cleaned,
        "params": run.params,
        **origin,
        "stages": [_stage(stage, why.get(stage.name)) for stage in run.stages],
    }


def _stage(stage: Stage, why: str | None) -> Json:
    origin = stage.origin
    job = origin.current[-1] if origin.current else None
    return {
        "stage": stage.name,
        "command": stage.command,
        "why": why,
        "reused_from": reused_from(stage),
        "job": job.id_text if job else None,
        "exit_code": job.exit_code if job else None,
        "machine": job.machine if job else {},
        "usage": job.usage if job else {},
        "fingerprint": stage.fingerprint,
        "outputs": [
            {"path": one.path, "bytes": one.bytes, "sha256": one.sha256}
            for one in (job.written if job else [])
        ],
    }


def as_lines(view: Json) -> list[str]:
    """What `show` returns, for a terminal of 80 columns."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view["submitted"]))
    lines = [f"{view['run']}  {view['state']}  submitted {when}"]
    if view["cleaned"]:
        when = time.strftime("%Y-%m-%d", time.localtime(view["cleaned"]))
        lines.append(f"its files were cleaned away on {when}")
    if resumes := view.get("resumes"):
        lines.append(f"resumed {len(resumes)} times" if len(resumes) > 1 else "resumed once")
    if view.get("command"):
        lines += section("submitted", [
            view["command"],
            f"in {view['folder']}",
            f"by {view['user']} on {view['host']}, to schedd {view['schedd']}"
            + (f", site {view['site']}" if view["site"] else ""),
        ])  # fmt: skip
    lines += section("parameters", [f"{name}: {value}" for name, value in view["params"].items()])
    lines += section("git", _git(view.get("git")))
    if code := view.get("code"):
        lines += section("code", [f"sha256 {code['sha256'][:12]}, {len(code['files'])} files"])
    lines += section("inputs", [
        f"{name}: {size(one['bytes'])}, sha256 {one['sha256'][:12]}"
        + ("" if one["copied"] else f", used where it is: {one['source']}")
        for name, one in view.get("inputs", {}).items()
    ])  # fmt: skip
    lines += section("images", [
        f"{name}: {one['image']}" + ("" if one["digest"] else " (a name without a digest)")
        for name, one in view.get("images", {}).items()
    ])  # fmt: skip
    if versions := view.get("versions"):
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines += section("versions", [f"{told}; {len(view['packages'])} packages: --json"])
    for stage in view["stages"]:
        lines += section(stage["stage"], _stage_rows(stage))
    return [printable(line) if line else "" for line in lines]


def _git(git: Json | None) -> list[str]:
    if not git:
        return []
    rows = [f"{git['commit'] or 'no commit yet'} on {git['branch'] or 'no branch'}"]
    if git["diff"]:
        cut = "" if git["diff"]["complete"] else ", cut"
        rows.append(
            f"uncommitted changes: {git['diff']['file']}, {size(git['diff']['bytes'])}{cut}"
        )
    if git["untracked"]:
        more = git["untracked_count"] - 5
        names = ", ".join(git["untracked"][:5]) + (f" and {more} more" if more > 0 else "")
        rows.append(f"not in git: {names}")
    return rows


def _stage_rows(stage: Json) -> list[str]:
    rows = [" ".join(stage["command"])]
    if stage["why"]:
        rows.append(stage["why"])
    machine = stage["machine"]
    if stage["job"]:
        parts = [machine.get("host"), machine.get("kernel"), *gpus.words(machine)]
        code = stage["exit_code"]
        ended = f", exit code {code}" if code is not None else ""
        rows.append(f"job {stage['job']}{ended}: {', '.join(filter(None, parts)) or 'no record'}")
        rows += filter(None, [gpus.use_in_words(stage["usage"]), gpus.hint(stage["usage"])])
    shown = stage["outputs"][:10]
    rows += [f"{one['path']}: {size(one['bytes'])}, sha256 {one['sha256'][:12]}" for one in shown]
    if len(stage["outputs"]) > len(shown):
        rows.append(f"and {len(stage['outputs']) - len(shown)} more files: --json")
    return rows
