"""How a job has ended, and how a script of its node has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from condorctl.condor.codes import JobEvent
from condorctl.explain import evidence, failures, traces
from condorctl.explain.known import Known
from condorctl.ledger import Job, Stage, gpus

Json = dict[str, Any]


def failed(known: Known, job: Job) -> Json:
    stage = job.stage
    err, out = evidence.output(job, job.err, "err"), evidence.output(job, job.out, "out")
    peak = evidence.memory(job)
    failure = failures.diagnose(
        job.exit_code, job.signal, traces.tail(err), traces.tail(out), peak, known.words
    )
    seen = evidence.event(job, [JobEvent.TERMINATED])
    cause = failure.cause
    if not failure.lines:
        cause += f"; it wrote nothing to {err.name}" if err.exists() else ""
        cause += "" if err.exists() else f"; its {err.name} is not here"
    mend = failure.mend
    if not failure.lines and err.exists():
        mend = f"run its command by hand, or `condorctl logs {job.number}`"
    cause += _tries(known, job)
    if known.states[stage.name] == "retrying":
        mend = f"DAGMan tries again by itself; if it fails again: {mend}"
    return {
        "cause": cause,
        "mend": mend,
        "evidence": [*(line.as_json() for line in failure.lines), *evidence.lines(seen, 2)],
    }


def _tries(known: Known, job: Job) -> str:
    stage = job.stage
    if job is not stage.jobs[-1] and job.attempt < stage.jobs[-1].attempt:
        return f"; this was try {job.attempt}, {stage.jobs[-1].number} came after it"
    if job.exit_code in stage.final_exit_codes:
        return f"; exit code {job.exit_code} is one that the spec does not try again"
    if stage.retries:
        return f"; tried {job.attempt} of at most {stage.retries + 1} times"
    return ""


def removed(known: Known, job: Job) -> Json:
    seen = evidence.event(job, [JobEvent.ABORTED])
    detail = next((s.detail for s in reversed(job.states) if s.state == "removed"), "")
    by_dag = known.run.state == "removed" or "DAGManJobId" in detail
    cause = "it was removed from the queue" + (" with its run" if by_dag else "")
    if detail:
        cause += f": {detail}"
    elif "suspended" in [state.state for state in job.states[-4:]]:
        # Whoever removes a job gives a reason; see `cluster.act`.
        cause += ": HTCondor does that at times to a suspended job that `condor_hold` holds"
    return {
        "cause": cause,
        "mend": f"{known.words.resume} runs it again",
        "evidence": evidence.lines(seen),
    }


def completed(known: Known, job: Job) -> Json:
    seen = evidence.lines(evidence.event(job, [JobEvent.TERMINATED]), 2)
    if known.states[job.stage.name] == "failed" and (wrong := script(known, job.stage)):
        return wrong
    use, hint = gpus.use_in_words(job.usage), gpus.hint(job.usage)
    return {
        "cause": f"it ended well on {job.host or 'its node'}{f'; {use}' if use else ''}",
        "mend": hint or "nothing",
        "evidence": seen,
    }


def script(known: Known, stage: Stage) -> Json | None:
    """A PRE or POST script of the node that failed."""
    if not known.run.dag_file or known.states[stage.name] != "failed":
        return None
    dag = Path(known.run.dag_file)
    lines = traces.script_failure(Path(f"{dag}.dagman.out"), stage.name)
    if not lines:
        return None
    word = "PRE" if lines[-1].text.startswith("PRE") else "POST"
    own = traces.command(dag, stage.name, word)
    ended = re.search(r"(?:failed with|died).*", lines[-1].text)
    after = "" if word == "PRE" else "; its job's own end does not count then"
    return {
        "cause": f"its {word} script {ended[0] if ended else 'failed'}{after}",
        "mend": f"mend the script, then {known.words.resume}",
        "evidence": [line.as_json() for line in [*([own] if own else []), *lines]],
    }
