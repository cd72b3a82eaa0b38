"""Bad input on the command line: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robust import cli
from robust.cli import main

ROOT = Path(__file__).parents[3]


def robust(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robust", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: STAGE"),
        (["prune"], "invalid choice: 'prune'"),
        (["train"], "the following arguments are required: --preset"),
        (
            ["train", "--preset", "huge"],
            "--preset huge: unknown, choose from fast, full, medium, seed,",
        ),
        (["train", "--preset", "smoke", "--seed", "-1"], "--seed"),
        (["train", "--preset", "smoke", "--seed", "x"], "'x' is no whole number"),
        (["train", "--preset", "smoke", "--trainer", "magic"], "choose from trades, pgd, plain"),
        (["train", "--preset", "smoke", "--set", "train.speed=1"], "reads no option train.speed"),
        (["train", "--preset", "smoke", "--init", "none.pt"], "none.pt: no such checkpoint"),
        (["train", "--preset", "smoke", "--transfer", "complete"], "complete: give --init"),
        (["train", "--preset", "smoke", "--transfer", "unused", "--init", "x"], "leave --init out"),
        (["train", "--preset", "smoke", "--transfer", "half"], "invalid choice: 'half'"),
        (["train", "--preset", "smoke", "--device", "abacus"], "--device abacus: there is none"),
        (["train", "--preset", "smoke", "--device", "meta"], "--device meta: there is none"),
        (["linear", "--init", "none.pt"], "none.pt: no such checkpoint"),
        (["linear", "--init", "./a.pt", "--out", "a.pt"], "--out a.pt: is what --init reads"),
        (["export", "--init", "none.pt"], "none.pt: no such checkpoint"),
        (["train", "--preset", "smoke", "--out", "no/c.pt"], "--out no/c.pt: no such folder"),
        (["train", "--preset", "smoke", "--out", "."], "--out .: a folder"),
        (["train", "--preset", "smoke", "--out", "there/"], "--out there/: a folder"),
        (["score", "--init", "none.pt", "--keep", "0.1"], "none.pt: no such checkpoint"),
        (["score", "--init", "none.pt", "--keep", "0"], "'0' is no fraction in (0, 1]"),
        (["score", "--init", "none.pt", "--keep", "1.5"], "'1.5' is no fraction in (0, 1]"),
        (["score", "--init", "none.pt", "--keep", "nan"], "'nan' is no fraction in (0, 1]"),
        (["score", "--init", "none.pt", "--keep", "few"], "'few' is no fraction in (0, 1]"),
        (["evaluate"], "the following arguments are required: --model"),
        (["evaluate", "--model", "dense"], "write it as NAME=PATH"),
        (["evaluate", "--model", "a=x", "--model", "a=y"], "the name a is taken"),
        (["evaluate", "--model", "a=none.pt"], "none.pt: no such checkpoint"),
        (["evaluate", "--model", "caf\udce9=none.pt"], "the name must be printable UTF-8"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not shown.out
    assert not list(tmp_path.iterdir())


def test_a_process_ends_with_the_code_and_without_a_traceback(tmp_path: Path) -> None:
    done = robust(tmp_path, "train", "--preset", "smoke", "--set", "train.epochs=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --set train.epochs=0: must lie in [1, inf]\n"
    assert not list(tmp_path.iterdir())


def test_a_terminal_without_greek_letters_gets_what_it_can_show(tmp_path: Path) -> None:
    done = robust(tmp_path, "train", "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u03b2, weight of the robust term of TRADES" in done.stdout


def test_a_disk_that_fails_is_one_line_and_another_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    settings = ["model.widths=[2,2,2]", "train.epochs=1", "train.batch_size=1257"]
    flags = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "--preset", "smoke", "--trainer", "plain", *flags]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 21] Is a directory")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 TiB.\nmore"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def allocate(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", allocate)
    assert main(["train", "--preset", "smoke"]) == 1
    first = str(error).splitlines()[0]
    mend = "make the batch smaller, or take more memory"
    assert capsys.readouterr().err == f"error: {first}; {mend}\n"


def test_a_defect_of_ours_is_not_taken_for_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["train", "--preset", "smoke"])


@pytest.mark.parametrize(("left", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_somebody_who_leaves_is_no_error(
    left: type[BaseException],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave(_: object) -> None:
        raise left

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # given back afterwards
    monkeypatch.setattr(cli, "_run", leave)
    assert main(["train", "--preset", "smoke"]) == code
    assert capsys.readouterr().err == ""


def test_help_and_bad_arguments_do_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from robust.cli import main\n"
        "main(['train', '--preset', 'none'])\n"
        "main(['score', '--keep', '2'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert robust(tmp_path, "--help").returncode == 0
