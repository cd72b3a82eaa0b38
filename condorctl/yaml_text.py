"""YAML as condorctl reads it: text stays as it is written, and each key has a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from condorctl.errors import UserError

# A key with all the keys above it, e.g. ("stages", "train", "command").
Key = tuple[str, ...]


def read(path: Path) -> tuple[Any, dict[Key, int]]:
    """The data in the file at `path`, and the line of each key.

    Raises UserError for a file that cannot be read, is no YAML, or has a key twice.
    """
    lines: dict[Key, int] = {}
    try:
        source = path.read_text(encoding="utf-8")
        _note_lines(path, yaml.compose(source, Loader=_Loader), (), lines)
        return yaml.load(source, Loader=_Loader), lines
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from None


def text(value: Any) -> Any:
    """A scalar as a program reads it: booleans in lower case."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


class Written(float):
    """A number that prints as it was written: ``1e-3`` must not reach a program as ``0.001``."""

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain words: here ``on`` and ``no`` are text, ``1e-3`` is a number."""


_Loader.yaml_implicit_resolvers = {}


for _tag, _pattern, _first in [
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"0|[-+]?[1-9][0-9]*", list("+-0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("+-.0123456789")),
    ("merge", r"<<", ["<"]),
]:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: Written(str(node.value)))


def _note_lines(path: Path, node: yaml.Node | None, at: Key, lines: dict[Key, int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value == "<<":
            continue
        here, line = (*at, str(key.value)), key.start_mark.line + 1
        if here in lines:
            # YAML lets the last one win, and half of a pipeline would be gone in silence.
            raise UserError(f"{path}:{line}: {'.'.join(here)}: stands here twice")
        lines[here] = line
        _note_lines(path, value, here, lines)
