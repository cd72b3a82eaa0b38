"""A pipeline spec: one YAML file in, one validated `Pipeline` out.

The file names parameters, defaults and stages; a stage is a command with its inputs, outputs and
resources. Text may hold ``{{ parameter }}``. Every error is one line that names the file, the line,
the key and the mend.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from condorctl import submit_language, yaml_text
from condorctl.errors import UserError

Scalar = str | bool | int | float

# DAGMan's names hold no blank, '.' or '+'; the name is also a folder and a word on a command line.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
# DAGMan's own word for "every node", and the run folder's own entries.
_RESERVED = {"all_nodes", "code", "logs"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

Text = Annotated[str, Field(min_length=1)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# HTCondor takes a bare number as MB (memory) or KB (disk): ask for the unit.
Amount = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[KMGT]B?$")]


class Stage(BaseModel):
    """One node of the graph: a command that runs as one HTCondor job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the stage's name, from its key")
    command: list[str] = Field(min_length=1, description="program and arguments, a word each")
    needs: list[Text] = Field([], description="stages that must be done first")
    inputs: list[Text] = Field([], description="files: stage/file, a local path, or a URL")
    outputs: list[Text] = Field([], description="files that the command leaves behind")
    template: Text = Field("stage.sub.j2", description="the submit file's template")
    code: list[Text] = Field([], description="packages to take along, importable in the job")
    environment: dict[VariableName, str] = Field({}, description="environment variables of the job")
    request_cpus: int = Field(1, ge=1)
    request_memory: Amount = "1 GB"
    request_disk: Amount = "1 GB"
    request_gpus: int = Field(0, ge=0)
    retries: int = Field(0, ge=0, description="how often DAGMan runs a failed stage again")
    final_exit_code: int | None = Field(None, ge=1, le=255, description="no retry mends this one")

    def upstream(self, stages: Iterable[str]) -> list[str]:
        """The names of the stages this one waits for, from ``needs`` and from its inputs."""
        known = set(stages)
        makers = [source for source, _ in map(split_input, self.inputs) if source in known]
        return list(dict.fromkeys([*self.needs, *makers]))


class Pipeline(BaseModel):
    """A whole spec, parameters filled in and references checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    params: dict[str, Scalar] = {}
    stages: dict[str, Stage] = Field(min_length=1)

    def order(self) -> list[str]:
        """Stage names, each after those it waits for, otherwise in the file's order.

        Raises graphlib.CycleError when stages wait for each other.
        """
        graph = {name: stage.upstream(self.stages) for name, stage in self.stages.items()}
        TopologicalSorter(graph).prepare()
        ordered: list[str] = []
        while len(ordered) < len(graph):
            ordered.append(next(n for n in graph if n not in ordered and {*graph[n]} <= {*ordered}))
        return ordered


def split_input(text: str) -> tuple[str, str]:
    """``stage/file`` into its two parts; a local path or a URL has an empty first part."""
    head, slash, rest = text.partition("/")
    if not slash or _URL.match(text):
        return "", text
    return head, rest


def is_url(text: str) -> bool:
    """Whether an input is fetched on the execute node by a transfer plug-in."""
    return bool(_URL.match(text))


def load(path: Path, settings: Mapping[str, str] | None = None) -> Pipeline:
    """Read, fill in and check the spec at `path`; `settings` replace its parameters.

    Raises UserError for anything that would not run.
    """
    return _Reader(path).pipeline(settings or {})


class _Reader:
    """One file being read: knows the line of each key, so that errors can name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data, self.lines = yaml_text.read(path)
        if not isinstance(self.data, dict):
            raise UserError(f"{path}: must be a mapping with a key 'stages'")

    def fail(self, at: tuple[str, ...], message: str) -> UserError:
        """An error at the key `at`, with the line of the nearest key that the file has."""
        known = at
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known else ""
        return UserError(f"{self.path}{line}: {'.'.join(at)}{': ' if at else ''}{message}")

    def pipeline(self, settings: Mapping[str, str]) -> Pipeline:
        data = self.data
        self._known_keys((), data, {"name", "description", "params", "defaults", "stages"})
        params = self._params(self._mapping("params"), settings)
        defaults = self._mapping("defaults")
        stages = {}
        for name, raw in self._mapping("stages").items():
            at = ("stages", str(name))
            if not isinstance(raw, dict):
                raise self.fail(at, "must be a mapping with a key 'command'")
            if not _NAME.fullmatch(str(name)) or str(name).lower() in _RESERVED:
                raise self.fail(at, "is no name for a stage: letters, digits, '_' and '-'")
            allowed = set(Stage.model_fields) - {"name"}
            self._known_keys(("defaults",), defaults, allowed)
            self._known_keys(at, raw, allowed)
            merged = _merge(defaults, raw)
            filled = self._fill(at, merged, {**params, "stage": str(name)})
            stages[str(name)] = {"name": str(name), **filled}
        name = data.get("name", self.path.stem)
        if not _NAME.fullmatch(str(name)):
            raise self.fail(("name",), f"{name!r} is no name: letters, digits, '_' and '-'")
        try:
            pipeline = Pipeline(
                name=name,
                description=data.get("description", ""),
                params=params,
                stages=stages,  # type: ignore[arg-type]
            )
        except ValidationError as error:
            first = error.errors()[0]
            loc = tuple(str(part) for part in first["loc"])
            raise self.fail(loc, f"{first['msg']}, not {_short(first['input'])}") from None
        self._check_references(pipeline)
        return pipeline

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.data.get(key)
        if value is None and key in self.data:
            value = {}
        if key == "stages" and not value:
            raise self.fail((key,) if key in self.data else (), "a pipeline needs 'stages'")
        if not isinstance(value if value is not None else {}, dict):
            raise self.fail((key,), "must be a mapping")
        return value or {}

    def _known_keys(self, at: tuple[str, ...], data: Mapping[Any, Any], known: set[str]) -> None:
        for key in data:
            if key not in known:
                raise self.fail((*at, str(key)), f"unknown key{_suggest(str(key), known)}")

    def _params(self, given: dict[str, Any], settings: Mapping[str, str]) -> dict[str, Scalar]:
        params: dict[str, Scalar] = {}
        for key, value in given.items():
            if not isinstance(value, str | bool | int | float):
                raise self.fail(("params", str(key)), "must be text, a number, or true or false")
            if not str(key).isidentifier():
                raise self.fail(("params", str(key)), "a parameter's name is letters, digits, '_'")
            params[str(key)] = value
        for key, text in settings.items():
            if key not in params:
                raise UserError(
                    f"--set {key}: {self.path} has no such parameter{_suggest(key, params)}"
                )
            params[key] = _like(params[key], text, f"--set {key}")
        for key, final in params.items():
            where = f"--set {key}" if key in settings else f"{self.path}: params.{key}"
            submit_language.check_value(str(final), where)
        return params

    def _fill(self, at: tuple[str, ...], value: Any, params: Mapping[str, Scalar]) -> Any:
        """`value` with every ``{{ name }}`` in its text replaced."""
        if isinstance(value, dict):
            return {key: self._fill((*at, str(key)), item, params) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill((*at, str(i)), item, params) for i, item in enumerate(value)]
        if not isinstance(value, str):
            # A command's words and an environment's values may be written as bare numbers.
            text_wanted = at[2:3] in {("command",), ("environment",)} and len(at) > 3
            return yaml_text.text(value) if text_wanted and value is not None else value
        try:
            text = _JINJA.from_string(value).render(params)
        except jinja2.UndefinedError as error:
            known = ", ".join(sorted(params))
            raise self.fail(at, f"{error.message}; parameters are {known}") from None
        except jinja2.TemplateError as error:
            raise self.fail(at, f"{error.message}") from None
        except Exception as error:
            raise self.fail(at, f"{value!r}: {error}") from None
        submit_language.check_value(text, f"{self.path}: {'.'.join(at)}")
        return text

    def _check_references(self, pipeline: Pipeline) -> None:
        stages = pipeline.stages
        for name, stage in stages.items():
            for need in stage.needs:
                if need not in stages:
                    raise self.fail(
                        ("stages", name, "needs"),
                        f"there is no stage {need!r}{_suggest(need, stages)}",
                    )
            for output in stage.outputs:
                if Path(output).is_absolute() or ".." in Path(output).parts:
                    raise self.fail(
                        ("stages", name, "outputs"), f"{output!r} must lie in the job's own folder"
                    )
            for text in stage.inputs:
                self._check_input(pipeline, name, text)
        try:
            pipeline.order()
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise self.fail(("stages",), f"these wait for each other: {circle}") from None

    def _check_input(self, pipeline: Pipeline, name: str, text: str) -> None:
        at = ("stages", name, "inputs")
        maker, file = split_input(text)
        if maker in pipeline.stages:
            outputs = pipeline.stages[maker].outputs
            if file not in outputs:
                raise self.fail(
                    at, f"{text!r}: stage {maker!r} has no output {file!r}{_suggest(file, outputs)}"
                )
        elif not is_url(text) and not Path(text).exists():
            raise self.fail(at, f"{text!r} is neither a file here nor an output of a stage")


# A spec comes from other people too, so its text can name parameters and call nothing else.
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=yaml_text.text)
_JINJA.globals.clear()


def _merge(defaults: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **stage}
    if isinstance(defaults.get("environment"), dict) and isinstance(merged["environment"], dict):
        merged["environment"] = {**defaults["environment"], **merged["environment"]}
    return merged


def _like(default: Scalar, text: str, where: str) -> Scalar:
    """`text` from the command line as the type of the parameter's default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return yaml_text.Written(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise UserError(f"{where}: must be {kind}, not {text!r}") from None
    return text


def _suggest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(known)}" if known else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
