"""A pipeline onto disk: a submit file per stage, the DAG, and the code that the jobs will run.

The run's folder is the DAG's working directory. A stage has a folder of its own there, and in a
job's sandbox the files of earlier stages lie under the same relative paths.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from condorctl import notify, paths, secrets
from condorctl.condor import submit_language
from condorctl.errors import UserError
from condorctl.job.checkpoint import EXIT_CODE
from condorctl.job.folder import FOLDER as CHECKPOINTS
from condorctl.spec.pipeline import is_url, seconds
from condorctl.spec.reader import Pipeline, Stage
from condorctl.spec.venv import is_venv
from condorctl.submit import requests, snapshot, universe, venvs


def render(
    pipeline: Pipeline,
    run: str,
    folder: Path,
    python: Sequence[str],
    inputs: Mapping[str, str] | None = None,
    done: Collection[str] = (),
) -> Path:
    """Write all files of the run called `run` into `folder`; return the DAG's file.

    `folder` is empty, or has what `snapshot.take` and `reuse.plan` put there. `python` is what the
    word ``python`` at the head of a command stands for on the execute node, `inputs` where each
    local input is (else where the spec says), `done` the stages that need not run. Raises
    UserError for a template that is missing or faulty, and for text that the submit language would
    execute or expand.
    """
    templates = templates_here()
    if not (folder / "code").exists():
        snapshot.code(pipeline, folder / "code")
    if pipeline.site:
        shutil.copy2(pipeline.site.file, folder / "site.yaml")
    for stage in pipeline.stages.values():
        text = submit_file(pipeline, stage, run, python, templates, inputs)
        (folder / stage.name / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (folder / stage.name / "stage.sub").write_text(text, encoding="utf-8")
    stages = [pipeline.stages[name] for name in pipeline.order()]
    dag = folder / f"{pipeline.name}.dag"
    values = {"run": run, "stages": stages, "names": list(pipeline.stages), "done": done}
    dag.write_text(_fill(templates, "pipeline.dag.j2", values), encoding="utf-8")
    notify.attach(dag, run)
    config = _fill(templates, "dagman.config", values)
    (folder / "dagman.config").write_text(config, encoding="utf-8")
    return dag


def submit_file(
    pipeline: Pipeline,
    stage: Stage,
    run: str,
    python: Sequence[str],
    templates: jinja2.Environment | None = None,
    inputs: Mapping[str, str] | None = None,
) -> str:
    """The text of the stage's submit file in the run called `run`; raises UserError as `render`."""
    values = {"run": run, "stage": stage, **_job(pipeline, stage, python, inputs or {})}
    text = _fill(templates or templates_here(), stage.template, values)
    submit_language.check_text(text, f"{stage.template} for stage {stage.name!r}")
    return text


def _job(
    pipeline: Pipeline, stage: Stage, python: Sequence[str], places: Mapping[str, str]
) -> dict[str, Any]:
    """The quoted values that a stage's template puts into its submit file."""
    command = stage.command
    if command[0] == "python":
        command = [*universe.python(pipeline, stage, python), *command[1:]]
    local = set(stage.local(pipeline.stages))
    inputs = [
        places.get(text, f"{Path(text).absolute()}{'/' * text.endswith('/')}")
        if text in local
        else text
        for text in stage.inputs
    ]
    venv = _venv(stage, places)
    inputs += [venv] if venv else []
    unpack = ["--venv", posixpath.basename(venv)] if venv else []
    home = {output: f"{stage.name}/{output}" for output in stage.outputs}
    environment = {"PYTHONPATH": "code", "PYTHONUNBUFFERED": "1", **stage.environment}
    codes = stage.final_exit_codes
    final = ["--final", ",".join(map(str, codes))] if len(codes) > 1 else []
    # An output called like an option is none with its folder before it.
    outputs = [f"./{name}" if name.startswith("-") else name for name in stage.outputs]
    return {
        "universe": universe.lines(stage),
        "arguments": submit_language.arguments([*final, *unpack, *outputs, "--", *command]),
        "environment": submit_language.environment(environment),
        "inputs": _inputs(["code", *inputs], stage),
        "outputs": submit_language.file_list([*stage.outputs, CHECKPOINTS, paths.JOB_RECORD]),
        "remaps": _remaps({**home, CHECKPOINTS: f"{stage.name}/{CHECKPOINTS}"}, stage.name),
        "checkpointing": _checkpointing(stage),
        **requests.lines(pipeline.site, stage),
    }


def _venv(stage: Stage, places: Mapping[str, str]) -> str | None:
    """Where HTCondor finds the packed environment of the stage."""
    if not stage.venv or stage.venv in places or is_url(stage.venv):
        return places.get(stage.venv or "", stage.venv)
    path = Path(stage.venv).absolute()
    return str(venvs.cached(path) if is_venv(path) else path)


def _inputs(files: Sequence[str], stage: Stage) -> submit_language.Quoted:
    # The job finds its checkpoints where it leaves them.
    own = [CHECKPOINTS, *([secrets.FILE] if stage.secrets else [])]
    back = [submit_language.whole_path(f"{stage.name}/{name}") for name in own]
    return submit_language.Quoted(", ".join([submit_language.file_list(files), *back]))


def _checkpointing(stage: Stage) -> submit_language.Quoted:
    lines = []
    if stage.checkpoint_copy_interval:
        lines.append(f"MY.CondorctlCopyInterval = {seconds(stage.checkpoint_copy_interval)}")
    if stage.checkpoint_interval:
        files = submit_language.file_list([*stage.outputs, CHECKPOINTS, paths.JOB_RECORD])
        lines += [
            f"MY.CondorctlCheckpointInterval = {seconds(stage.checkpoint_interval)}",
            f"checkpoint_exit_code = {EXIT_CODE}",
            f"transfer_checkpoint_files = {files}",
            "when_to_transfer_output = ON_EXIT_OR_EVICT",
        ]
    return submit_language.Quoted("".join(f"{line}\n" for line in lines))


def _remaps(home: Mapping[str, str], stage: str) -> submit_language.Quoted:
    # The record's name holds a macro, so that each attempt keeps its own.
    files = submit_language.remaps(home).strip('"')
    job = f"{paths.JOB_RECORD} = {stage}/$(ClusterId).job"
    return submit_language.Quoted(f'"{"; ".join(filter(None, [files, job]))}"')


def templates_here() -> jinja2.Environment:
    """The templates of the folder one is in and of the package, to give to `submit_file`."""
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(paths.search("templates")),
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.clear()
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, submit_language.Quoted | jinja2.Undefined):
        return value
    return submit_language.plain(str(value), "template")


def _fill(templates: jinja2.Environment, name: str, values: dict[str, Any]) -> str:
    try:
        return templates.get_template(name).render(values)
    except jinja2.TemplateNotFound as error:
        known = ", ".join(sorted(templates.list_templates()))
        raise UserError(f"template {error.name}: not in templates/; there is {known}") from None
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"template {error.name}:{error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise UserError(f"template {name}: {error.message}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"template {name}: {error}") from None
