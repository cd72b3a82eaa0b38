"""The image of a stage: what may be one, how the submit file names it, which one is meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from condorctl import paths
from condorctl.errors import UserError
from condorctl.images import imports
from condorctl.spec import image, image_record, reader
from condorctl.spec.image_record import Record
from condorctl.submit import render
from tests.conftest import Condorctl, one_error_line

DIGEST = f"sha256:{'a' * 64}"
SPEC = """
params: {universe: "", image: ""}
stages:
  s: {command: [python, x.py], universe: "{{ universe }}", image: "{{ image }}"}
"""


def submit_file(project: Path, site: str | None = None, **settings: str) -> str:
    file = project / "jobs" / "p.yaml"
    file.write_text(SPEC)
    pipeline = reader.load(file, settings, site)
    return render.submit_file(pipeline, pipeline.stages["s"], "p-1", ["/opt/python"])


def lines(text: str) -> Mapping[str, str]:
    found = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in found}


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest"),
    [
        ("debian", "debian", None, None),
        ("library/debian:12", "library/debian", "12", None),
        ("localhost/x__y.z-1:A_b.C", "localhost/x__y.z-1", "A_b.C", None),
        ("localhost:5000/x", "localhost:5000/x", None, None),
        ("Host.Example:5000/a/b", "Host.Example:5000/a/b", None, None),
        ("HOST:5000/a:1", "HOST:5000/a", "1", None),
        (f"r.example/x@{DIGEST}", "r.example/x", None, DIGEST),
        (f"r.example/x:1@{DIGEST}", "r.example/x", "1", DIGEST),
    ],
)
def test_a_reference_has_a_name_a_tag_and_a_digest(
    text: str, name: str, tag: str | None, digest: str | None
) -> None:
    assert image.reference(text) == (name, tag, digest)


@pytest.mark.parametrize(
    "text", ["X", "a b", "a:", "a@sha256:1", ":1", "a//b", "-a", "a/", "Host/a", "a\nb", "a:b:c"]
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UserError, match="is no image in a registry"):
        image.reference(text)


def test_a_vanilla_stage_has_no_image_and_the_python_of_its_node(project: Path) -> None:
    found = lines(submit_file(project))
    assert found["universe"] == "vanilla"
    assert not {"docker_image", "container_image"} & found.keys()
    assert found["arguments"] == '"-- /opt/python x.py"'


def test_each_universe_names_its_image_and_has_the_python_in_it(project: Path) -> None:
    (project / "x.sif").touch()
    (project / "box").mkdir()
    ref = f"r.example/x@{DIGEST}"
    for universe, text, expected in [
        ("docker", ref, {"docker_image": ref}),
        ("docker", f"docker://{ref}", {"docker_image": ref}),
        ("container", ref, {"container_image": f"docker://{ref}"}),
        ("container", "x.sif", {"container_image": str(project / "x.sif")}),
        ("container", "https://h/x.sif", {"container_image": "https://h/x.sif"}),
        ("container", "/on/a/node.sif",
         {"container_image": "/on/a/node.sif", "transfer_container": "false"}),
        # HTCondor sends no folder that holds links to folders.
        ("container", "box",
         {"container_image": str(project / "box"), "transfer_container": "false"}),
    ]:  # fmt: skip
        found = lines(submit_file(project, universe=universe, image=text))
        assert found["universe"] == universe
        assert found["arguments"] == '"-- python3 x.py"'
        images = {k: v for k, v in found.items() if "image" in k or k == "transfer_container"}
        assert images == expected


@pytest.mark.parametrize(
    ("universe", "text", "expected"),
    [
        ("", "r.example/x", "stages.s.image: a vanilla stage runs on the node itself"),
        ("docker", "", "stages.s.image: a docker stage needs an image"),
        ("container", "", "stages.s.image: a container stage needs an image"),
        ("docker", "X", "stages.s.image: 'X' is no image in a registry"),
        ("docker", "x.sif", "stages.s.image: 'x.sif': docker takes images from a registry"),
        ("container", "x.sif", "stages.s.image: there is no 'x.sif' here"),
        ("podman", "x", "stages.s.universe: must be 'vanilla', 'docker' or 'container'"),
        ("docker", "x$(y)", "stages.s.image: 'x$(y)' is no image in a registry"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    project: Path, universe: str, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as error:
        submit_file(project, universe=universe, image=text)
    assert f"jobs/p.yaml:4: {expected}" in str(error.value)


def test_the_image_pushed_last_stands_in(project: Path, condorctl: Condorctl) -> None:
    def add(tag: str, name: str | None) -> None:
        image_record.add(Record(tag, f"sha256:{tag}", name, "podman", "", {}, 1.0))

    add("one", f"r.example/one@{DIGEST}")
    add("two", f"r.example/two@{DIGEST}")
    add("three", None)  # built, and in no registry yet
    found = lines(submit_file(project, universe="docker"))
    assert found["docker_image"] == f"r.example/two@{DIGEST}"
    assert lines(submit_file(project))["universe"] == "vanilla"
    other = lines(submit_file(project, universe="docker", image="r.example/mine:1"))
    assert other["docker_image"] == "r.example/mine:1"
    assert [one["tag"] for one in json.loads(paths.images().read_text())] == ["three", "two", "one"]

    paths.images().write_text("{}")
    error = one_error_line(condorctl("render", "p", "-o", "out", "--set", "universe=docker"))
    assert "exp/images.json: is not what `condorctl image` wrote" in error


def test_a_site_says_where_stages_run_unless_they_do(project: Path) -> None:
    (project / "sites").mkdir()
    (project / "sites" / "lab.yaml").write_text(
        "defaults: {universe: docker, image: r.example/lab:1}"
    )
    assert lines(submit_file(project, "lab"))["docker_image"] == "r.example/lab:1"
    mine = lines(submit_file(project, "lab", image="r.example/mine:1"))
    assert mine["docker_image"] == "r.example/mine:1"
    vanilla = lines(submit_file(project, "lab", universe="vanilla"))
    assert vanilla["universe"] == "vanilla" and "docker_image" not in vanilla


def test_an_image_that_a_default_names_is_nothing_to_a_vanilla_stage(project: Path) -> None:
    (project / "sites").mkdir()
    (project / "sites" / "lab.yaml").write_text("defaults: {image: r.example/lab:1}")
    file = project / "jobs" / "p.yaml"
    stages = "stages: {in: {command: [x], universe: docker}, out: {command: [x]%s}}"
    for defaults, own in (
        ("universe: docker, image: r.example/x:1", ", universe: vanilla"),
        ("universe: docker, image: r.example/x:1", ", universe: vanilla, image: ''"),
        ("image: r.example/x:1", ""),
        ("image: r.example/x:1", ", universe: ''"),
    ):
        file.write_text(f"defaults: {{{defaults}}}\n{stages % own}")
        given = reader.load(file).stages
        assert (given["in"].universe, given["in"].image) == ("docker", "r.example/x:1")
        assert (given["out"].universe, given["out"].image) == ("vanilla", "")
    file.write_text("defaults: {image: r.example/x:1}\n" + stages % ", image: r.example/y:1")
    with pytest.raises(UserError, match=r"stages\.out\.image: a vanilla stage runs on the node"):
        reader.load(file)
    # Who says vanilla of all stages means it; of a site, stages may take its image or not.
    file.write_text(
        "defaults: {universe: vanilla, image: r.example/x:1}\nstages: {s: {command: [x]}}"
    )
    assert reader.load(file).stages["s"].image == ""
    file.write_text(stages % "")
    given = reader.load(file, site="lab").stages
    assert (given["in"].image, given["out"].image) == ("r.example/lab:1", "")


def test_what_stages_import(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine" / "__init__.py").write_text(
        "import os, numpy.linalg\n"
        "from typing import TYPE_CHECKING\n"
        "from mine import other\n"
        "from . import more\n"
        "if TYPE_CHECKING:\n    import never\n"
        "try:\n    import faster\nexcept ImportError:\n    faster = None\n"
        "def plot():\n    import matplotlib\n"
        "class C:\n    import attrs\n"
    )
    (project / "go.py").write_text("import mine, helper, torch\nfrom condorctl import job\n")
    (project / "helper.py").write_text("import numpy\n")
    file = project / "jobs" / "p.yaml"
    file.write_text(
        "stages: {s: {command: [python, go.py], code: [mine], inputs: [go.py, helper.py]}}"
    )
    found = imports.of([reader.load(file)])
    assert found == {
        "attrs": True, "faster": False, "matplotlib": False, "numpy": True, "torch": True,
    }  # fmt: skip
    # What a stage brings in an environment of its own, the image need not have.
    (project / "venv").mkdir()
    (project / "venv" / "pyvenv.cfg").write_text("version = 3.11\n")
    file.write_text(file.read_text().replace("code:", "venv: venv, code:"))
    assert imports.of([reader.load(file)]) == {}


def test_an_engine_that_is_not_there_is_one_line(
    project: Path, condorctl: Condorctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "Dockerfile").write_text("FROM scratch\n")
    (project / "bin").mkdir()
    monkeypatch.setenv("PATH", str(project / "bin"))
    error = one_error_line(condorctl("image", "build"))
    assert "no container engine answers (there is no docker; there is no podman)" in error
    assert "neither docker nor podman" in one_error_line(
        condorctl("image", "build", "--engine", "lxc")
    )
    assert "nothing was built here yet" in one_error_line(condorctl("image", "push"))
    assert "nothing was built here yet" in one_error_line(condorctl("image", "check"))
    assert "is no image" in one_error_line(condorctl("image", "build", "--tag", "A B"))
    assert "no such Dockerfile" in one_error_line(condorctl("image", "build", "--file", "x"))
    assert "write it as KEY=VALUE" in one_error_line(condorctl("image", "build", "--arg", "x"))
