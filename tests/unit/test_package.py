"""What is installed: a wheel that stands on its own, a tool without torch, a README of it all."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.main import get_command

from condorctl.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )  # fmt: skip
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(installed: Path, code: str) -> str:
    """What `code` prints with the wheel's content on the path and no torch to be had."""
    without_torch = "import sys; sys.modules['torch'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", f"{without_torch}sys.path.insert(0, {str(installed)!r})\n{code}"],
        check=True, capture_output=True, text=True, cwd=Path.cwd(),
    ).stdout.strip()  # fmt: skip


RENDER = """
from pathlib import Path
from condorctl import paths
from condorctl.spec import reader
from condorctl.submit import render
pipeline = reader.load(paths.spec("pipeline"))
Path("run").mkdir()
print(render.render(pipeline, "pipeline-1", Path("run"), ["python3"]).resolve())
"""


def test_a_wheel_renders_the_pipeline_with_its_own_files(installed: Path, project: Path) -> None:
    dag = Path(python(installed, RENDER))
    assert "JOB train train/stage.sub" in dag.read_text()
    assert (dag.parent / "code" / "robust" / "presets" / "smoke.toml").is_file()


def test_the_users_own_files_win_over_the_wheels(installed: Path, project: Path) -> None:
    (project / "jobs" / "pipeline.yaml").write_text("stages: {mine: {command: [x]}}")
    (project / "templates").mkdir()
    (project / "templates" / "stage.sub.j2").write_text("executable = mine\nqueue\n")
    dag = Path(python(installed, RENDER))
    assert "JOB mine mine/stage.sub" in dag.read_text()
    assert (dag.parent / "mine" / "stage.sub").read_text() == "executable = mine\nqueue\n"


def test_help_waits_for_no_heavy_import(installed: Path, project: Path) -> None:
    code = (
        "from condorctl.cli import app\n"
        "heavy = {'sqlalchemy', 'htcondor2', 'pydantic', 'jinja2', 'yaml', 'rich.table'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(installed, code) == "[]"


def test_a_wheel_brings_older_ledgers_up_to_date(installed: Path, project: Path) -> None:
    code = (
        "from condorctl import paths\n"
        "from condorctl.ledger import Base, LAYOUT, Ledger, migrations\n"
        "from condorctl.ledger.database import Database, _version\n"
        "with Database(paths.ledger()).engine.begin() as connection:\n"
        "    _version.create(connection)\n"
        "    migrations.upgrade(connection, migrations.layouts()[0])\n"
        "Ledger(paths.ledger())\n"
        "print(migrations.layouts()[-1] == str(LAYOUT))"
    )
    assert python(installed, code) == "True"


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = get_command(app).commands  # type: ignore[attr-defined]
    names = [name for name in commands if name not in ("pool", "ledger")]
    for group in ("pool", "ledger"):
        names += [f"{group} {name}" for name in commands[group].commands]
    assert [name for name in names if f"condorctl {name}" not in readme] == []
