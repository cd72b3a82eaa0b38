"""Stages that need not run again, because an earlier run has what they would make.

A stage's result depends on its command, its code, its inputs, its environment, its container image
and the outputs that it must leave: its fingerprint has the hash of each. What it gets from earlier
stages is compared by the hashes that their own nodes recorded (`record`). Resources, retries and
the run's name do not count; nor does what no spec tells, such as the packages on a node.

Outputs are taken over as the same files (hard links), or as copies on another file system, once
their hashes have been found to be those recorded.
"""

from __future__ import annotations

import getpass
import json
import posixpath
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from condorctl.errors import UserError, suggest
from condorctl.ledger import NEWEST_FIRST, Ledger, Run, find
from condorctl.ledger import Stage as Entry
from condorctl.spec.pipeline import Pipeline, Stage, is_url, split_input
from condorctl.submit import content, universe
from condorctl.submit.snapshot import Snapshot

# In a rendered submit file.
_IMAGE = re.compile(
    r"^[ \t]*(?:universe|docker_image|container_image|container_target_dir)[ \t]*=.*$",
    re.IGNORECASE | re.MULTILINE,
)
# What a template of the user's may set beside the spec.
_ENVIRONMENT = re.compile(
    r"^[ \t]*(?:executable|environment|getenv)[ \t]*=.*$", re.IGNORECASE | re.MULTILINE
)
# Finished stages of a name that are looked at, the newest first.
_MOST = 500
# And of those that are alike, how many are tried when files of the newer ones are gone.
_MOST_ALIKE = 5

Prints = dict[str, str]


@dataclass(frozen=True)
class Wish:
    """What may be reused: `start` at these stages (globs) with the run `run`; or by `force` none.

    Without either, every stage that has not changed.
    """

    start: Sequence[str] = ()
    run: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Done:
    """A finished stage: where its files are, and the SHA-256 of each by its path."""

    run: str
    origin: int
    origin_run: str
    folder: Path
    fingerprint: Prints
    files: dict[str, str]
    upstream: dict[str, dict[str, str]]


@dataclass
class Plan:
    """What becomes of each stage, by its name: `why` in words, `taken` if it does not run."""

    why: dict[str, str] = field(default_factory=dict)
    taken: dict[str, Done] = field(default_factory=dict)


def fingerprint(
    stage: Stage,
    of: Pipeline,
    taken: Snapshot,
    python: Sequence[str],
    text: str,
    image: universe.Image | None,
) -> Prints:
    """What the result of `stage` depends on, each part by its SHA-256.

    `python` is what that word means at the head of a command, `text` the rendered submit file,
    `image` the one that is named there.
    """
    packages = {Path(name).name for name in stage.code}
    # A stage that declares no code can still import what the others brought along.
    code = {p: h for p, h in taken.code.items() if not packages or p.split("/")[0] in packages}
    inputs = [
        ["" if text.endswith("/") else taken.inputs[text].source.name, taken.inputs[text].sha256]
        if text in taken.inputs
        else [text, None]
        for text in stage.brought
    ]
    images = [line.strip() for line in _IMAGE.findall(text)]
    if image and image["digest"]:
        # Of a file the name says nothing about what is in it.
        images.append(image["digest"])
    parts = {
        "command": stage.command,
        "code": code,
        "inputs": inputs,
        "environment": [
            [line.strip() for line in _ENVIRONMENT.findall(text)],
            python if stage.command[0] == "python" else None,
        ],
        "image": images,
        "outputs": stage.outputs,
    }
    return {k: content.text_sha256(json.dumps(v, sort_keys=True)) for k, v in parts.items()}


def plan(
    ledger: Ledger, pipeline: Pipeline, prints: Mapping[str, Prints], wish: Wish, folder: Path
) -> Plan:
    """Decide for each stage whether it runs; put the outputs of those that do not into `folder`.

    Raises UserError when a run that was asked for has not what is wanted of it.
    """
    plan = Plan()
    if wish.start or wish.run:
        _from_run(ledger, pipeline, prints, wish, folder, plan)
        return plan
    found: dict[str, list[Done]] = {}
    if not wish.force:
        with ledger.session() as session:
            found = {n: _finished(session, n, prints[n]) for n in pipeline.stages}
    for name in pipeline.order():
        stage = pipeline.stages[name]
        again = [need for need in stage.upstream(pipeline.stages) if need not in plan.taken]
        if wish.force:
            plan.why[name] = "runs: --force"
        elif not found[name]:
            plan.why[name] = "runs: there is no finished run of it"
        elif not stage.outputs:
            plan.why[name] = "runs: it has no outputs that could stand in for it"
        elif again:
            changed = _differences(stage, prints[name], found[name][0], {})
            plan.why[name] = f"runs: {f'{changed} and ' if changed else ''}{_run(again)}"
        else:
            _unchanged(stage, prints[name], found[name], folder, plan)
    return plan


def explain(plan: Plan) -> list[str]:
    """`plan` for a human, a line for the stages that share a reason; none where all is new."""
    if all(why.endswith("no finished run of it") for why in plan.why.values()):
        return []
    groups: dict[str, list[str]] = {}
    for name, why in plan.why.items():
        groups.setdefault(why, []).append(name)
    return [f"{_list(names)}: {why}" for why, names in groups.items()]


def _unchanged(
    stage: Stage, prints: Prints, found: Sequence[Done], folder: Path, plan: Plan
) -> None:
    """Take the newest of `found` that is the same in everything and whole; say so in `plan`."""
    reasons = []
    for done in found:
        changed = _differences(stage, prints, done, plan.taken)
        fault = None if changed else _take(stage, done, folder)
        if not changed and not fault:
            plan.taken[stage.name] = done
            plan.why[stage.name] = f"unchanged since {done.origin_run}, not run again"
            return
        # What is wrong with files that would do says more than that others are different.
        reasons.append((not fault, f"runs: {fault or changed}"))
    plan.why[stage.name] = min(reasons, key=lambda reason: reason[0])[1]


def _from_run(
    ledger: Ledger,
    pipeline: Pipeline,
    prints: Mapping[str, Prints],
    wish: Wish,
    folder: Path,
    plan: Plan,
) -> None:
    if not wish.start:
        raise UserError(f"--reuse {wish.run}: name the stage to start at: --from STAGE")
    for pattern in wish.start:
        if not any(fnmatchcase(name, pattern) for name in pipeline.stages):
            hint = suggest(pattern, pipeline.stages)
            raise UserError(f"--from {pattern}: {pipeline.name} has no such stage{hint}")
    with ledger.session() as session:
        run = find.run(session, wish.run) if wish.run else _latest_of(session, pipeline.name)
        if run.kind != "pipeline":
            raise UserError(
                f"--reuse {run.name}: condorctl adopted it and knows no hash of its files"
            )
        name = run.name
        there = {stage.name: _done(stage) for stage in run.stages}
    for stage in (pipeline.stages[n] for n in pipeline.order()):
        again = [need for need in stage.upstream(pipeline.stages) if need not in plan.taken]
        done = there.get(stage.name)
        if any(fnmatchcase(stage.name, pattern) for pattern in wish.start):
            plan.why[stage.name] = "runs: it was to start here"
        elif again:
            plan.why[stage.name] = f"runs: {_run(again)}"
        elif not done:
            plan.why[stage.name] = f"runs: it is not done in {name}"
        else:
            fault = _take(stage, done, folder)
            if fault:
                raise UserError(
                    f"--reuse {name}: {stage.name}: {fault}; --from {stage.name} runs it again"
                )
            changed = _differences(stage, prints[stage.name], done, plan.taken)
            although = f", although {changed}" if changed else ""
            plan.taken[stage.name] = done
            plan.why[stage.name] = f"taken from {done.origin_run}{although}"


def _latest_of(session: Session, pipeline: str) -> Run:
    query = select(Run).where(Run.pipeline == pipeline, Run.owner == getpass.getuser())
    found = session.scalar(query.where(Run.kind == "pipeline").order_by(*NEWEST_FIRST).limit(1))
    if not found:
        raise UserError(f"--from: there is no earlier run of {pipeline} to take stages from", 1)
    return found


def _finished(session: Session, name: str, prints: Prints) -> list[Done]:
    """The user's newest finished stage called `name`, and the newest that have this fingerprint."""
    query = (
        select(Entry)
        .join(Run)
        .where(Entry.name == name, Run.owner == getpass.getuser(), Run.kind == "pipeline")
        .order_by(*NEWEST_FIRST)
        .limit(_MOST)
    )
    found: list[Done] = []
    for entry in session.scalars(query):
        if (not found or entry.fingerprint == prints) and (done := _done(entry)):
            found.append(done)
        if len(found) > _MOST_ALIKE:
            break
    return found


def _done(stage: Entry) -> Done | None:
    origin = stage.origin
    if not origin.current or any(job.state != "completed" for job in origin.current):
        return None
    needs = {other.name: other for other in stage.run.stages if other.name in stage.needs}
    return Done(
        run=stage.run.name,
        origin=origin.id,
        origin_run=origin.run.name,
        folder=stage.folder,
        fingerprint=dict(stage.fingerprint),
        files=_recorded(origin),
        upstream={name: _recorded(other.origin) for name, other in needs.items()},
    )


def _recorded(stage: Entry) -> dict[str, str]:
    """The files that a stage left, as its node or its checkpoints' hashes have it."""
    found: dict[str, str] = {}
    for job in stage.current:
        found.update((one.path, one.sha256) for one in job.checkpoints if one.place)
        found.update((one.path, one.sha256) for one in job.written)
    return found


def _differences(stage: Stage, prints: Prints, done: Done, taken: Mapping[str, Done]) -> str | None:
    """What makes `stage` another one than `done`, None when nothing does."""
    parts = [part for part in prints if prints[part] != done.fingerprint.get(part)]
    for text in stage.inputs:
        maker, file = split_input(text)
        if maker not in taken or is_url(text):
            continue
        if _below(taken[maker].files, file) != _below(done.upstream.get(maker, {}), file):
            parts.append(f"input {text}")
    return f"its {_list(parts)} changed since {done.run}" if parts else None


def _take(stage: Stage, done: Done, folder: Path) -> str | None:
    """Put the outputs of `done` into `folder`; what is wrong with them, None when all is well."""
    target = folder / stage.name
    fault = None
    for output in stage.outputs:
        fault = fault or _take_output(output, done, target)
    if fault:
        shutil.rmtree(target, ignore_errors=True)
    return fault


def _take_output(output: str, done: Done, target: Path) -> str | None:
    expected = _below(done.files, output)
    if not expected:
        return f"the hash of {output} was never recorded in {done.run}"
    place = done.folder / output
    try:
        there = {str(file.relative_to(done.folder)) for file in content.files(place)}
    except OSError:
        there = set()
    for path in sorted(expected.keys() | there):
        if path not in there:
            return f"{done.run} has no {path} any more"
        if path not in expected:
            return f"{path} of {done.run} was not there when the stage ended"
        try:
            if not (target / path).exists():
                content.link(done.folder / path, target / path)
            if content.sha256(target / path) != expected[path]:
                return f"{path} of {done.run} is damaged: its hash is not the one recorded"
        except OSError as error:
            return f"{path} of {done.run}: {error.strerror}"
    return None


def _below(files: Mapping[str, str], output: str) -> dict[str, str]:
    """Those of an output: itself, or all that it holds when it is a folder."""
    path = posixpath.normpath(output)
    return {p: h for p, h in files.items() if p == path or p.startswith(f"{path}/")}


def _run(stages: Sequence[str]) -> str:
    return f"{_list(stages)} {'run' if len(stages) > 1 else 'runs'}"


def _list(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and 3 more``."""
    if len(words) > 3:
        return f"{', '.join(words[:2])} and {len(words) - 2} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
