"""A pipeline onto disk: a submit file per stage, the DAG, and the code that the jobs will run.

The run's folder is the DAG's working directory. A stage has a folder of its own there, and in a
job's sandbox the files of earlier stages lie under the same relative paths.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from condorctl import paths, spec, submit_language
from condorctl.errors import UserError
from condorctl.spec import Pipeline, Stage

_PACKAGE = Path(__file__).parent
_JOB_SIDE = ("__init__.py", "errors.py", "job.py", "stage.sh")
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".venv")


def render(pipeline: Pipeline, run: str, folder: Path, python: Sequence[str]) -> Path:
    """Write all files of the run called `run` into the empty `folder`; return the DAG's file.

    `python` is what the word ``python`` at the head of a command stands for on the execute node.
    Raises UserError for a template that is missing or faulty, and for text that the submit
    language would execute or expand.
    """
    templates = _templates()
    _copy_code(pipeline, folder / "code")
    for stage in pipeline.stages.values():
        values = {"run": run, "stage": stage, **_job(pipeline, stage, python)}
        text = _fill(templates, stage.template, values)
        submit_language.check_text(text, f"{stage.template} for stage {stage.name!r}")
        (folder / stage.name).mkdir()
        (folder / stage.name / "stage.sub").write_text(text, encoding="utf-8")
    stages = [pipeline.stages[name] for name in pipeline.order()]
    dag = folder / f"{pipeline.name}.dag"
    values = {"run": run, "stages": stages, "names": list(pipeline.stages)}
    dag.write_text(_fill(templates, "pipeline.dag.j2", values), encoding="utf-8")
    config = _fill(templates, "dagman.config", values)
    (folder / "dagman.config").write_text(config, encoding="utf-8")
    return dag


def _job(pipeline: Pipeline, stage: Stage, python: Sequence[str]) -> dict[str, Any]:
    """The quoted values that a stage's template puts into its submit file."""
    command = [*python, *stage.command[1:]] if stage.command[0] == "python" else stage.command
    inputs = ["code"]
    for text in stage.inputs:
        local = not spec.is_url(text) and spec.split_input(text)[0] not in pipeline.stages
        inputs.append(str(Path(text).absolute()) if local else text)
    home = {output: f"{stage.name}/{output}" for output in stage.outputs}
    environment = {"PYTHONPATH": "code", "PYTHONUNBUFFERED": "1", **stage.environment}
    return {
        "arguments": submit_language.arguments([*stage.outputs, "--", *command]),
        "environment": submit_language.environment(environment),
        "inputs": submit_language.file_list(inputs),
        "outputs": submit_language.file_list(stage.outputs) or submit_language.Quoted('""'),
        "remaps": submit_language.remaps(home),
    }


def _copy_code(pipeline: Pipeline, target: Path) -> None:
    """Snapshot the code: what is edited after the submission changes nothing in the run."""
    (target / "condorctl").mkdir(parents=True)
    for name in _JOB_SIDE:
        shutil.copy2(_PACKAGE / name, target / "condorctl" / name)
    for name in dict.fromkeys(name for stage in pipeline.stages.values() for name in stage.code):
        source = paths.package(name)
        try:
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=_NOT_CODE, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target / source.name)
        except shutil.Error as error:
            file, _, reason = error.args[0][0]
            raise UserError(f"code: {file}: {reason}") from None


def _templates() -> jinja2.Environment:
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
        raise UserError(f"template {error}: not in templates/; there is {known}") from None
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"template {error.name}:{error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise UserError(f"template {name}: {error.message}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"template {name}: {error}") from None
