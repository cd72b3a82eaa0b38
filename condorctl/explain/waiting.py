"""Why an idle job does not start, in plain words, from what the pool offers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import Any

from condorctl.condor.codes import ON_SUBMIT_MACHINE, JobStatus
from condorctl.explain import matchmaking
from condorctl.explain.matchmaking import Analysis, Clause, Slots

Ad = dict[str, Any]

# A resource of a slot: what the job calls it, the submit command, its unit in words.
_RESOURCES = {
    "Cpus": ("RequestCpus", "request_cpus", "{:g} cores"),
    "Memory": ("RequestMemory", "request_memory", "{:g} MB of memory"),
    "Disk": ("RequestDisk", "request_disk", "{:g} KB of disk"),
    "GPUs": ("RequestGPUs", "request_gpus", "{:g} GPUs"),
}
# What a node says that runs images: Docker's, a registry's, a file's, a folder's (manual,
# "Container Universe Jobs").
_CONTAINERS = re.compile(
    r"\bHas(?:Docker(?:URL)?|Container|SIF|SandboxImage|Singularity)\b", re.IGNORECASE
)
_COMPARED = re.compile(r"^(?:TARGET\.)?(?P<name>\w+) *>=? *(?:MY\.)?Request(?P<same>\w+)$")
_WORD = re.compile(
    r'"(?:[^"\\]|\\.)*"|(?<![\w.])(?:(?P<scope>TARGET|MY)\.)?(?P<name>[A-Za-z_]\w*)(?![\w(])'
)
_CONSTANTS = {"true", "false", "undefined", "error", "isnt", "is"}
# What the negotiator says when a slot would do but the user's share is used up.
_SHARE = re.compile(r"submitter limit|network share|insufficient priority|PREEMPTION_REQUIREMENTS")
_MOST_VALUES = 5


@dataclass(frozen=True)
class Waiting:
    """Why a job waits. `never`: it does so for ever unless somebody changes something."""

    cause: str
    mend: str
    never: bool
    analysis: Ad


class Pool:
    """The pool as it is now, asked once for any number of idle jobs.

    Raises `cluster.Unreachable`.
    """

    def __init__(self) -> None:
        self.slots = Slots()
        self._period = matchmaking.negotiation_period()
        # Jobs of one autocluster are alike in all that matters for a match.
        self._known: dict[tuple[Any, bool], Analysis | None] = {}
        self._idle: dict[str, list[Ad]] = {}

    def why(self, ad: Ad) -> Waiting:
        """Why the idle job of this ad (`matchmaking.jobs`) does not run."""
        found = self._why(ad)
        after = ad.get("CondorctlCpuAfter")
        if not (after and ad.get("RequestGPUs")):
            return found
        without = ad.get("QDate", time.time()) + after
        at = time.strftime("%d %b %H:%M", time.localtime(without))
        mend = f"from {at} on it asks for no GPU any more (cpu_after); to have one: {found.mend}"
        excluding = found.analysis.get("excluding", [])
        never = found.never and not all("GPUs" in condition for condition in excluding)
        return replace(
            found, mend=mend, never=never, analysis={**found.analysis, "cpu_at": without}
        )

    def _why(self, ad: Ad) -> Waiting:
        number = f"{ad['ClusterId']}.{ad['ProcId']}"
        waited = time.time() - float(
            ad.get("EnteredCurrentStatus") or ad.get("QDate") or time.time()
        )
        facts: Ad = {"waited_s": round(waited), "slots": len(self.slots)}
        cooling = ad.get("JobCoolDownExpiration", 0) - time.time()
        if ad.get("JobUniverse") in ON_SUBMIT_MACHINE:
            cause = "it runs on the submit machine, whose schedd has not started it"
            return Waiting(
                cause, "wait; the schedd starts such jobs one after another", False, facts
            )
        if not len(self.slots):
            mend = "start an execute node, or ask the pool's administrator; `condorctl doctor`"
            return Waiting("the pool has no slots at all", mend, True, facts)
        if cooling > 0:
            cause = f"HTCondor lets it rest for another {cooling:.0f} s, since it was sent back"
            return Waiting(cause, "wait", False, facts)
        analysis = self._analyse(ad, empty=True)
        if analysis is None:
            return Waiting("condor_q gives no analysis of it", "wait", False, facts)
        facts |= analysis.as_json()
        facts |= {"reason": ad.get("LastRejMatchReason") or analysis.reason}
        if analysis.rejected == analysis.slots:
            return self._never(ad, number, analysis, facts)
        if not analysis.willing and analysis.offline:
            cause = f"the {_slots(analysis.offline)} that fit are offline"
            return Waiting(cause, "wait until they are woken", False, facts)
        if not analysis.willing:
            conditions = "; ".join(self.slots.refusing())
            cause = f"no slot that fits takes it: their own START condition says no ({conditions})"
            mend = f"`condorctl pool run condor_q -better-analyze:reverse {number}` tells why"
            return Waiting(cause, mend, True, facts)
        return self._not_yet(ad, analysis, facts)

    def _analyse(self, ad: Ad, empty: bool) -> Analysis | None:
        key = (ad.get("AutoClusterId") or (ad["ClusterId"], ad["ProcId"]), empty)
        if key not in self._known:
            slots = self.slots.empty if empty else self.slots.now
            self._known[key] = matchmaking.analyse(ad["ClusterId"], ad["ProcId"], slots)
        return self._known[key]

    def _never(self, ad: Ad, number: str, analysis: Analysis, facts: Ad) -> Waiting:
        causes, mends, edits = [], [], []
        for clause in analysis.excluding:
            cause, mend, edit = self._clause(clause, ad)
            causes.append(cause)
            mends += [mend] if mend not in mends else []
            edits += [edit] if edit else []
        if not causes:
            causes, mends = ["no slot meets all of its requirements"], ["change `requirements`"]
        mend = f"{' and '.join(mends)}, then submit again"
        if edits and len(edits) == len(causes):
            commands = " and ".join(
                f"`condorctl pool run condor_qedit {number} {e}`" for e in edits
            )
            mend += f"; or change this job alone: {commands}"
        return Waiting("no slot will ever fit: " + "; ".join(causes), mend, True, facts)

    def _clause(self, clause: Clause, ad: Ad) -> tuple[str, str, str | None]:
        """What a clause that no slot meets asks for, what mends that, and condor_qedit's part."""
        compared = _COMPARED.match(clause.condition)
        if compared and compared["name"] == compared["same"]:
            return self._resource(compared["name"], ad)
        if "AvailableGPUs" in clause.condition:
            wanted = ad.get("RequireGPUs") or "the properties asked for"
            have = ", ".join(
                sorted({str(gpu.get("DeviceName", "a GPU")) for gpu in self.slots.gpus()})
            )
            return (
                f"no GPU meets {wanted}; the pool has {have or 'none'}",
                "change require_gpus (or gpus_minimum_memory, gpus_minimum_capability)",
                None,
            )
        if clause.joined and "&&" in clause.condition:
            return f"no single slot meets {clause.condition}", "ask for less of one of them", None
        if clause.condition.strip("() ").lower() == "false":
            return "its requirements say false", "change `requirements`", None
        if found := _CONTAINERS.search(clause.condition):
            return (
                f"no slot runs containers of this kind ({found[0]})",
                "choose another `universe` (`condorctl doctor` tells what the slots run)",
                None,
            )
        return (
            f"none meets {clause.condition}{self._offered(clause)}",
            "change `requirements`",
            None,
        )

    def _resource(self, name: str, ad: Ad) -> tuple[str, str, str | None]:
        request, command, words = _RESOURCES.get(
            name, (f"Request{name}", f"request_{name.lower()}", "{:g} " + name)
        )
        asked, most = float(ad.get(request) or 0), self.slots.most(name)
        wanted = words.format(asked)
        if name == "GPUs" and asked == 1:
            wanted = "a GPU"
        if not most:
            return f"it asks for {wanted}; no slot has any", f"take out {command}", None
        mend = f"set {command} to at most {most:.0f}{_UNITS.get(name, '')}"
        return (
            f"it asks for {wanted}; the largest slot has {most:.0f}",
            mend,
            f"{request} {most:.0f}",
        )

    def _offered(self, clause: Clause) -> str:
        """What the slots have for the attributes that the clause names."""
        told = []
        for found in _WORD.finditer(clause.condition):
            name = found["name"]
            if not name or found["scope"] == "MY" or name.lower() in _CONSTANTS:
                continue
            values = self.slots.values(name)
            if not values and found["scope"] != "TARGET" and name.startswith(("Request", "My")):
                continue
            some = ", ".join(values[:_MOST_VALUES]) + (
                " and others" if values[_MOST_VALUES:] else ""
            )
            words = f"{name} is {some} there" if values else f"no slot has {name}"
            told += [words] if words not in told else []
        return f" ({'; '.join(told)})" if told else ""

    def _not_yet(self, ad: Ad, analysis: Analysis, facts: Ad) -> Waiting:
        reason = facts["reason"] or ""
        fits = _slots(analysis.willing)
        cycle = f"; the negotiator looks every {self._period:.0f} s" if self._period else ""
        if "concurrency limit" in reason:
            name = ad.get("ConcurrencyLimits") or "?"
            cause = f"as many jobs as the pool allows use {name} already ({reason})"
            return Waiting(cause, "wait until one of them ends", False, facts)
        now = self._analyse(ad, empty=False)
        standing = matchmaking.standing(str(ad.get("User")))
        if standing:
            facts |= {
                "running": standing.running,
                "idle": standing.idle,
                "others_running": standing.others_running,
                "others_idle": standing.others_idle,
                "priority": standing.priority,
            }
        if _SHARE.search(reason):
            cause = f"{fits} would do, but your share of the pool is used up ({reason})"
            return Waiting(cause + _standing(standing), "wait", False, facts)
        if now and now.willing:
            waited = f"{facts['waited_s']} s ago"
            if not ad.get("NumJobStarts") and not ad.get("LastMatchTime"):
                cause = f"it was submitted {waited}; a slot that fits is free{cycle}"
            else:
                cause = f"it is idle again since {waited}; a slot that fits is free{cycle}"
            return Waiting(cause, "wait", False, facts)
        ahead = self._ahead(ad)
        facts |= {"ahead": ahead}
        total, free = self.slots.total("Cpus"), self.slots.free_cpus
        cause = (
            f"every slot that fits is busy ({total - free:g} of {total:g} cores in use)"
            f"; {_jobs(ahead)} of yours come before it{_standing(standing)}"
        )
        return Waiting(cause, "wait; it starts when there is room", False, facts)

    def _ahead(self, ad: Ad) -> int:
        """How many of the user's own idle jobs come first: by priority, then by age."""
        owner = str(ad.get("Owner"))
        if owner not in self._idle:
            self._idle[owner] = matchmaking.idle(owner)

        def rank(job: Ad) -> tuple[Any, ...]:
            return -job.get("JobPrio", 0), job.get("QDate", 0), job["ClusterId"], job["ProcId"]

        return sum(rank(other) < rank(ad) for other in self._idle[owner])


_UNITS = {"Memory": " MB", "Disk": " KB"}


def is_idle(ad: Ad) -> bool:
    """Whether the queue has the job waiting."""
    return bool(ad.get("JobStatus") == JobStatus.IDLE)


def _standing(standing: matchmaking.Standing | None) -> str:
    if standing is None:
        return ""
    told = f"; you have {standing.running} running and {standing.idle} idle"
    if standing.others_running or standing.others_idle:
        told += f", others {standing.others_running} and {standing.others_idle}"
    if standing.better:
        told += f"; {standing.better} waiting users have a better priority than yours"
        told += f" ({standing.priority:.0f}, lower is better)"
    return told


def _slots(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'}"


def _jobs(count: int) -> str:
    return "none" if not count else f"{count} idle job{'' if count == 1 else 's'}"
