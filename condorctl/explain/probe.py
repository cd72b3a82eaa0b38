"""Tiny jobs that try what a slot can do: file transfer both ways, chirp, ssh into the job, a GPU.

They are spooled, so they need no folder that the submit machine shares, and they are removed
whatever happens. One ends when ssh has told it to, else by itself after a minute.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from condorctl.condor import cluster, holds
from condorctl.condor.codes import JobStatus
from condorctl.explain import matchmaking, waiting
from condorctl.explain.finding import OK, PROBLEM, WARNING, Finding
from condorctl.submit import snapshot

_INTERVAL_S = 0.5
_ATTRIBUTE = "ChirpProgress"

# Python is there for chirp alone: a slot without it is one all the same.
_SCRIPT = """\
#!/bin/sh
cat given > told
{python} try.py >> told 2>&1 || echo "chirp: no Python that runs" >> told
{gpu}
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 \\
              21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 \\
              41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60; do
    [ -e enough ] && break
    sleep 1
done
exit 0
"""
_CHIRP = """\
from pathlib import Path
from condorctl import job
from condorctl.job import chirp
job.progress(1, 1)
try:
    with chirp.Connection() as there:
        there.put(Path("given"), "chirped")
        there.remove("chirped")
    print("chirp files: yes")
except (OSError, KeyError) as error:
    print("chirp files:", error)
"""
_GPU = """\
echo "gpu: $CUDA_VISIBLE_DEVICES" >> told
nvidia-smi --format=csv,noheader --query-gpu=name,memory.total,driver_version >> told 2>/dev/null
touch enough
"""
_SUBMIT = """\
universe                = vanilla
batch_name              = condorctl-doctor
executable              = probe.sh
transfer_input_files    = given, try.py, condorctl
should_transfer_files   = YES
when_to_transfer_output = ON_EXIT
transfer_output_files   = told
request_cpus            = 1
request_memory          = 128 MB
request_disk            = 64 MB
want_io_proxy           = true
leave_in_queue          = true
log                     = log
{lines}
queue
"""


class _Late(Exception):
    """The time is up; the message says with what."""


class _Held(Exception):
    """The message is HTCondor's reason."""


class _Job:
    """A job in the queue, with the folder that its files come from and come back to."""

    def __init__(
        self, folder: Path, python: Sequence[str], lines: Sequence[str], gpu: bool = False
    ) -> None:
        htcondor, self._schedd, _ = cluster.connection()
        self._folder = folder
        self._secret = secrets.token_hex(16)
        script = _SCRIPT.format(python=shlex.join(python), gpu=_GPU if gpu else "")
        (folder / "probe.sh").write_text(script)
        (folder / "probe.sh").chmod(0o755)
        (folder / "try.py").write_text(_CHIRP)
        (folder / "given").write_text(self._secret + "\n")
        snapshot.job_side(folder / "condorctl")
        with contextlib.chdir(folder):
            text = _SUBMIT.format(lines="\n".join(lines))
            submitted = self._schedd.submit(htcondor.Submit(text), spool=True)
            self.number = int(submitted.cluster())
            self.submitted = time.monotonic()
            try:
                self._schedd.spool(submitted)
            except BaseException:
                self.remove()
                raise

    def until(self, deadline: float, reached: Callable[[int], bool], late: str) -> Any:
        """Its ad once its status is as wanted. Raises _Held and _Late."""
        names = [
            "JobStatus", "RemoteHost", "LastRemoteHost", "HoldReason", "HoldReasonCode", _ATTRIBUTE,
        ]  # fmt: skip
        while True:
            ads = self._schedd.query(constraint=f"ClusterId == {self.number}", projection=names)
            ad = ads[0] if ads else {}
            status, code = ad.get("JobStatus", 0), ad.get("HoldReasonCode")
            if reached(status):
                return ad
            if status == JobStatus.HELD and code != holds.SPOOLING:
                raise _Held(ad.get("HoldReason", "without a reason"))
            if time.monotonic() > deadline:
                raise _Late(late)
            time.sleep(_INTERVAL_S)

    def started(self, deadline: float) -> tuple[str, float]:
        """The node that it started on, and the seconds that it waited."""
        ad = self.until(
            deadline, {JobStatus.RUNNING, JobStatus.COMPLETED}.__contains__, "it did not start"
        )
        host = ad.get("RemoteHost") or ad.get("LastRemoteHost") or "a slot"
        node = str(host).rpartition("@")[2]
        return node, time.monotonic() - self.submitted

    def told(self) -> list[str] | None:
        """What it wrote, line by line; None when that is not what it was given."""
        self._schedd.retrieve(f"ClusterId == {self.number}")
        told = self._folder / "told"
        lines = told.read_text(errors="replace").splitlines() if told.is_file() else []
        return lines[1:] if lines[:1] == [self._secret] else None

    def remove(self) -> None:
        htcondor, _, _ = cluster.connection()
        with contextlib.suppress(Exception):
            self._schedd.edit(f"ClusterId == {self.number}", "LeaveJobInQueue", "false")
            remove = htcondor.JobAction.Remove
            self._schedd.act(remove, f"ClusterId == {self.number}", "tried out")


def try_slot(
    seconds: float, python: Sequence[str] = ("python3",), lines: Sequence[str] = ()
) -> Iterator[Finding]:
    """Submit a job and tell what works, each with its time; for at most `seconds`.

    `python` is what runs Python there, `lines` are added to the submit file. Raises
    `cluster.Unreachable`.
    """
    yield from _tried("job", seconds, lambda folder: _Job(folder, python, lines), _watch)


def try_gpu(seconds: float, lines: Sequence[str] = ()) -> Iterator[Finding]:
    """Submit a job that asks for a GPU and tell what it gets, as `try_slot` does."""
    wanted = [*lines, "request_gpus = 1"]
    yield from _tried("gpu", seconds, lambda folder: _Job(folder, ["true"], wanted, True), _see_gpu)


def try_container(seconds: float, lines: Sequence[str] = ()) -> Iterator[Finding]:
    """Submit a job that runs in the image that `lines` name, as `try_slot` does."""
    wanted = [*lines, "request_disk = 4 GB"]
    yield from _tried(
        "container", seconds, lambda folder: _Job(folder, ["python3"], wanted), _see_container
    )


def _tried(
    check: str,
    seconds: float,
    submit: Callable[[Path], _Job],
    watch: Callable[[_Job, float], Iterator[Finding]],
) -> Iterator[Finding]:
    cluster.connection()
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="condorctl-doctor-") as name:
        job = None
        try:
            job = submit(Path(name))
            yield from watch(job, deadline)
        except _Held as held:
            yield Finding(check, PROBLEM, f"it is held: {held}")
        except _Late as late:
            mend = _why_idle(job) if job and "start" in str(late) else None
            yield Finding(check, PROBLEM, f"{late} within {seconds:.0f} s", mend)
        except Exception as error:
            what = " ".join(str(error).split())[:300]
            yield Finding(check, PROBLEM, f"the schedd refuses a job: {what}")
        finally:
            if job:
                job.remove()


def _why_idle(job: _Job) -> str:
    """Why the job has not started, and the mend."""
    mend = "other jobs may come first: --timeout SECONDS waits longer"
    with contextlib.suppress(Exception):
        [ad] = matchmaking.jobs([job.number])
        found = waiting.Pool().why(ad)
        return f"{found.cause}; {found.mend if found.never else mend}"
    return mend


def _watch(job: _Job, deadline: float) -> Iterator[Finding]:
    node, waited = job.started(deadline)
    yield Finding("job", OK, f"it started on {node} after {waited:.1f} s")
    yield _ssh(job.number, deadline)
    begun = time.monotonic()
    ad = job.until(deadline, JobStatus.COMPLETED.__eq__, "it did not end")
    chirped = _ATTRIBUTE in ad
    mend = (
        None if chirped else "progress then shows in `condorctl status` only when a job has ended"
    )
    told = "what it said of itself came here" if chirped else "what it said did not come here"
    yield Finding("job: chirp", OK if chirped else WARNING, told, mend)
    took = time.monotonic() - begun
    yield Finding("job: end", OK, f"it ended {took:.1f} s after it was told to")
    begun = time.monotonic()
    lines = job.told()
    if lines is None:
        yield Finding("job: transfer", PROBLEM, "its output is not what it was given")
        return
    seconds = time.monotonic() - begun
    yield Finding("job: transfer", OK, f"files went there and came back ({seconds:.1f} s)")
    yield _files(lines)


def _files(lines: list[str]) -> Finding:
    """Whether the job could write files of the submit machine, where copies of checkpoints go."""
    if "chirp files: yes" in lines:
        told = "it wrote a file on the submit machine while it ran"
        return Finding("job: chirp files", OK, told)
    why = next((line for line in lines if line.startswith("chirp")), "it said nothing")
    mend = "checkpoints come back only when HTCondor brings them: at an eviction, or at the end"
    told = f"it could not write on the submit machine: {why}"
    return Finding("job: chirp files", WARNING, told, mend)


def _see_container(job: _Job, deadline: float) -> Iterator[Finding]:
    node, waited = job.started(deadline)
    told = f"a job runs in the image on {node}, {waited:.1f} s after it was submitted"
    yield Finding("container", OK, told)
    yield _ssh(job.number, deadline)._replace(check="container: ssh")
    job.until(deadline, JobStatus.COMPLETED.__eq__, "it did not end")
    good = job.told() is not None
    told = "files went there and came back" if good else "its output is not what it was given"
    yield Finding("container: transfer", OK if good else PROBLEM, told)


def _see_gpu(job: _Job, deadline: float) -> Iterator[Finding]:
    node, waited = job.started(deadline)
    job.until(deadline, JobStatus.COMPLETED.__eq__, "it did not end")
    lines = job.told() or []
    devices = next((line.partition(": ")[2] for line in lines if line.startswith("gpu: ")), "")
    seen = [line for line in lines if line.count(",") == 2]
    if not devices or devices == "10000":
        yield Finding("gpu", PROBLEM, f"{node} gave it no GPU", "ask the pool's administrator")
    elif not seen:
        mend = "what the driver is, and how busy GPUs are, only HTCondor itself can tell there"
        told = f"{node} gave it {devices} after {waited:.1f} s, without a nvidia-smi that answers"
        yield Finding("gpu", WARNING, told, mend)
    else:
        told = f"{node} gave it one after {waited:.1f} s; the node has {'; '.join(seen)}"
        yield Finding("gpu", OK, told)


def _ssh(number: int, deadline: float) -> Finding:
    """Get into the job, and tell it that it may end."""
    begun, complaint = time.monotonic(), "it did not answer"
    # A job that has just started cannot be reached at once.
    limit = min(deadline, begun + 40)
    while (left := limit - time.monotonic()) > 0:
        try:
            answer = subprocess.run(
                ["condor_ssh_to_job", f"{number}.0", "touch enough; cat given"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=left,
            )  # fmt: skip
        except FileNotFoundError:
            complaint = "condor_ssh_to_job is not on PATH"
            break
        except subprocess.TimeoutExpired:
            break
        if answer.returncode == 0 and answer.stdout.strip():
            took = time.monotonic() - begun
            return Finding("job: ssh", OK, f"it could be entered, in {took:.1f} s")
        complaint = (answer.stderr.strip().splitlines() or [complaint])[-1]
        time.sleep(_INTERVAL_S)
    mend = "files of running jobs cannot be had; `condorctl fetch` works when they have ended"
    return Finding("job: ssh", WARNING, f"it could not be entered: {complaint}", mend)
