"""What the pool offers, and what HTCondor's own analysis says of a job and its slots.

``condor_q -better-analyze`` counts the slots that each clause of a job's requirements lets pass. It
looks at what is left of each slot now, so a busy pool looks like one that is too small. Here it is
given the slots as they would be if nothing ran (``-slotads``), which tells the two apart.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from condorctl.condor import cluster
from condorctl.condor.codes import JobStatus

Ad = dict[str, Any]

_TIMEOUT_S = 60
# Longer than that a condition is not written out: nobody would read it.
_LONGEST = 2000
# Of a job, what explaining it takes.
_JOB_ATTRIBUTES = [
    "ClusterId", "ProcId", "JobStatus", "JobUniverse", "JobPrio", "Owner", "User", "QDate", "Cmd",
    "Iwd", "TransferExecutable", "AutoClusterId", "RequestCpus", "RequestMemory", "RequestDisk",
    "RequestGPUs", "RequireGPUs", "ConcurrencyLimits", "EnteredCurrentStatus", "LastMatchTime",
    "LastRejMatchReason", "LastRejMatchTime", "JobCoolDownExpiration", "NumJobStarts",
    "NumShadowStarts", "HoldReason", "HoldReasonCode", "HoldReasonSubCode", "MemoryUsage",
    "DiskUsage", "NumVacates", "VacateReason", "StageInStart", "StageInFinish", "NumHolds",
    "DeferralTime", "TransferringInput", "TransferQueued", "LeaveJobInQueue", "AccountingGroup",
    "CondorctlCpuAfter",
]  # fmt: skip
_HELD_BY_JOB = (
    "RemoteOwner", "RemoteUser", "RemoteGroup", "CurrentRank", "JobId", "GlobalJobId",
    "PreemptingOwner", "PreemptingRank", "AccountingGroup",
)  # fmt: skip

_STEP = re.compile(r"^\[(\d+)\] +(\d+|never|always)(?: +(?:\d+|never|always))? +(\S.*)$")
_WHOLE = re.compile(r"^ {4}\[(\d+)\] +: (.*)$")
_OF = re.compile(r"Of (\d+) slots on (\d+) machines")
_COUNTS = {
    "rejected": re.compile(r"^ *(\d+) slots are rejected by your job's requirements", re.M),
    "refused": re.compile(r"^ *(\d+) slots reject your job", re.M),
    "offline": re.compile(r"^ *(\d+) slots match but are currently offline", re.M),
    "willing": re.compile(r"^ *(\d+) slots match and are willing to run your job", re.M),
}
_REASON = re.compile(r"^(?:Reason for last match failure|\tReason): (.*)$", re.M)
_REFERENCE = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Clause:
    """A condition of the requirements, and how many slots meet it."""

    condition: str
    matched: int
    # Whether it joins others, each of which some slot meets.
    joined: bool = False


@dataclass(frozen=True)
class Analysis:
    """HTCondor's analysis of a job against slots."""

    slots: int
    machines: int
    rejected: int
    refused: int
    offline: int
    willing: int
    clauses: tuple[Clause, ...]
    # Those of the clauses that no slot meets.
    excluding: tuple[Clause, ...]
    # The negotiator's word on why it last found no match, where it left one.
    reason: str | None

    def as_json(self) -> Ad:
        return {
            "slots": self.slots,
            "machines": self.machines,
            "rejected": self.rejected,
            "refused": self.refused,
            "offline": self.offline,
            "willing": self.willing,
            "clauses": [{"condition": c.condition, "slots": c.matched} for c in self.clauses],
            "excluding": [c.condition for c in self.excluding],
            "reason": self.reason,
        }


def parse(text: str) -> Analysis | None:
    """What ``condor_q -better-analyze`` printed about one job; None when it did not analyse it."""
    of = _OF.search(text)
    if not of:
        return None
    counts = {
        name: int(found[1]) if (found := pattern.search(text)) else 0
        for name, pattern in _COUNTS.items()
    }
    whole = dict(_steps(_WHOLE, text))
    steps = {
        int(found[1]): (found[3].strip(), _count(found[2], int(of[1])))
        for line in text.splitlines()
        if (found := _STEP.match(line))
    }
    empty = {number for number, (_, matched) in steps.items() if matched == 0}
    clauses, excluding = [], []
    for number, (condition, matched) in steps.items():
        parts = [int(n) for n in _REFERENCE.findall(condition)]
        clause = Clause(_spelled(condition, whole), matched, bool(parts))
        clauses.append(clause)
        # A conjunction that fails since one of its parts does says nothing more.
        if number in empty and not ("&&" in condition and empty & set(parts)):
            excluding.append(clause)
    reason = _REASON.search(text)
    return Analysis(
        slots=int(of[1]),
        machines=int(of[2]),
        clauses=tuple(clauses),
        excluding=tuple(excluding),
        reason=reason[1].strip() if reason else None,
        **counts,
    )


def _steps(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """The numbered clauses; one that is long goes on in the next lines."""
    number, words = None, ""
    for line in text.splitlines():
        if found := pattern.match(line):
            if number is not None:
                yield number, words
            number, words = int(found[1]), found[2].strip()
        elif number is not None and line.startswith("      ") and line.strip():
            words += " " + line.strip()
        elif number is not None:
            yield number, words
            number = None
    if number is not None:
        yield number, words


def _count(word: str, slots: int) -> int:
    return {"never": 0, "always": slots}.get(word) if not word.isdigit() else int(word)  # type: ignore[return-value]


def _spelled(condition: str, whole: dict[int, str]) -> str:
    """`condition` with its references to other clauses written out."""
    spelled: dict[int, str] = {}
    for number in sorted(whole):
        # A clause refers to earlier ones alone.
        text = _written(whole[number], spelled)
        spelled[number] = f"({text})" if _REFERENCE.search(whole[number]) else text
    return _written(condition, spelled)


def _written(condition: str, spelled: dict[int, str]) -> str:
    text = _REFERENCE.sub(lambda found: spelled.get(int(found[1]), found[0]), condition)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def jobs(clusters: Collection[int]) -> list[Ad]:
    """What the queue knows of the jobs of these clusters. Raises `cluster.Unreachable`."""
    if not clusters:
        return []
    return _query(" || ".join(f"ClusterId == {number}" for number in clusters), _JOB_ATTRIBUTES)


def idle(owner: str) -> list[Ad]:
    """The idle jobs of a user in the queue: ids, JobPrio, QDate. Raises `cluster.Unreachable`."""
    quoted = owner.replace("\\", "\\\\").replace('"', '\\"')
    names = ["ClusterId", "ProcId", "JobPrio", "QDate"]
    return _query(f'JobStatus == {JobStatus.IDLE} && Owner == "{quoted}"', names)


def _query(constraint: str, names: list[str]) -> list[Ad]:
    _, schedd, _ = cluster.connection()
    try:
        ads = schedd.query(constraint=constraint, projection=names)
    except Exception as error:
        raise cluster.Unreachable(f"the schedd does not answer: {error}", 3) from None
    return [_plain(ad, names) for ad in ads]


class Slots:
    """The slots of the pool, those that jobs carve out of others left aside.

    Raises `cluster.Unreachable` when the collector does not answer.
    """

    def __init__(self) -> None:
        htcondor, _, _ = cluster.connection()
        try:
            # All attributes: a slot's own conditions may refer to any of them.
            self._ads = htcondor.Collector().query(htcondor.AdType.Startd, 'SlotType =!= "Dynamic"')
        except Exception as error:
            raise cluster.Unreachable(f"the collector does not answer: {error}", 3) from None
        self.now = "\n".join(ad.printOld() for ad in self._ads)
        self.free_cpus, self.free_gpus = self.total("Cpus"), self.total("GPUs")
        for ad in self._ads:
            _empty(ad)
        self.empty = "\n".join(ad.printOld() for ad in self._ads)

    def __len__(self) -> int:
        return len(self._ads)

    def most(self, attribute: str) -> float:
        """The largest that any slot has, with nothing running; 0 where none has any."""
        return max(self._numbers(attribute), default=0)

    def total(self, attribute: str) -> float:
        """What all slots have together."""
        return sum(self._numbers(attribute))

    def values(self, attribute: str) -> list[str]:
        """What the slots say for `attribute`: each value once, as HTCondor writes it."""
        found = {
            str(value).lower() if isinstance(value, bool) else str(value)
            for value in (_value(ad, attribute) for ad in self._ads)
            if value is not None
        }
        return sorted(found)

    def count(self, attribute: str) -> int:
        """How many slots say true for `attribute`."""
        return sum(_value(ad, attribute) is True for ad in self._ads)

    def skew(self) -> float:
        """Seconds by which the most different of the slots' clocks is ahead of the collector's."""
        # When a slot wrote its ad, and when the collector got it.
        times = [(_value(ad, "MyCurrentTime"), _value(ad, "LastHeardFrom")) for ad in self._ads]
        ahead = [float(own - heard) for own, heard in times if own and heard]
        return max(ahead, key=abs, default=0.0)

    def refusing(self) -> list[str]:
        """The conditions under which slots take jobs (START), each once."""
        return sorted({str(ad.lookup("Start")) for ad in self._ads if "Start" in ad})

    def gpus(self) -> list[Ad]:
        """Each kind of GPU: its properties as the slots tell them (DeviceName, GlobalMemoryMb)."""
        found: list[Ad] = []
        for ad in self._ads:
            for name in ad:
                if name.startswith("GPUs_") and hasattr(device := ad.get(name), "keys"):
                    found.append({key: device[key] for key in device})
        return found

    def _numbers(self, attribute: str) -> list[float]:
        values = (_value(ad, attribute) for ad in self._ads)
        return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _empty(ad: Any) -> None:
    """Make the slot what it would be if no job ran on its machine."""
    for name in str(ad.get("MachineResources", "Cpus Memory Disk")).split():
        whole = _value(ad, f"TotalSlot{name}")
        if isinstance(whole, int | float):
            ad[name] = whole
    devices = [name for name in ad if name.startswith("GPUs_")]
    if devices and "AvailableGPUs" in ad:
        import classad2

        ad["AvailableGPUs"] = classad2.ExprTree("{ " + ", ".join(devices) + " }")
    ad["State"], ad["Activity"] = "Unclaimed", "Idle"
    for name in _HELD_BY_JOB:
        if name in ad:
            del ad[name]


def analyse(number: int, proc: int, slots: str) -> Analysis | None:
    """HTCondor's analysis of the job against slots (ClassAds as text); None when it gives none."""
    with tempfile.NamedTemporaryFile("w", suffix=".ads", encoding="utf-8") as file:
        file.write(slots + "\n")
        file.flush()
        command = ["condor_q", "-better-analyze", f"{number}.{proc}", "-slotads", file.name]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    return parse(answer.stdout)


def negotiation_period() -> float | None:
    """Seconds from one of the negotiator's cycles to the next; None when it does not tell."""
    htcondor, _, _ = cluster.connection()
    name = "LastNegotiationCyclePeriod0"
    try:
        ads = htcondor.Collector().query(htcondor.AdType.Negotiator, projection=[name])
    except Exception:
        return None
    return max((value for ad in ads if (value := _value(ad, name))), default=None)


@dataclass(frozen=True)
class Standing:
    """A user among the users of the pool."""

    running: int
    idle: int
    others_running: int
    others_idle: int
    # HTCondor's user priority: the lower, the sooner; None when the negotiator has none yet.
    priority: float | None
    # How many of the others that wait have a better one.
    better: int


def standing(user: str) -> Standing | None:
    """How `user` (``name@domain``) stands in the pool; None when the collector does not tell."""
    htcondor, _, _ = cluster.connection()
    collector = htcondor.Collector()
    try:
        submitters = collector.query(
            htcondor.AdType.Submitter, projection=["Name", "RunningJobs", "IdleJobs"]
        )
        accounts = collector.query(
            htcondor.AdType.Accounting,
            "IsAccountingGroup =!= true",
            ["Name", "Priority"],
        )
    except Exception:
        return None
    priorities = {str(ad["Name"]): _value(ad, "Priority") for ad in accounts if "Name" in ad}
    counts: dict[str, list[int]] = {}
    for ad in submitters:
        count = counts.setdefault(str(ad.get("Name")), [0, 0])
        count[0] += int(_value(ad, "RunningJobs") or 0)
        count[1] += int(_value(ad, "IdleJobs") or 0)
    running, waiting = counts.pop(user, [0, 0])
    mine = priorities.get(user)
    return Standing(
        running=running,
        idle=waiting,
        others_running=sum(count[0] for count in counts.values()),
        others_idle=sum(count[1] for count in counts.values()),
        priority=mine,
        better=_better(counts, priorities, mine),
    )


def _better(counts: dict[str, list[int]], priorities: dict[str, Any], mine: float | None) -> int:
    if mine is None:
        return 0
    waiting = (name for name, (_, idle_jobs) in counts.items() if idle_jobs)
    return sum((priorities.get(name) or 0) < mine for name in waiting)


def _plain(ad: Any, names: Iterable[str]) -> Ad:
    """The named attributes as Python values; those without a value are left out."""
    found = {name: _value(ad, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _value(ad: Any, name: str) -> Any:
    if name not in ad:
        return None
    try:
        value = ad.eval(name)
    except Exception:
        return None
    return value if isinstance(value, str | int | float | list) else None
