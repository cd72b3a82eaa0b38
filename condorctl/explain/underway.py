"""What a job does that has a slot."""

from __future__ import annotations

import time
from typing import Any

from condorctl import units
from condorctl.condor.codes import JobEvent
from condorctl.explain import evidence, idle
from condorctl.explain.known import Known
from condorctl.ledger import Job

Json = dict[str, Any]


def running(known: Known, job: Job) -> Json:
    seen = evidence.event(job, [JobEvent.EXECUTE])
    since = f" since {units.age(time.time() - job.started)}" if job.started else ""
    again = f" (start number {job.starts})" if job.starts > 1 else ""
    if told := idle.sent_back(job):
        where = f"it has been on {job.host or 'a node'}{since}{again}"
        return {**told, "cause": f"{where}, but {told['cause'].removeprefix('it ')}"}
    return {
        "cause": f"it runs on {job.host or 'a node'}{since}{again}",
        "mend": f"nothing; `condorctl logs {job.number}` shows its output",
        "evidence": evidence.lines(seen, 1),
    }


def suspended(known: Known, job: Job) -> Json:
    seen = evidence.event(job, [JobEvent.SUSPENDED])
    return {
        "cause": f"{job.host or 'its node'} has suspended it, most likely for its owner's work",
        "mend": "wait: it goes on there, or is sent back and starts elsewhere",
        "evidence": evidence.lines(seen),
    }


def disconnected(known: Known, job: Job) -> Json:
    seen = evidence.event(job, [JobEvent.DISCONNECTED])
    return {
        "cause": f"the submit machine has lost {job.host or 'its node'}; the job may still run "
        "there",
        "mend": "wait: HTCondor looks for it until its lease ends, then starts it anew; "
        f"`condorctl pool run condor_vacate_job -fast {job.number}` starts it anew at once",
        "evidence": evidence.lines(seen, 4),
    }
