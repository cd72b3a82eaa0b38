"""lint says all that is wrong, in its place; init writes what lint finds good; render is dry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from condorctl import api
from condorctl.errors import UserError
from tests.conftest import Condorctl, one_error_line


def problems(project: Path, text: str, **sets: str) -> list[str]:
    """What lint says of a spec, a line each, without the file's name."""
    (project / "jobs" / "p.yaml").write_text(text, encoding="utf-8")
    [found] = api.lint(["p"], sets)["pipelines"].values()
    assert all(problem["text"].startswith("jobs/p.yaml:") for problem in found)
    return [problem["text"].removeprefix("jobs/p.yaml:") for problem in found]


def test_all_problems_are_told_in_the_order_of_their_lines(project: Path) -> None:
    found = problems(
        project,
        """
        params: {n: 1}
        stages:
          one: {command: ["{{ m }}"], request_cpus: 0, needs: [four]}
          two-{{ i }}:
            matrix: {i: [1, 2, 3]}
            command: [x]
            inputs: [nothing.csv]
            template: none.sub.j2
          three: {command: [x], needs: [twenty], outputs: [/tmp/x], retries: -1, max_memory: 1 MB}
          a.b: {command: [x]}
        tables:
          - {title: T, columns: {}, rows: [{label: a}]}
        """,
    )
    assert [(int(line.split(":")[0]), line.split(": ")[1]) for line in found] == [
        (4, "stages.one.command.0"),
        (4, "stages.one.request_cpus"),
        (5, "stages.two-{{ i }} (two-1)"),
        (8, "stages.two-{{ i }}.inputs (two-1)"),
        (10, "stages.three.max_memory"),
        (10, "stages.three.retries"),
        (10, "stages.three.outputs"),
        (11, "stages.a.b"),
        (13, "tables.0.columns"),
        (13, "tables.0.rows.0.match"),
    ]


def test_misspelt_keys_are_told_alone(project: Path) -> None:
    found = problems(
        project, "paramz: {}\nstages:\n  s: {comand: [x]}\n  t: {inpust: [x], command: [y]}\n"
    )
    assert [line.partition(";")[0] for line in found] == [
        "1: paramz: unknown key",
        "3: stages.s.comand: unknown key",
        "4: stages.t.inpust: unknown key",
    ]


PROGRAMS = {
    "no x bit": ("[./go]", "'go' is not executable: chmod +x go"),
    "no x bit and CRLF": ("[./crlf.sh]", "'crlf.sh' has Windows' line ends"),
    "not on PATH": ("[go]", "looked for on the node's PATH: write './go'"),
    "not an input": ("[./went]", "'./went' is not among the inputs"),
    "script not an input": ("[python, other.py]", "'other.py' is not among the inputs"),
    "after options": ("[python3, -u, -X, dev, other.py]", None),
    "in a folder": ("[python, src/train.py]", "'src/train.py' is 'train.py' in the job"),
    "shell script with CRLF": ("[sh, crlf.sh]", "'crlf.sh' has Windows' line ends"),
    "python does not mind": ("[python, crlf.py]", None),
    "absent in a folder": ("[python, data/none.py]", "'data/none.py' is not among the inputs"),
    "in a folder that travels": ("[python, data/inner.py]", None),
    "module": ("[python, -m, json.tool, other.py]", None),
    "code": ("[python, -c, 'print(1)', other.py]", None),
    "of the node": ("[/usr/bin/python3, /opt/other.py]", None),
    "a plain word": ("[echo, other.py]", None),
    "of a package": ("[python, code/tool/main.py]", None),
    "another stage's": ("[./first/run]", None),
}


@pytest.mark.parametrize(("command", "expected"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_would_not_start_is_told(
    project: Path, command: str, expected: str | None
) -> None:
    (project / "go").write_text("#!/bin/sh\n")
    for name in ("crlf.sh", "crlf.py"):
        (project / name).write_bytes(b"#!/bin/sh\r\necho\r\n")
        (project / name).chmod(0o755)
    (project / "src").mkdir()
    (project / "src" / "train.py").touch()
    (project / "data").mkdir()
    (project / "data" / "inner.py").touch()
    (project / "tool").mkdir()
    found = problems(
        project,
        f"""
        stages:
          first: {{command: ["true"], outputs: [run]}}
          s:
            command: {command}
            inputs: [go, crlf.sh, crlf.py, src/train.py, data, first/run]
            code: [tool]
        """,
    )
    if expected:
        [line] = found
        assert line.startswith("5: stages.s.command: ")
        assert expected in line
    else:
        assert found == []


def test_inputs_of_one_name_code_and_template_are_looked_at(project: Path) -> None:
    for name in ("a", "b"):
        (project / name).mkdir()
        (project / name / "data.csv").touch()
    (project / "templates").mkdir()
    (project / "templates" / "bad.sub.j2").write_text("x = {{ nothing }}\nqueue\n")
    found = problems(
        project,
        """
        stages:
          s: {command: [x], inputs: [a/data.csv, b/data.csv], code: [none]}
          t: {command: [x], template: bad.sub.j2}
          u: {command: [x], template: none.sub.j2}
          v: {command: [x], inputs: ["a/data.csv"], outputs: ["c,d"]}
        """,
    )
    told = "\n".join(found)
    for expected in (
        "3: stages.s.inputs: 'a/data.csv' and 'b/data.csv' are both 'data.csv' in the job",
        "3: stages.s.code: there is no 'none'",
        "4: stages.t: template bad.sub.j2: 'nothing' is undefined",
        "5: stages.u: template none.sub.j2: not in templates/",
        "6: stages.v: file 'c,d': HTCondor cannot transfer",
    ):
        assert expected in told
    assert len(found) == 5


def test_lint_takes_settings_and_all_of_jobs_and_exits_with_1(
    project: Path, condorctl: Condorctl
) -> None:
    good = "params: {n: 1}\nstages: {s: {command: ['{{ n }}']}}\n"
    (project / "jobs" / "a.yaml").write_text(good)
    answer = condorctl("lint")
    assert (answer.returncode, answer.stdout) == (0, "jobs/a.yaml: good\n")
    (project / "jobs" / "b.yaml").write_text(good.replace("command", "comand"))
    answer = condorctl("lint", "--json")
    assert answer.returncode == 1
    found = json.loads(answer.stdout)["pipelines"]
    assert found["jobs/a.yaml"] == []
    [problem] = found["jobs/b.yaml"]
    assert problem == {
        "file": "jobs/b.yaml",
        "line": 2,
        "key": "stages.s.comand",
        "message": "unknown key; did you mean 'command'?",
        "text": "jobs/b.yaml:2: stages.s.comand: unknown key; did you mean 'command'?",
    }
    answer = condorctl("lint", "a", "--set", "n=x")
    assert (answer.returncode, answer.stdout) == (1, "--set n: must be a whole number, not 'x'\n")
    assert "no pipeline 'c'" in one_error_line(condorctl("lint", "c"))
    for file in (project / "jobs").iterdir():
        file.unlink()
    assert "condorctl init" in one_error_line(condorctl("lint"))


def test_init_writes_a_good_pipeline_and_overwrites_nothing(
    project: Path, condorctl: Condorctl
) -> None:
    answer = condorctl("init", "mine")
    assert answer.returncode == 0, answer
    folder = project / "mine"
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {
        ".gitignore", "train.py", "best.py", "jobs/first.yaml", "jobs/pipeline.schema.json",
    }  # fmt: skip
    os.chdir(folder)
    assert api.lint() == {"pipelines": {"jobs/first.yaml": []}}
    assert "# yaml-language-server: $schema=pipeline.schema.json\n" in (
        folder / "jobs" / "first.yaml"
    ).read_text(encoding="utf-8")
    os.chdir(project)

    (project / "best.py").write_text("my own")
    error = one_error_line(condorctl("init"))
    assert "best.py: is there already" in error
    assert sorted(p.name for p in project.iterdir() if p.is_file()) == ["best.py"]


def test_render_writes_what_submit_would_without_a_pool(
    project: Path, condorctl: Condorctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("CONDOR_CONFIG", raising=False)
    (project / "jobs" / "p.yaml").write_text(
        "params: {n: 1}\nstages:\n  a: {command: [x, '{{ n }}']}\n  b: {command: [y], needs: [a]}\n"
    )
    answer = condorctl("render", "p", "-o", "out", "--set", "n=7", "--json")
    assert answer.returncode == 0, answer
    found = json.loads(answer.stdout)
    assert found["dag"] == "out/p.dag"
    assert {"p.dag", "dagman.config", "a/stage.sub", "b/stage.sub"} <= set(found["files"])
    assert "-- x 7" in (project / "out" / "a" / "stage.sub").read_text()
    assert "PARENT a CHILD b" in (project / "out" / "p.dag").read_text()
    assert "not an empty folder" in one_error_line(condorctl("render", "p", "-o", "out"))
    (project / "templates").mkdir()
    (project / "templates" / "stage.sub.j2").write_text("x")
    assert "queue" in one_error_line(condorctl("render", "p", "-o", "new"))
    assert not (project / "new").exists()
    assert [p.name for p in project.iterdir() if p.name.startswith(".new")] == []


def test_a_spec_that_holds_nothing_is_one_problem(project: Path) -> None:
    assert problems(project, "stages: {}\n") == ["1: stages: a pipeline needs 'stages'"]
    with pytest.raises(UserError, match="no such pipeline file"):
        api.lint(["x/y.yaml"])
