"""`condorctl lint`: everything that is wrong with a pipeline, before anything is submitted.

A wrong key, reference or template would stop a submission, too. What only shows in the job, or as a
job that is held for ever, is found here alone: a command without the execute bit or with Windows'
line ends, a script that is not among the inputs. No pool is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment

from condorctl import paths
from condorctl.errors import UserError
from condorctl.spec import pipeline, reader
from condorctl.spec.pipeline import Pipeline, Stage
from condorctl.spec.spec_file import Problem, SpecFile
from condorctl.submit import render

_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*|(ba|da|z|k)?sh|perl|Rscript|julia|ruby|node")
_SCRIPT = re.compile(r".+\.(py|sh|bash|pl|R|r|jl|rb|js|mjs)")
# Options of interpreters whose own next word is a program or a module, so no file follows.
_NO_SCRIPT = {"-c", "-m", "-e", "-", "-s"}


def lint(
    names: list[str], settings: Mapping[str, str], site: str | None = None
) -> dict[str, list[UserError]]:
    """All problems of the pipelines `names`, else of all in ``jobs/``: the file, what is wrong.

    Raises UserError where there is no such pipeline, or none at all.
    """
    files = [paths.spec(name) for name in names]
    if not names:
        folder = paths.search("jobs")[0]
        files = [file.relative_to(paths.project()) for file in sorted(folder.glob("*.yaml"))]
        if not files:
            raise UserError(f"{folder}: holds no pipeline, NAME.yaml; `condorctl init` writes one")
    return {str(file): check(file, settings, site) for file in files}


def check(file: Path, settings: Mapping[str, str], site: str | None = None) -> list[UserError]:
    """All problems of the spec in `file`, in the order of its lines."""
    try:
        source = SpecFile(file)
    except UserError as error:
        return [error]
    found, problems = reader.problems(source, settings, site)
    if found:
        problems = [*problems, *_beyond(source, found)]
    unique = {str(problem): problem for problem in problems}
    return sorted(unique.values(), key=lambda p: p.line if isinstance(p, Problem) else 0)


def as_json(problem: UserError) -> dict[str, Any]:
    """A problem for programs: its parts, and its one line."""
    if not isinstance(problem, Problem):
        return {"file": None, "line": None, "key": None, "message": None, "text": str(problem)}
    where = {"file": str(problem.file), "line": problem.line or None, "key": problem.key or None}
    return {**where, "message": problem.message, "text": str(problem)}


def _beyond(file: SpecFile, found: Pipeline) -> Iterator[UserError]:
    """What is wrong though the spec can be read."""
    seen: set[tuple[str, str]] = set()
    templates = render.templates_here()
    for name in found.stages:
        written = file.written(name)
        for key, message in _stage(found, found.stages[name], templates):
            # A matrix's stages share their lines.
            if (written, message) not in seen:
                seen.add((written, message))
                yield file.fail(("stages", name, *key), message)


def _stage(
    found: Pipeline, stage: Stage, templates: Environment
) -> Iterator[tuple[tuple[str, ...], str]]:
    for package in stage.code:
        try:
            paths.package(package)
        except UserError as error:
            yield ("code",), str(error).removeprefix("code: ")
    try:
        render.submit_file(found, stage, found.name, ["python3"], templates)
    except UserError as error:
        yield (), str(error)
    local = _sandbox(found, stage)
    yield from _twice(found, stage)
    yield from _program(found, stage, local)


def _sandbox(found: Pipeline, stage: Stage) -> dict[str, Path | None]:
    """The files that a stage's job finds, by their paths there; the local ones with their own."""
    there: dict[str, Path | None] = {}
    for text in stage.inputs:
        if pipeline.is_url(text):
            there[PurePosixPath(text).name] = None
        elif not Path(text).exists():
            # Another stage's, be it one that cannot be read now.
            there[text] = None
        elif text.endswith("/"):
            # HTCondor takes the slash for "what is in it".
            there |= {child.name: child for child in Path(text).iterdir()}
        else:
            there[Path(text).absolute().name] = Path(text)
    return there


def _twice(found: Pipeline, stage: Stage) -> Iterator[tuple[tuple[str, ...], str]]:
    """Two local inputs of one name: in the job, the second takes the place of the first."""
    names: dict[str, str] = {}
    for text in stage.inputs:
        others = pipeline.is_url(text) or pipeline.split_input(text)[0] in found.stages
        if others or text.endswith("/"):
            continue
        name = Path(text).absolute().name
        if name in names and Path(names[name]).absolute() != Path(text).absolute():
            yield ("inputs",), f"{names[name]!r} and {text!r} are both {name!r} in the job"
        names.setdefault(name, text)


def _program(
    found: Pipeline, stage: Stage, there: Mapping[str, Path | None]
) -> Iterator[tuple[tuple[str, ...], str]]:
    program, *words = stage.command
    at = ("command",)
    if not program.strip():
        yield at, "its first word, the program, is empty"
        return
    inside = _inside(program)
    if inside in there:
        if "/" not in program:
            yield at, f"{program!r} would be looked for on the node's PATH: write './{program}'"
            return
        local = there[inside]
        if local and local.is_file():
            yield from ((at, message) for message in _executable(local))
        return
    if "/" in program and not program.startswith("/"):
        if not _made(inside, stage, there):
            yield at, _absent(program, there)
        return
    name = PurePosixPath(program).name
    if not _INTERPRETER.fullmatch(name):
        return
    for word in words:
        if word in _NO_SCRIPT:
            return
        if word.startswith("-"):
            continue
        script = _inside(word)
        if _SCRIPT.fullmatch(word) and not word.startswith("/"):
            if not _made(script, stage, there):
                yield at, _absent(word, there)
            elif not name.startswith(("python", "pypy", "node")):
                local = there.get(script)
                if local and local.is_file() and _ends_wrong(local):
                    yield at, _crlf(local)
        return


def _made(name: str, stage: Stage, there: Mapping[str, Path | None]) -> bool:
    """Whether a job's folder will hold `name`: itself, in a folder that travels, or in the code."""
    parts = PurePosixPath(name).parts
    for depth in range(1, len(parts) + 1):
        head, rest = "/".join(parts[:depth]), parts[depth:]
        if head in there:
            local = there[head]
            return not local or not rest or local.joinpath(*rest).exists()
    return parts[:1] == ("code",) and parts[1:2] in {(Path(name).name,) for name in stage.code}


def _inside(word: str) -> str:
    return os.path.normpath(word)


def _absent(word: str, there: Mapping[str, Path | None]) -> str:
    name = PurePosixPath(word).name
    if name in there:
        return f"{word!r} is {name!r} in the job: inputs lie in its folder by their last names"
    return f"{word!r} is not among the inputs, and the execute node has no other files"


def _executable(local: Path) -> Iterator[str]:
    if not os.access(local, os.X_OK):
        yield f"{str(local)!r} is not executable: chmod +x {local}"
    if _ends_wrong(local):
        yield _crlf(local)


def _ends_wrong(local: Path) -> bool:
    """Whether the first line of a script ends as Windows ends lines."""
    with local.open("rb") as file:
        return file.readline(4096).endswith(b"\r\n")


def _crlf(local: Path) -> str:
    return f"{str(local)!r} has Windows' line ends (CRLF), which no interpreter takes: dos2unix"
