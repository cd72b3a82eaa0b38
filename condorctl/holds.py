"""What HTCondor's hold reason codes mean and what mends them.

Codes: HTCondor manual, "Job ClassAd Attributes", HoldReasonCode.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hold:
    """Why a job is held, in plain words, and what to do."""

    cause: str
    mend: str


_FREE = "`condorctl pool run condor_release {job}`"
_RELEASE = f"then {_FREE}"
_MEMORY, _DISK = (34, 102), (34, 104)

_BY_CODE: dict[int, tuple[str, str]] = {
    1: ("held by its owner", _FREE),
    3: ("a periodic hold policy of the job", "change what the policy names, " + _RELEASE),
    4: ("the credentials could not be had", "renew them, " + _RELEASE),
    5: ("a job policy could not be evaluated", "mend the expression in the template and submit"),
    6: ("the program could not be started", "check path, execute bit, #! line, CRLF"),
    7: ("the standard input could not be opened", "check `input` in the submit file"),
    8: ("the standard output could not be opened", "check the run's folder and its room"),
    9: ("the standard error could not be opened", "check the run's folder and its room"),
    12: ("an output file could not be brought back", "see the file named below: was it written?"),
    13: ("an input file could not be sent", "put the file named below in place, " + _RELEASE),
    14: ("the initial directory is not there", "restore the run's folder, " + _RELEASE),
    15: ("submitted on hold, on purpose", _FREE),
    16: ("its input files are still being spooled", "wait"),
    21: ("a policy of the execute node", "ask the node's administrator, " + _RELEASE),
    22: ("the event log could not be written", "check the run's folder and its room, " + _RELEASE),
    26: ("a hold policy of the pool", "change what the policy names, " + _RELEASE),
    32: ("the input files are larger than the pool allows", "make them smaller"),
    33: ("the output files are larger than the pool allows", "make them smaller"),
    34: ("a limit of the slot was exceeded", "raise the request in the spec and submit again"),
    35: ("the container image could not be used", "check that its name can be pulled"),
    36: ("the job did not answer its checkpoint signal", "check the signal in the template"),
    43: ("its pre-command failed", "see the job's error file"),
    44: ("its post-command failed", "see the job's error file"),
    46: ("it ran longer than allowed", "raise the allowed time, " + _RELEASE),
    47: ("it executed longer than allowed", "raise the allowed time, " + _RELEASE),
    48: ("a hook of the shadow failed", "ask the pool's administrator"),
}  # fmt: skip

_BY_SUBCODE = {
    _MEMORY: ("it used more memory than it asked for", "raise request_memory and submit again"),
    _DISK: ("it used more disk than it asked for", "raise request_disk and submit again"),
}


def explain(code: int | None, subcode: int | None, job: str) -> Hold:
    """The hold of job number `job` (``cluster.proc``) in plain words."""
    unknown = (f"hold code {code}.{subcode}", "see the reason below, " + _RELEASE)
    cause, mend = _BY_SUBCODE.get((code or 0, subcode or 0)) or _BY_CODE.get(code or 0, unknown)
    return Hold(cause, mend.format(job=job))
