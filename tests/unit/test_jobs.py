"""The pipelines that ship: robust takes each command, and each file comes from somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from condorctl.spec import reader
from condorctl.spec.reader import Pipeline
from robust.arguments import parser
from robust.config import load_preset, override
from robust.options import SECTIONS

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (ROOT / "robust/presets").glob("*.toml"))


def load(name: str) -> Pipeline:
    return reader.load(ROOT / "jobs" / f"{name}.yaml")


@pytest.fixture(params=JOBS)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load(request.param)


def test_every_command_is_one_that_robust_takes(pipeline: Pipeline) -> None:
    for stage in pipeline.stages.values():
        assert stage.command[:3] == ["python", "-m", "robust"]
        args = parser().parse_args(stage.command[3:])
        if SECTIONS[args.stage]:
            override(load_preset("smoke"), args.settings, args.stage)


def test_every_checkpoint_that_a_command_reads_is_among_its_inputs(pipeline: Pipeline) -> None:
    for stage in pipeline.stages.values():
        args = vars(parser().parse_args(stage.command[3:]))
        read = [args.get("init"), args.get("surrogate")]
        read += [model.partition("=")[2] for model in args.get("model") or []]
        assert {path for path in read if path} == set(stage.inputs), stage.name


@pytest.mark.parametrize("preset", PRESETS)
def test_a_table_s_columns_are_those_that_the_preset_measures(
    pipeline: Pipeline, preset: str
) -> None:
    """But for those whose name holds the number of restarts, which presets differ in.

    AutoAttack is one that a parameter asks for; without it `results` leaves the column out.
    """
    options = load_preset(preset).evaluate
    measured = {"clean", "transfer", "AutoAttack"} | {
        f"PGD-{steps}"
        for steps, restarts in zip(options.pgd_steps, options.pgd_restarts, strict=True)
        if restarts == 1
    }
    for table in pipeline.tables:
        assert {key for key in table.columns.values() if "×" not in key} <= measured


def test_every_row_of_a_table_is_a_model_that_some_stage_evaluates(pipeline: Pipeline) -> None:
    """Of this pipeline, or of another whose results stand beside its own."""
    wanted = {row.match["model"] for table in pipeline.tables for row in table.rows}
    assert wanted & evaluated(pipeline) or not wanted
    assert wanted <= set().union(*map(evaluated, map(load, JOBS)))


def evaluated(pipeline: Pipeline) -> set[str]:
    return {
        word.partition("=")[0]
        for stage in pipeline.stages.values()
        for flag, word in zip(stage.command, stage.command[1:], strict=False)
        if flag == "--model"
    }


def test_tables_takes_other_seeds_ratios_and_data(tmp_path: Path) -> None:
    archive = tmp_path / "cifar10.tar.xz"
    archive.touch()
    settings = {"seeds": "4", "ratios": "95", "data": str(archive), "preset": "small"}
    stages = reader.load(ROOT / "jobs/tables.yaml", settings).stages
    score = stages["score-ours-95-4"]
    assert score.command[-2:] == ["--keep", "0.05"]
    assert str(archive) in score.inputs
    assert score.environment["ROBUST_DATA_ROOT"] == "cifar10.tar.xz"
