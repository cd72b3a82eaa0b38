"""A pipeline spec: one YAML file in, one validated `Pipeline` out.

The file names parameters, defaults, stages and tables; a stage is a command with its inputs,
outputs and resources, or with a matrix many such. Text may hold ``{{ parameter }}``. Every error is
one line that names the file, the line, the key and the mend.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from condorctl import matrix, submit_language, yaml_text
from condorctl.errors import UserError, suggest
from condorctl.spec_file import SpecFile, is_name
from condorctl.yaml_text import Key, Scalar, Value

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?[]")

Text = Annotated[str, Field(min_length=1)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# HTCondor takes a bare number as MB (memory) or KB (disk): ask for the unit.
Amount = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[KMGT]B?$")]
Percent = Annotated[float, Field(ge=0, le=100)]


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
    final_exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(
        [], description="exit codes that no retry mends"
    )

    def upstream(self, stages: Iterable[str]) -> list[str]:
        """The names of the stages this one waits for, from ``needs`` and from its inputs."""
        known = set(stages)
        makers = [source for source, _ in map(split_input, self.inputs) if source in known]
        return list(dict.fromkeys([*self.needs, *makers]))


class TableRow(BaseModel):
    """One line of a table: the mean of the results that match, beside figures from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: Text
    match: dict[str, Scalar] = Field(min_length=1, description="values that a result must have")
    reference: dict[str, Percent] = Field({}, description="heading: figure, in percent")


class Table(BaseModel):
    """A table of results that a pipeline declares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Text
    columns: dict[Text, Text] = Field(min_length=1, description="heading: key of the results")
    reference: str = Field("", description="where the reference figures come from")
    rows: list[TableRow] = Field(min_length=1)


class Pipeline(BaseModel):
    """A whole spec, parameters filled in, matrices written out and references checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    params: dict[str, Value] = {}
    stages: dict[str, Stage] = Field(min_length=1)
    tables: list[Table] = []

    def order(self) -> list[str]:
        """Stage names, each after those it waits for, otherwise in the file's order.

        Raises graphlib.CycleError when stages wait for each other.
        """
        position = {name: index for index, name in enumerate(self.stages)}
        graph = {name: stage.upstream(self.stages) for name, stage in self.stages.items()}
        sorter = TopologicalSorter(graph)
        sorter.prepare()
        ready: list[tuple[int, str]] = []
        ordered: list[str] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, (position[name], name))
            ordered.append(heapq.heappop(ready)[1])
            sorter.done(ordered[-1])
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
    return _Reader(SpecFile(path)).pipeline(settings or {})


class _Reader:
    """One spec being read, from what its file says to the pipeline that it means."""

    def __init__(self, file: SpecFile) -> None:
        self.file = file
        self.params: dict[str, Value] = {}
        self.drafts: dict[str, matrix.Draft] = {}

    def pipeline(self, settings: Mapping[str, str]) -> Pipeline:
        data = self.file.data
        self._known_keys(
            (), data, {"name", "description", "params", "defaults", "stages", "tables"}
        )
        self.params = self._params(self._mapping("params"), settings)
        self.drafts = matrix.expand(self.file, self._written_stages(), self.params)
        name = data.get("name", self.file.path.stem)
        if not is_name(str(name)):
            raise self.file.fail(("name",), f"{name!r} is no name: letters, digits, '_' and '-'")
        tables = self._fill(("tables",), data.get("tables") or [], self.params)
        try:
            pipeline = Pipeline(
                name=name,
                description=data.get("description", ""),
                params=self.params,
                stages={name: self._stage(name) for name in self.drafts},  # type: ignore[misc]
                tables=tables,
            )
        except ValidationError as error:
            raise self._invalid(error) from None
        self._check_references(pipeline)
        return pipeline

    def _written_stages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The stages by their keys, ``defaults`` merged in, matrices not yet written out."""
        defaults = self._mapping("defaults")
        allowed = set(Stage.model_fields) - {"name"}
        self._known_keys(("defaults",), defaults, allowed)
        for key, raw in self._mapping("stages").items():
            at = ("stages", str(key))
            if not isinstance(raw, dict):
                raise self.file.fail(at, "must be a mapping with a key 'command'")
            self._known_keys(at, raw, allowed | {"matrix"})
            yield str(key), _merge(defaults, raw)

    def _invalid(self, error: ValidationError) -> UserError:
        # A misspelt key is also a missing one, and the spelling is what to mend.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        at = tuple(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = TableRow.model_fields if "rows" in at else Table.model_fields
            return self.file.fail(at, f"unknown key{suggest(at[-1], fields)}")
        return self.file.fail(at, f"{first['msg']}, not {_short(first['input'])}")

    def _mapping(self, key: str) -> dict[str, Any]:
        data = self.file.data
        value = data.get(key)
        if value is None and key in data:
            value = {}
        if key == "stages" and not value:
            raise self.file.fail((key,) if key in data else (), "a pipeline needs 'stages'")
        if not isinstance(value if value is not None else {}, dict):
            raise self.file.fail((key,), "must be a mapping")
        return value or {}

    def _known_keys(self, at: Key, data: Mapping[Any, Any], known: set[str]) -> None:
        for key in data:
            if key not in known:
                raise self.file.fail((*at, str(key)), f"unknown key{suggest(str(key), known)}")

    def _params(self, given: dict[str, Any], settings: Mapping[str, str]) -> dict[str, Value]:
        params: dict[str, Value] = {}
        for key, value in given.items():
            at = ("params", str(key))
            items = value if isinstance(value, list) else [value]
            if not items or not all(isinstance(item, Scalar) for item in items):
                raise self.file.fail(at, "must be text, a number, true or false, or a list of such")
            if len({type(item) for item in items}) > 1:
                raise self.file.fail(
                    at, "mixes types: write all as text, as whole numbers, or with a point"
                )
            if not str(key).isidentifier():
                raise self.file.fail(at, "a parameter's name is letters, digits, '_'")
            params[str(key)] = value
        for key, text in settings.items():
            if key not in params:
                raise UserError(
                    f"--set {key}: {self.file.path} has no such parameter{suggest(key, params)}"
                )
            try:
                params[key] = yaml_text.like(params[key], text)
            except ValueError as error:
                raise UserError(f"--set {key}: {error}") from None
        for key, final in params.items():
            where = f"--set {key}" if key in settings else self.file.place(("params", key))
            for item in final if isinstance(final, list) else [final]:
                if isinstance(item, float) and not math.isfinite(item):
                    raise UserError(f"{where}: must be a finite number, not {item}")
                submit_language.check_value(str(item), where)
        return params

    def _stage(self, name: str) -> dict[str, Any]:
        at, draft = ("stages", name), self.drafts[name]
        filled = self._fill(at, draft.raw, {**self.params, **draft.combination, "stage": name})
        for key in ("needs", "inputs"):
            texts = filled.get(key)
            if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                found = (item for text in texts for item in self._expand((*at, key), text))
                filled[key] = list(dict.fromkeys(found))
        return {"name": name, **filled}

    def _expand(self, at: Key, text: str) -> list[str]:
        """A need or an input with the glob over stage names written out; none for empty text."""
        if not text:
            return []
        is_input = at[-1] == "inputs"
        pattern, file = split_input(text) if is_input else (text, "")
        if not _GLOB.search(pattern) or (is_input and Path(text).exists()):
            return [text]
        # A stage cannot wait for itself: `needs: ["*"]` means all the others.
        found = [name for name in self.drafts if fnmatchcase(name, pattern) and name != at[1]]
        if not found:
            raise self.file.fail(at, f"no other stage's name matches {pattern!r}")
        return [f"{name}/{file}" if is_input else name for name in found]

    def _fill(self, at: Key, value: Any, values: Mapping[str, Value]) -> Any:
        """`value` with every ``{{ name }}`` in its text replaced."""
        if isinstance(value, dict):
            return {key: self._fill((*at, str(key)), item, values) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill((*at, str(i)), item, values) for i, item in enumerate(value)]
        if not isinstance(value, str):
            # A command's words and an environment's values may be written as bare numbers.
            text_wanted = at[2:3] in {("command",), ("environment",)} and len(at) > 3
            return yaml_text.text(value) if text_wanted and value is not None else value
        if at[-2:-1] == ("match",):
            return self.file.scalar(at, value, self.params)
        text = self.file.text(at, value, values)
        if at[0] == "stages":
            submit_language.check_value(text, self.file.place(at))
        return text

    def _check_references(self, pipeline: Pipeline) -> None:
        stages = pipeline.stages
        for name, stage in stages.items():
            for need in stage.needs:
                if need not in stages:
                    raise self.file.fail(
                        ("stages", name, "needs"),
                        f"there is no stage {need!r}{suggest(need, stages)}",
                    )
            for output in stage.outputs:
                if Path(output).is_absolute() or ".." in Path(output).parts:
                    raise self.file.fail(
                        ("stages", name, "outputs"), f"{output!r} must lie in the job's own folder"
                    )
            for text in stage.inputs:
                self._check_input(pipeline, name, text)
        try:
            pipeline.order()
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise self.file.fail(("stages",), f"these wait for each other: {circle}") from None
        for number, table in enumerate(pipeline.tables):
            for index, row in enumerate(table.rows):
                self._check_row(("tables", str(number), "rows", str(index)), table, row)

    def _check_input(self, pipeline: Pipeline, name: str, text: str) -> None:
        at = ("stages", name, "inputs")
        maker, file = split_input(text)
        if maker in pipeline.stages:
            outputs = pipeline.stages[maker].outputs
            if file not in outputs:
                raise self.file.fail(
                    at, f"{text!r}: stage {maker!r} has no output {file!r}{suggest(file, outputs)}"
                )
        elif not is_url(text) and not Path(text).exists():
            raise self.file.fail(at, f"{text!r} is neither a file here nor an output of a stage")

    def _check_row(self, at: Key, table: Table, row: TableRow) -> None:
        for heading in row.reference:
            if heading not in table.columns:
                where = (*at, "reference", heading)
                raise self.file.fail(where, f"is no column{suggest(heading, table.columns)}")
        if row.reference and not table.reference:
            raise self.file.fail(at[:2], "has reference figures: name their source, reference: ...")


def _merge(defaults: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **stage}
    if isinstance(defaults.get("environment"), dict) and isinstance(merged["environment"], dict):
        merged["environment"] = {**defaults["environment"], **merged["environment"]}
    return merged


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
