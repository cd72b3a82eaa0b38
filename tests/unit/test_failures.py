"""Why a command failed, from its exit and its last words."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from condorctl.explain import failures, traces
from condorctl.explain.failures import Failure, Words
from condorctl.explain.traces import Peak

WORDS = Words("`inputs`", "`condorctl submit p`", "`condorctl resume p-1`")
CHAINED = """\
epoch 1
Traceback (most recent call last):
  File "/x/train.py", line 3, in load
    return table["a"]
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/x/train.py", line 9, in <module>
    main()
  File "/x/train.py", line 5, in main
    raise ValueError("no column a") from None
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ValueError: no column a
"""


def _diagnose(
    tmp_path: Path,
    err: str = "",
    code: int | None = 1,
    number: int | None = None,
    peak: Peak | None = None,
    out: str = "",
) -> Failure:
    for name, text in (("err", err), ("out", out)):
        (tmp_path / name).write_text(text)
    lines = [traces.tail(tmp_path / name) for name in ("err", "out")]
    return failures.diagnose(code, number, *lines, peak or Peak(), WORDS)


def _raised(exception: str) -> str:
    return f'Traceback (most recent call last):\n  File "a.py", line 7, in f\n    x\n{exception}\n'


def test_the_last_exception_of_a_chain_and_where_it_was_raised(tmp_path: Path) -> None:
    found = _diagnose(tmp_path, CHAINED)
    assert found.cause == "ValueError: no column a (line 5 of train.py)"
    assert [line.number for line in found.lines] == [12, 15]
    assert found.mend == "mend that, then `condorctl submit p`"


@pytest.mark.parametrize(
    ("err", "cause", "mend"),
    [
        (_raised("ModuleNotFoundError: No module named 'torch'"), "no module torch", "image"),
        (_raised("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
         "the GPU's memory was too small", "batch smaller"),
        (_raised("FileNotFoundError: [Errno 2] No such file or directory: 'a b.csv'"),
         "there is no a b.csv where it ran", "list it in `inputs`"),
        (_raised("OSError: [Errno 28] No space left on device"), "the disk was full", "request_disk"),
        (_raised("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is "
                 "possible that dataloader's workers are out of shared memory."),
         "/dev/shm", "num_workers=0"),
        (_raised("MemoryError"), "its memory was too small", "request_memory"),
        (_raised("RuntimeError: No CUDA GPUs are available"), "no GPU", "request_gpus: 1"),
        ("[rank0]: " + _raised("ModuleNotFoundError: No module named 'x.y'").replace("\n", "\n[rank0]: "),
         "no module x.y", "image"),
        ("python: can't open file '/x/train.py': [Errno 2] No such file", "no /x/train.py", "inputs"),
        ("./a: /lib/libc.so.6: version `GLIBC_2.38' not found (required by ./a)", "GLIBC_2.38", "older"),
        ("warn\nsomething broke\n\n", "it ended with exit code 1", "mend what it says"),
        (_raised("json.decoder.JSONDecodeError: Expecting value: line 1"),
         "json.decoder.JSONDecodeError: Expecting value: line 1 (line 7 of a.py)", "mend that"),
    ],
)  # fmt: skip
def test_what_it_wrote(tmp_path: Path, err: str, cause: str, mend: str) -> None:
    found = _diagnose(tmp_path, err)
    assert cause in found.cause
    assert mend in found.mend
    assert found.lines


@pytest.mark.parametrize(
    ("code", "err", "cause"),
    [
        (74, "condorctl: the command ended well but did not write a.pt\n"
             "condorctl: the command ended well but did not write b.pt\n",
         "the command ended well but did not write a.pt, b.pt"),
        (127, "/x/stage.sh: 50: nosuch: not found", "the node has no program 'nosuch'"),
        (127, "/usr/bin/env: ‘python9’: No such file or directory", "the node has no program 'python9'"),
        (127, "bash: line 1: nosuch: command not found", "the node has no program 'nosuch'"),
        (126, "/x/stage.sh: 50: ./run.sh: Permission denied", "./run.sh cannot be executed"),
        (3, "", "it ended with exit code 3"),
    ],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, code: int, err: str, cause: str) -> None:
    assert _diagnose(tmp_path, err, code).cause == cause


def test_signals(tmp_path: Path) -> None:
    killed = _diagnose(tmp_path, code=137, peak=Peak(1000, 1024))
    assert "most likely for its memory" in killed.cause
    assert "request_memory to 2048 MB" in killed.mend
    other = _diagnose(tmp_path, code=None, number=9, peak=Peak(10, 1024))
    assert "was seen to use 10 MB of the 1024 MB" in other.cause
    assert "`condorctl resume p-1`" in other.mend
    assert "SIGSEGV" in _diagnose(tmp_path, code=None, number=signal.SIGSEGV).cause
    assert "/dev/shm" in _diagnose(tmp_path, "Bus error (core dumped)", 135).cause
    assert "signal 64" in _diagnose(tmp_path, code=None, number=64).cause
    # A number that is no signal at all.
    assert _diagnose(tmp_path, code=None, number=0).cause == "it was ended (signal 0)"


def test_no_more_memory_than_needed() -> None:
    assert failures.more_memory(Peak(300, 64)) == 384
    assert failures.more_memory(Peak(64, 64)) == 128
    assert failures.more_memory(Peak(9000, 8000)) == 11264
    assert failures.more_memory(Peak(None, 20000)) == 40960


def test_what_a_job_may_write(tmp_path: Path) -> None:
    """Binary, no line ends, progress bars, a million lines: nothing of it is too much."""
    path = tmp_path / "err"
    path.write_bytes(
        b"\xff\x00\x1b[31m" * 100_000 + b"\n" + b"x\n" * 300_000 + b" 1%\r 50%\r 99%\nend"
    )
    lines = traces.tail(path)
    assert (lines[-1].number, lines[-1].text) == (300_003, "end")
    assert lines[-2].text == " 99%"
    assert max(len(line.text) for line in traces.read(path)) <= 1000
    assert traces.tail(tmp_path / "none") == traces.tail(tmp_path) == []


def test_apptainer_says_why_there_is_no_container(tmp_path: Path) -> None:
    text = "could not open image /x.sif: failed to retrieve path for /x.sif"
    failure = _diagnose(tmp_path, f"FATAL:   {text}\n", code=255)
    assert failure.cause == f"Apptainer could not start its container: {text}"
    assert "FATAL" not in _diagnose(tmp_path, "FATAL: my own trouble\n", code=255).cause
