"""Stages in containers on a real pool: built, pushed, pulled by digest, looked into, explained."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool import container_pool
from tests.pool.container_pool import ContainerPool

pytestmark = pytest.mark.skipif(
    bool(container_pool.missing()), reason=f"no containers: {container_pool.missing()}"
)

SPEC = """
params: {universe: "", image: ""}
defaults:
  universe: "{{ universe }}"
  image: "{{ image }}"
  request_memory: 64 MB
  request_disk: 50 MB
stages:
  train:
    command: [python, work.py, 600]
    inputs: [work.py]
    outputs: [model.pt, metrics.jsonl]
  look:
    command: [python, look.py]
    inputs: [look.py]
    outputs: [seen.json]
  packed:
    command: [python, packed.py]
    venv: .venv
    inputs: [packed.py]
    outputs: [packed.json]
    request_memory: 256 MB
  bare:
    command: ["true"]
    template: bare.sub.j2
    universe: docker
    image: REGISTRY/bare:1
  absent: {command: ["true"], universe: docker, image: "REGISTRY/absent:1"}
  no_shell: {command: ["true"], universe: docker, image: "REGISTRY/bare:1"}
"""
# Works until it is told that enough was seen of it.
WORK = """
import os, sys, time
from condorctl import job
epochs = int(sys.argv[1])
for epoch in range(1, epochs + 1):
    time.sleep(1)
    print('epoch', epoch)
    job.progress(epoch=epoch, epochs=epochs, loss=1 / epoch)
    job.save('model.pt', lambda path: open(path, 'w').write('m' * 100_000 + str(epoch)), epoch)
    if os.path.exists('enough'):
        break
job.result(model='m', clean=0.5)
"""
# What there is in a job's container: of the submit machine, nothing but what travelled.
LOOK = """
import json, os, sys
json.dump({
    'python': sys.executable,
    'user': os.getuid(),
    'there': [path for path in PATHS if os.path.exists(path)],
    'shm': os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize,
}, open('seen.json', 'w'))
"""
# With a package of its own, compiled, which the image has not.
PACKED = """
import json, sys
from msgpack import _cmsgpack
seven = _cmsgpack.unpackb(_cmsgpack.Packer().pack(7))
json.dump([sys.base_prefix, sys.prefix, seven], open('packed.json', 'w'))
"""
# An image without a shell: the stage's wrapper cannot run in it, its program can.
BARE = """
{% extends "stage.sub.j2" %}
{% block extra %}
executable              = /busybox
transfer_executable     = false
arguments               = "sh -c 'echo it says this; exec /busybox sleep 300'"
transfer_output_files   = ""
transfer_output_remaps  = ""
{% endblock %}
"""
BARE_IMAGE = """
ARG BASE
FROM ${BASE} AS debian
FROM scratch
COPY --from=debian /bin/busybox /busybox
"""
# The container has the network of its node, so chirp reaches its starter there. (With Docker
# itself HTCondor listens on Docker's own bridge.)
SITE = "submit: {docker_network_type: host}\n"


@pytest.fixture(scope="module")
def made() -> Iterator[ContainerPool]:
    made = ContainerPool()
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def pushed(made: ContainerPool) -> dict[str, Any]:
    """The image of the stages, built and pushed by condorctl: its record."""
    ours = [str(path) for path in _ours(made)]
    made.write(
        {
            "jobs/test.yaml": SPEC.replace("REGISTRY", made.registry),
            "sites/loopback.yaml": SITE,
            "templates/bare.sub.j2": BARE,
            "bare/Dockerfile": BARE_IMAGE,
            "work.py": WORK,
            "look.py": LOOK.replace("PATHS", repr(ours)),
            "packed.py": PACKED,
        }
    )
    _make_venv(made)
    _build(made)
    before = made.condorctl("submit", "test", "--set", "universe=docker", check=False)
    assert "stages.train.image: a docker stage needs an image" in before.stderr
    record: dict[str, Any] = made.json("image", "push", "--to", f"{made.registry}/stage:1")
    assert re.fullmatch(rf"{made.registry}/stage@sha256:[0-9a-f]{{64}}", record["image"])
    return record


def _make_venv(made: ContainerPool) -> None:
    venv = made.project / ".venv"
    made.account.run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "msgpack==1.2.*"], check=True)
    made.account.own(venv)


def _ours(made: ContainerPool) -> list[Path]:
    """What is on the submit machine, and nobody sends to a job."""
    return [made.project, made.account.home / ".config", container_pool.ROOT]


def test_from_a_dockerfile_to_results(made: ContainerPool, pushed: dict[str, Any]) -> None:
    run = made.json("submit", "test", "--set", "universe=docker", "--site", "loopback")["run"]

    _look_into_a_running_one(made, run)
    _without_a_shell(made, run)
    _explained(made, run)

    seen = json.loads((made.project / "exp/runs" / run / "look/seen.json").read_text())
    user = int(made.account.run("id", "-u").stdout)
    assert seen["python"] == "/usr/bin/python3" and seen["user"] == user
    assert all(path.exists() for path in _ours(made)) and seen["there"] == []
    assert seen["shm"] <= 64 << 20
    made.wait(run, "packed", ["done"])
    text = (made.project / "exp/runs" / run / "packed" / "packed.json").read_text()
    base, prefix, seven = json.loads(text)
    assert (base, seven) == ("/usr", 7) and prefix.endswith("/_condorctl_venv")
    made.condorctl("ssh", f"{run}/train", "touch enough")
    made.wait(run, "train", ["done"])
    [row] = made.json("results", run)["results"]
    assert row["model"] == "m" and row["clean"] == 0.5
    images = made.json("show", run)["images"]
    digest = pushed["image"].partition("@")[2]
    assert images["train"] == {"image": pushed["image"], "digest": digest}
    assert images["bare"] == {"image": f"{made.registry}/bare:1", "digest": None}
    made.condorctl("cancel", run)

    _another_image(made, run)


def _build(made: ContainerPool) -> None:
    """The shipped Dockerfile, without torch, and an image with one program in it."""
    base = ["--arg", f"BASE={made.base}"]
    built = made.json("image", "build", *base, "--arg", "PACKAGES=", "--tag", "stage:0")
    assert built["id"].startswith("sha256:") and built["image"] is None
    checked = made.json("image", "check", "--pipeline", "test")
    states = {one["name"]: one["state"] for one in checked["findings"]}
    assert checked["id"] == built["id"]
    assert states == {
        "entrypoint": "ok", "sh": "ok", "programs": "ok", "sftp": "ok", "/dev/shm": "warning",
        "python3": "ok",
    }  # fmt: skip
    # It has no torch, which the method's stages import.
    refused = made.condorctl("image", "check", "--pipeline", "pipeline", check=False)
    assert refused.returncode == 1
    assert re.search(r"^problem +torch +ModuleNotFoundError", refused.stdout, re.MULTILINE)

    bare = f"{made.registry}/bare:1"
    made.condorctl("image", "build", *base, "--file", "bare/Dockerfile", "--tag", bare)
    refused = made.condorctl("image", "check", bare, "--pipeline", "test", check=False)
    assert refused.returncode == 1 and re.search(r"^problem +sh ", refused.stdout, re.MULTILINE)
    made.account.run("podman", "push", "--quiet", bare)
    made.condorctl("image", "build", *base, "--arg", "PACKAGES=", "--tag", "stage:0")


def _look_into_a_running_one(made: ContainerPool, run: str) -> None:
    job = f"{run}/train"
    with subprocess.Popen(
        made.words("logs", job, "-f"), cwd=made.project, stdout=subprocess.PIPE, text=True
    ) as follow:
        assert follow.stdout is not None
        live = [follow.stdout.readline() for _ in range(3)]
        follow.terminate()
    assert live == ["epoch 1\n", "epoch 2\n", "epoch 3\n"]
    deadline = time.monotonic() + 60
    while (train := made.status(run)["train"])["epoch"] is None:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert train["state"] == "running" and train["epoch"] >= 1

    # Into a container HTCondor loses the exit status; condorctl does not.
    plain = ["pool", "run", "condor_ssh_to_job", train["job"], "exit 3"]
    assert made.condorctl(*plain, check=False).returncode == 0
    inside = made.condorctl("ssh", job, "cat /etc/debian_version; exit 3", check=False)
    assert inside.returncode == 3 and inside.stdout.strip()

    made.condorctl("fetch", job, "model.pt")
    text = (made.project / "fetched" / train["job"] / "model.pt").read_text()
    assert text.startswith("m" * 100_000)
    # What reads it in there fails, and HTCondor says that it ended well.
    absent = made.condorctl("fetch", job, "absent.pt", check=False)
    assert absent.returncode != 0 and "absent.pt" in absent.stderr
    assert not (made.project / "fetched" / train["job"] / "absent.pt").exists()

    made.condorctl("sftp", job, "-c", "get model.pt by-sftp.pt")
    assert (made.project / "by-sftp.pt").read_text().startswith("m" * 100_000)

    words = ["submit", "test", "--set", "universe=docker", "--interactive", "train"]
    shell = made.condorctl(*words, "-c", "ls; exit 4", check=False)
    assert shell.returncode == 4, shell
    assert "work.py" in shell.stdout.split()


def _without_a_shell(made: ContainerPool, run: str) -> None:
    job = made.wait(run, "bare", ["running"])["job"]
    deadline = time.monotonic() + 120
    while "it says this" not in made.condorctl("logs", job, check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
    made.condorctl("fetch", job)
    output = made.project / "fetched" / job / f"{job.partition('.')[0]}.out"
    assert output.read_text() == "it says this\n"
    refused = made.condorctl("ssh", f"{run}/bare", "ls", check=False)
    assert refused.returncode == 1 and "/bin/sh" in refused.stderr


def _explained(made: ContainerPool, run: str) -> None:
    made.wait(run, "absent", ["held"])
    made.wait(run, "no_shell", ["held"])
    told = {one["stage"]: one for one in made.json("explain", run)["jobs"]}
    absent, no_shell = told["absent"], told["no_shell"]
    assert absent["cause"] == f"the registry has no {made.registry}/absent:1"
    assert absent["analysis"]["code"] == 35 and "image push" in absent["mend"]
    assert "an image without /bin/sh" in no_shell["cause"]


def _another_image(made: ContainerPool, run: str) -> None:
    """A stage is unchanged while its image's digest is."""
    spec = made.project / "jobs/test.yaml"
    text = spec.read_text()
    spec.write_text(text[: text.index("  bare:")])
    words = ["submit", "test", "--set", "universe=docker", "--site", "loopback"]
    assert _why(made, *words)["look"] == f"unchanged since {run}, not run again"
    base = ["--arg", f"BASE={made.base}", "--arg", "PACKAGES="]
    made.condorctl("image", "build", *base, "--", "--label", "other=yes")
    made.condorctl("image", "push", "--to", f"{made.registry}/stage:2")
    assert _why(made, *words)["look"].startswith("runs: its image changed since ")
    # podman may need more than the minute that this waits.
    made.condorctl("cancel", check=False)


def _why(made: ContainerPool, *words: str) -> dict[str, str]:
    """Why each stage of what is submitted runs, or does not."""
    run = made.json(*words)["run"]
    return {one["stage"]: one["why"] for one in made.json("show", run)["stages"]}


# Each stage of the method for a moment: what is learnt does not matter here.
TINY = {
    r"epochs = .*": "epochs = 1",
    r"steps = .*": "steps = 1",
    r"widths = .*": "widths = [16, 16, 16]",
    r"validation = .*": "validation = 60",
    r"train_images = .*": "train_images = 300",
    r"test_images = .*": "test_images = 60",
    r"pgd_steps = .*": "pgd_steps = [1, 1, 1]",
    r"pgd_restarts = .*": "pgd_restarts = [1, 1, 1]",
}


def test_a_site_whose_jobs_run_in_containers_is_tried_in_one(
    made: ContainerPool, pushed: dict[str, Any]
) -> None:
    made.write({"sites/boxed.yaml": f"{SITE}defaults: {{universe: docker}}\n"})
    told = made.json("site", "test", "boxed", "--timeout", "180")
    found = {check["check"]: check for check in told["checks"]}
    for what in ("job", "container", "container: ssh", "container: transfer"):
        assert found[what]["state"] == "ok", found


def test_the_method_in_containers(made: ContainerPool, pushed: dict[str, Any]) -> None:
    """The shipped pipeline, torch and all, each of its eleven stages in a container."""
    python = made.account.run(
        "podman",
        "run",
        "--rm",
        made.base,
        "python3",
        "-c",
        "import sys; print(sys.version_info[:2])",
    ).stdout
    if python.strip() != str(sys.version_info[:2]):
        pytest.skip(f"the tests' own torch is of another Python than the image's {python.strip()}")
    shutil.copytree(container_pool.ROOT / "robust", made.project / "robust")
    preset = made.project / "robust" / "presets"
    text = (preset / "smoke.toml").read_text()
    for pattern, tiny in TINY.items():
        text = re.sub(f"(?m)^{pattern}", tiny, text)
    (preset / "tiny.toml").write_text(text)
    made.write({"sites/torch.yaml": SITE.replace("}", ", +WantPackages: true}")})
    words = ["submit", "pipeline", "--set", "universe=docker", "--set", "preset=tiny"]
    run = made.condorctl(*words, "--site", "torch", "--follow", timeout=600, check=False)
    assert run.returncode == 0, run
    rows = {row["model"]: row for row in made.json("results", "pipeline-1")["results"]}
    assert rows.keys() == {"dense", "90 % pruned", "99 % pruned", "plain training"}
    assert all(0 < row["clean"] <= 1 for row in rows.values())
    submitted = (made.project / "exp/runs/pipeline-1/train/stage.sub").read_text()
    assert re.search(r"^universe += docker$", submitted, re.MULTILINE)


SMALL_IMAGE = """
ARG BASE
FROM ${BASE} AS debian
FROM scratch
COPY --from=debian /bin/busybox /bin/sh
"""
APPTAINER = """
defaults: {universe: container, request_memory: 200 MB, request_disk: 500 MB}
stages:
  folder:
    image: BOX
    command: [python, work.py, 600]
    inputs: [work.py]
    outputs: [model.pt, metrics.jsonl]
  look: {image: BOX, command: [python, look.py], inputs: [look.py], outputs: [seen.json]}
  file: {image: small.sif, command: [sh, -c, "echo $0 > told.txt", it], outputs: [told.txt]}
"""


def test_apptainer(made: ContainerPool, pushed: dict[str, Any]) -> None:
    """The same stages by Debian unstable's Apptainer, in a sandbox folder and in a .sif file."""
    made.write({"small/Dockerfile": SMALL_IMAGE})
    small = f"{made.registry}/small:1"
    base = ["--arg", f"BASE={made.base}"]
    made.condorctl("image", "build", *base, "--file", "small/Dockerfile", "--tag", small)
    made.account.run("podman", "push", "--quiet", small)
    made.add_apptainer()
    box = made.fast / "box"
    build = ["apptainer", "build", "--no-https"]
    made.account.run(*build, "--sandbox", str(box), f"docker://{made.registry}/stage:1")
    made.account.run(*build, str(made.project / "small.sif"), f"docker://{small}")
    made.write({"jobs/apptainer.yaml": APPTAINER.replace("BOX", str(box))})
    run = made.json("submit", "apptainer")["run"]
    stages = made.project / "exp" / "runs" / run

    made.wait(run, "file", ["done"])
    assert (stages / "file" / "told.txt").read_text() == "it\n"
    digest = hashlib.sha256((made.project / "small.sif").read_bytes()).hexdigest()
    assert made.json("show", run)["images"]["file"]["digest"] == f"sha256:{digest}"

    made.wait(run, "look", ["done"])
    seen = json.loads((stages / "look" / "seen.json").read_text())
    assert seen["python"] == "/usr/bin/python3" and seen["there"] == []

    job = made.wait(run, "folder", ["running"])["job"]
    deadline = time.monotonic() + 120
    while not (made.status(run)["folder"]["epoch"] or 0) >= 1:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "epoch 1\n" in made.condorctl("logs", job).stdout
    made.condorctl("fetch", job, "model.pt")
    assert (made.project / "fetched" / job / "model.pt").read_text().startswith("m" * 100_000)
    made.condorctl("sftp", job, "-c", "get model.pt from-box.pt")
    assert (made.project / "from-box.pt").read_text().startswith("m" * 100_000)
    words = ["submit", "apptainer", "--interactive", "folder"]
    shell = made.condorctl(*words, "-c", "ls; test -d /.singularity.d && exit 4", check=False)
    assert shell.returncode == 4 and "work.py" in shell.stdout.split(), shell
    assert made.condorctl("ssh", job, "touch enough; exit 3", check=False).returncode == 3
    made.wait(run, "folder", ["done"])
