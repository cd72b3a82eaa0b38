"""Matrices: the stages that one written stage stands for, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condorctl.errors import UserError
from condorctl.spec import reader


def load(project: Path, text: str) -> reader.Pipeline:
    file = project / "jobs" / "p.yaml"
    file.write_text(text, encoding="utf-8")
    return reader.load(file)


def test_the_first_axis_of_a_matrix_is_the_slowest_and_values_keep_type_and_form(
    project: Path,
) -> None:
    pipeline = load(
        project,
        """
        params: {ratios: [90, 99], rates: [0.10, 1e-3]}
        stages:
          s-{{ ratio }}-{{ word }}:
            matrix: {ratio: "{{ ratios }}", word: [b, a]}
            command: ["{{ (100 - ratio) / 100 }}", "{{ stage }}"]
          r-{{ n }}:
            matrix:
              n: [0, 1]
              rate: "{{ rates }}"
              exclude: [{n: 0, rate: 0.1}, {n: 1, rate: 1e-3}]
            command: ["{{ rate }}"]
        """,
    )
    assert [(name, stage.command) for name, stage in pipeline.stages.items()] == [
        ("s-90-b", ["0.1", "s-90-b"]),
        ("s-90-a", ["0.1", "s-90-a"]),
        ("s-99-b", ["0.01", "s-99-b"]),
        ("s-99-a", ["0.01", "s-99-a"]),
        ("r-0", ["1e-3"]),
        ("r-1", ["0.10"]),
    ]


def test_include_adds_combinations_as_they_stand_after_exclude(project: Path) -> None:
    pipeline = load(
        project,
        """
        params: {last: 7}
        stages:
          s-{{ a }}{{ b }}:
            matrix:
              a: [1, 2]
              b: [x, y]
              exclude: [{a: 1, b: x}, {a: 2}]
              include: [{a: 1, b: x, c: again}, {a: "{{ last }}", b: z, c: new}]
            command: [go, "{{ a + 1 }}", "{{ c | default('none') }}"]
          only-{{ seed }}:
            matrix: {include: [{seed: 3}]}
            command: [go]
        """,
    )
    assert [(name, stage.command[1:]) for name, stage in pipeline.stages.items()] == [
        ("s-1y", ["2", "none"]),
        ("s-1x", ["2", "again"]),
        ("s-7z", ["8", "new"]),
        ("only-3", []),
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    a=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    b=st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=4, unique=True),
)
def test_a_matrix_is_the_product_of_its_axes(project: Path, a: list[int], b: list[str]) -> None:
    matrix = {"a": "{{ numbers }}", "b": b}
    stage = {"matrix": matrix, "command": ["{{ a }}", "{{ b }}"]}
    tree = {"params": {"numbers": a}, "stages": {"s-{{ a }}-{{ b }}": stage}}
    expected = []
    for x in a:
        for y in b:
            expected.append((f"s-{x}-{y}", [str(x), y]))
    found = load(project, yaml.safe_dump(tree)).stages
    assert [(name, stage.command) for name, stage in found.items()] == expected


WRONG = {
    "no matrix": (
        "stages:\n  'a-{{ seed }}': {command: [x]}",
        "p.yaml:2: stages.a-{{ seed }}: 'seed' is undefined",
    ),
    "no axis in the name": (
        "stages:\n  'a-{{ b }}': {matrix: {b: [1], c: [1, 2]}, command: [x]}",
        "p.yaml:2: stages.a-{{ b }}: gives 'a-1' twice: the name must hold {{ c }}",
    ),
    "one combination twice": (
        "stages: {'a-{{ b }}': {matrix: {b: [1, 1]}, command: [x]}}",
        "gives 'a-1' twice: its matrix holds the same combination twice",
    ),
    "one name of two": (
        "stages:\n  'a-{{ b }}': {matrix: {b: [1]}, command: [x]}\n  a-1: {command: [x]}",
        "p.yaml:3: stages.a-1: gives the name 'a-1', and so does 'a-{{ b }}'",
    ),
    "no combination": (
        "stages: {'a-{{ b }}': {matrix: {b: [1], exclude: [{b: 1}]}, command: [x]}}",
        "stages.a-{{ b }}.matrix: leaves no combination",
    ),
    "null matrix": ("stages: {a: {matrix: , command: [x]}}", "stages.a.matrix: must be a mapping"),
    "empty axis": ("stages: {a: {matrix: {b: []}, command: [x]}}", "matrix.b: must be a list of"),
    "axis of maps": ("stages: {a: {matrix: {b: [{}]}, command: [x]}}", "matrix.b.0: must be text"),
    "axis of a scalar": (
        "params: {n: 1, m: [1]}\nstages: {a: {matrix: {b: '{{ n }}'}, command: [x]}}",
        "p.yaml:2: stages.a.matrix.b: must be a list, or '{{ name }}' of a parameter that is one; "
        "lists are m",
    ),
    "hidden parameter": (
        "params: {n: 1}\nstages: {a: {matrix: {n: [1]}, command: [x]}}",
        "p.yaml:2: stages.a.matrix.n: would hide the parameter 'n'",
    ),
    "hidden stage": ("stages: {a: {matrix: {stage: [1]}, command: [x]}}", "hide the stage's own"),
    "include hides": (
        "params: {n: 1}\nstages: {a: {matrix: {include: [{n: 1}]}, command: [x]}}",
        "matrix.include.0.n: would hide",
    ),
    "exclude no axis": (
        "stages: {'a-{{ seed }}': {matrix: {seed: [1], exclude: [{sead: 1}]}, command: [x]}}",
        "matrix.exclude.0.sead: is no axis; did you mean 'seed'?",
    ),
    "huge matrix": (
        f"stages: {{a: {{matrix: {{b: &l {list(range(200))}, c: *l}}, command: [x]}}}}",
        "p.yaml:1: stages.a.matrix: gives more than 10000 stages",
    ),
    "matrix in defaults": (
        "defaults: {matrix: {}}\nstages: {a: {command: [x]}}",
        "defaults.matrix: unknown key",
    ),
    "in a stage of a matrix": (
        "stages:\n  'a-{{ b }}':\n    matrix: {b: [1, 2]}\n    command: [x]\n"
        "    needs: ['{{ b }}']",
        "p.yaml:5: stages.a-{{ b }}.needs (a-1): there is no stage '1'",
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_matrix_is_one_line_with_the_place_and_the_mend(
    project: Path, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(project, text)
    assert expected in str(caught.value)
    assert "p.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
