"""What HTCondor's hold reasons mean and what mends them.

Codes: HTCondor manual, "Hold Reason Codes", and ``condor_holdcodes.h`` in its source. Subcodes are
mostly the number of a system error; of transfer plug-ins, their exit code times 256.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from condorctl import paths
from condorctl.condor import pulls, starts

# Its files are on their way: nothing has failed.
SPOOLING = 16
CANNOT_START = 6
IMAGE = 35
POLICY = 3
OUTPUT, INPUT = 12, 13
MEMORY, DISK = 102, 104


@dataclass(frozen=True)
class Hold:
    """Why a job is held, in plain words, and what to do."""

    cause: str
    mend: str


_FREE = "`condorctl release {job}`"
_RELEASE = f"then {_FREE}"
_FOLDER = f"check that folder and its room, {_RELEASE}"
_ADMIN = f"ask the pool's administrator, {_RELEASE}"

_BY_CODE: dict[int, tuple[str, str]] = {
    1: ("held by its owner", _FREE),
    3: ("a hold policy of the job itself", "change what the policy names, " + _RELEASE),
    4: ("its credentials are not valid", "renew them, " + _RELEASE),
    5: ("a policy of the job has no value", "mend the expression and submit again"),
    6: ("the program could not be started", "check that file, " + _RELEASE),
    7: ("its standard output could not be opened", _FOLDER),
    8: ("its standard input could not be opened", "put the file in place, " + _RELEASE),
    9: ("its standard output could not be streamed", _FOLDER),
    10: ("its standard input could not be streamed", "put the file in place, " + _RELEASE),
    11: ("a file transfer broke off", _FREE),
    12: ("an output file could not be brought back", "see the file named below: was it written?"),
    13: ("an input file could not be sent", "put the file named below in place, " + _RELEASE),
    14: ("the folder that it was submitted from is not there", "restore it, " + _RELEASE),
    15: ("submitted on hold, on purpose", _FREE),
    16: ("its input files are still being spooled", "wait"),
    18: ("a file transfer was refused", _FREE),
    19: ("a hook of the execute node failed before the job", _ADMIN),
    20: ("it missed the time at which it was to start", "give it another time and submit again"),
    21: ("a policy of the execute node", "ask the node's administrator, " + _RELEASE),
    22: ("its event log could not be written", _FOLDER),
    23: ("the submit machine could not act as the job's user", _ADMIN),
    24: ("the submit machine has no program that serves this job", _ADMIN),
    25: ("its cron settings make no sense", "correct them and submit again"),
    26: ("a hold policy of the pool", "change what the policy names, " + _RELEASE),
    27: ("a hold policy of the pool has no value", _ADMIN),
    32: ("its input files are larger than allowed", "make them smaller and submit again"),
    33: ("its output files are larger than allowed", "make them smaller and submit again"),
    34: ("it used more of the slot than it asked for", "raise the request and submit again"),
    35: ("its container could not be started", "see what the node says below, " + _RELEASE),
    36: ("it failed when it was told to write a checkpoint", "check the signal it asks for"),
    43: ("its pre-command failed", "see `condorctl logs {job} --err`"),
    44: ("its post-command failed", "see `condorctl logs {job} --err`"),
    45: ("the node's container test failed", _ADMIN),
    46: ("it took longer than its allowed_job_duration", "raise that and submit again"),
    47: ("it ran longer than its allowed_execute_duration", "raise that and submit again"),
    48: ("a hook of the submit machine failed", _ADMIN),
    49: ("the submit machine could not take the job's group", _ADMIN),
}  # fmt: skip

# Whose subcode is one of `MEMORY` and `DISK`: the slot's limits, a policy of node, pool or job.
_LIMITS = (34, 21, 26, 3)
_OVER = {
    MEMORY: ("it used more memory than it asked for", "raise request_memory and submit again"),
    DISK: ("it used more disk than it asked for", "raise request_disk and submit again"),
}

# HTCondor's words of a file that it could not read or write, and why; old and new.
_FILE = re.compile(
    r"(?P<doing>reading from|writing to|failed to read from|failed to write to|Failed to open)"
    r"(?: file)? '?(?P<path>/.*?)'?"
    r"(?: as standard (?:in|out)put)?: "
    r"(?:\(errno (?P<number>\d+)\) )?(?P<why>[^|;(]*)"
)
_PROGRAM = re.compile(r"Failed to execute '(?P<path>[^']*)'")
_URL = re.compile(r"URL file = (?P<url>[^ )]+)")
_INTERPRETER = re.compile(r"invalid interpreter \((?P<path>[^)]*)\)")
_AT_EXECUTE = re.compile(r"failure at execution point|[Ee]rror from starter")
# A sandbox on an execute node: the name in it is what the user knows.
_SANDBOX = re.compile(r".*/dir_\d+/(?:scratch/)?")


@dataclass(frozen=True)
class NamedFile:
    """The file that a hold's reason names, and what was wrong with it."""

    # A path on the submit machine, in the job's sandbox (relative), or a URL.
    path: str
    number: int
    why: str
    writing: bool
    here: bool


def named_file(reason: str, subcode: int | None = None) -> NamedFile | None:
    """The file that HTCondor's words are about; None where they name none."""
    if url := _URL.search(reason):
        details = reason.rpartition("Details: ")[2] or reason
        return NamedFile(url["url"], 0, details.partition("( URL file")[0].strip(), False, False)
    if program := _PROGRAM.search(reason):
        return NamedFile(program["path"], subcode or 0, "", False, False)
    found = _FILE.search(reason)
    if not found:
        return None
    path, number = found["path"], int(found["number"] or subcode or 0)
    inside = _SANDBOX.match(path)
    return NamedFile(
        path[inside.end() :] if inside else path,
        number,
        found["why"].strip() or os.strerror(number),
        "writ" in found["doing"],
        not inside and not _AT_EXECUTE.search(reason),
    )


def interpreter(reason: str) -> str | None:
    """The ``#!`` program that HTCondor says is not there."""
    found = _INTERPRETER.search(reason)
    return found["path"] if found else None


def limit(code: int | None, subcode: int | None, reason: str = "") -> int | None:
    """`MEMORY` or `DISK` when the job was stopped for using too much of it."""
    if code == 34 and subcode not in (MEMORY, DISK):
        # Before 23.x the reason alone told which.
        subcode = MEMORY if "memory" in reason.lower() else subcode
    elif code in _LIMITS[2:] and subcode == MEMORY and "memory" not in reason.lower():
        # In a policy of one's own the subcode is anybody's choice.
        return None
    elif code in _LIMITS[2:] and subcode == DISK and "disk" not in reason.lower():
        return None
    return subcode if code in _LIMITS and subcode in (MEMORY, DISK) else None


def explain(code: int | None, subcode: int | None, job: str, reason: str = "") -> Hold:
    """The hold of job number `job` (``cluster.proc``) in plain words.

    `reason` is what HTCondor says, from which the name of a file is taken.
    """
    over = limit(code, subcode, reason)
    unknown = (f"hold code {code}.{subcode}", "see the reason below, " + _RELEASE)
    cause, mend = _OVER[over] if over else _BY_CODE.get(code or 0, unknown)
    file = named_file(reason, subcode) if code in _WITH_FILE else None
    if file:
        cause, mend = _about(code or 0, file, cause, mend)
    elif code == IMAGE:
        cause, mend = pulls.explain(reason) or (cause, mend)
    elif code == POLICY and subcode == starts.NOT_STARTED:
        cause, mend = _not_started(reason)
    elif code in (POLICY, 26) and reason and not over:
        cause = f"{cause} says: {reason}"
    return Hold(cause, mend.replace("{job}", job))


def _not_started(reason: str) -> tuple[str, str]:
    told = "its container could not be started, so often that it is not tried any more"
    if not reason:
        return told, f"`condorctl explain {{job}}` has a mend; {_FREE} tries again"
    cause, mend = starts.explain(reason)
    return f"{told}: {cause}", f"{mend}; {_FREE} tries again"


_WITH_FILE = (CANNOT_START, 7, 8, 9, 10, OUTPUT, INPUT, 14, 22)
_WHY: Mapping[int, str] = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "it may not be read",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EISDIR: "it is a folder",
    errno.ENOEXEC: "it is no program",
}

_NOT_STARTED: Mapping[int, str] = {
    errno.ENOENT: "it is not there, or the program of its #! line is not",
    errno.EACCES: "it may not be executed",
    errno.ENOEXEC: "it is no program of this kind of machine, and has no #! line",
    errno.ETXTBSY: "it was being written",
}


def _about(code: int, file: NamedFile, cause: str, mend: str) -> tuple[str, str]:
    """`cause` and `mend` with the name of the file in them."""
    name, number = file.path, file.number
    why = _WHY.get(number, file.why)
    if file.writing and number == errno.EACCES:
        why = "it may not be written"
    # A path may hold anything, braces of a format included: it is put in last.
    what = f"{name}: {why}" if why else name
    if code == CANNOT_START:
        return f"{cause}: {name}: {_NOT_STARTED.get(number, why)}", mend
    if number in (errno.ENOSPC, errno.EDQUOT) and code == INPUT and not file.here:
        return f"{cause}: {what}", "raise request_disk and submit again"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{cause}: {what}", f"make room there, {_RELEASE}"
    if code == OUTPUT and number == errno.ENOENT and not file.writing:
        listed = PurePosixPath(name).name
        if listed == paths.JOB_RECORD:
            return (
                "the stage was never started: its wrapper, which writes that first, did not run; "
                "an image without /bin/sh cannot run it",
                "see `condorctl logs {job} --err`; `condorctl image check` tells what an image "
                "lacks",
            )
        return (
            f"the job ended without writing {name}, which is among its output files",
            f"see why in `condorctl logs {{job}} --err`, or take {listed} out of its outputs; "
            f"{_FREE} runs it again",
        )
    if code == INPUT and number == errno.ENOENT:
        return f"{cause}: {what}", f"put it there, {_RELEASE}"
    if code == INPUT and number == errno.EACCES:
        return f"{cause}: {what}", f"`chmod a+r {name}`, {_RELEASE}"
    if code == INPUT and "://" in name:
        return f"{cause}: {what}", f"check the address and its server, {_RELEASE}"
    return f"{cause}: {what}", mend
