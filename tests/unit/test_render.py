"""Rendering: the files of a run, the user's templates, the snapshot of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from condorctl.errors import UserError
from condorctl.spec import reader
from condorctl.submit import render

SPEC = """
params: {word: plain}
defaults: {code: [tool], outputs: [out.txt]}
stages:
  one: {command: [python, go.py, "{{ word }}"], inputs: [go.py], retries: 2, final_exit_codes: [3]}
  two: {command: [cat, one/out.txt], inputs: [one/out.txt], environment: {A: "b c"}}
"""


@pytest.fixture
def folder(project: Path) -> Path:
    (project / "go.py").touch()
    (project / "tool" / "__pycache__").mkdir(parents=True)
    (project / "tool" / "__init__.py").write_text("x = 1")
    (project / "jobs" / "p.yaml").write_text(SPEC)
    target = project / "run"
    target.mkdir()
    return target


def run(folder: Path, **sets: str) -> dict[str, str]:
    pipeline = reader.load(Path("jobs/p.yaml"), sets)
    dag = render.render(pipeline, "p-1", folder, ["/usr/bin/python3"])
    texts = {p.parent.name: p.read_text() for p in folder.glob("*/stage.sub")}
    return {"dag": dag.read_text(), **texts}


def value(text: str, command: str) -> str:
    (line,) = [line for line in text.splitlines() if line.split(" ")[0] == command]
    return line.partition("=")[2].strip()


def test_the_dag_links_stages_and_retries(folder: Path) -> None:
    dag = run(folder)["dag"].splitlines()
    assert "JOB one one/stage.sub" in dag
    assert "PARENT one CHILD two" in dag
    assert "RETRY one 2 UNLESS-EXIT 3" in dag
    assert not [line for line in dag if line.startswith("RETRY two")]


def test_a_matrix_is_a_stage_a_combination_and_a_glob_waits_for_all(
    folder: Path, project: Path
) -> None:
    (project / "jobs" / "p.yaml").write_text(
        """
        params: {seeds: [0, 1]}
        defaults: {outputs: [out.txt]}
        stages:
          one-{{ seed }}: {matrix: {seed: "{{ seeds }}"}, command: [go, "{{ seed }}"]}
          all: {command: [go], inputs: ["one-*/out.txt"]}
        """
    )
    texts = run(folder, seeds="5,6")
    assert [line for line in texts["dag"].splitlines() if line.startswith(("JOB", "PARENT"))] == [
        "JOB one-5 one-5/stage.sub",
        "JOB one-6 one-6/stage.sub",
        "JOB all all/stage.sub",
        "PARENT one-5 one-6 CHILD all",
    ]
    assert value(texts["one-6"], "arguments") == '"out.txt -- go 6"'
    assert value(texts["all"], "transfer_input_files") == (
        "code, one-5/out.txt, one-6/out.txt, $Ff(all/checkpoints)"
    )


def test_files_travel_under_the_stage_that_made_them(folder: Path) -> None:
    texts = run(folder)
    assert value(texts["two"], "transfer_input_files") == "code, one/out.txt, $Ff(two/checkpoints)"
    assert value(texts["one"], "transfer_output_remaps") == (
        '"out.txt = one/out.txt; checkpoints = one/checkpoints; '
        '_condorctl_job = one/$(ClusterId).job"'
    )
    assert value(texts["one"], "arguments") == '"out.txt -- /usr/bin/python3 go.py plain"'
    assert "A='b c'" in value(texts["two"], "environment")


def test_self_checkpointing_is_asked_for_by_a_key_alone(folder: Path, project: Path) -> None:
    (project / "jobs" / "p.yaml").write_text(
        "stages: {a: {command: [x], outputs: [o], checkpoint_interval: 1.5 h}, b: {command: [x], "
        "checkpoint_copy_interval: 90 s}}"
    )
    texts = run(folder)
    assert value(texts["a"], "checkpoint_exit_code") == "85"
    assert value(texts["a"], "transfer_checkpoint_files") == "o, checkpoints, _condorctl_job"
    assert value(texts["a"], "MY.CondorctlCheckpointInterval") == "5400"
    assert "checkpoint_exit_code" not in texts["b"]
    assert value(texts["b"], "MY.CondorctlCheckpoints") == '"b/checkpoints"'
    assert value(texts["b"], "MY.CondorctlCopyInterval") == "90"
    assert (folder / "b" / "checkpoints").is_dir()


def test_the_code_is_a_copy_of_that_moment(folder: Path, project: Path) -> None:
    run(folder)
    (project / "tool" / "__init__.py").write_text("x = 2")
    assert (folder / "code" / "tool" / "__init__.py").read_text() == "x = 1"
    assert not (folder / "code" / "tool" / "__pycache__").exists()
    assert (folder / "code" / "condorctl" / "job" / "checkpoint.py").is_file()


def test_a_template_of_the_same_name_in_the_users_folder_wins(folder: Path, project: Path) -> None:
    (project / "templates").mkdir()
    template = project / "templates" / "stage.sub.j2"
    template.write_text("executable = mine\narguments = {{ arguments }}\nqueue\n")
    assert value(run(folder)["one"], "executable") == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = {{ nothing }}\nqueue", "'nothing' is undefined"),
        ("x = {{ run.nothing }}\nqueue", "has no attribute 'nothing'"),
        ("x = {% if %}\nqueue", "stage.sub.j2:1"),
        ("include command : {{ run }}\nqueue", "stage.sub.j2 for stage 'one':1"),
        ("x = {{ ''.__class__.__mro__ }}\nqueue", "stage.sub.j2"),
        ("x = {{ '$(HOME)' }}\nqueue", "holds '$'"),
        ("x = {{ 'a\\nqueue' }}\nqueue", "holds a line break"),
        ("x = {{ 1 / 0 }}\nqueue", "division by zero"),
        ("{% include 'none.j2' %}\nqueue", "not in templates/"),
    ],
)
def test_a_faulty_template_is_one_line(
    folder: Path, project: Path, text: str, expected: str
) -> None:
    (project / "templates").mkdir()
    (project / "templates" / "stage.sub.j2").write_text(text)
    with pytest.raises(UserError) as caught:
        run(folder)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("template: none.j2", r"none\.j2.*stage\.sub\.j2"),
        ("code: [nowhere]", "nowhere"),
        ("code: [../..]", "the folder you are in"),
    ],
)
def test_an_unknown_template_or_package_is_named(
    folder: Path, project: Path, key: str, expected: str
) -> None:
    (project / "jobs" / "p.yaml").write_text(f"stages: {{s: {{command: [x], {key}}}}}")
    with pytest.raises(UserError, match=expected):
        run(folder)
