"""A spec's file: its data, and the line of each key, so that an error can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from condorctl.errors import UserError, suggest
from condorctl.spec import yaml_text
from condorctl.spec.yaml_text import Key, Scalar, Value

# DAGMan's names hold no blank, '.' or '+'; the name is also a folder and a word on a command line.
NAME = "[A-Za-z][A-Za-z0-9_-]{0,63}"

# Pydantic's kinds of errors that say all there is without the value.
_PLAIN = {"missing", "limit", "refused", "own"}


class Problem(UserError):
    """What is wrong with one key of a file: `file`, `line` (0: none), `key` and `message`."""

    def __init__(self, file: Path, line: int, key: str, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.file, self.line, self.key, self.message = file, line, key, message


class SpecFile:
    """The file at `path` as its author wrote it, ``{{ name }}`` not yet filled in.

    Raises UserError for a file that holds no YAML mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data, self._lines = yaml_text.read(path)
        if not isinstance(data, dict):
            raise UserError(f"{path}: must be a mapping, KEY: VALUE")
        self.data: dict[Any, Any] = data
        self._keys: dict[str, str] = {}

    def note_stage(self, name: str, key: str) -> None:
        """From here on, errors find the stage `name` under `key`, which a matrix fills in."""
        self._keys[name] = key

    def written(self, stage: str) -> str:
        """The key that the stage of this name is written under: with a matrix, another than it."""
        return self._keys.get(stage, stage)

    def place(self, at: Key) -> str:
        """File, line and key of `at`, as the file has them; a matrix's stage by its name, too."""
        line, key, name = self._find(at)
        where = f"{self.path}{f':{line}' if line else ''}{f': {key}' if key else ''}"
        return f"{where} ({name})" if name else where

    def fail(self, at: Key, message: str) -> Problem:
        """An error at the key `at`, with the line of the nearest key that the file has."""
        line, key, _ = self._find(at)
        return Problem(self.path, line, key, self.place(at), message)

    def _find(self, at: Key) -> tuple[int, str, str]:
        """The line of `at`, its key as the file has it, and the matrix's stage that it is of."""
        name = ""
        if at[:1] == ("stages",) and at[:2] not in self._lines and at[1:2]:
            key = self._keys.get(at[1])
            name = at[1] if key else ""
            at = ("stages", key or at[1], *at[2:])
        known = at
        while known and known not in self._lines:
            known = known[:-1]
        return self._lines[known] if known else 0, ".".join(at), name

    def text(self, at: Key, source: str, values: Mapping[str, Value]) -> str:
        """`source`, which stands at `at`, with every ``{{ name }}`` replaced by its value."""
        try:
            return yaml_text.fill(source, values)
        except ValueError as error:
            raise self.fail(at, str(error)) from None

    def scalar(self, at: Key, value: Any, params: Mapping[str, Value]) -> Scalar:
        """The same of any one value; a lone ``{{ name }}`` keeps its parameter's type."""
        if isinstance(value, str):
            name = yaml_text.name_alone(value)
            value = params.get(name) if name else self.text(at, value, params)
        if not isinstance(value, Scalar):
            raise self.fail(at, "must be text, a number, true or false, or a parameter like these")
        return value


class Complaint(NamedTuple):
    """What Pydantic found, in words for the file's author."""

    at: Key
    message: str


def complaints(error: ValidationError, model: type[BaseModel]) -> list[Complaint]:
    """All that `error` says of a `model`, each at its key; of misspelt keys, those alone.

    A misspelt key is also a missing one, and the spelling is what to mend.
    """
    found = error.errors()
    unknown = [one for one in found if one["type"] == "extra_forbidden"]
    told: dict[Key, str] = {}
    for one in unknown or found:
        at = tuple(str(part) for part in one["loc"] if part != "[key]")
        told.setdefault(at, _message(one, model))
    return [Complaint(at, message) for at, message in told.items()]


def _message(found: ErrorDetails, model: type[BaseModel]) -> str:
    text = repr(found["input"])
    given = text if len(text) <= 60 else text[:57] + "..."
    kind = found["type"]
    if kind == "extra_forbidden":
        *above, key = found["loc"]
        for part in above:
            if isinstance(part, str) and part in model.model_fields:
                model = _model_in(model.model_fields[part].annotation) or model
        return f"unknown key{suggest(str(key), model.model_fields)}"
    if kind == "list_type":
        return f"must be a list, [a, b] or an item a line, not {given}"
    if kind in _PLAIN:
        return found["msg"]
    return f"{found['msg'].replace('Input should', 'must', 1)}, not {given}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model``, ``list[Model]`` or ``Model | None``."""
    inside = (annotation, *get_args(annotation))
    return next((a for a in inside if isinstance(a, type) and issubclass(a, BaseModel)), None)


def is_name(text: str) -> bool:
    """Whether a pipeline or a stage can be called so."""
    return bool(re.fullmatch(NAME, text))
