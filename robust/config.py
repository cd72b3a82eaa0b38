"""The configuration of a stage: a preset or a checkpoint's, with single values replaced.

A preset is one TOML file that sets every option (`robust.options`): there are no defaults in the
code, so the file says all. `--set section.key=value` replaces single values. The whole
configuration travels inside each checkpoint.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from condorctl.errors import UserError
from robust.options import SECTIONS, Config

PRESETS = Path(__file__).with_name("presets")


def load_preset(name: str) -> Config:
    """The preset `name`. Raises UserError when it is unknown or incomplete."""
    presets = {path.stem: path for path in PRESETS.glob("*.toml")}
    if name not in presets:
        raise UserError(f"--preset {name}: unknown, choose from {', '.join(sorted(presets))}")
    text = presets[name].read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), where=presets[name].name)


def from_dict(values: Mapping[str, Any], where: str, *, old: bool = False) -> Config:
    """A Config from nested plain values; `where` names their origin in a UserError.

    Those of an `old` checkpoint may lack options that came later.
    """
    kinds = get_type_hints(Config)
    _same_names(values, kinds, where)
    sections = {}
    for section, kind in kinds.items():
        types = get_type_hints(kind)
        given = values[section]
        if old and isinstance(given, Mapping):
            before = {f.name: f.metadata["before"] for f in fields(kind)}
            given = {**{k: v for k, v in before.items() if v is not None}, **given}
        _same_names(given, types, f"{where}: [{section}]")
        checked = {}
        for f in fields(kind):
            at = f"{where}: {section}.{f.name}"
            checked[f.name] = _checked(given[f.name], types[f.name], f.metadata, at)
        sections[section] = kind(**checked)
    return _consistent(Config(**sections), where)


def override(config: Config, settings: Iterable[str], stage: str) -> Config:
    """`config` with each `section.key=value` of `settings` applied.

    Raises UserError for a malformed setting, an unknown key, a key of a section that `stage` does
    not read, or a value of the wrong type or range.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise UserError(f"--set {setting}: write it as section.key=value")
        known = {f"{s}.{f.name}": f for s in SECTIONS[stage] for f in fields(getattr(config, s))}
        declared = known.get(f"{section}.{name}")
        if declared is None:
            raise UserError(
                f"--set {setting}: `{stage}` reads no option {section}.{name}; "
                f"`python -m robust {stage} --help` lists those it reads"
            )
        old = getattr(config, section)
        kind = get_type_hints(type(old))[name]
        value = _checked(_toml_value(text.strip()), kind, declared.metadata, f"--set {setting}")
        config = replace(config, **{section: replace(old, **{name: value})})
    return _consistent(config, "--set")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values (tuples become lists), which `from_dict` reads back."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        for section, values in asdict(config).items()
    }


def _consistent(config: Config, where: str) -> Config:
    """`config` itself; UserError when two of its options contradict each other."""
    for section, one, other in (
        ("model", "widths", "blocks"),
        ("evaluate", "pgd_steps", "pgd_restarts"),
    ):
        options = getattr(config, section)
        if len(getattr(options, one)) != len(getattr(options, other)):
            raise UserError(f"{where}: {section}.{one} and {section}.{other} must be of one length")
    if not config.model.widths:
        raise UserError(f"{where}: model.widths is empty; a network needs one stage at least")
    if config.linear.contrastive and not config.linear.finetune:
        raise UserError(f"{where}: linear.contrastive trains the encoder; set linear.finetune=true")
    return config


def _same_names(values: object, expected: Mapping[str, Any], where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a table of {', '.join(expected)}")
    for name in values:
        if name not in expected:
            raise UserError(f"{where}: unknown key {name}, known are {', '.join(expected)}")
    for name in expected:
        if name not in values:
            raise UserError(f"{where}: {name} is missing")


def _checked(value: Any, kind: Any, metadata: Mapping[str, Any], where: str) -> Any:
    """`value` as `kind` (bool, int, float, str, tuple of one), within its range; else UserError."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, e.g. [1, 2]")
        return tuple(_checked(v, get_args(kind)[0], metadata, where) for v in value)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where}: expected true or false")
        return value
    if kind is str:
        if value not in metadata["choices"]:
            raise UserError(f"{where}: choose from {', '.join(metadata['choices'])}")
        return value
    return _number(value, kind is int, metadata, where)


def _number(value: Any, whole: bool, metadata: Mapping[str, Any], where: str) -> float:
    if isinstance(value, str):
        value = _quotient(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: expected a number, e.g. 0.1 or 8/255")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite:
        raise UserError(f"{where}: expected a finite number")
    if whole and not float(value).is_integer():
        raise UserError(f"{where}: expected a whole number")
    low, high = metadata["low"], metadata["high"]
    if not low <= value <= high:
        raise UserError(f"{where}: must lie in [{low}, {high}]")
    return int(value) if whole else float(value)


def _quotient(text: str) -> float | None:
    """`text`, a number or one over another; None when it is neither.

    In floats, not exact fractions: those of "1e999999999" take a minute and a gigabyte, and a
    quotient of two floats is as exact wherever both are whole.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return None


def _toml_value(text: str) -> Any:
    """`text` as TOML reads it; a bare word or a fraction stays text."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML, or more digits or brackets than Python reads
        return text
    return values["value"] if len(values) == 1 else text
