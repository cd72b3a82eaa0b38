"""Every option, documented where it is declared; presets give the values.

A preset is one TOML file that sets every option: there are no defaults in the code, so the file
says all. `--set section.key=value` replaces single values. The whole configuration travels inside
each checkpoint.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

from condorctl.errors import UserError

PRESETS = Path(__file__).with_name("presets")


def option(
    doc: str,
    source: str,
    low: float = 0,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """An option without a default: what it does, who says so, its closed range."""
    return field(
        metadata={"doc": doc, "source": source, "low": low, "high": high, "choices": choices}
    )


@dataclass(frozen=True)
class Data:
    split_seed: int = option("seed of the stratified split; one for all seeds of a study", "ours")


@dataclass(frozen=True)
class Model:
    widths: tuple[int, ...] = option(
        "channels of each residual stage, every one after the first halving the image",
        "CIFAR ResNet, He et al. 2016",
        low=1,
    )


@dataclass(frozen=True)
class Views:
    rotation: float = option("largest rotation of a view, radians", "ours, for digits")
    shift: float = option("largest shift of a view, pixels", "ours, for digits")
    scale: float = option("largest relative change of size", "ours, for digits", high=0.9)
    gamma: float = option("largest |log γ| of the gamma curve", "ours, for digits")
    brightness: float = option("largest relative change of brightness", "ours, for digits", high=1)


@dataclass(frozen=True)
class Optimisation:
    epochs: int = option("passes over the training part", "RoCL 1000; HYDRA 100, 20, 100", low=1)
    batch_size: int = option("images a step", "RoCL 512; HYDRA 128", low=2)
    lr: float = option("peak learning rate, cosine to 0 by step", "RoCL 1.5; HYDRA .1, .1, .01")
    momentum: float = option("SGD momentum", "RoCL, HYDRA .9", high=1)
    weight_decay: float = option("SGD weight decay", "RoCL 1e-6; HYDRA 1e-4")


@dataclass(frozen=True)
class Pretrain(Optimisation):
    warmup: float = option("fraction of the steps with linear warm-up", "RoCL: 10 epochs", high=1)
    temperature: float = option("τ of NT-Xent", "RoCL .5", low=1e-3)
    regulariser: float = option("λ, divides the 2-view loss", "RoCL 256", low=1e-3)
    projector_hidden: int = option("hidden units of the projector", "RoCL 2048", low=1)
    projector_out: int = option("outputs of the projector", "RoCL 128", low=1)
    epsilon: float = option("L∞ radius of the instance-wise attack", "RoCL .0314", high=1)
    alpha: float = option("step of the instance-wise attack", "RoCL .007", high=1)
    steps: int = option("steps of the instance-wise attack", "RoCL 7")


@dataclass(frozen=True)
class Trades:
    beta: float = option("β, weight of the robust term", "TRADES, HYDRA 6")
    epsilon: float = option("L∞ radius of the training attack", "HYDRA 8/255", high=1)
    alpha: float = option("step of the training attack", "HYDRA .0078", high=1)
    steps: int = option("steps of the training attack", "HYDRA 10")
    start: float = option("standard deviation of the attack's Gaussian start", "TRADES .001")
    validation_steps: int = option(
        "steps of the PGD (ε and α as above) that measures the validation part each epoch", "ours"
    )


@dataclass(frozen=True)
class Prune:
    floor: int = option(
        "weights that each output channel keeps at least", "ours: without it 99 % is a lottery"
    )


@dataclass(frozen=True)
class Train(Optimisation):
    trainer: str = option(
        "loss of the training stage", "HYDRA: trades | base", choices=("trades", "plain")
    )


@dataclass(frozen=True)
class Evaluate:
    batch_size: int = option("images attacked at a time", "speed only", low=1)
    epsilons: tuple[float, ...] = option("L∞ radii of PGD", "RoCL: two radii", high=1)
    steps: int = option("steps of PGD, α = ε/10, random start", "RoCL 20", low=1)
    strong_epsilon: float = option("L∞ radius of the strong PGD, α = ε/10", "ours", high=1)
    strong_steps: int = option("steps of the strong PGD", "PGD-50-10, Wong et al. 2020", low=1)
    strong_restarts: int = option("restarts of the strong PGD", "as above", low=1)


@dataclass(frozen=True)
class Config:
    """One preset with its overrides; `asdict` of it is what a checkpoint stores."""

    data: Data
    model: Model
    views: Views
    pretrain: Pretrain
    trades: Trades
    prune: Prune
    train: Train
    score: Optimisation
    finetune: Optimisation
    evaluate: Evaluate


# The sections that a stage reads. Other keys are refused there: they would change nothing except
# the record of how the network came about.
SECTIONS = {
    "pretrain": ("data", "model", "views", "pretrain"),
    "train": ("data", "model", "trades", "train"),
    "score": ("trades", "prune", "score"),
    "finetune": ("trades", "prune", "finetune"),
    "evaluate": ("evaluate",),
}


def load_preset(name: str) -> Config:
    """The preset `name`. Raises UserError when it is unknown or incomplete."""
    presets = {path.stem: path for path in PRESETS.glob("*.toml")}
    if name not in presets:
        raise UserError(f"--preset {name}: unknown, choose from {', '.join(sorted(presets))}")
    text = presets[name].read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), where=presets[name].name)


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """A Config from nested plain values; `where` names their origin in a UserError."""
    kinds = get_type_hints(Config)
    _same_names(values, kinds, where)
    sections = {}
    for section, kind in kinds.items():
        types = get_type_hints(kind)
        _same_names(values[section], types, f"{where}: [{section}]")
        checked = {}
        for f in fields(kind):
            at = f"{where}: {section}.{f.name}"
            checked[f.name] = _checked(values[section][f.name], types[f.name], f.metadata, at)
        sections[section] = kind(**checked)
    return Config(**sections)


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
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values (tuples become lists), which `from_dict` reads back."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        for section, values in asdict(config).items()
    }


def explain(stage: str) -> Iterator[str]:
    """One line for each option that `stage` reads: key, meaning, source."""
    kinds = get_type_hints(Config)
    for section in SECTIONS[stage]:
        for f in fields(kinds[section]):
            yield f"  {section + '.' + f.name:<26} {f.metadata['doc']} [{f.metadata['source']}]"


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
    """`value` as `kind` (int, float, str, tuple of numbers), within its range; else UserError."""
    if kind is str:
        if value not in metadata["choices"]:
            raise UserError(f"{where}: choose from {', '.join(metadata['choices'])}")
        return value
    if kind in (tuple[int, ...], tuple[float, ...]):
        if not isinstance(value, list) or not value:
            raise UserError(f"{where}: expected a list of numbers, e.g. [1, 2]")
        return tuple(_number(v, kind == tuple[int, ...], metadata, where) for v in value)
    return _number(value, kind is int, metadata, where)


def _number(value: Any, whole: bool, metadata: Mapping[str, Any], where: str) -> float:
    if isinstance(value, str):
        try:
            value = float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{where}: expected a number, e.g. 0.1 or 8/255") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: expected a number, e.g. 0.1 or 8/255")
    if whole and not float(value).is_integer():
        raise UserError(f"{where}: expected a whole number")
    low, high = metadata["low"], metadata["high"]
    if not low <= value <= high:
        raise UserError(f"{where}: must lie in [{low}, {high}]")
    return int(value) if whole else float(value)


def _toml_value(text: str) -> Any:
    """`text` as TOML reads it; a bare word or a fraction stays text."""
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text
