"""A site tried out, an environment without a container, a session in a running job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Condorctl
from tests.pool.conftest import Status

SMALL = "request_memory: 100 MB, request_disk: 200 MB"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and a cache that are nobody else's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CONDORCTL_SITE", raising=False)


def test_a_site_is_tried_and_what_was_learnt_is_kept(
    pool: Path, condorctl: Condorctl, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(condorctl("site", "test", "personal", "--timeout", "90", "--json").stdout)
    found = {check["check"]: check for check in told["checks"]}
    for what in ("job", "job: ssh", "job: chirp", "job: chirp files", "job: transfer", "gpu"):
        assert found[what]["state"] == "ok", found
    assert found["gpu"]["what"] == "no slot here has one"
    assert told["ok"] and told["schedd"]

    # Later it is told where one looks for it.
    shown = json.loads(condorctl("site", "show", "personal", "--json").stdout)
    assert shown["learnt"]["checks"] == told["checks"]
    assert "it could be entered" in condorctl("site", "show", "personal").stdout
    monkeypatch.setenv("CONDORCTL_SITE", "personal")
    checks = json.loads(condorctl("doctor", "--json").stdout)["checks"]
    [site] = [check for check in checks if check["check"] == "site"]
    assert "personal, tried 0 days ago" in site["what"]

    # The job is as the profile wants it, and ends in time where no slot does.
    (project / "sites").mkdir()
    (project / "sites" / "nowhere.yaml").write_text('requirements: Machine == "nowhere"\n')
    answer = condorctl("site", "test", "nowhere", "--timeout", "6", "--json")
    assert answer.returncode == 1
    [late] = json.loads(answer.stdout)["checks"]
    assert late["state"] == "problem" and "it did not start within" in late["what"]
    assert 'none meets Machine == "nowhere"' in late["mend"]
    queue = ("pool", "run", "condor_q", "-allusers", "-af", "JobStatus")
    assert set(condorctl(*queue).stdout.split()) <= {"3"}


USE = """
import json, sys
import msgpack
from msgpack import _cmsgpack
found = {"prefix": sys.prefix, "c": _cmsgpack.__file__, "code": __import__("local").NAME}
json.dump(found, open("out.json", "w"))
"""


def test_a_virtual_environment_travels_along_and_a_session_looks_into_it(
    pool: Path,
    submit: Callable[..., str],
    wait: Callable[..., Status],
    condorctl: Condorctl,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A package with a compiled part, which the tests' own Python does not have.
    subprocess.run([sys.executable, "-m", "venv", ".venv"], check=True)
    pip = [".venv/bin/python", "-m", "pip", "install", "--quiet", "msgpack==1.2.*"]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    (project / "use.py").write_text(USE)
    (project / "local.py").write_text("NAME = 'local'\n")
    spec = f"""
        defaults: {{{SMALL}, inputs: [use.py], outputs: [out.json], code: [local.py]}}
        stages:
          folder: {{command: [python, use.py], venv: .venv}}
          file: {{command: [sh, -c, "python use.py && sleep 600"], venv: packed.pex}}
          none: {{command: [sh, -c, "sleep 2; python3 use.py"]}}
        """
    packed = json.loads(condorctl("venv", "pack", "-o", "packed.pex", "--json").stdout)
    assert packed["packed"] and packed["bytes"] == (project / "packed.pex").stat().st_size
    name = submit(spec)
    run = project / "exp" / "runs" / name
    # Packed once, used where it is: nothing of it is in the run's folder.
    [cached] = (tmp_path / "cache" / "condorctl" / "venvs").iterdir()
    assert list(run.rglob(cached.name)) == []
    shown = json.loads(condorctl("show", name, "--json").stdout)
    assert shown["inputs"][".venv"]["sha256"] == shown["inputs"]["packed.pex"]["sha256"]
    assert shown["inputs"][".venv"]["sha256"] == packed["sha256"]
    # Made anew from a copy elsewhere, it has the same bytes: no stage would run again for that.
    shutil.copytree(".venv", tmp_path / "copy", symlinks=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    again = json.loads(condorctl("venv", "pack", str(tmp_path / "copy"), "--json").stdout)
    assert again["packed"] and again["sha256"] == packed["sha256"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    wait(name, lambda view: view["stages"]["file"]["state"] == "running")
    commands = "ls\nget use.py got.py\nput local.py sent.py\n"
    answer = _sftp("file", commands)
    assert answer.returncode == 0, answer
    assert "stage.sh" in answer.stdout
    assert (project / "got.py").read_text() == USE
    assert condorctl("ssh", "file", "cat sent.py").stdout == "NAME = 'local'\n"
    answer = condorctl("sftp", "file", "-c", "get nothing", "-c", "put local.py more.py")
    assert answer.returncode == 1 and "more.py" not in condorctl("ssh", "file", "ls").stdout
    wait(name, lambda view: view["stages"]["folder"]["state"] == "done")
    out = json.loads((run / "folder" / "out.json").read_text())
    assert out["prefix"].endswith("/scratch/_condorctl_venv") and out["code"] == "local"
    assert out["c"].startswith(out["prefix"])
    wait(name, lambda view: view["stages"]["none"]["state"] == "failed")
    told = condorctl("explain", f"{name}/none").stdout
    assert "No module named" in told

    # A shell on a slot has it, too.
    line = "python -c 'import msgpack; print(msgpack.packb(1))'"
    inside = condorctl("submit", "test", "--interactive", "folder", "-c", line)
    assert inside.stdout.strip() == r"b'\x01'", inside
    condorctl("cancel", name)


def _sftp(job: str, commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "condorctl", "sftp", job],
        input=commands, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
