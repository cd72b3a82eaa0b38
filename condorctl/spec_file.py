"""A spec's file: its data, and the line of each key, so that an error can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condorctl import yaml_text
from condorctl.errors import UserError
from condorctl.yaml_text import Key, Scalar, Value

# DAGMan's names hold no blank, '.' or '+'; the name is also a folder and a word on a command line.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class SpecFile:
    """The file at `path` as the spec's author wrote it, ``{{ name }}`` not yet filled in.

    Raises UserError for a file that holds no YAML mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data, self._lines = yaml_text.read(path)
        if not isinstance(data, dict):
            raise UserError(f"{path}: must be a mapping with a key 'stages'")
        self.data: dict[Any, Any] = data
        self._keys: dict[str, str] = {}

    def note_stage(self, name: str, key: str) -> None:
        """From here on, errors find the stage `name` under `key`, which a matrix fills in."""
        self._keys[name] = key

    def place(self, at: Key) -> str:
        """File, line and key of `at`, as the file has them; a matrix's stage by its name, too."""
        name = ""
        if at[:1] == ("stages",) and at[:2] not in self._lines and at[1:2]:
            key = self._keys.get(at[1])
            name = f" ({at[1]})" if key else ""
            at = ("stages", key or at[1], *at[2:])
        known = at
        while known and known not in self._lines:
            known = known[:-1]
        line = f":{self._lines[known]}" if known else ""
        return f"{self.path}{line}: {'.'.join(at)}{name}" if at else str(self.path)

    def fail(self, at: Key, message: str) -> UserError:
        """An error at the key `at`, with the line of the nearest key that the file has."""
        return UserError(f"{self.place(at)}: {message}")

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


def is_name(text: str) -> bool:
    """Whether a pipeline or a stage can be called so."""
    return bool(_NAME.fullmatch(text))
