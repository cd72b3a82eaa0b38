"""Why a job is held: HTCondor's reason, and a closer look at what it is about."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from condorctl import paths
from condorctl.condor import holds
from condorctl.condor.codes import JobEvent
from condorctl.explain import evidence, failures, programs, traces
from condorctl.explain.known import Known
from condorctl.explain.traces import Peak
from condorctl.ledger import Job

Json = dict[str, Any]


def explain(known: Known, job: Job) -> Json:
    """Why a job is held, with HTCondor's code, subcode and reason as `analysis`."""
    ad = known.ad(job) or {}
    reason, code, subcode = job.hold_reason or "", job.hold_code, job.hold_subcode
    if job.state != "held":
        # Submitted on hold, or spooled: that stands in the queue alone.
        reason, code = str(ad.get("HoldReason", "")), ad.get("HoldReasonCode")
        subcode = ad.get("HoldReasonSubCode")
    seen = evidence.event(job, [JobEvent.HELD])
    hold = holds.explain(code, subcode, job.number, reason)
    told: Json = {
        "cause": hold.cause,
        "mend": hold.mend,
        "evidence": evidence.lines(seen),
        "analysis": {"code": code, "subcode": subcode, "reason": reason},
    }
    if code == holds.CANNOT_START:
        told |= _program(known, job, reason, subcode)
    elif holds.limit(code, subcode, reason) == holds.MEMORY:
        told |= _memory(known, job)
    elif code == holds.INPUT:
        told |= _input(known, job, reason, subcode)
    elif code == holds.OUTPUT:
        told |= _never_began(known, job, reason, told["evidence"])
    return told


def _program(known: Known, job: Job, reason: str, subcode: int | None) -> Json:
    """A closer look at a program that could not be started, where it is on this machine."""
    ad = known.ad(job) or {}
    named = holds.named_file(reason, subcode)
    release = f"then `condorctl release {job.number}`"
    candidates = [str(ad["Cmd"])] if ad.get("Cmd") else []
    candidates += [named.path] if named and named.path not in candidates else []
    for name in candidates:
        path = Path(name) if name.startswith("/") else Path(ad.get("Iwd") or job.folder) / name
        if fault := programs.fault(path):
            cause, mend = fault
            return {
                "cause": f"the program could not be started: {cause}",
                "mend": f"{mend}, {release}",
            }
    if missing := holds.interpreter(reason):
        plain = missing.rstrip("\r")
        return {
            "cause": f"the program could not be started: the node has no {plain}, which its "
            "#! line asks for",
            "mend": f"name an interpreter that the node has, {release}",
        }
    return {}


def _memory(known: Known, job: Job) -> Json:
    ad = known.ad(job) or {}
    peak = evidence.memory(job)
    peak |= Peak(_whole(ad.get("MemoryUsage")), _whole(ad.get("RequestMemory")))
    peak |= Peak(_whole((job.usage or {}).get("memory_mb")))
    if not peak.asked:
        return {}
    more = failures.more_memory(peak)
    used = f", was seen to use {peak.used} MB" if peak.used else ""
    edit = f"`condorctl pool run condor_qedit {job.number} RequestMemory {more}`"
    return {
        "cause": f"it used more memory than it asked for: it asked for {peak.asked} MB{used}",
        "mend": f"set request_memory to {more} MB and submit again; or go on with this job: "
        f"{edit}, then `condorctl release {job.number}`",
    }


def _input(known: Known, job: Job, reason: str, subcode: int | None) -> Json:
    named = holds.named_file(reason, subcode)
    if not (named and named.here and named.path.startswith("/")):
        return {}
    path = Path(named.path)
    maker = next(
        (s for s in known.run.stages if path.is_relative_to(s.folder) and s is not job.stage),
        None,
    )
    told: Json = {}
    if path.exists() and named.number == 2:
        told["cause"] = f"{path} was not there when it was to be sent; it is there now"
        told["mend"] = f"`condorctl release {job.number}`"
    elif maker and not path.exists():
        told["cause"] = f"an input file could not be sent: {maker.name} has left no {path}"
        told["mend"] = (
            f"see `condorctl explain {known.run.name}/{maker.name}`; put the file there, then "
            f"`condorctl release {job.number}`"
        )
    return told


def _never_began(known: Known, job: Job, reason: str, hold: list[Json]) -> Json:
    """Of a stage whose wrapper did not run, what could not start it, if that said so."""
    named = holds.named_file(reason)
    if not named or PurePosixPath(named.path).name != paths.JOB_RECORD:
        return {}
    err = evidence.output(job, job.err, "err")
    failure = failures.from_words(traces.tail(err), (), known.words)
    if not failure:
        return {}
    return {
        "cause": f"the stage was never started: {failure.cause}",
        "mend": failure.mend,
        "evidence": [*(line.as_json() for line in failure.lines), *hold],
    }


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
