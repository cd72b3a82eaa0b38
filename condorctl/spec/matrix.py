"""A spec's matrices: one written stage stands for a stage a combination of its axes' values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from condorctl.errors import suggest
from condorctl.spec import yaml_text
from condorctl.spec.spec_file import SpecFile, is_name
from condorctl.spec.yaml_text import Key, Scalar, Value

# DAGMan's own word for "every node", and the run folder's own entries.
_RESERVED = {"all_nodes", "code", "logs"}
_MOST_STAGES = 10_000


class Draft(NamedTuple):
    """A stage before its text is filled in: one combination of its matrix."""

    key: str
    raw: Mapping[str, Any]
    combination: Mapping[str, Scalar]


def expand(
    file: SpecFile,
    key: str,
    written: Mapping[str, Any],
    params: Mapping[str, Value],
    taken: Mapping[str, Draft],
) -> dict[str, Draft]:
    """The drafts of the stage `written` under `key`, by their names, in the order of its matrix.

    Errors find a stage by its name afterwards. Raises UserError for a matrix that makes no sense,
    and for a name that cannot be one, is `taken` or is given twice.
    """
    drafts: dict[str, Draft] = {}
    at = ("stages", key)
    raw = {name: value for name, value in written.items() if name != "matrix"}
    combinations: list[dict[str, Scalar]] = [{}]
    if "matrix" in written:
        combinations = _Matrix(file, (*at, "matrix"), params).combinations(written["matrix"])
    for combination in combinations:
        name = file.text(at, key, {**params, **combination})
        if not is_name(name) or name.lower() in _RESERVED:
            raise file.fail(at, f"{name!r} is no name for a stage: letters, digits, '_', '-'")
        if other := drafts.get(name) or taken.get(name):
            raise file.fail(at, _twice(name, key, combination, other))
        drafts[name] = Draft(key, raw, combination)
        file.note_stage(name, key)
    return drafts


@dataclass(frozen=True)
class _Matrix:
    """One matrix being read: where it stands in the file, and the parameters it may name."""

    file: SpecFile
    at: Key
    params: Mapping[str, Value]

    def combinations(self, matrix: Any) -> list[dict[str, Scalar]]:
        """The product of the axes, the first one slowest, less ``exclude``, and ``include``."""
        if not isinstance(matrix, dict) or not matrix:
            raise self.file.fail(self.at, "must be a mapping from axis to a list of values")
        axes = {
            str(axis): self._axis((*self.at, str(axis)), values)
            for axis, values in matrix.items()
            if axis not in {"include", "exclude"}
        }
        included = self._listed((*self.at, "include"), matrix.get("include"))
        excluded = self._listed((*self.at, "exclude"), matrix.get("exclude"))
        for index, pattern in enumerate(excluded):
            for axis in pattern.keys() - axes.keys():
                where = (*self.at, "exclude", str(index), axis)
                raise self.file.fail(where, f"is no axis{suggest(axis, axes)}")
        if math.prod(map(len, axes.values())) > _MOST_STAGES:
            raise self.file.fail(self.at, f"gives more than {_MOST_STAGES} stages")
        product = itertools.product(*axes.values()) if axes else ()
        combinations = [dict(zip(axes, values, strict=True)) for values in product]
        kept = [c for c in combinations if not any(p.items() <= c.items() for p in excluded)]
        if not kept and not included:
            raise self.file.fail(self.at, "leaves no combination: exclude fewer, or drop the stage")
        return [*kept, *included]

    def _axis(self, at: Key, values: Any) -> list[Scalar]:
        self._new_variable(at)
        if isinstance(values, str):
            found = self.params.get(yaml_text.name_alone(values) or "")
            if not isinstance(found, list):
                lists = [name for name, value in self.params.items() if isinstance(value, list)]
                known = f"; lists are {', '.join(lists)}" if lists else ""
                raise self.file.fail(
                    at, f"must be a list, or '{{{{ name }}}}' of a parameter that is one{known}"
                )
            return found
        if not isinstance(values, list) or not values:
            raise self.file.fail(at, "must be a list of values, one at least")
        return [
            self.file.scalar((*at, str(index)), value, self.params)
            for index, value in enumerate(values)
        ]

    def _listed(self, at: Key, given: Any) -> list[dict[str, Scalar]]:
        """The combinations that ``include`` or ``exclude`` lists."""
        if not isinstance(given or [], list):
            raise self.file.fail(at, "must be a list of mappings")
        combinations = []
        for index, one in enumerate(given or []):
            here = (*at, str(index))
            if not isinstance(one, dict) or not one:
                raise self.file.fail(here, "must be a mapping from axis to value")
            for name in one:
                self._new_variable((*here, str(name)))
            combinations.append(
                {
                    str(k): self.file.scalar((*here, str(k)), value, self.params)
                    for k, value in one.items()
                }
            )
        return combinations

    def _new_variable(self, at: Key) -> None:
        name = at[-1]
        if not name.isidentifier():
            raise self.file.fail(at, "an axis is named by letters, digits, '_'")
        if name in self.params or name == "stage":
            kind = "stage's own name" if name == "stage" else f"parameter {name!r}"
            raise self.file.fail(at, f"would hide the {kind}: name the axis otherwise")


def _twice(name: str, key: str, combination: Mapping[str, Scalar], other: Draft) -> str:
    if other.key != key:
        return f"gives the name {name!r}, and so does {other.key!r}"
    axes = [axis for axis in combination if combination[axis] != other.combination.get(axis)]
    if not axes:
        return f"gives {name!r} twice: its matrix holds the same combination twice"
    return f"gives {name!r} twice: the name must hold {{{{ {axes[0]} }}}}"
