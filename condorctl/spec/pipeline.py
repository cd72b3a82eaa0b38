"""What a spec means: a pipeline of stages, each one HTCondor job, and the tables of its results.

These models are the one home of a spec's keys: `reader` checks with them, `schema` publishes them.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Container, Iterable
from graphlib import TopologicalSorter
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from condorctl.condor import submit_language
from condorctl.errors import UserError
from condorctl.job.checkpoint import EXIT_CODE
from condorctl.job.folder import FOLDER as CHECKPOINTS
from condorctl.spec import image as images
from condorctl.spec import yaml_text
from condorctl.spec.yaml_text import Scalar, Value

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_AMOUNT = r"^\d+(\.\d+)? ?[KMGT]B?$"
_DURATION = r"^\d+(\.\d+)? ?(s|min|h)$"
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_UNITS = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}

# What a stage says about its GPUs; without request_gpus it would do nothing.
ABOUT_GPUS = ("gpus_minimum_memory", "gpus_minimum_capability", "cpu_after")
# What a stage's submit file says for itself; written twice, the last would win in silence.
_OWN_COMMANDS = {
    "arguments", "batch_name", "checkpoint_exit_code", "container_image", "dagman_log",
    "docker_image", "environment", "error", "executable", "initialdir", "input", "log", "output",
    "preserve_relative_paths", "priority", "request_cpus", "request_disk", "request_gpus",
    "request_memory", "requirements", "retry_request_disk", "retry_request_memory",
    "should_transfer_files", "transfer_checkpoint_files", "transfer_executable",
    "transfer_input_files", "transfer_output_files", "transfer_output_remaps", "universe",
    "when_to_transfer_output", "gpus_minimum_capability", "gpus_minimum_memory",
}  # fmt: skip
# Not commands but the language itself.
_LANGUAGE = {"queue", "include", "use", "if", "elif", "else", "endif", "error", "warning"}


def _command(name: str) -> str:
    """A command of the submit language that a spec or a site may add."""
    if name.lower() in _LANGUAGE:
        raise PydanticCustomError("own", "is no command that can be added to a submit file")
    if name.lower() in _OWN_COMMANDS:
        raise PydanticCustomError("own", "is a stage's own: use the spec's key for it")
    return name


def _expression(text: str) -> str:
    return _checked(submit_language.expression, text, "it")


def _amount(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(_AMOUNT, value):
        raise PydanticCustomError("amount", "must have its unit, such as 512 MB or 4 GB")
    return value


def _duration(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(_DURATION, value) or seconds(value) < 1:
        raise PydanticCustomError("duration", "must have its unit, such as 30 s, 15 min or 2 h")
    return value


def _carried(text: str) -> str:
    return _checked(submit_language.check_value, text, "it")


def _scalar(value: Any) -> Any:
    if not isinstance(value, Scalar):
        raise PydanticCustomError("scalar", "must be text, a number, true or false")
    return value


def _checked(check: Callable[..., str], *values: Any) -> str:
    """What `check` returns; its refusal becomes one that Pydantic can place."""
    try:
        return check(*values)
    except UserError as error:
        reason = str(error).removeprefix("it: ")
        raise PydanticCustomError("refused", "{reason}", {"reason": reason}) from None


Text = Annotated[str, StringConstraints(min_length=1)]
# Empty text is what a parameter that nobody set leaves: as if the key were not there.
Universe = Annotated[
    Literal["vanilla", "docker", "container"], BeforeValidator(lambda value: value or "vanilla")
]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@-]+$")]
# In a file a number or a truth value can stand for its text.
Word = Annotated[
    str,
    BeforeValidator(yaml_text.text),
    AfterValidator(_carried),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# HTCondor takes a bare number as MB (memory) or KB (disk): ask for the unit.
Amount = Annotated[str, StringConstraints(pattern=_AMOUNT), BeforeValidator(_amount)]
Duration = Annotated[str, StringConstraints(pattern=_DURATION), BeforeValidator(_duration)]
Percent = Annotated[float, Field(ge=0, le=100)]
ExitCode = Annotated[int, Field(ge=1, le=255)]
Expression = Annotated[Text, AfterValidator(_expression)]
Submit = dict[
    Annotated[
        str,
        StringConstraints(pattern=r"^(\+|MY\.)?[A-Za-z][A-Za-z0-9_]*$"),
        AfterValidator(_command),
    ],
    Annotated[Scalar, BeforeValidator(_scalar)],
]


_SUBMIT = (
    "further lines of the submit file; of a +Attribute, text is a string, and an expression when "
    "it begins with '='"
)


def _readable(submit: dict[str, Scalar]) -> dict[str, Scalar]:
    for command, value in submit.items():
        _checked(submit_language.further, command, value)
    return submit


class Defaults(BaseModel):
    """What a site can say for the stages of every pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    universe: Universe = Field(
        "vanilla",
        description="where the command runs: `vanilla`, on the node itself; `docker`, in an image "
        "by the node's Docker; `container`, in an image by what the node has, such as Apptainer",
    )
    image: str = Field(
        "",
        validate_default=True,
        description="the image of a docker or container stage: a registry's, best with its "
        "`@sha256:` digest; for container also a .sif file, a sandbox folder or a URL; else the "
        "one that `condorctl image push` recorded last",
    )
    container_tries: int = Field(
        10,
        ge=0,
        description="how often in a row the start of a container may fail before the job is held, "
        "instead of tried for ever (0)",
    )
    request_cpus: int = Field(1, ge=1, description="cores")
    request_memory: Amount = Field("1 GB", description="memory, with its unit: 512 MB, 4 GB")
    request_disk: Amount = Field("1 GB", description="disk, with its unit: 512 MB, 4 GB")
    request_gpus: int = Field(0, ge=0, description="GPUs")
    gpus_minimum_memory: Amount | None = Field(
        None, description="memory that each of the GPUs must have, with its unit: 8 GB"
    )
    gpus_minimum_capability: float | None = Field(
        None, gt=0, description="CUDA compute capability that each of the GPUs must have: 8.0"
    )
    cpu_after: Duration | None = Field(
        None,
        description="when no GPU was to be had this long after the submission, such as 2 h, the "
        "job asks for none any more and runs on a slot without",
    )
    max_memory: Amount | None = Field(
        None,
        description="up to this much the request is doubled, and the job run again by itself, "
        "when it is stopped for the memory it uses",
    )
    max_disk: Amount | None = Field(
        None,
        description="up to this much the request is doubled, and the job run again by itself, "
        "when it is stopped for the disk it uses",
    )
    environment: dict[VariableName, Word] = Field(
        {}, description="environment variables of the job"
    )

    @field_validator("max_memory", "max_disk")
    @classmethod
    def _limit(cls, limit: str | None, info: ValidationInfo) -> str | None:
        request = str(info.field_name).replace("max", "request")
        asked = info.data.get(request)
        if limit and asked and kilobytes(limit) <= kilobytes(asked):
            raise PydanticCustomError("limit", f"must be more than {request}, which is {asked}")
        return limit


class Site(BaseModel):
    """What a site wants of every job: a profile, apart from the pipelines that run there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the profile's name, from its file")
    file: str = Field(description="the profile's file")
    description: str = Field("", description="one line for a human")
    requirements: Expression | None = Field(
        None, description="a ClassAd expression; a stage's own is joined to it by &&"
    )
    accounting_group: Name | None = Field(None, description="who pays: the accounting group")
    accounting_group_user: Name | None = Field(None, description="the user within that group")
    python: list[Word] | None = Field(
        None, min_length=1, description="what 'python' at the head of a command is there"
    )
    submit: Submit = Field({}, description=_SUBMIT)
    gpu_submit: Submit = Field({}, description=f"{_SUBMIT}; for stages that ask for GPUs")
    defaults: Defaults = Field(
        default_factory=lambda: Defaults.model_validate({}),
        description="what stages ask for that do not say it themselves",
    )

    @field_validator("submit", "gpu_submit")
    @classmethod
    def _lines(cls, submit: dict[str, Scalar]) -> dict[str, Scalar]:
        return _readable(submit)


class Stage(Defaults):
    """One node of the graph: a command that runs as one HTCondor job."""

    name: str = Field(description="the stage's name, from its key")
    command: list[Word] = Field(min_length=1, description="program and arguments, a word each")
    needs: list[Text] = Field([], description="stages that must be done first; globs are allowed")
    inputs: list[Text] = Field(
        [], description="files: stage/file (globs over stages are allowed), a local path, or a URL"
    )
    outputs: list[Text] = Field([], description="files that the command leaves behind")
    template: Text = Field("stage.sub.j2", description="the submit file's template")
    code: list[Text] = Field([], description="packages to take along, importable in the job")
    venv: Text | None = Field(
        None,
        description="a Python environment to take along: the folder of a virtual environment, "
        "packed at the submission; a file that `condorctl venv pack` made, or its URL. "
        "Its `python` is then the command's",
    )
    secrets: list[VariableName] = Field(
        [],
        description="environment variables whose values come from yours, or from "
        "~/.config/condorctl/secrets/NAME, and stand in no submit file, ledger or log",
    )
    requirements: Expression | None = Field(
        None, description="a ClassAd expression that the execute node must meet"
    )
    priority: int | None = Field(None, description="higher goes first among one's own jobs")
    submit: Submit = Field({}, description=_SUBMIT)
    retries: int = Field(0, ge=0, description="how often DAGMan runs a failed stage again")
    final_exit_codes: list[ExitCode] = Field([], description="exit codes that no retry mends")
    checkpoint_interval: Duration | None = Field(
        None,
        description="after this time, such as 15 min, a job that uses `condorctl.job.checkpoint` "
        "exits with 85, for HTCondor itself to keep its checkpoint and start it again",
    )
    checkpoint_copy_interval: Duration | None = Field(
        None,
        description="a checkpoint is due, and copied to the submit side while the job runs, at "
        "most once in this time; else in 1 min",
    )

    @field_validator("submit")
    @classmethod
    def _lines(cls, submit: dict[str, Scalar]) -> dict[str, Scalar]:
        return _readable(submit)

    @field_validator("outputs")
    @classmethod
    def _own(cls, outputs: list[str]) -> list[str]:
        for output in outputs:
            if PurePosixPath(output).parts[:1] == (CHECKPOINTS,):
                reason = f"{output!r} lies where condorctl keeps a job's checkpoints: rename it"
                raise PydanticCustomError("own", "{reason}", {"reason": reason})
        return outputs

    @field_validator("inputs")
    @classmethod
    def _in_the_way(cls, inputs: list[str]) -> list[str]:
        for text in inputs:
            if PurePosixPath(text).name == CHECKPOINTS and not text.endswith("/"):
                reason = f"{text!r} would lie where condorctl keeps a job's checkpoints: rename it"
                raise PydanticCustomError("own", "{reason}", {"reason": reason})
        return inputs

    @field_validator("checkpoint_interval")
    @classmethod
    def _free(cls, interval: str | None, info: ValidationInfo) -> str | None:
        if interval and EXIT_CODE in info.data.get("final_exit_codes", ()):
            message = f"needs exit code {EXIT_CODE} for itself: it is among final_exit_codes"
            raise PydanticCustomError("own", message)
        return interval

    @field_validator("image")
    @classmethod
    def _fits(cls, image: str, info: ValidationInfo) -> str:
        # A universe that is none has an error of its own.
        universe = info.data.get("universe")
        return _checked(images.check, universe, image) if universe else image

    @property
    def brought(self) -> list[str]:
        """What travels to the job: its inputs and its environment."""
        return [*self.inputs, *([self.venv] if self.venv else [])]

    def local(self, stages: Container[str]) -> list[str]:
        """What travels to the job of the user's files: no URLs, and no outputs of `stages`."""
        return [
            text for text in self.brought if not is_url(text) and split_input(text)[0] not in stages
        ]

    def upstream(self, stages: Iterable[str]) -> list[str]:
        """The names of the stages this one waits for, from ``needs`` and from its inputs."""
        known = set(stages)
        makers = [source for source, _ in map(split_input, self.inputs) if source in known]
        return list(dict.fromkeys([*self.needs, *makers]))


class TableRow(BaseModel):
    """One line of a table: the mean of the results that match, beside figures from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: Text = Field(description="what the line is called")
    match: dict[str, Scalar] = Field(min_length=1, description="values that a result must have")
    reference: dict[str, Percent] = Field({}, description="heading: figure, in percent")


class Table(BaseModel):
    """A table of results that a pipeline declares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Text = Field(description="what stands above the table")
    columns: dict[Text, Text] = Field(min_length=1, description="heading: key of the results")
    reference: str = Field("", description="where the reference figures come from")
    rows: list[TableRow] = Field(min_length=1, description="a line each")


class Pipeline(BaseModel):
    """A whole spec, parameters filled in, matrices written out and references checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what runs are called after; else the file's name")
    description: str = Field("", description="one line for a human")
    params: dict[str, Value] = Field({}, description="values that --set can replace")
    stages: dict[str, Stage] = Field(min_length=1, description="the nodes of the graph")
    site: Site | None = Field(None, description="the name of a site's profile")
    tables: list[Table] = Field([], description="what `condorctl results` prints")

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


def kilobytes(amount: str) -> int:
    """An `Amount` in KB, rounded up."""
    number, unit = amount.rstrip("B")[:-1], amount.rstrip("B")[-1]
    return -int(-float(number) * _UNITS[unit] // 1)


def seconds(duration: str) -> int:
    """A `Duration` in seconds, rounded."""
    match = re.fullmatch(r"([\d.]+) ?(\w+)", duration)
    return round(float(match[1]) * _SECONDS[match[2]]) if match else 0
