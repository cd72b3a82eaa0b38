"""A tiny job that tries what a slot can do: file transfer both ways, chirp, ssh into the job.

It is spooled, so it needs no folder that the submit machine shares, and it is removed whatever
happens. It ends when ssh has told it to, else by itself after a minute.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from condorctl.condor import cluster
from condorctl.explain import holds
from condorctl.submit import snapshot

OK, WARNING, PROBLEM = "ok", "warning", "problem"
Found = tuple[str, str, str, str | None]

_RUNNING, _COMPLETED, _HELD = 2, 4, 5
_INTERVAL_S = 0.5
_ATTRIBUTE = "ChirpProgress"

# Python is there for chirp alone: a slot without it is one all the same.
_SCRIPT = """\
#!/bin/sh
cat given > told
if command -v python3 >/dev/null; then
    python3 -c 'from condorctl import job; job.progress(1, 1)' || echo "chirp: failed" >> told
else
    echo "chirp: no python3" >> told
fi
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 \\
              21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 \\
              41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60; do
    [ -e enough ] && break
    sleep 1
done
exit 0
"""
_SUBMIT = """\
universe                = vanilla
batch_name              = condorctl-doctor
executable              = probe.sh
transfer_input_files    = given, condorctl
should_transfer_files   = YES
when_to_transfer_output = ON_EXIT
transfer_output_files   = told
request_cpus            = 1
request_memory          = 128 MB
request_disk            = 64 MB
want_io_proxy           = true
leave_in_queue          = true
log                     = log
queue
"""


class _Late(Exception):
    """The time is up; the message says with what."""


class _Held(Exception):
    """The message is HTCondor's reason."""


def try_slot(seconds: float) -> Iterator[Found]:
    """Submit the job and tell what works, each with its time; for at most `seconds`.

    Raises `cluster.Unreachable`.
    """
    htcondor, schedd, _ = cluster.connection()
    deadline = time.monotonic() + seconds
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="condorctl-doctor-") as name:
        folder = Path(name)
        (folder / "probe.sh").write_text(_SCRIPT)
        (folder / "probe.sh").chmod(0o755)
        (folder / "given").write_text(secret + "\n")
        snapshot.job_side(folder / "condorctl")
        number = None
        try:
            with contextlib.chdir(folder):
                submitted = schedd.submit(htcondor.Submit(_SUBMIT), spool=True)
                number = int(submitted.cluster())
                started = time.monotonic()
                schedd.spool(submitted)
                yield from _watch(schedd, number, started, deadline)
                yield _brought_back(schedd, number, folder, secret)
        except _Held as held:
            yield "job", PROBLEM, f"it is held: {held}", None
        except _Late as late:
            yield "job", PROBLEM, f"{late} within {seconds:.0f} s", _why(late, number)
        except Exception as error:
            what = " ".join(str(error).split())[:300]
            yield "job", PROBLEM, f"the schedd refuses a job: {what}", None
        finally:
            if number is not None:
                with contextlib.suppress(Exception):
                    schedd.edit(f"ClusterId == {number}", "LeaveJobInQueue", "false")
                    schedd.act(htcondor.JobAction.Remove, f"ClusterId == {number}", "tried out")


def _why(late: _Late, number: int | None) -> str | None:
    if "start" in str(late):
        return "other jobs may come first: --timeout SECONDS waits longer"
    return None


def _watch(schedd: Any, number: int, submitted: float, deadline: float) -> Iterator[Found]:
    ad = _until(schedd, number, deadline, _has_started, "it did not start")
    waited = time.monotonic() - submitted
    if ad["JobStatus"] == _HELD:
        raise _Held(ad.get("HoldReason", "without a reason"))
    node = str(ad.get("RemoteHost", "a slot")).rpartition("@")[2]
    yield "job", OK, f"it started on {node} after {waited:.1f} s", None
    yield _ssh(number, deadline)
    begun = time.monotonic()
    ad = _until(
        schedd, number, deadline, lambda ad: ad["JobStatus"] == _COMPLETED, "it did not end"
    )
    chirped = _ATTRIBUTE in ad
    mend = (
        None if chirped else "progress then shows in `condorctl status` only when a job has ended"
    )
    told = "what it said of itself came here" if chirped else "what it said did not come here"
    yield "job: chirp", OK if chirped else WARNING, told, mend
    yield "job: end", OK, f"it ended {time.monotonic() - begun:.1f} s after it was told to", None


def _has_started(ad: Any) -> bool:
    status = ad["JobStatus"]
    return status in (_RUNNING, _COMPLETED) or (
        status == _HELD and ad.get("HoldReasonCode") != holds.SPOOLING
    )


def _until(
    schedd: Any, number: int, deadline: float, reached: Callable[[Any], bool], late: str
) -> Any:
    names = ["JobStatus", "RemoteHost", "HoldReason", "HoldReasonCode", _ATTRIBUTE]
    while True:
        ads = schedd.query(constraint=f"ClusterId == {number}", projection=names)
        if ads and reached(ads[0]):
            return ads[0]
        if time.monotonic() > deadline:
            raise _Late(late)
        time.sleep(_INTERVAL_S)


def _ssh(number: int, deadline: float) -> Found:
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
            return "job: ssh", OK, f"it could be entered, in {time.monotonic() - begun:.1f} s", None
        complaint = (answer.stderr.strip().splitlines() or [complaint])[-1]
        time.sleep(_INTERVAL_S)
    mend = "files of running jobs cannot be had; `condorctl fetch` works when they have ended"
    return "job: ssh", WARNING, f"it could not be entered: {complaint}", mend


def _brought_back(schedd: Any, number: int, folder: Path, secret: str) -> Found:
    begun = time.monotonic()
    schedd.retrieve(f"ClusterId == {number}")
    told = folder / "told"
    if not told.is_file() or not told.read_text().startswith(secret):
        return "job: transfer", PROBLEM, "its output is not what it was given", None
    seconds = time.monotonic() - begun
    return "job: transfer", OK, f"files went there and came back ({seconds:.1f} s)", None
