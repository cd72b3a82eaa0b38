"""A spec's text: YAML whose words stay as they are written, and ``{{ name }}`` filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from condorctl.errors import UserError

# A key with all the keys above it, e.g. ("stages", "train", "command"); in a list, the index.
Key = tuple[str, ...]
Scalar = str | bool | int | float
Value = Scalar | list[Scalar]

# Aliases let a page of YAML stand for more than a machine can hold.
_MOST_ENTRIES = 100_000
_ALONE = re.compile(r"\s*\{\{\s*([A-Za-z_]\w*)\s*\}\}\s*")


def read(path: Path) -> tuple[Any, dict[Key, int]]:
    """The data in the file at `path`, and the line of each key and list item.

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


def fill(source: str, values: Mapping[str, Value]) -> str:
    """`source` with every ``{{ name }}`` replaced by its value, arithmetic and filters done.

    Raises ValueError, with what to say to the spec's author.
    """
    try:
        template, names = _template(source)
        lists = [name for name in sorted(names) if isinstance(values.get(name), list)]
        if not lists:
            return template.render(values)
    except jinja2.UndefinedError as error:
        raise ValueError(f"{error.message}; parameters are {', '.join(sorted(values))}") from None
    except jinja2.TemplateError as error:
        raise ValueError(str(error.message)) from None
    except Exception as error:
        # Whatever arithmetic on foreign values can end in.
        raise ValueError(f"{source!r}: {error}") from None
    raise ValueError(
        f"{lists[0]!r} is a list: let a matrix take its values one by one, "
        f"matrix: {{axis: '{{{{ {lists[0]} }}}}'}}"
    )


def name_alone(source: str) -> str | None:
    """The name in text that is exactly one ``{{ name }}``: it may stand for a value of any type."""
    match = _ALONE.fullmatch(source)
    return match[1] if match else None


def like(default: Value, given: str) -> Value:
    """`given`, from the command line, as the type of the parameter's default.

    A list is written ``[0, 1]``, ``0,1`` or, with one item, ``0``. Raises ValueError.
    """
    if isinstance(default, list):
        return [_like(default[0], item) for item in _items(given)]
    return _like(default, given)


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
    if len(lines) > _MOST_ENTRIES:
        raise UserError(f"{path}: holds more than {_MOST_ENTRIES} entries, aliases written out")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, str(index))] = item.start_mark.line + 1
            _note_lines(path, item, (*at, str(index)), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here, line = (*at, str(key.value)), key.start_mark.line + 1
        if here in lines and key.value != "<<":
            # YAML lets the last one win, and half of a pipeline would be gone in silence.
            raise UserError(f"{path}:{line}: {'.'.join(here)}: stands here twice")
        lines[here] = line
        _note_lines(path, value, here, lines)


# A spec comes from other people too, so its text can name parameters and call nothing else.
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=text)
_JINJA.globals.clear()


def _basename(value: Scalar) -> str:
    """The name that a local input file has in the job's sandbox; empty for the empty text."""
    path = str(text(value))
    return Path(path).absolute().name if path else ""


_JINJA.filters["basename"] = _basename


# A matrix fills in the same text for each of its stages.
@lru_cache(maxsize=1024)
def _template(source: str) -> tuple[jinja2.Template, set[str]]:
    return _JINJA.from_string(source), meta.find_undeclared_variables(_JINJA.parse(source))


def _items(given: str) -> list[str]:
    if not given.strip().startswith("["):
        return [item.strip() for item in given.split(",")]
    try:
        node = yaml.compose(given, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        node = None
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    if not items or not all(isinstance(item, yaml.ScalarNode) for item in items):
        raise ValueError(f"must be a list such as [0, 1], or 0,1, not {given!r}")
    return [item.value for item in items]


def _like(default: Scalar, given: str) -> Scalar:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[given.lower()]
        if isinstance(default, int):
            return int(given)
        if isinstance(default, float):
            return Written(given)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise ValueError(f"must be {kind}, not {given!r}") from None
    return given
