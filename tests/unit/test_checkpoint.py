"""What a job goes on from, outside a pool: whole after a kill at any point, damaged ones known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from condorctl.job import checkpoint, folder, progress, records
from condorctl.job.folder import Folder
from condorctl.job.settings import Settings

_JOB = str(Path(checkpoint.__file__).parent)


@pytest.fixture(autouse=True)
def as_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`load` takes over SIGTERM, and reads what pool this is."""
    for name in [name for name in os.environ if name.startswith("_CONDOR")]:
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGTERM)
    yield
    checkpoint._stop.clear()
    checkpoint._loop = checkpoint._Loop(Settings())
    signal.signal(signal.SIGTERM, before)


def keep(number: int, **more: Any) -> str:
    return checkpoint.save(lambda path: Path(path).write_text(f"state {number}"), number, **more)


def load(**more: Any) -> str | None:
    return checkpoint.load(lambda path: Path(path).read_text(), **more)


def recorded() -> list[int]:
    """The epochs of the lines that there are."""
    lines = Path("metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def kept() -> list[int]:
    return [one.number for one in Folder(Path("checkpoints")).checkpoints()]


def test_the_last_two_are_kept_and_the_newest_is_loaded() -> None:
    assert load() is None
    for number in range(1, 5):
        digest = keep(number)
    assert kept() == [4, 3]
    assert load() == "state 4"
    newest, before = Folder(Path("checkpoints")).checkpoints()
    assert (newest.epoch, newest.state.sha256, newest.state.bytes) == (4, digest, 7)
    files = {path.name for path in Path("checkpoints").iterdir()}
    assert files == {*newest.names, *before.names}


def traced(work: Callable[[], object], before: Callable[[int], None]) -> None:
    """Do `work`; `before` gets the number of each line of `condorctl.job`'s sources on its way."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_JOB):
            return None
        if event == "line":
            count += 1
            before(count)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def lines_with_another_disk(work: Callable[[], object]) -> tuple[list[int], int]:
    """The lines of `work` before which the folder is not as it was before the last; their number.

    A process that dies anywhere else leaves what it would have left at one of these.
    """
    found: list[int] = []
    seen: dict[Path, bytes] | None = None
    count = 0

    def before(line: int) -> None:
        nonlocal seen, count
        here = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        if here != seen:
            found.append(line)
        seen, count = here, line

    traced(work, before)
    return found, count


def kill_at(line: int, work: Callable[[], object]) -> None:
    """Do `work` in a process of its own, which dies of SIGKILL before that line."""

    def before(count: int) -> None:
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        try:
            traced(work, before)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_at_any_line_of_a_save_the_old_one_or_the_new_one_is_whole(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state, its lines and an output that belongs to it, always of the same moment."""

    # A process that dies loses nothing that it wrote; only a machine does.
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def leave(number: int) -> None:
        Path("best.pt").write_text(f"best {number}")
        progress(epoch=number, epochs=10**6)
        keep(number, files=["best.pt"])

    def two() -> None:
        shutil.rmtree("checkpoints", ignore_errors=True)
        Path("metrics.jsonl").unlink(missing_ok=True)
        leave(1)
        leave(2)

    two()
    lines, count = lines_with_another_disk(lambda: leave(3))
    assert count > 200 and len(lines) > 10
    seen = set()
    for line in lines:
        two()
        kill_at(line, lambda: leave(3))
        state = load()
        assert state in ("state 2", "state 3"), line
        number = int(state.split()[1])
        seen.add(number)
        assert Path("best.pt").read_text() == f"best {number}"
        assert recorded() == list(range(1, number + 1))
        # What the dead process left behind goes with the next one.
        leave(4)
        files = {path.name for path in Path("checkpoints").iterdir()}
        named = [one.names for one in Folder(Path("checkpoints")).checkpoints()]
        assert len(named) == 2 and files == {name for names in named for name in names}
    assert seen == {2, 3}
    assert "damaged" not in capfd.readouterr().err


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("part", ["state", "metrics.jsonl", "manifest"])
def test_a_damaged_one_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        progress(epoch=number, epochs=3)
        keep(number)
    newest = Folder(Path("checkpoints")).checkpoints()[0]
    names = {"state": newest.state.name, "manifest": newest.name}
    damage(Path("checkpoints") / names.get(part, newest.files["metrics.jsonl"].name))
    assert load() == "state 2"
    told = capsys.readouterr().err
    assert ("damaged" in told) == (part != "manifest" or damage is not Path.unlink)
    assert len(Path("metrics.jsonl").read_text().splitlines()) == 2
    # The damaged one does not take the place of one that could be needed.
    progress(epoch=3, epochs=3)
    keep(3)
    assert [one.epoch for one in Folder(Path("checkpoints")).checkpoints()] == [3, 2]
    assert load() == "state 3"


def test_lines_of_lost_work_are_gone_and_those_before_are_there_once() -> None:
    progress(epoch=1, epochs=3)
    keep(1)
    progress(epoch=2, epochs=3)
    assert load() == "state 1"
    progress(epoch=2, epochs=3)
    assert recorded() == [1, 2]


def test_in_a_job_what_an_earlier_start_wrote_without_a_checkpoint_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress(epoch=1, epochs=3)
    assert load() is None
    assert Path("metrics.jsonl").read_text()
    monkeypatch.setenv("_CONDOR_SCRATCH_DIR", str(Path.cwd()))
    assert load() is None
    assert Path("metrics.jsonl").read_text() == ""


def test_one_of_other_work_is_told_of_and_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    keep(1, of={"lr": "0.1", "seed": "0"})
    assert load(of={"lr": "0.2", "seed": "0"}) is None
    assert "checkpoint 1 (epoch 1) has another lr and is not used" in capsys.readouterr().err
    for number in (2, 3, 4):
        keep(number, of={"lr": "0.2", "seed": "0"})
    assert kept() == [4, 3, 1]
    assert load(of={"lr": "0.1", "seed": "0"}) == "state 1"
    checkpoint.clear(of={"lr": "0.1", "seed": "0"})
    assert kept() == [4, 3]
    checkpoint.clear(of={"lr": "0.2", "seed": "0"})
    assert not Path("checkpoints").exists()


def test_a_full_disk_leaves_what_was_there() -> None:
    keep(1)

    def fail(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.save(fail, 2)
    [before] = Folder(Path("checkpoints")).checkpoints()
    assert {path.name for path in Path("checkpoints").iterdir()} == set(before.names)
    assert load() == "state 1"


@pytest.mark.parametrize("name", ["../out", "/tmp/out"])
def test_a_manifest_cannot_name_a_file_elsewhere(name: str) -> None:
    part = folder.Part("0" * 64, 0)
    made = folder.Checkpoint(1, 1, 0.0, None, {}, part, {name: part})
    Path("checkpoints").mkdir()
    (Path("checkpoints") / made.name).write_bytes(made.text())
    assert load() is None


SCRIPT = """
import json, sys, time
from condorctl.job import checkpoint, progress
state = checkpoint.load(read=lambda path: json.load(open(path))) or {"n": 0}
print(state["n"], flush=True)
while state["n"] < 40:
    state["n"] += 1
    time.sleep(0.05)
    progress(epoch=state["n"], epochs=40)
    if checkpoint.due():
        checkpoint.save(lambda path: json.dump(state, open(path, "w")), epoch=state["n"])
"""


def start(**environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def began_at(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def test_sigterm_leaves_a_checkpoint_and_the_next_start_goes_on() -> None:
    process = start()
    assert began_at(process) == 0
    time.sleep(0.4)
    process.terminate()
    assert process.wait(10) == 143
    process = start()
    assert began_at(process) == len(recorded()) > 0
    assert process.wait(10) == 0
    assert recorded() == list(range(1, 41))


def test_a_second_sigterm_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring = "from condorctl.job import checkpoint\nimport time\ncheckpoint.load(open)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{ignoring}print(flush=True)\nwhile True: time.sleep(0.1)"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout and process.stdout.readline()
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


def test_85_after_each_interval_and_when_told_to_stop() -> None:
    Path("ad").write_text(
        "ClusterId = 12\nProcId = 0\nCondorctlCheckpointInterval = 1\n"
        'CondorctlCopyInterval = 30\nWhenToTransferOutput = "ON_EXIT_OR_EVICT"\n'
    )
    ad = {"_CONDOR_JOB_AD": "ad"}
    process = start(**ad)
    assert (began_at(process), process.wait(10)) == (0, 85)
    process = start(**ad)
    assert began_at(process) == recorded()[-1]
    time.sleep(0.3)
    process.terminate()
    assert process.wait(10) == 85
    while (process := start(**ad)) and (began_at(process), process.wait(10))[1] == 85:
        pass
    assert process.returncode == 0
    assert recorded() == list(range(1, 41))
    assert Folder(Path("checkpoints")).checkpoints()[0].job == "12.0"


def test_what_the_submit_file_says_is_in_the_ad(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ad").write_text('Iwd = "/x"\nCondorctlCheckpoints = "a-1/checkpoints"\nProcId = 3\n')
    monkeypatch.setenv("_CONDOR_JOB_AD", "ad")
    found = Settings.of_this_job()
    assert (found.folder, found.interval_s, found.every_s) == ("a-1/checkpoints", None, 60.0)
    assert records.CHECKPOINT_ATTRIBUTE.startswith("Chirp")


def test_a_copy_that_failed_does_not_put_the_next_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    Path("chirp").write_text(f"127.0.0.1 {port} cookie\n")
    monkeypatch.setenv("_CONDOR_CHIRP_CONFIG", str(Path("chirp").absolute()))
    checkpoint.load(read=str)
    checkpoint._loop.settings = replace(checkpoint._loop.settings, folder="one/checkpoints")
    checkpoint.save(lambda path: Path(path).write_text("x"), epoch=1)
    assert checkpoint._loop.trouble
    # The pause that follows a copy is twenty times as long as it took; this one was none.
    assert checkpoint._loop.copying_s == 0
