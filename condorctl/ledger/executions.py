"""When a job was on a machine, and when it waited, from the states in the ledger.

An execution begins when the job starts on a machine and ends when it leaves it: at its end, when
it is evicted, held or removed. A job that is suspended, or that its submit machine cannot see
(disconnected), is still in the same execution.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from condorctl.ledger import Job, job_states

_AWAY = {"suspended", "disconnected"}
# A job that is put on hold while it runs is logged as evicted first.
_AT_ONCE_S = 5.0
# So often it is no accident any more.
OFTEN = 2
# With this HTCondor begins why a node gave a job back; other evictions have other words.
_ERROR = "Error from "
# A container that cannot be started is given back within seconds.
_RUNS_S = 60.0

Interval = tuple[float, float]


@dataclass
class Execution:
    """One stay of a job on a machine. Times are Unix seconds of the submit machine."""

    # Which start of the job it is, from 1 on, as `Job.starts` counts.
    number: int
    start: float
    end: float = 0.0
    # The state that ended it, "evicted" instead of "idle"; "lost" when nobody saw the end;
    # "running" while it has not ended.
    ending: str = "running"
    suspended: list[Interval] = field(default_factory=list)

    @property
    def suspended_s(self) -> float:
        return sum(end - start for start, end in self.suspended)

    @property
    def seconds(self) -> float:
        """How long it computed: the time on the machine, less that in which it was suspended."""
        return self.computed_until(self.end)

    def computed_until(self, moment: float) -> float:
        """The same up to `moment`, which is moved into the execution."""
        moment = min(max(moment, self.start), self.end)
        away = sum(max(0.0, min(end, moment) - min(start, moment)) for start, end in self.suspended)
        return moment - self.start - away


def of(job: Job, now: float) -> list[Execution]:
    """The executions of `job` in their order; one that goes on lasts until `now`."""
    found: list[Execution] = []
    current: Execution | None = None
    state, since = "", 0.0
    for entered in job.states:
        if current and state == "suspended" and entered.time > since:
            current.suspended.append((since, entered.time))
        if current and entered.state not in job_states.ON_NODE:
            # Nobody knows how long a job lived on a machine that never answered again.
            lost = state == "disconnected" and entered.state == "idle"
            _end(current, since if lost else entered.time, "lost" if lost else entered.state)
            current = None
        elif entered.state == "running" and not (current and state in _AWAY):
            if current:
                _end(current, entered.time, "lost")
            current = Execution(len(found) + 1, entered.time)
            found.append(current)
        elif found and found[-1].ending == "evicted" and state == "idle":
            # It will not go on: that is what ended it, not the eviction that came with it.
            at_once = entered.time - since <= _AT_ONCE_S and found[-1].end == since
            if entered.state == "removed" or (entered.state == "held" and at_once):
                found[-1].ending = entered.state
        state, since = entered.state, entered.time
    if current:
        if state == "suspended" and now > since:
            current.suspended.append((since, now))
        current.end = max(current.start, now)
    return found


def given_back(job: Job, now: float) -> tuple[int, str]:
    """How often in a row its nodes gave `job` back with an error, and what the last one said.

    They do not count any more once it has run for a while, was held, or went away otherwise.
    """
    times, reason = 0, ""
    for entered in reversed(job.states):
        if entered.state == "idle" and entered.detail.startswith(_ERROR):
            times, reason = times + 1, reason or entered.detail
        elif entered.state != "running" or (not times and now - entered.time > _RUNS_S):
            break
    return times, reason


def waited(job: Job, state: str, now: float) -> float:
    """Seconds that `job` has spent in `state` ("idle" or "held"), up to `now`."""
    ends = [*(entered.time for entered in job.states[1:]), now]
    return sum(
        max(0.0, end - entered.time)
        for entered, end in zip(job.states, ends, strict=False)
        if entered.state == state
    )


def _end(execution: Execution, when: float, state: str) -> None:
    execution.end = max(execution.start, when)
    execution.ending = {"idle": "evicted", "unknown": "lost"}.get(state, state)
