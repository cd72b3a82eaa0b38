"""What is wrong with a run as a whole, and why a stage has no job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from condorctl.condor.codes import JobEvent
from condorctl.explain import ended, evidence, traces
from condorctl.explain.known import Known
from condorctl.ledger import Stage

Json = dict[str, Any]


def of_run(known: Known) -> Json | None:
    """What is wrong with DAGMan or the DAG itself."""
    run = known.run
    own = f"{run.dag_file}.dagman"
    logs, number = [Path(f"{own}.log")], run.cluster or 0
    told = known.row(None, None, run.state)
    if run.cluster is not None:
        told |= {"job": f"{number}.0", "id": f"{run.schedd}#{number}.0"}
    if run.state == "held":
        seen = traces.event(logs, number, 0, [JobEvent.HELD])
        return told | {
            "cause": f"DAGMan itself is held, so no stage starts: {run.problem or '?'}",
            "mend": f"`condorctl release {run.name}`",
            "evidence": evidence.lines(seen),
        }
    if not run.dag_file:
        return None
    errors = traces.dag_errors(Path(f"{own}.out"))
    if run.state == "failed" and errors and not any(s.jobs or s.outcome for s in run.stages):
        said = dict.fromkeys(line.text.removeprefix("ERROR: ") for line in errors[:3])
        own_line = traces.named_line(Path(run.dag_file).parent, errors)
        return told | {
            "cause": f"DAGMan could not use the DAG: {'; '.join(said)}",
            "mend": f"mend it, then {known.words.again}",
            "evidence": [line.as_json() for line in [*own_line, *errors[:5]]],
        }
    if run.state == "idle" and time.time() - run.submitted > 60 and not known.unreachable:
        return told | {
            "cause": "DAGMan's own job waits for the schedd, which runs no more of them now "
            "(START_SCHEDULER_UNIVERSE, MAX_RUNNING_SCHEDULER_JOBS_PER_OWNER)",
            "mend": "wait; or ask the pool's administrator",
        }
    return None


def of_stage(known: Known, stage: Stage) -> Json:
    """A stage that has no job, or whose job does not tell why it failed."""
    run, state = known.run, known.states[stage.name]
    told = known.row(stage, None, state)
    if stage.source:
        where = f"{stage.origin.run.name}/{stage.origin.name}"
        return told | {"cause": f"it is done: {where} had made its outputs", "mend": "nothing"}
    if script := ended.script(known, stage):
        return told | script
    failed = [
        need for need in stage.needs
        if known.states.get(need) in {"failed", "removed", "not run"}
    ]  # fmt: skip
    if failed:
        return told | {
            "cause": f"it does not run, since {failed[0]}, which it needs, "
            + ("did not run" if known.states[failed[0]] == "not run" else "failed"),
            "mend": f"`condorctl explain {run.name}/{failed[0]}`",
        }
    if whole := of_run(known):
        return told | {key: whole[key] for key in ("cause", "mend", "evidence")}
    open_ = [need for need in stage.needs if known.states.get(need) != "done"]
    if state == "waiting" and open_:
        held = next((need for need in open_ if known.states.get(need) == "held"), None)
        mend = f"`condorctl explain {run.name}/{held}`" if held else "wait"
        return told | {"cause": f"it waits for {', '.join(open_)} to end", "mend": mend}
    if state == "ready":
        return told | {
            "cause": "it is the next for DAGMan to submit, which takes some seconds, or longer "
            "where the DAG limits how many jobs may be queued (MAXJOBS, DAGMAN_MAX_JOBS_IDLE)",
            "mend": "wait",
        }
    if state == "done":
        return told | {"cause": "it is done", "mend": "nothing"}
    return told | {
        "cause": f"the run ended ({run.state}) before it could start",
        "mend": known.words.resume,
    }
