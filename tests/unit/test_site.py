"""Sites' profiles: found, checked, chosen, and in every submit file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from condorctl.errors import UserError
from condorctl.spec import reader, site
from condorctl.submit import render
from tests.conftest import Condorctl, one_error_line

GOOD = """
description: the department's pool
requirements: UidDomain == "example.org"
accounting_group: group_ml.students
accounting_group_user: ada
python: [/opt/python/bin/python3, -I]
submit:
  +WantGPUHomeMounted: true
  +Project: the "big" one
  +Deadline: "= time() + 3600"
  nice_user: true
  concurrency_limits: gpfs:2
defaults:
  request_memory: 4 GB
  request_disk: 2 GB
  max_memory: 16 GB
  environment: {OMP_NUM_THREADS: 1, SCRATCH: /scratch}
"""


@pytest.fixture
def sites(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The project's folder of profiles; nobody's own profiles are looked at."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CONDORCTL_SITE", raising=False)
    folder = project / "sites"
    folder.mkdir()
    return folder


def submit_file(project: Path, text: str, name: str | None = None) -> str:
    """The submit file of the stage `s` of a spec, at the site `name`."""
    (project / "jobs" / "p.yaml").write_text(text, encoding="utf-8")
    pipeline = reader.load(Path("jobs/p.yaml"), {}, name)
    return render.submit_file(pipeline, pipeline.stages["s"], "p-1", ["python3"])


STAGE = "stages: {s: {command: [python, -c, x]}}"


def test_a_profile_is_in_every_submit_file(project: Path, sites: Path) -> None:
    (sites / "lab.yaml").write_text(GOOD)
    lines = submit_file(project, STAGE, "lab").splitlines()
    for line in (
        'requirements = UidDomain == "example.org"',
        "accounting_group = group_ml.students",
        "accounting_group_user = ada",
        "+WantGPUHomeMounted = true",
        '+Project = "the \\"big\\" one"',
        "+Deadline = time() + 3600",
        "nice_user = true",
        "concurrency_limits = gpfs:2",
        "request_memory          = 4 GB",
        "  retry_request_memory = 8192 MB, 16384 MB",
    ):
        assert line in lines
    [arguments] = [line for line in lines if line.startswith("arguments")]
    assert "-- /opt/python/bin/python3 -I -c x" in arguments
    [environment] = [line for line in lines if line.startswith("environment")]
    assert "OMP_NUM_THREADS=1 SCRATCH=/scratch" in environment
    assert "WantGPU" not in submit_file(project, STAGE)


def test_a_stages_own_values_win_and_requirements_are_joined(project: Path, sites: Path) -> None:
    (sites / "lab.yaml").write_text(GOOD)
    text = submit_file(
        project,
        """
        site: lab
        defaults: {request_disk: 3 GB}
        stages:
          s:
            command: [x]
            request_memory: 32 GB          # more than the site's limit for a request that grows
            environment: {SCRATCH: /mine}
            requirements: Cpus > 2 || HasIt
            submit: {nice_user: false}
        """,
    )
    lines = text.splitlines()
    assert 'requirements = (UidDomain == "example.org") && (Cpus > 2 || HasIt)' in lines
    assert "request_memory          = 32 GB" in lines
    assert "request_disk            = 3 GB" in lines
    assert "retry_request_memory" not in text
    assert "OMP_NUM_THREADS=1 SCRATCH=/mine" in text
    # HTCondor takes the last one.
    assert lines.index("nice_user = true") < lines.index("nice_user = false")


def test_a_templates_own_requirements_cannot_hide_the_sites(project: Path, sites: Path) -> None:
    (sites / "lab.yaml").write_text(GOOD)
    (project / "templates").mkdir()
    (project / "templates" / "mine.sub.j2").write_text(
        '{% extends "stage.sub.j2" %}\n{% block extra %}\nRequirements = TRUE\n{% endblock %}\n'
    )
    mine = "stages: {s: {command: [x], template: mine.sub.j2}}"
    assert "Requirements = TRUE" in submit_file(project, mine)
    with pytest.raises(UserError, match="'requirements' stands here twice"):
        submit_file(project, mine, "lab")


def test_the_option_wins_over_the_variable_over_the_spec(
    project: Path, sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "written"):
        (sites / f"{name}.yaml").write_text(f"submit: {{+From: {name}}}")
    text = f"site: written\n{STAGE}"
    assert '+From = "written"' in submit_file(project, text)
    monkeypatch.setenv("CONDORCTL_SITE", "variable")
    assert '+From = "variable"' in submit_file(project, text)
    assert '+From = "option"' in submit_file(project, text, "option")


def test_the_projects_own_profile_wins_over_the_users(
    project: Path, sites: Path, tmp_path: Path
) -> None:
    own = tmp_path / "config" / "condorctl" / "sites"
    own.mkdir(parents=True)
    for name in ("lab", "home"):
        (own / f"{name}.yaml").write_text("description: the user's")
    (sites / "lab.yaml").write_text("description: the project's")
    assert site.load("lab", "x").description == "the project's"
    assert site.load("home", "x").description == "the user's"
    assert {"home", "lab"} <= set(site.known())


WRONG = {
    "misspelt": ("requirments: A", "x.yaml:1: requirments: unknown key; did you mean 'req"),
    "misspelt default": (
        "defaults:\n  request_memry: 1 GB",
        "x.yaml:2: defaults.request_memry: unknown key; did you mean 'request_memory'?",
    ),
    "no expression": ("requirements: A ==", "x.yaml:1: requirements: 'A ==' is no ClassAd"),
    "two expressions": ("requirements: A) || (B", "is no ClassAd expression"),
    "group": ("accounting_group: a b", "x.yaml:1: accounting_group: "),
    "own command": ("submit:\n  Arguments: x", "x.yaml:2: submit.Arguments: is a stage's own"),
    "language": ("submit: {queue: 5}", "x.yaml:1: submit.queue: is no command"),
    "include": ("submit: {include: x}", "x.yaml:1: submit.include: is no command"),
    "include in a name": ("submit: {'include command ': x}", "x.yaml:1: submit.include command"),
    "two lines": ('submit: {x: "a\\nqueue 9"}', "holds a line break"),
    "two lines of a group": ('accounting_group: "a\\nqueue"', "x.yaml:1: accounting_group"),
    "macro": ("submit: {x: $ENV(HOME)}", "holds '$'"),
    "expression of an attribute": ("submit: {+X: '= ('}", "is no ClassAd expression"),
    "value": ("submit: {+X: [1]}", "x.yaml:1: submit.+X: must be text, a number, true or false"),
    "unit": ("defaults: {request_memory: 4}", "x.yaml:1: defaults.request_memory"),
    "defaults": ("defaults: {retries: 3}", "x.yaml:1: defaults.retries: unknown key"),
    "limit": (
        "defaults: {request_memory: 4 GB, max_memory: 2 GB}",
        "defaults.max_memory: must be more than request_memory, which is 4 GB",
    ),
    "line break": ('python: ["a\\nb"]', "x.yaml:1: python.0: holds a line break"),
    "its own name": ("name: other", "x.yaml:1: name: unknown key: a profile is called as its"),
    "a list": ("- a", "must be a mapping"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_profile_is_one_line_with_its_file_and_key(
    project: Path, sites: Path, text: str, expected: str
) -> None:
    (sites / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        submit_file(project, STAGE, "x")
    assert "sites/x.yaml" in str(caught.value)
    assert expected in str(caught.value)


def test_the_commands_list_and_show_and_name_a_wrong_one(
    sites: Path, project: Path, condorctl: Condorctl
) -> None:
    (sites / "lab.yaml").write_text(GOOD)
    (sites / "bad.yaml").write_text("a: 1")
    listed = json.loads(condorctl("site", "list", "--json").stdout)["sites"]
    found = {s["name"]: s for s in listed}
    assert found["lab"]["description"] == "the department's pool" and "ospool" in found
    assert "bad.yaml:1: a: unknown key" in found["bad"]["problem"]
    assert "lab  the department's pool" in condorctl("site", "list").stdout
    assert "accounting_group_user: ada" in condorctl("site", "show", "lab").stdout
    shown = json.loads(condorctl("site", "show", "lab", "--json").stdout)
    assert shown["submit"]["+WantGPUHomeMounted"] is True
    assert "bad.yaml:1: a: unknown key" in one_error_line(condorctl("site", "show", "bad"))
    (project / "jobs" / "p.yaml").write_text(f"site: labb\n{STAGE}")
    (project / "jobs" / "q.yaml").write_text(f"site: [lab]\n{STAGE}")
    error = one_error_line(condorctl("submit", "p"))
    assert "jobs/p.yaml:1: site: no site 'labb'; did you mean 'lab'?" in error
    assert "must be the name of a site" in one_error_line(condorctl("submit", "q"))
    assert "--site: no site 'x'" in one_error_line(condorctl("submit", "p", "--site", "x"))
    assert "has no such" not in one_error_line(condorctl("render", "p", "-o", "o", "--site", "bad"))
    rendered = condorctl("render", "p", "-o", "out", "--site", "lab")
    assert rendered.returncode == 0, rendered
    assert (project / "out" / "site.yaml").read_text() == GOOD


GPUS = "stages: {s: {command: [x], request_gpus: 1}}"


def test_what_a_site_says_of_gpus_is_for_stages_that_ask_for_some(
    project: Path, sites: Path
) -> None:
    (sites / "lab.yaml").write_text(
        "gpu_submit: {+WantGPULab: true}\ndefaults: {gpus_minimum_memory: 8 GB}\n"
    )
    without, with_some = submit_file(project, STAGE, "lab"), submit_file(project, GPUS, "lab")
    for line in ("+WantGPULab = true", "gpus_minimum_memory     = 8192"):
        assert line not in without and line in with_some, with_some


@pytest.mark.parametrize("name", ["personal", "chtc", "ospool", "cern", "naf", "saarland"])
def test_the_profiles_that_come_along_are_good_and_say_where_each_line_is_from(
    name: str, project: Path, sites: Path
) -> None:
    profile = site.load(name, "test")
    assert profile.description
    image = ", image: example.org/i:1" if profile.defaults.universe != "vanilla" else ""
    submit_file(project, GPUS.replace("1}}", f"1{image}}}}}"), name)
    source = False
    for line in Path(profile.file).read_text().splitlines():
        if line.startswith("  ") and not line.lstrip().startswith("#"):
            assert source or name == "saarland", line
        source = line.lstrip().startswith("#") or (source and line.startswith("  "))


def test_what_was_learnt_of_a_site_is_read_back_and_rubbish_is_nothing(
    project: Path, sites: Path
) -> None:
    file = site.learnt_file("lab")
    assert site.learnt("lab") is None
    file.parent.mkdir(parents=True)
    for rubbish in ("", "[]", "{"):
        file.write_text(rubbish)
        assert site.learnt("lab") is None
    file.write_text('{"ok": true}')
    assert site.learnt("lab") == {"ok": True}
