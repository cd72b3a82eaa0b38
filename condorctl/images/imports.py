"""Which modules the stages' own code imports from elsewhere, found without running any of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from condorctl import paths
from condorctl.errors import UserError
from condorctl.spec.pipeline import Pipeline, Stage

# Module: whether the code can do nothing without it.
Imports = dict[str, bool]


def of(pipelines: Iterable[Pipeline]) -> Imports:
    """The modules that the stages of `pipelines` import, neither theirs nor Python's own.

    Stages that bring an environment of their own need none of an image.
    One that is imported where its failure is caught, or within a function, can be done without.
    """
    found: Imports = {}
    for pipeline in pipelines:
        for stage in pipeline.stages.values():
            if stage.venv:
                # It imports from there, and by the Python of that.
                continue
            files = list(_files(pipeline, stage))
            own = {"condorctl", *(file.stem for file in files), *map(_name, stage.code)}
            for file in files:
                for module, needed in _imports(file):
                    if module not in own and module not in sys.stdlib_module_names:
                        found[module] = found.get(module, False) or needed
    return dict(sorted(found.items()))


def _files(pipeline: Pipeline, stage: Stage) -> Iterator[Path]:
    """The Python files that travel with a stage."""
    for base in [
        *(paths.package(name) for name in stage.code),
        *(Path(text) for text in stage.local(pipeline.stages)),
    ]:
        if base.is_dir():
            yield from sorted(base.rglob("*.py"))
        elif base.suffix == ".py":
            yield base


def _name(code: str) -> str:
    return Path(code).name.removesuffix(".py")


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file}: is no Python: {error}") from None
    yield from _within(tree, True)


def _within(node: ast.AST, needed: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], needed) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            if child.module and not child.level:
                yield child.module.partition(".")[0], needed
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (one for part in child.orelse for one in _within(part, needed))
        else:
            inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try)
            yield from _within(child, needed and not isinstance(child, inside))
