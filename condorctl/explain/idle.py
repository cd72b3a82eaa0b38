"""Why a job waits in the queue: what the pool offers it, and what became of it before."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

from condorctl.condor import starts
from condorctl.condor.codes import JobEvent, JobStatus
from condorctl.explain import evidence, held, traces
from condorctl.explain.known import Known
from condorctl.explain.traces import Line
from condorctl.ledger import Job, executions

Json = dict[str, Any]

_WENT_WRONG = (
    JobEvent.EVICTED,
    JobEvent.SHADOW_EXCEPTION,
    JobEvent.REMOTE_ERROR,
    JobEvent.RECONNECT_FAILED,
)


def explain(known: Known, job: Job) -> Json:
    """Why an idle job waits; of one that is held in the queue alone, its `state` and why."""
    seen = evidence.event(job, [JobEvent.SUBMIT, *_WENT_WRONG, JobEvent.RELEASED])
    lines = _lines(seen)
    wait: Json = {"mend": "wait", "evidence": lines}
    if known.unreachable:
        cause = "it waited in the queue when the schedd last answered"
        return {**wait, "cause": cause, "mend": "`condorctl doctor` tells what does not answer"}
    if job.schedd != (here := known.queue.schedd):
        return {**wait, "cause": f"it waits in the queue of {job.schedd}; {here} is asked here"}
    ad = known.ad(job)
    if ad is None:
        return {
            **wait,
            "cause": "it is no longer in the queue, and its log does not tell how it ended",
            "mend": f"`condorctl pool run condor_history {job.number}`",
        }
    if ad.get("JobStatus") == JobStatus.HELD:
        return {"state": "held", **held.explain(known, job)}
    why = known.queue.waiting.get((job.schedd, job.cluster, job.proc))
    told = sent_back(job)
    if why is None:
        soon = "it is about to start, or has: its log is a moment behind"
        return {**told, "cause": f"{told['cause']}; {soon}"} if told else {**wait, "cause": soon}
    asked = _asked(job, why.analysis.get("excluding") or [])
    analysis = {**why.analysis, "never": why.never, "sent_back": 0}
    if told:
        return {
            "cause": f"{told['cause']}; {why.cause}",
            "mend": told["mend"],
            "evidence": [*told["evidence"], *asked],
            "analysis": {**analysis, **told["analysis"]},
        }
    before = ""
    if seen and seen[0] in _WENT_WRONG and job.starts:
        before = f"it ran {job.starts} time{'s' * (job.starts > 1)} and was sent back; "
    return {
        "cause": before + why.cause,
        "mend": why.mend,
        # Who asked for what no slot has proves more than that it was submitted.
        "evidence": asked or lines,
        "analysis": analysis,
    }


def sent_back(job: Job) -> Json | None:
    """Why nodes gave the job back with an error, and as `analysis` how often in a row."""
    times, reason = executions.given_back(job, time.time())
    if not times:
        return None
    cause, mend = starts.explain(reason)
    often = f"{times} times in a row" if times > 1 else "once"
    return {
        "cause": f"it was sent back {often}: {cause}",
        "mend": mend,
        "evidence": evidence.lines(
            evidence.event(job, [JobEvent.REMOTE_ERROR, JobEvent.SHADOW_EXCEPTION])
        ),
        "analysis": {"sent_back": times},
    }


def _lines(seen: tuple[int, list[Line]] | None) -> list[Json]:
    if seen and seen[0] == JobEvent.EVICTED:
        # What it used stands between the eviction and its reason.
        reason = [line for line in seen[1] if line.text.lstrip().startswith("Reason:")]
        return evidence.lines((JobEvent.EVICTED, [seen[1][0], *reason]))
    return evidence.lines(seen, 3 if seen and seen[0] in _WENT_WRONG else 1)


def _asked(job: Job, excluding: Iterable[str]) -> list[Json]:
    """The lines of the stage's submit file that ask for what no slot has."""
    found = []
    for condition in excluding:
        request = re.search(r"\bRequest(\w+)", condition)
        key = f"request_{request[1].lower()}" if request else "requirements"
        line = traces.submit_line(job.stage.folder / "stage.sub", [key])
        if line and line.as_json() not in found:
            found.append(line.as_json())
    return found
