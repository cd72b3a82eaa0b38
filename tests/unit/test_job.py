"""The job's side outside a pool: the records it writes, and the script around a command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from condorctl import job

STAGE = Path(job.__file__).parents[1] / "stage.sh"


def records() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]


def test_progress_is_a_line_of_json_and_nan_becomes_null(project: Path) -> None:
    job.progress(epoch=1, epochs=2, loss=0.5, other=float("nan"))
    (record,) = records()
    assert record["kind"] == "progress"
    assert (record["epoch"], record["epochs"]) == (1, 2)
    assert record["metrics"] == {"loss": 0.5, "other": None}
    with pytest.raises(ValueError, match="epoch 3"):
        job.progress(epoch=3, epochs=2)


def test_a_checkpoint_is_whole_or_the_old_one(project: Path) -> None:
    digest = job.save("c.pt", lambda path: Path(path).write_bytes(b"one"), epoch=1)
    assert digest == hashlib.sha256(b"one").hexdigest()

    def fail(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        job.save("c.pt", fail, epoch=2)
    assert Path("c.pt").read_bytes() == b"one"
    assert [p.name for p in Path().iterdir() if p.name.startswith(".")] == []
    assert [(r["epoch"], r["bytes"]) for r in records()] == [(1, 3)]


def test_a_pool_that_does_not_answer_never_fails_the_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("chirp").write_text("127.0.0.1 9 cookie")
    monkeypatch.setenv("_CONDOR_CHIRP_CONFIG", "chirp")
    job.progress(epoch=1, epochs=1, loss=1.0)
    assert len(records()) == 1


def test_a_result_keeps_what_json_can_carry(project: Path) -> None:
    job.result(model="m", clean=0.5, details={"config": {"epsilon": [0.1, None]}, "on": True})
    (record,) = records()
    assert record["values"] == {
        "model": "m", "clean": 0.5, "details": {"config": {"epsilon": [0.1, None]}, "on": True},
    }  # fmt: skip


# {"text":"é…"} as json.dumps writes it: 12 bytes and two for each é.
LARGEST = "é" * ((64 * 1024 - 12) // 2)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


def test_a_result_may_be_of_64_kb_and_16_levels(project: Path) -> None:
    job.result(text=LARGEST)
    job.result(deep=nested(15))
    assert len(records()) == 2


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"text": LARGEST + "e"}, ValueError),
        ({"deep": nested(16)}, ValueError),
        ({"deep": nested(900)}, ValueError),
        ({"clean": float("nan")}, ValueError),
        ({"clean": {"a": [float("inf")]}}, ValueError),
        ({"model": "\ud800"}, ValueError),
        ({"path": Path()}, TypeError),
    ],
)
def test_a_result_that_cannot_be_kept_is_refused_at_once(
    project: Path, values: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        job.result(**values)
    assert not Path("metrics.jsonl").exists()


def stage(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(STAGE), *words], capture_output=True, text=True, timeout=30)


def test_a_command_that_fails_leaves_its_outputs_and_its_own_exit_code(project: Path) -> None:
    answer = stage("a b.pt", "d/c.pt", "--", "sh", "-c", "echo said; exit 7")
    assert (answer.returncode, answer.stdout) == (7, "said\n")
    assert Path("a b.pt").read_bytes() == Path("d/c.pt").read_bytes() == b""


def test_a_command_that_ends_well_without_its_output_is_a_failure(project: Path) -> None:
    answer = stage("a b.pt", "c.pt", "--", "sh", "-c", "echo x > c.pt")
    assert answer.returncode == 74
    assert "did not write a b.pt" in answer.stderr
    assert stage("a b.pt", "c.pt", "--", "sh", "-c", "echo x | tee c.pt > 'a b.pt'").returncode == 0


def test_arguments_reach_the_command_as_they_are(project: Path) -> None:
    words = ["", "a b", "*", "$HOME", "--", "'", '"', "-n", "é"]
    answer = stage(
        "--", "python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words
    )
    assert json.loads(answer.stdout) == words


def test_a_signal_reaches_the_command_which_may_finish_its_work(project: Path) -> None:
    script = (
        "trap 'sleep 1; echo saved > c.pt; exit 85' TERM; touch up; while :; do sleep 0.1; done"
    )
    process = subprocess.Popen(["sh", str(STAGE), "c.pt", "--", "sh", "-c", script])
    deadline = time.monotonic() + 20
    while not Path("up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 85
    assert Path("c.pt").read_text() == "saved\n"


def test_a_killed_command_is_reported_as_the_shell_does(project: Path) -> None:
    assert stage("--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_an_exit_that_keeps_a_checkpoint_is_not_judged(project: Path) -> None:
    """HTCondor starts the job again in the same folder, and judges its last exit."""
    answer = stage("c.pt", "--", "sh", "-c", "echo half > c.pt; exit 85")
    assert answer.returncode == 85
    assert "c.pt" not in Path("_condorctl_job").read_text()
    assert stage("d.pt", "--", "sh", "-c", "exit 85").returncode == 85
    assert stage("d.pt", "--", "true").returncode == 74


def test_only_a_job_that_is_done_leaves_no_checkpoints(project: Path) -> None:
    write = "echo state > checkpoints/a; exit"
    assert stage("--", "sh", "-c", f"{write} 3").returncode == 3
    assert Path("checkpoints/a").exists()
    assert stage("--", "sh", "-c", f"{write} 0").returncode == 0
    assert Path("checkpoints").is_dir() and not any(Path("checkpoints").iterdir())
