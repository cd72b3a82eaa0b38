"""Specs: what they mean, and one line for whatever is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condorctl import paths, spec
from condorctl.errors import UserError


def load(project: Path, text: str, **sets: str) -> spec.Pipeline:
    file = project / "jobs" / "p.yaml"
    file.write_text(text, encoding="utf-8")
    return spec.load(file, sets)


def test_the_method_is_a_valid_pipeline_in_the_order_of_its_stages(project: Path) -> None:
    pipeline = spec.load(paths.spec("pipeline"), {"seed": "7"})
    order = pipeline.order()
    assert order.index("pretrain") < order.index("train") < order.index("score_90")
    assert order.index("score_99") < order.index("finetune_99") < order.index("evaluate_99")
    assert "7" in pipeline.stages["train"].command
    upstream = {name: stage.upstream(order) for name, stage in pipeline.stages.items()}
    assert upstream["pretrain"] == upstream["plain"] == []
    assert upstream["score_90"] == upstream["evaluate_dense"] == ["train"]


def test_defaults_reach_every_stage_and_a_stage_has_the_last_word(project: Path) -> None:
    pipeline = load(
        project,
        """
        defaults: {request_cpus: 2, environment: {A: 1, B: 2}}
        stages:
          one: {command: [true]}
          two: {command: [true], request_cpus: 1, environment: {B: three}}
        """,
    )
    assert pipeline.stages["one"].request_cpus == 2
    assert pipeline.stages["two"].request_cpus == 1
    assert pipeline.stages["two"].environment == {"A": "1", "B": "three"}


def test_an_input_from_a_stage_is_an_edge_of_the_graph(project: Path) -> None:
    pipeline = load(
        project,
        """
        stages:
          last: {command: [x], inputs: [first/model.pt], needs: [middle]}
          middle: {command: [x]}
          first: {command: [x], outputs: [model.pt]}
        """,
    )
    assert pipeline.stages["last"].upstream(pipeline.stages) == ["middle", "first"]
    assert pipeline.order() == ["middle", "first", "last"]


def test_settings_take_the_type_of_the_parameter(project: Path) -> None:
    text = """
    params: {n: 1, rate: 0.5, on: false, word: a}
    stages: {s: {command: ["{{ n }}", "{{ rate }}", "{{ on }}", "{{ word }}"]}}
    """
    pipeline = load(project, text, n="3", rate="1e-3", on="true", word="b c")
    assert pipeline.params == {"n": 3, "rate": 0.001, "on": True, "word": "b c"}
    assert pipeline.stages["s"].command == ["3", "1e-3", "true", "b c"]


def test_bare_words_and_numbers_of_a_command_stay_as_they_are_written(project: Path) -> None:
    words = ["yes", "on", "true", "007", "0.10", "1e5", "12:30:00", "2026-01-01", "0x1F", "1_000"]
    pipeline = load(project, f"stages: {{s: {{command: [{', '.join(words)}]}}}}")
    assert pipeline.stages["s"].command == words


WRONG = {
    "unknown key": ("stages: {s: {comand: [x]}}", "p.yaml:1: stages.s.comand: unknown key"),
    "top level": ("stagez: {}\nstages: {s: {command: [x]}}", "did you mean 'stages'"),
    "no stages": ("params: {a: 1}", "needs 'stages'"),
    "no command": ("stages:\n  s:\n    needs: []", "p.yaml:2: stages.s.command: Field required"),
    "empty command": ("stages: {s: {command: []}}", "stages.s.command"),
    "cycle": (
        "stages:\n  a: {command: [x], needs: [b]}\n  b: {command: [x], needs: [a]}",
        "wait for each other: a -> b -> a",
    ),
    "itself": ("stages: {a: {command: [x], needs: [a]}}", "wait for each other: a -> a"),
    "unknown stage": (
        "stages:\n  train: {command: [x]}\n  b: {command: [x], needs: [trian]}",
        "p.yaml:3: stages.b.needs: there is no stage 'trian'; did you mean 'train'?",
    ),
    "missing input": ("stages: {a: {command: [x], inputs: [data.csv]}}", "'data.csv' is neither"),
    "undeclared output": (
        "stages:\n  a: {command: [x], outputs: [m.pt]}\n  b: {command: [x], inputs: [a/n.pt]}",
        "stage 'a' has no output 'n.pt'; did you mean 'm.pt'?",
    ),
    "output outside": ("stages: {a: {command: [x], outputs: [../b]}}", "the job's own folder"),
    "undefined variable": (
        "params: {seed: 1}\nstages: {a: {command: ['{{ sead }}']}}",
        "stages.a.command.0: 'sead' is undefined; parameters are seed",
    ),
    "template code": ("stages: {a: {command: ['{{ \"\".__class__ }}']}}", "stages.a.command.0"),
    "line break": ('stages: {a: {command: ["x\\nqueue 9"]}}', "holds a line break"),
    "macro": ("stages: {a: {command: ['$(HOME)']}}", "holds '$(…)'"),
    "function macro": ("stages: {a: {command: ['$ENV(HOME)']}}", "holds '$ENV(…)'"),
    "variable name": (
        "stages: {a: {command: [x], environment: {'A B': 1}}}",
        "p.yaml:1: stages.a.environment.A B",
    ),
    "negative": ("stages: {a: {command: [x], request_cpus: 0}}", "stages.a.request_cpus"),
    "memory unit": ("stages: {a: {command: [x], request_memory: '2000'}}", "request_memory"),
    "bad name": ("stages: {'a.b': {command: [x]}}", "is no name for a stage"),
    "reserved name": ("stages: {ALL_NODES: {command: [x]}}", "is no name for a stage"),
    "twice": ("stages:\n  a: {command: [x]}\n  a: {command: [y]}", "p.yaml:3: stages.a: stands"),
    "not YAML": ("stages: [", "p.yaml:1: not valid YAML"),
    "a list": ("- a", "must be a mapping"),
    "binary": ("\x00", "not valid YAML"),
    "recursive": ("stages: &a {s: *a}", "p.yaml"),
    "empty": ("", "must be a mapping"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_spec_is_one_line_with_the_place_and_the_mend(
    project: Path, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(project, text)
    assert expected in str(caught.value)
    assert "p.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sed", "1", "did you mean 'seed'?"),
        ("seed", "x", "must be a whole number, not 'x'"),
        ("word", "a\nb", "--set word: holds a line break"),
        ("word", "$(X)", "--set word: holds '$(…)'"),
    ],
)
def test_a_wrong_setting_is_named(project: Path, key: str, value: str, expected: str) -> None:
    with pytest.raises(UserError, match="--set") as caught:
        load(project, "params: {seed: 0, word: a}\nstages: {s: {command: [x]}}", **{key: value})
    assert expected in str(caught.value)


_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["command", "needs", "inputs", "a", "stages", "params", "defaults"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=st.dictionaries(st.sampled_from(["stages", "params", "defaults", "name"]), _trees))
def test_any_tree_is_a_pipeline_or_a_user_error(project: Path, tree: dict[str, object]) -> None:
    try:
        pipeline = load(project, yaml.safe_dump(tree))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sorted(pipeline.order()) == sorted(pipeline.stages)
