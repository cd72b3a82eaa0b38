"""Specs: what they mean, and one line for whatever is wrong with one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condorctl import paths
from condorctl.errors import UserError
from condorctl.spec import reader


def load(project: Path, text: str, **sets: str) -> reader.Pipeline:
    file = project / "jobs" / "p.yaml"
    file.write_text(text, encoding="utf-8")
    return reader.load(file, sets)


def test_the_method_is_a_valid_pipeline_in_the_order_of_its_stages(project: Path) -> None:
    pipeline = reader.load(paths.spec("pipeline"), {"seed": "7"})
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [("[3, 4]", [3, 4]), ("3,4", [3, 4]), ("5", [5]), ("[5]", [5]), (" 3 , 4 ", [3, 4])],
)
def test_a_list_parameter_is_replaced_by_values_of_its_own_type(
    project: Path, given: str, expected: list[int]
) -> None:
    text = """
    params: {seeds: [0, 1, 2], words: [a]}
    stages: {"s-{{ seed }}": {matrix: {seed: "{{ seeds }}"}, command: ["{{ seed + 1 }}"]}}
    """
    pipeline = load(project, text, seeds=given, words="['x, y', 3]")
    assert pipeline.params == {"seeds": expected, "words": ["x, y", "3"]}
    commands = [stage.command for stage in pipeline.stages.values()]
    assert commands == [[str(seed + 1)] for seed in expected]


def test_a_glob_means_all_other_stages_of_such_names_in_the_files_order(project: Path) -> None:
    pipeline = load(
        project,
        """
        params: {seeds: [1, 0]}
        defaults: {command: [x], outputs: [r.json]}
        stages:
          all-b: {needs: ["all-*", "*-0", evaluate-1]}
          sum: {inputs: ["evaluate-[01]/r.json", "evaluate-?/r.json"]}
          evaluate-{{ seed }}: {matrix: {seed: "{{ seeds }}"}}
          all-a: {}
        """,
    )
    assert pipeline.stages["all-b"].needs == ["all-a", "evaluate-0", "evaluate-1"]
    assert pipeline.stages["sum"].inputs == ["evaluate-1/r.json", "evaluate-0/r.json"]
    assert pipeline.stages["sum"].upstream(pipeline.stages) == ["evaluate-1", "evaluate-0"]


def test_an_input_or_need_that_renders_to_nothing_is_left_out(project: Path) -> None:
    (project / "images").mkdir()
    text = """
    params: {data: "", after: ""}
    stages:
      a: {command: [go, "--root={{ data | basename }}"], inputs: ["{{ data }}"]}
      b: {command: [go], needs: ["{{ after }}"]}
    """
    without = load(project, text).stages
    assert (without["a"].inputs, without["a"].command, without["b"].needs) == (
        [],
        ["go", "--root="],
        [],
    )
    given = load(project, text, data=f"{project}/images/", after="a").stages
    assert given["a"].inputs == [f"{project}/images/"]
    assert given["a"].command == ["go", "--root=images"]
    assert given["b"].needs == ["a"]


TABLE = """
params: {ratio: 90}
stages: {s: {command: [x]}}
tables:
  - title: Accuracy at {{ ratio }} %
    columns: {Clean Acc: clean}
    reference: study
    rows:
      - label: ours
        match: {model: ours, ratio: "{{ ratio }}"}
        reference: {Clean Acc: 76.66}
"""


def test_a_table_is_declared_with_its_reference_figures(project: Path) -> None:
    [table] = load(project, TABLE, ratio="99").tables
    assert table.model_dump() == {
        "title": "Accuracy at 99 %",
        "columns": {"Clean Acc": "clean"},
        "reference": "study",
        "rows": [
            {
                "label": "ours",
                "match": {"model": "ours", "ratio": 99},
                "reference": {"Clean Acc": 76.66},
            }
        ],
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title:", "tilte:", "p.yaml:5: tables.0.tilte: unknown key; did you mean 'title'?"),
        ("label:", "lable:", "p.yaml:9: tables.0.rows.0.lable: unknown key; did you mean 'label'?"),
        (
            "{Clean Acc: 76", "{Clen Acc: 76",
            "p.yaml:11: tables.0.rows.0.reference.Clen Acc: is no column; did you mean 'Clean Acc'",
        ),
        ("76.66", "7666", "p.yaml:11: tables.0.rows.0.reference.Clean Acc: must be less"),
        ("    reference: study\n", "", "p.yaml:5: tables.0: has reference figures: name their"),
        ('{model: ours, ratio: "{{ ratio }}"}', "{}", "p.yaml:10: tables.0.rows.0.match"),
        ("model: ours", "model: [ours]", "p.yaml:10: tables.0.rows.0.match.model"),
        ('"{{ ratio }}"', '"{{ ration }}"', "p.yaml:10: tables.0.rows.0.match.ratio"),
        ("{Clean Acc: clean}", "{}", "p.yaml:6: tables.0.columns"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(project: Path, old: str, new: str, expected: str) -> None:
    assert old in TABLE
    with pytest.raises(UserError) as caught:
        load(project, TABLE.replace(old, new, 1))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edges=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_the_order_is_the_first_in_the_files_order_that_is_possible(
    project: Path, edges: set[tuple[int, int]]
) -> None:
    stages = {
        f"s{n}": {"command": ["x"], "needs": [f"s{a}" for a, b in sorted(edges) if b == n]}
        for n in range(5)
    }
    possible = [
        order
        for order in itertools.permutations(range(5))
        if all(order.index(a) < order.index(b) for a, b in edges)
    ]
    text = yaml.safe_dump({"stages": stages})
    if possible:
        assert load(project, text).order() == [f"s{n}" for n in min(possible)]
    else:
        with pytest.raises(UserError, match="wait for each other"):
            load(project, text)


WRONG = {
    "an image without its universe": (
        "stages:\n  s:\n    command: [x]\n    image: a/b",
        "p.yaml:4: stages.s.image: a vanilla stage runs on the node itself",
    ),
    "a default image for stages of which none has a universe": (
        "defaults:\n  image: a/b\nstages: {s: {command: [x]}, t: {command: [x]}}",
        "p.yaml:2: defaults.image: no stage runs in it: say `universe: docker`",
    ),
    "a universe without its image": (
        "stages: {s: {command: [x], universe: docker}}",
        "p.yaml:1: stages.s.image: a docker stage needs an image",
    ),
    "an image beside the spec's key": (
        "stages: {s: {command: [x], submit: {Docker_Image: a}}}",
        "stages.s.submit.Docker_Image: is a stage's own",
    ),
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
    "macro": ("stages: {a: {command: [x], submit: {+A: '$(HOME)'}}}", "holds '$'"),
    "surrogate": ('stages: {a: {command: ["\\ud800"]}}', "is not UTF-8 text"),
    "variable name": (
        "stages: {a: {command: [x], environment: {'A B': 1}}}",
        "p.yaml:1: stages.a.environment.A B",
    ),
    "negative": ("stages: {a: {command: [x], request_cpus: 0}}", "stages.a.request_cpus"),
    "memory unit": (
        "stages: {a: {command: [x], request_memory: 2000}}",
        "p.yaml:1: stages.a.request_memory: must have its unit, such as 512 MB or 4 GB, not 2000",
    ),
    "memory limit": (
        "stages: {a: {command: [x], request_memory: 2 GB, max_memory: 2048 MB}}",
        "p.yaml:1: stages.a.max_memory: must be more than request_memory, which is 2 GB",
    ),
    "interval unit": (
        "stages: {a: {command: [x], checkpoint_interval: 15}}",
        "p.yaml:1: stages.a.checkpoint_interval: must have its unit, such as 30 s, 15 min or 2 h",
    ),
    "no interval": (
        "stages: {a: {command: [x], checkpoint_copy_interval: 0 s}}",
        "stages.a.checkpoint_copy_interval: must have its unit",
    ),
    "85 is taken": (
        "stages: {a: {command: [x], final_exit_codes: [85], checkpoint_interval: 2 h}}",
        "stages.a.checkpoint_interval: needs exit code 85 for itself",
    ),
    "output in the way": (
        "stages: {a: {command: [x], outputs: [checkpoints/last.pt]}}",
        "stages.a.outputs: 'checkpoints/last.pt' lies where condorctl keeps a job's checkpoints",
    ),
    "input in the way": (
        "stages: {a: {command: [x], inputs: [jobs/checkpoints]}}",
        "stages.a.inputs: 'jobs/checkpoints' would lie where condorctl keeps a job's checkpoints",
    ),
    "exit code": (
        "stages: {a: {command: [x], final_exit_codes: [0]}}",
        "stages.a.final_exit_codes",
    ),
    "requirements": (
        "stages: {a: {command: [x], requirements: 'A >'}}",
        "p.yaml:1: stages.a.requirements: 'A >' is no ClassAd expression",
    ),
    "own command": (
        "stages: {a: {command: [x], submit: {log: x}}}",
        "p.yaml:1: stages.a.submit.log: is a stage's own: use the spec's key for it",
    ),
    "bad name": ("stages: {'a.b': {command: [x]}}", "is no name for a stage"),
    "reserved name": ("stages: {ALL_NODES: {command: [x]}}", "is no name for a stage"),
    "list in text": (
        "params: {seeds: [1]}\nstages:\n  a: {command: ['{{ seeds }}']}",
        "p.yaml:3: stages.a.command.0: 'seeds' is a list: let a matrix take its values",
    ),
    "list through a filter": (
        "params: {seeds: [1]}\nstages: {a: {command: ['{{ seeds | join }}']}}",
        "is a list",
    ),
    "mixed list": ("params: {seeds: [1, a]}\nstages: {a: {command: [x]}}", "params.seeds: mixes"),
    "empty list": ("params: {seeds: []}\nstages: {a: {command: [x]}}", "params.seeds: must be"),
    "nested list": ("params: {s: [[1]]}\nstages: {a: {command: [x]}}", "params.s: must be text"),
    "infinite": (
        "params: {s: 1e999}\nstages: {a: {command: [x]}}",
        "p.yaml:1: params.s: must be a",
    ),
    "glob of no stage": (
        "stages:\n  a: {command: [x], needs: ['a*']}",
        "p.yaml:2: stages.a.needs: no other stage's name matches 'a*'",
    ),
    "input glob of no stage": (
        "stages: {a: {command: [x], inputs: ['b*/x']}}",
        "no other stage's name matches 'b*'",
    ),
    "glob without the output": (
        "stages:\n  a-1: {command: [x]}\n  b: {command: [x], inputs: ['a-*/x']}",
        "p.yaml:3: stages.b.inputs: 'a-1/x': stage 'a-1' has no output 'x'",
    ),
    "aliases": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "p.yaml: holds more than 100000 entries",
    ),
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


SETTABLE = """
params: {seed: 0, word: a, rate: 0.1, seeds: [0, 1]}
stages: {s: {command: [x]}}
"""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sed", "1", "did you mean 'seed'?"),
        ("seed", "x", "must be a whole number, not 'x'"),
        ("seeds", "0,x", "must be a whole number, not 'x'"),
        ("seeds", "[]", "must be a list such as [0, 1]"),
        ("seeds", "[[1]]", "must be a list such as [0, 1]"),
        ("seeds", "[1", "must be a list such as [0, 1]"),
        ("rate", "nan", "--set rate: must be a finite number"),
        ("word", "a\nb", "--set word: holds a line break"),
        ("word", "a\udcff", "--set word: is not UTF-8 text"),
    ],
)
def test_a_wrong_setting_is_named(project: Path, key: str, value: str, expected: str) -> None:
    with pytest.raises(UserError, match="--set") as caught:
        load(project, SETTABLE, **{key: value})
    assert expected in str(caught.value)


_KEYS = [
    "command", "needs", "inputs", "a", "stages", "params", "defaults", "matrix", "include",
    "exclude", "title", "columns", "rows", "label", "match", "{{ a }}",
]  # fmt: skip
_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tree=st.dictionaries(
        st.sampled_from(["stages", "params", "defaults", "name", "tables"]), _trees
    )
)
def test_any_tree_is_a_pipeline_or_a_user_error(project: Path, tree: dict[str, object]) -> None:
    try:
        pipeline = load(project, yaml.safe_dump(tree))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sorted(pipeline.order()) == sorted(pipeline.stages)


def test_what_is_said_of_gpus_does_nothing_without_their_number(project: Path) -> None:
    for key in ("gpus_minimum_memory: 8 GB", "gpus_minimum_capability: 8.0", "cpu_after: 2 h"):
        with pytest.raises(UserError) as refused:
            load(project, f"stages:\n  a:\n    command: [x]\n    {key}\n")
        name = key.partition(":")[0]
        assert str(refused.value) == (
            f"{project}/jobs/p.yaml:4: stages.a.{name}: does nothing without request_gpus: "
            "say how many, such as request_gpus: 1"
        )
    # A parameter that switches them off is a number, too.
    spec = "stages: {a: {command: [x], request_gpus: 0, gpus_minimum_memory: 8 GB}}"
    assert load(project, spec).stages["a"].request_gpus == 0


def test_an_environment_is_a_folder_a_file_or_a_url(project: Path) -> None:
    (project / "folder").mkdir()
    (project / "env.pex").touch()
    (project / "env.tar").touch()
    for good in ("env.pex", "https://example.org/env.pex", "osdf:///pool/env.pex"):
        spec = f"stages: {{a: {{command: [x], venv: '{good}'}}}}"
        assert load(project, spec).stages["a"].venv == good
    for bad, why in (
        ("nowhere", "there is no 'nowhere' here"),
        ("folder", "neither a virtual environment nor a .pex file"),
        ("env.tar", "neither a virtual environment nor a .pex file"),
        ("https://example.org/env.tar", "must end in .pex"),
    ):
        with pytest.raises(UserError, match=why) as refused:
            load(project, f"stages:\n  a: {{command: [x], venv: '{bad}'}}\n")
        assert "jobs/p.yaml:2: stages.a.venv: " in str(refused.value)
