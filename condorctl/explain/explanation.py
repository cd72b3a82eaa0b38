"""Why a job is where it is: the cause in plain words, the lines that show it, what mends it.

An explanation is a dictionary, the ``--json`` output of ``condorctl explain JOB``:

job       cluster.proc, None for a stage that has no job
id        schedd#cluster.proc
run, stage
state     of the job (`ledger`); of a stage without one: "waiting", "ready", "not run", "failed"
cause     in plain words
mend      what to do, commands in backticks
evidence  lines that show it: file, line (from 1), text
tried     how often the stage was tried, and how often it may be
analysis  of an idle job: what the pool offers it (`waiting`); of a held one: code, subcode, reason
note      why this may not be the present state; None when it is
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from condorctl.condor import cluster
from condorctl.errors import UserError
from condorctl.explain import failures, holds, matchmaking, programs, traces, waiting
from condorctl.explain.traces import Line, Peak
from condorctl.ledger import Job, Ledger, Run, Stage, events, find, gpus
from condorctl.view import status

Json = dict[str, Any]

# Longer than this a job that could run does not wait without a word (`explain RUN`).
LONG_S = 600
_JOB = re.compile(r"(?:.+#)?\d+(?:\.\d+)?")
# HTCondor's numbers of events (manual, "Job Event Log Codes").
_SUBMIT, _EXECUTE, _EVICTED, _TERMINATED, _SHADOW, _ABORTED = 0, 1, 4, 5, 7, 9
_SUSPENDED, _HELD, _POST, _REMOTE_ERROR, _DISCONNECTED, _NOT_RECONNECTED = 10, 12, 16, 21, 22, 24
_HELD_STATUS = 5  # of JobStatus in the queue
_WENT_WRONG = (_EVICTED, _SHADOW, _REMOTE_ERROR, _NOT_RECONNECTED)


def explain(ledger: Ledger, what: str | None) -> Json:
    """The explanation of the job or stage that `what` names.

    Of a run (the latest one without `what`): its `run`, `state`, `note`, and as `jobs` the
    explanation of each job that needs its user, those with the same cause as one, whose `also`
    names the others.

    Raises UserError when there is no such job or run.
    """
    unknown = events.sync(ledger)
    with ledger.session() as session:
        asked = _open_jobs(_look_up(session, what))
    # The pool may take its time: it is asked while nobody waits for the ledger.
    queue = _Queue(asked, unknown.unreachable)
    with ledger.session() as session:
        found = _look_up(session, what)
        run = found if isinstance(found, Run) else _stage(found).run
        view = _View(run, str(unknown) or None, queue)
        if isinstance(found, Run):
            return view.run()
        return view.job(found) if isinstance(found, Job) else view.stage(found)


def _look_up(session: Session, what: str | None) -> Run | Stage | Job:
    if what is None or not ("/" in what or _JOB.fullmatch(what)):
        try:
            return find.run(session, what)
        except UserError:
            if what is None:
                raise
    if what is not None and _JOB.fullmatch(what):
        return find.job(session, what)
    stage = find.stage(session, what or "")
    return _worst(stage.origin.current) or stage


def _stage(found: Stage | Job) -> Stage:
    return found.stage if isinstance(found, Job) else found


def _worst(jobs: Iterable[Job]) -> Job | None:
    order = ("held", "failed", "removed", "disconnected", "suspended", "idle", "running")
    rank = {state: number for number, state in enumerate(order)}
    return min(jobs, key=lambda job: (rank.get(job.state, len(order)), job.proc), default=None)


def _open_jobs(found: Run | Stage | Job) -> set[tuple[str, int, int]]:
    """The jobs about which the queue knows more than the ledger: schedd, cluster, proc."""
    if isinstance(found, Stage):
        return set()
    jobs = [found] if isinstance(found, Job) else [j for s in found.stages for j in s.current]
    wanted = [job for job in jobs if job.state in {"idle", "held"}]
    return {(job.schedd, job.cluster, job.proc) for job in wanted}


class _Queue:
    """What schedd and collector know of some jobs now."""

    def __init__(self, asked: set[tuple[str, int, int]], unreachable: str | None) -> None:
        self.unreachable = unreachable
        self.schedd = ""
        self.ads: dict[tuple[str, int, int], Json] = {}
        self.waiting: dict[tuple[str, int, int], waiting.Waiting] = {}
        if not asked or unreachable:
            return
        try:
            self.schedd = cluster.schedd_name()
            here = {key for key in asked if key[0] == self.schedd}
            for ad in matchmaking.jobs({number for _, number, _ in here}):
                self.ads[self.schedd, ad["ClusterId"], ad["ProcId"]] = ad
            idle = {key: ad for key, ad in self.ads.items() if waiting.is_idle(ad) and key in here}
            if idle:
                pool = waiting.Pool()
                self.waiting = {key: pool.why(ad) for key, ad in idle.items()}
        except cluster.Unreachable as error:
            self.unreachable = str(error)


class _View:
    """One run and what its jobs, logs and queue tell."""

    def __init__(self, run: Run, note: str | None, queue: _Queue) -> None:
        self._run, self._queue = run, queue
        self._unreachable = queue.unreachable
        note = note or queue.unreachable
        self._note = None if run.finished else note
        if self._note and run.seen:
            self._note += f"; known as of {status.age(time.time() - run.seen)} ago"
        elif self._note:
            self._note += "; known from the logs alone"
        self._states = status.stage_states(run)

    def run(self) -> Json:
        """Every job of the run that needs its user."""
        found: list[Json] = []
        if told := self._of_the_run():
            found.append(told)
        for stage in self._run.stages:
            found += self._needing(stage)
        return {
            "run": self._run.name,
            "state": self._run.state,
            "note": self._note,
            "jobs": _together(found),
        }

    def _needing(self, stage: Stage) -> list[Json]:
        state = self._states[stage.name]
        if stage.source or state in {"done", "retrying"}:
            return []
        wrong = [job for job in stage.current if job.state in {"held", "failed", "removed"}]
        found = [self.job(job) for job in wrong]
        if not found and state == "failed":
            found = [self.stage(stage)]
        for job in stage.current:
            if job.state != "idle" or self._unreachable:
                continue
            told = self.job(job)
            seen = told["analysis"] or {}
            on_hold = told["state"] == "held" and seen.get("code") != holds.SPOOLING
            if on_hold or seen.get("never") or seen.get("waited_s", 0) > LONG_S:
                found.append(told)
        return found

    def _of_the_run(self) -> Json | None:
        """What is wrong with DAGMan or the DAG itself."""
        run = self._run
        own = f"{run.dag_file}.dagman"
        logs, number = [Path(f"{own}.log")], run.cluster or 0
        told = self._row(None, None, run.state)
        if run.cluster is not None:
            told |= {"job": f"{number}.0", "id": f"{run.schedd}#{number}.0"}
        if run.state == "held":
            seen = traces.event(logs, number, 0, [_HELD])
            return told | {
                "cause": f"DAGMan itself is held, so no stage starts: {run.problem or '?'}",
                "mend": f"`condorctl release {run.name}`",
                "evidence": _lines(seen),
            }
        if not run.dag_file:
            return None
        errors = traces.dag_errors(Path(f"{own}.out"))
        if run.state == "failed" and errors and not any(s.jobs or s.outcome for s in run.stages):
            said = dict.fromkeys(line.text.removeprefix("ERROR: ") for line in errors[:3])
            own_line = traces.named_line(Path(run.dag_file).parent, errors)
            return told | {
                "cause": f"DAGMan could not use the DAG: {'; '.join(said)}",
                "mend": f"mend it, then {self._words.again}",
                "evidence": [line.as_json() for line in [*own_line, *errors[:5]]],
            }
        if run.state == "idle" and time.time() - run.submitted > 60 and not self._unreachable:
            return told | {
                "cause": "DAGMan's own job waits for the schedd, which runs no more of them now "
                "(START_SCHEDULER_UNIVERSE, MAX_RUNNING_SCHEDULER_JOBS_PER_OWNER)",
                "mend": "wait; or ask the pool's administrator",
            }
        return None

    def stage(self, stage: Stage) -> Json:
        """A stage that has no job, or whose job does not tell why it failed."""
        run, state = self._run, self._states[stage.name]
        told = self._row(stage, None, state)
        if stage.source:
            where = f"{stage.origin.run.name}/{stage.origin.name}"
            return told | {"cause": f"it is done: {where} had made its outputs", "mend": "nothing"}
        if script := self._script(stage):
            return told | script
        failed = [
            need for need in stage.needs
            if self._states.get(need) in {"failed", "removed", "not run"}
        ]  # fmt: skip
        if failed:
            return told | {
                "cause": f"it does not run, since {failed[0]}, which it needs, "
                + ("did not run" if self._states[failed[0]] == "not run" else "failed"),
                "mend": f"`condorctl explain {run.name}/{failed[0]}`",
            }
        if whole := self._of_the_run():
            return told | {key: whole[key] for key in ("cause", "mend", "evidence")}
        open_ = [need for need in stage.needs if self._states.get(need) != "done"]
        if state == "waiting" and open_:
            held = next((need for need in open_ if self._states.get(need) == "held"), None)
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
            "mend": self._words.resume,
        }

    def job(self, job: Job) -> Json:
        """Why the job is in its state."""
        how: dict[str, Callable[[Job], Json]] = {
            "held": self._held,
            "idle": self._idle,
            "failed": self._failed,
            "removed": self._removed,
            "disconnected": self._disconnected,
            "suspended": self._suspended,
            "running": self._running,
            "completed": self._completed,
        }
        return self._row(job.stage, job, job.state) | how[job.state](job)

    def _row(self, stage: Stage | None, job: Job | None, state: str) -> Json:
        return {
            "job": job.number if job else None,
            "id": job.id_text if job else None,
            "run": self._run.name,
            "stage": stage.name if stage else None,
            "state": state,
            "cause": "",
            "mend": "",
            "evidence": [],
            "tried": {"times": job.attempt, "most": stage.retries + 1} if job and stage else None,
            "analysis": None,
            "note": self._note,
        }

    @cached_property
    def _words(self) -> failures.Words:
        run = self._run
        if run.kind == "pipeline":
            again = f"`condorctl submit {run.pipeline}`"
            return failures.Words("the stage's `inputs`", again, f"`condorctl resume {run.name}`")
        resume = f"`condorctl resume {run.name}`" if run.kind == "dag" else "submit it again"
        return failures.Words("`transfer_input_files`", "submit again", resume)

    # --- held ---

    def _held(self, job: Job) -> Json:
        ad = self._ad(job) or {}
        reason, code, subcode = job.hold_reason or "", job.hold_code, job.hold_subcode
        if job.state != "held":
            # Submitted on hold, or spooled: that stands in the queue alone.
            reason, code = str(ad.get("HoldReason", "")), ad.get("HoldReasonCode")
            subcode = ad.get("HoldReasonSubCode")
        seen = traces.event(_logs(job), job.cluster, job.proc, [_HELD])
        hold = holds.explain(code, subcode, job.number, reason)
        told: Json = {
            "cause": hold.cause,
            "mend": hold.mend,
            "evidence": _lines(seen),
            "analysis": {"code": code, "subcode": subcode, "reason": reason},
        }
        if code == holds.CANNOT_START:
            told |= self._program(job, reason, subcode)
        elif holds.limit(code, subcode, reason) == holds.MEMORY:
            told |= self._memory(job)
        elif code == holds.INPUT:
            told |= self._input(job, reason, subcode)
        return told

    def _program(self, job: Job, reason: str, subcode: int | None) -> Json:
        """A closer look at a program that could not be started, where it is on this machine."""
        ad = self._ad(job) or {}
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

    def _memory(self, job: Job) -> Json:
        ad = self._ad(job) or {}
        peak = traces.memory(_logs(job), job.cluster, job.proc)
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

    def _input(self, job: Job, reason: str, subcode: int | None) -> Json:
        named = holds.named_file(reason, subcode)
        if not (named and named.here and named.path.startswith("/")):
            return {}
        path = Path(named.path)
        maker = next(
            (s for s in self._run.stages if path.is_relative_to(s.folder) and s is not job.stage),
            None,
        )
        told: Json = {}
        if path.exists() and named.number == 2:
            told["cause"] = f"{path} was not there when it was to be sent; it is there now"
            told["mend"] = f"`condorctl release {job.number}`"
        elif maker and not path.exists():
            told["cause"] = f"an input file could not be sent: {maker.name} has left no {path}"
            told["mend"] = (
                f"see `condorctl explain {self._run.name}/{maker.name}`; put the file there, then "
                f"`condorctl release {job.number}`"
            )
        return told

    # --- idle ---

    def _idle(self, job: Job) -> Json:
        logs = _logs(job)
        seen = traces.event(logs, job.cluster, job.proc, [_SUBMIT, *_WENT_WRONG, 13])
        evidence = _lines(seen, 3 if seen and seen[0] in _WENT_WRONG else 1)
        wait: Json = {"mend": "wait", "evidence": evidence}
        if self._unreachable:
            cause = "it waited in the queue when the schedd last answered"
            return {**wait, "cause": cause, "mend": "`condorctl doctor` tells what does not answer"}
        if job.schedd != (here := self._queue.schedd):
            return {**wait, "cause": f"it waits in the queue of {job.schedd}; {here} is asked here"}
        ad = self._ad(job)
        if ad is None:
            return {
                **wait,
                "cause": "it is no longer in the queue, and its log does not tell how it ended",
                "mend": f"`condorctl pool run condor_history {job.number}`",
            }
        if ad.get("JobStatus") == _HELD_STATUS:
            return {"state": "held", **self._held(job)}
        why = self._queue.waiting.get((job.schedd, job.cluster, job.proc))
        if why is None:
            return {**wait, "cause": "it is about to start, or has: its log is a moment behind"}
        before = ""
        if seen and seen[0] in _WENT_WRONG and job.starts:
            before = f"it ran {job.starts} time{'s' * (job.starts > 1)} and was sent back; "
        asked = self._asked(job, why.analysis.get("excluding") or [])
        return {
            "cause": before + why.cause,
            "mend": why.mend,
            # Who asked for what no slot has proves more than that it was submitted.
            "evidence": asked or evidence,
            "analysis": {**why.analysis, "never": why.never},
        }

    def _asked(self, job: Job, excluding: Iterable[str]) -> list[Json]:
        """The lines of the stage's submit file that ask for what no slot has."""
        found = []
        for condition in excluding:
            request = re.search(r"\bRequest(\w+)", condition)
            key = f"request_{request[1].lower()}" if request else "requirements"
            line = traces.submit_line(job.stage.folder / "stage.sub", [key])
            if line and line.as_json() not in found:
                found.append(line.as_json())
        return found

    def _ad(self, job: Job) -> Json | None:
        """What the queue knows of the job; None when it is not there, or nobody could be asked."""
        return self._queue.ads.get((job.schedd, job.cluster, job.proc))

    # --- ended ---

    def _failed(self, job: Job) -> Json:
        stage, logs = job.stage, _logs(job)
        err, out = _output(job, job.err, "err"), _output(job, job.out, "out")
        peak = traces.memory(logs, job.cluster, job.proc)
        failure = failures.diagnose(
            job.exit_code, job.signal, traces.tail(err), traces.tail(out), peak, self._words
        )
        seen = traces.event(logs, job.cluster, job.proc, [_TERMINATED])
        cause = failure.cause
        if not failure.lines:
            cause += f"; it wrote nothing to {err.name}" if err.exists() else ""
            cause += "" if err.exists() else f"; its {err.name} is not here"
        mend = failure.mend
        if not failure.lines and err.exists():
            mend = f"run its command by hand, or `condorctl logs {job.number}`"
        cause += self._tries(job)
        if self._states[stage.name] == "retrying":
            mend = f"DAGMan tries again by itself; if it fails again: {mend}"
        return {
            "cause": cause,
            "mend": mend,
            "evidence": [*(line.as_json() for line in failure.lines), *_lines(seen, 2)],
        }

    def _tries(self, job: Job) -> str:
        stage = job.stage
        if job is not stage.jobs[-1] and job.attempt < stage.jobs[-1].attempt:
            return f"; this was try {job.attempt}, {stage.jobs[-1].number} came after it"
        if job.exit_code in stage.final_exit_codes:
            return f"; exit code {job.exit_code} is one that the spec does not try again"
        if stage.retries:
            return f"; tried {job.attempt} of at most {stage.retries + 1} times"
        return ""

    def _removed(self, job: Job) -> Json:
        seen = traces.event(_logs(job), job.cluster, job.proc, [_ABORTED])
        detail = next((s.detail for s in reversed(job.states) if s.state == "removed"), "")
        by_dag = self._run.state == "removed" or "DAGManJobId" in detail
        cause = "it was removed from the queue" + (" with its run" if by_dag else "")
        if detail:
            cause += f": {detail}"
        elif "suspended" in [state.state for state in job.states[-4:]]:
            # Whoever removes a job gives a reason; see `cluster.act`.
            cause += ": HTCondor does that at times to a suspended job that `condor_hold` holds"
        return {
            "cause": cause,
            "mend": f"{self._words.resume} runs it again",
            "evidence": _lines(seen),
        }

    def _completed(self, job: Job) -> Json:
        seen = _lines(traces.event(_logs(job), job.cluster, job.proc, [_TERMINATED]), 2)
        if self._states[job.stage.name] == "failed" and (script := self._script(job.stage)):
            return script
        use, hint = gpus.use_in_words(job.usage), gpus.hint(job.usage)
        return {
            "cause": f"it ended well on {job.host or 'its node'}{f'; {use}' if use else ''}",
            "mend": hint or "nothing",
            "evidence": seen,
        }

    def _script(self, stage: Stage) -> Json | None:
        """A PRE or POST script of the node that failed."""
        if not self._run.dag_file or self._states[stage.name] != "failed":
            return None
        dag = Path(self._run.dag_file)
        lines = traces.script_failure(Path(f"{dag}.dagman.out"), stage.name)
        if not lines:
            return None
        word = "PRE" if lines[-1].text.startswith("PRE") else "POST"
        own = traces.command(dag, stage.name, word)
        ended = re.search(r"(?:failed with|died).*", lines[-1].text)
        after = "" if word == "PRE" else "; its job's own end does not count then"
        return {
            "cause": f"its {word} script {ended[0] if ended else 'failed'}{after}",
            "mend": f"mend the script, then {self._words.resume}",
            "evidence": [line.as_json() for line in [*([own] if own else []), *lines]],
        }

    # --- under way ---

    def _running(self, job: Job) -> Json:
        seen = traces.event(_logs(job), job.cluster, job.proc, [_EXECUTE])
        since = f" since {status.age(time.time() - job.started)}" if job.started else ""
        again = f" (start number {job.starts})" if job.starts > 1 else ""
        return {
            "cause": f"it runs on {job.host or 'a node'}{since}{again}",
            "mend": f"nothing; `condorctl logs {job.number}` shows its output",
            "evidence": _lines(seen, 1),
        }

    def _suspended(self, job: Job) -> Json:
        seen = traces.event(_logs(job), job.cluster, job.proc, [_SUSPENDED])
        return {
            "cause": f"{job.host or 'its node'} has suspended it, most likely for its owner's work",
            "mend": "wait: it goes on there, or is sent back and starts elsewhere",
            "evidence": _lines(seen),
        }

    def _disconnected(self, job: Job) -> Json:
        seen = traces.event(_logs(job), job.cluster, job.proc, [_DISCONNECTED])
        return {
            "cause": f"the submit machine has lost {job.host or 'its node'}; the job may still run "
            "there",
            "mend": "wait: HTCondor looks for it until its lease ends, then starts it anew; "
            f"`condorctl pool run condor_vacate_job -fast {job.number}` starts it anew at once",
            "evidence": _lines(seen, 4),
        }


def _together(found: list[Json]) -> list[Json]:
    """Explanations of jobs of one stage that say the same, as one."""
    groups: dict[tuple[Any, ...], Json] = {}
    for told in found:
        number = str(told["job"])
        plain = re.sub(r"\S*\bslot\S+@\S+", "", told["cause"].replace(number, ""))
        key = (told["stage"], told["state"], plain)
        if key in groups:
            groups[key]["also"].append(number)
        else:
            groups[key] = {**told, "also": []}
    return list(groups.values())


def _logs(job: Job) -> list[Path]:
    """The event logs that may tell of the job, the one with the most to tell first."""
    run = job.stage.run
    wanted = [Path(job.log) if job.log else None, job.stage.folder / "events.log"]
    if run.dag_file:
        wanted += [Path(f"{run.dag_file}.nodes.log")]
        wanted += [Path(f"{run.dag_file}.nodes.log.{number}") for number in run.earlier]
    return list(dict.fromkeys(path for path in wanted if path))


def _output(job: Job, told: str | None, kind: str) -> Path:
    path = Path(told) if told else job.stage.folder / f"{job.cluster}.{kind}"
    return path if path.is_absolute() else job.folder / path


def _lines(seen: tuple[int, list[Line]] | None, most: int = 3) -> list[Json]:
    return [line.as_json() for line in seen[1][:most]] if seen else []


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
