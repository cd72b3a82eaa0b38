"""A pipeline spec: one YAML file in, one validated `Pipeline` out.

The file names parameters, defaults, stages and tables; a stage is a command with its inputs,
outputs and resources, or with a matrix many such. Text may hold ``{{ parameter }}``. Every error is
one line that names the file, the line, the key and the mend.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from condorctl.condor import submit_language
from condorctl.errors import UserError, suggest
from condorctl.spec import image_record, matrix, yaml_text
from condorctl.spec import site as profiles
from condorctl.spec.pipeline import (
    ABOUT_GPUS,
    Pipeline,
    Site,
    Stage,
    Table,
    TableRow,
    is_url,
    split_input,
)
from condorctl.spec.spec_file import Problem, SpecFile, complaints, is_name
from condorctl.spec.venv import SUFFIX, is_venv
from condorctl.spec.yaml_text import Key, Scalar, Value

__all__ = ["Pipeline", "Stage", "Table", "TableRow", "is_url", "load", "problems", "split_input"]

Model = TypeVar("Model", bound=BaseModel)

_GLOB = re.compile(r"[*?[]")
_TOP = {"name", "description", "site", "params", "defaults", "stages", "tables"}


def load(
    path: Path, settings: Mapping[str, str] | None = None, site: str | None = None
) -> Pipeline:
    """Read, fill in and check the spec at `path`; `settings` replace its parameters.

    `site` names a profile; else ``$CONDORCTL_SITE`` does, else the spec.
    Raises UserError for anything that would not run, the first that there is.
    """
    pipeline, found = problems(SpecFile(path), settings or {}, site)
    if pipeline is None or found:
        raise found[0]
    return pipeline


def problems(
    file: SpecFile, settings: Mapping[str, str], site: str | None = None
) -> tuple[Pipeline | None, list[UserError]]:
    """The spec in `file` as `load` reads it, with everything that is wrong with it.

    The pipeline holds the stages that can be read; it is None when there are none.
    """
    reader = _Reader(file)
    pipeline = None
    with reader.collecting():
        pipeline = reader.pipeline(settings, site)
    return pipeline, reader.problems


class _Reader:
    """One spec being read, from what its file says to the pipeline that it means."""

    def __init__(self, file: SpecFile) -> None:
        self.file = file
        self.problems: list[UserError] = []
        self.told: set[tuple[str, str]] = set()
        self.params: dict[str, Value] = {}
        self.drafts: dict[str, matrix.Draft] = {}
        # Whether a stage's names are not known: one that is missing may be among them.
        self.unnamed = False
        # The keys of stages that name an image themselves.
        self.own_images: set[str] = set()
        # Stages that run in no image, though the pipeline's defaults name one.
        self.without_image: set[str] = set()
        self.site: Site | None = None

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """What is wrong inside is noted, and reading goes on after it."""
        try:
            yield
        except UserError as error:
            self._note(error)

    def _note(self, error: UserError) -> None:
        # A matrix's stages share their lines, and one complaint of a line is enough.
        told = (error.key, error.message) if isinstance(error, Problem) else ("", str(error))
        if told not in self.told:
            self.told.add(told)
            self.problems.append(error)

    def pipeline(self, settings: Mapping[str, str], site: str | None) -> Pipeline | None:
        """The pipeline of all stages that can be read; None without any."""
        data = self.file.data
        self._known_keys((), data, _TOP)
        with self.collecting():
            self.site = profiles.chosen(site, self.file, data.get("site"))
        self.params = self._params(self._mapping("params"), settings)
        written = list(self._written_stages())
        if self.problems:
            # With a key or a parameter misspelt, whatever misses it would be wrong, too.
            return None
        for key, raw in written:
            try:
                self.drafts |= matrix.expand(self.file, key, raw, self.params, self.drafts)
            except UserError as error:
                self.unnamed = True
                self._note(error)
        stages: dict[str, Stage] = {}
        for name in self.drafts:
            if stage := self._stage(name):
                stages[name] = stage
        if stages and self.without_image == stages.keys():
            message = "no stage runs in it: say `universe: docker` or `container`, there or here"
            self._note(self.file.fail(("defaults", "image"), message))
        tables = list(self._tables())
        head = {"name": data.get("name", self.file.path.stem)}
        head["description"] = data.get("description", "")
        if not is_name(str(head["name"])):
            reason = f"{head['name']!r} is no name: letters, digits, '_' and '-'"
            self._note(self.file.fail(("name",), reason))
            return None
        if not stages:
            return None
        parts = {"params": self.params, "stages": stages, "tables": tables, "site": self.site}
        pipeline = self._valid(Pipeline, (), {**head, **parts})
        if pipeline:
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
                self._note(self.file.fail(at, "must be a mapping with a key 'command'"))
                continue
            self._known_keys(at, raw, allowed | {"matrix"})
            if "image" in raw:
                self.own_images.add(str(key))
            yield str(key), _merge(defaults, raw)

    def _valid(self, model: type[Model], at: Key, values: dict[str, Any]) -> Model | None:
        """`values` as a `model`; None when they are none, each reason noted."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for found in complaints(error, model):
                self._note(self.file.fail((*at, *found.at), found.message))
            return None

    def _tables(self) -> Iterator[Table]:
        given = self.file.data.get("tables") or []
        if not isinstance(given, list):
            self._note(self.file.fail(("tables",), "must be a list of tables"))
            return
        for number, written in enumerate(given):
            at = ("tables", str(number))
            with self.collecting():
                if not isinstance(written, dict):
                    raise self.file.fail(at, "must be a mapping with a title, columns and rows")
                table = self._valid(Table, at, self._fill(at, written, self.params))
                if table:
                    for index, row in enumerate(table.rows):
                        self._check_row((*at, "rows", str(index)), table, row)
                    yield table

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
                message = f"unknown key{suggest(str(key), known)}"
                self._note(self.file.fail((*at, str(key)), message))

    def _params(self, given: dict[str, Any], settings: Mapping[str, str]) -> dict[str, Value]:
        params: dict[str, Value] = {}
        for key, value in given.items():
            with self.collecting():
                params[str(key)] = self._param(("params", str(key)), value)
        for key, text in settings.items():
            with self.collecting():
                if key not in given:
                    raise UserError(
                        f"--set {key}: {self.file.path} has no such parameter{suggest(key, params)}"
                    )
                try:
                    params[key] = yaml_text.like(params.get(key, ""), text)
                except ValueError as error:
                    raise UserError(f"--set {key}: {error}") from None
        for key, final in params.items():
            where = f"--set {key}" if key in settings else self.file.place(("params", key))
            with self.collecting():
                for item in final if isinstance(final, list) else [final]:
                    if isinstance(item, float) and not math.isfinite(item):
                        raise UserError(f"{where}: must be a finite number, not {item}")
                    submit_language.check_value(str(item), where)
        return params

    def _param(self, at: Key, value: Any) -> Value:
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, Scalar) for item in items):
            raise self.file.fail(at, "must be text, a number, true or false, or a list of such")
        if len({type(item) for item in items}) > 1:
            raise self.file.fail(
                at, "mixes types: write all as text, as whole numbers, or with a point"
            )
        if not at[-1].isidentifier():
            raise self.file.fail(at, "a parameter's name is letters, digits, '_'")
        return items if isinstance(value, list) else items[0]

    def _stage(self, name: str) -> Stage | None:
        """The stage of this name, less what is wrong with it; None when too little is left."""
        at, draft = ("stages", name), self.drafts[name]
        values = {**self.params, **draft.combination, "stage": name}
        filled: dict[str, Any] = {}
        broken = set()
        for key, written in draft.raw.items():
            try:
                filled[key] = self._fill((*at, key), written, values)
                if key in ("needs", "inputs"):
                    filled[key] = self._listed((*at, key), filled[key])
            except UserError as error:
                broken.add(key)
                self._note(error)
        given = {**profiles.defaults(self.site, filled), "name": name}
        if not (filled.get("image") and draft.key in self.own_images):
            self._drop_image(given, name if filled.get("image") else "")
        if given.get("universe") in ("docker", "container") and not given.get("image"):
            given["image"] = image_record.latest()
        for key in ABOUT_GPUS:
            if given.get(key) is not None and "request_gpus" not in given:
                message = "does nothing without request_gpus: say how many, such as request_gpus: 1"
                self._note(self.file.fail((*at, key), message))
        try:
            return Stage.model_validate(given)
        except ValidationError as error:
            for found in complaints(error, Stage):
                if found.at[0] not in broken:
                    broken.add(found.at[0])
                    self._note(self.file.fail((*at, *found.at), found.message))
        # The other keys may have problems of their own, which only a whole stage can show.
        rest = {key: value for key, value in given.items() if key not in broken}
        with contextlib.suppress(ValidationError):
            return Stage.model_validate({"command": ["true"], **rest})
        return None

    def _drop_image(self, given: dict[str, Any], named_for: str) -> None:
        """An image that a default names is for the stages that run in one.

        `named_for` is the stage where that default is the pipeline's.
        """
        universe = given.get("universe")
        if (universe or "vanilla") == "vanilla":
            given.pop("image", None)
            if named_for and not universe:
                self.without_image.add(named_for)

    def _listed(self, at: Key, texts: Any) -> Any:
        """Needs or inputs with their globs written out; anything else as it is."""
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return texts
        return list(dict.fromkeys(item for text in texts for item in self._expand(at, text)))

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
        if not found and not self.unnamed:
            raise self.file.fail(at, f"no other stage's name matches {pattern!r}")
        return [f"{name}/{file}" if is_input else name for name in found]

    def _fill(self, at: Key, value: Any, values: Mapping[str, Value]) -> Any:
        """`value` with every ``{{ name }}`` in its text replaced."""
        if isinstance(value, dict):
            return {key: self._fill((*at, str(key)), item, values) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill((*at, str(i)), item, values) for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        if at[-2:-1] == ("match",) or at[2:-1] == ("submit",):
            # What is a number there must not become text.
            return self.file.scalar(at, value, values)
        text = self.file.text(at, value, values)
        if at[0] == "stages":
            submit_language.check_value(text, self.file.place(at))
        return text

    def _check_references(self, pipeline: Pipeline) -> None:
        for name, stage in pipeline.stages.items():
            at = ("stages", name)
            for need in stage.needs:
                if not self._may_be(need):
                    message = f"there is no stage {need!r}{suggest(need, self.drafts)}"
                    self._note(self.file.fail((*at, "needs"), message))
            for output in stage.outputs:
                if Path(output).is_absolute() or ".." in Path(output).parts:
                    message = f"{output!r} must lie in the job's own folder"
                    self._note(self.file.fail((*at, "outputs"), message))
            for text in stage.inputs:
                with self.collecting():
                    self._check_input(pipeline, name, text)
            with self.collecting():
                self._check_venv((*at, "venv"), stage.venv)
        if self.problems:
            return
        try:
            pipeline.order()
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            self._note(self.file.fail(("stages",), f"these wait for each other: {circle}"))

    def _may_be(self, name: str) -> bool:
        """Whether there is a stage of this name, readable or not."""
        return name in self.drafts or self.unnamed

    def _check_input(self, pipeline: Pipeline, name: str, text: str) -> None:
        at = ("stages", name, "inputs")
        maker, file = split_input(text)
        if maker in pipeline.stages:
            outputs = pipeline.stages[maker].outputs
            if file not in outputs:
                raise self.file.fail(
                    at, f"{text!r}: stage {maker!r} has no output {file!r}{suggest(file, outputs)}"
                )
        elif not (is_url(text) or Path(text).exists() or (maker and self._may_be(maker))):
            raise self.file.fail(at, f"{text!r} is neither a file here nor an output of a stage")

    def _check_venv(self, at: Key, text: str | None) -> None:
        if text is None:
            return
        if is_url(text) or (Path(text).is_file() and text.endswith(SUFFIX)):
            if not text.endswith(SUFFIX):
                raise self.file.fail(at, f"{text!r} must end in {SUFFIX}")
            return
        if not Path(text).exists():
            message = f"there is no {text!r} here: `python3 -m venv {text}` makes it"
            raise self.file.fail(at, message)
        if not is_venv(Path(text)):
            message = f"{text!r} is neither a virtual environment nor a {SUFFIX} file"
            raise self.file.fail(at, f"{message}: `condorctl venv pack` makes one of the other")

    def _check_row(self, at: Key, table: Table, row: TableRow) -> None:
        for heading in row.reference:
            if heading not in table.columns:
                where = (*at, "reference", heading)
                message = f"is no column{suggest(heading, table.columns)}"
                self._note(self.file.fail(where, message))
        if row.reference and not table.reference:
            message = "has reference figures: name their source, reference: ..."
            self._note(self.file.fail(at[:2], message))


def _merge(defaults: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **stage}
    for key in ("environment", "submit"):
        if isinstance(defaults.get(key), dict) and isinstance(merged[key], dict):
            merged[key] = {**defaults[key], **merged[key]}
    return merged
