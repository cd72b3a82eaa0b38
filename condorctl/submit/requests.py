"""What a stage asks of HTCondor beside its command: requests that grow, a site's wishes.

HTCondor stops a job that uses more memory or disk than it asked for, with the hold codes 34 (the
node's own limits) or 21 (the node's policy) and the subcodes 102 (memory) or 104 (disk). From 25.10
on the schedd itself raises the request and runs the job again (manual, ``retry_request_memory`` and
``retry_request_disk``). Older ones hold the job: there the request is an expression of how often
that has happened, and ``periodic_release`` runs the job again, within a minute or two. The submit
file holds both, behind ``if version``.

A job that may do without its GPUs after a while asks for them by an expression of its age. The
negotiator and the slot evaluate it when they match (manual, ``request_gpus``), and what the job was
given stays its own, whatever the expression says later.

A container that cannot be started, HTCondor tries for ever. It counts such starts (from 24.x on, in
NumVacatesByReason), so the job can hold itself: after some in a row, for each start that went well
and each hold as many again.
"""

from __future__ import annotations

from typing import NamedTuple

from condorctl.condor import starts, submit_language
from condorctl.condor.submit_language import Quoted
from condorctl.spec.pipeline import Site, Stage, kilobytes, seconds

# Since this version both submit commands are there.
RAISES_BY_ITSELF = "25.10.0"

_STOPPED = "(HoldReasonCode == 34 || HoldReasonCode == 21)"
_HOLDS = "((NumHoldsByReason.JobOutOfResources ?: 0) + (NumHoldsByReason.StartdHeldJob ?: 0))"


# Starts of a container that failed: Apptainer refused the image, Docker lost the container.
_FAILED_STARTS = (
    "(NumVacatesByReason.SingularityTestFailed ?: 0) + (NumVacatesByReason.ContainerError ?: 0)"
)
# The same of the last one; a start that goes well takes that away.
_LAST_FAILED = "member(VacateReasonCode ?: 0, {45, 1021})"


class _Request(NamedTuple):
    """A request that may grow, in the unit that HTCondor counts it in."""

    name: str
    unit: str
    asked: int
    most: int
    subcode: int

    def steps(self) -> list[int]:
        """What is asked for after the first time: doubled each time, the limit last."""
        steps = [self.asked * 2]
        while steps[-1] < self.most:
            steps.append(steps[-1] * 2)
        return [*steps[:-1], self.most]


def lines(site: Site | None, stage: Stage) -> dict[str, Quoted]:
    """The parts of the submit file that are for a template to place, each some lines or none.

    ``gpus``, ``growth`` and ``container`` after the other requests, ``requirements``, the
    ``site``'s lines before those of the template, and ``further``, the stage's own, after them.
    """
    wanted = [s.requirements for s in (site, stage) if s and s.requirements]
    if stage.request_gpus and stage.cpu_after:
        wanted.append(_enough_gpus(stage))
    joined = " && ".join(f"({text})" for text in wanted) if len(wanted) > 1 else "".join(wanted)
    own = [] if stage.priority is None else [f"priority = {stage.priority}"]
    return {
        "gpus": Quoted("".join(f"{line}\n" for line in _gpus(stage))),
        "container": Quoted("".join(f"{line}\n" for line in _container(stage))),
        "growth": Quoted("".join(f"{line}\n" for line in _growth(stage))),
        "requirements": Quoted(f"requirements = {joined}\n" if joined else ""),
        "site": Quoted("".join(f"{line}\n" for line in site_lines(site, stage.request_gpus > 0))),
        "further": Quoted("".join(f"{line}\n" for line in [*own, *_further(stage)])),
    }


def _gpus(stage: Stage) -> list[str]:
    number = str(stage.request_gpus)
    if not stage.request_gpus:
        return []
    found = []
    if stage.cpu_after:
        found.append(f"MY.CondorctlCpuAfter    = {seconds(stage.cpu_after)}")
        number = f"time() - QDate < MY.CondorctlCpuAfter ? {number} : 0"
    found.append(f"request_gpus            = {number}")
    if stage.gpus_minimum_memory:
        found.append(
            f"gpus_minimum_memory     = {-(-kilobytes(stage.gpus_minimum_memory) // 1024)}"
        )
    if stage.gpus_minimum_capability:
        found.append(f"gpus_minimum_capability = {stage.gpus_minimum_capability}")
    return found


def _enough_gpus(stage: Stage) -> str:
    """HTCondor's own condition while GPUs are asked for, and a slot that gives away none after.

    A slot that another job has left may have a GPU; one that is still to be divided will give as
    many as are asked for. Not all slots know of GPUs.
    """
    some = "TARGET.GPUs >= RequestGPUs"
    if stage.gpus_minimum_memory or stage.gpus_minimum_capability:
        some += " && countMatches(MY.RequireGPUs, TARGET.AvailableGPUs) >= RequestGPUs"
    none = "TARGET.PartitionableSlot =?= true || (TARGET.GPUs ?: 0) == 0"
    return f"RequestGPUs == 0 ? ({none}) : ({some})"


def _growth(stage: Stage) -> list[str]:
    memory, disk = stage.max_memory, stage.max_disk
    growing = []
    if memory:
        asked, most = (-(-kilobytes(amount) // 1024) for amount in (stage.request_memory, memory))
        growing.append(_Request("memory", " MB", asked, most, 102))
    if disk:
        asked, most = kilobytes(stage.request_disk), kilobytes(disk)
        growing.append(_Request("disk", " KB", asked, most, 104))
    if not growing:
        return []
    found = [f"if version >= {RAISES_BY_ITSELF}"]
    for request in growing:
        steps = ", ".join(f"{step}{request.unit}" for step in request.steps())
        found.append(f"  retry_request_{request.name} = {steps}")
    found.append("else")
    again = []
    for request in growing:
        name, asked, most = request.name, request.asked, request.most
        found.append(f"  request_{name} = min({{ {asked} * int(pow(2, {_HOLDS})), {most} }})")
        before = f"{asked} * pow(2, {_HOLDS} - 1) < {most}"
        again.append(f"(HoldReasonSubCode == {request.subcode} && {before})")
    found.append(f"  periodic_release = {_STOPPED} && ({' || '.join(again)})")
    return [*found, "endif"]


def _container(stage: Stage) -> list[str]:
    if stage.universe == "vanilla" or not stage.container_tries:
        return []
    again = "(NumHoldsByReason.JobPolicy ?: 0) + (NumJobStarts ?: 0) - CondorctlFailedStarts"
    enough = f"CondorctlFailedStarts >= {stage.container_tries} * (1 + {again})"
    told = 'strcat("its container could not be started ", CondorctlFailedStarts, " times; ", '
    # A template, a site or a stage with a periodic_hold of its own has that one, and its reason.
    return [
        f"MY.CondorctlFailedStarts = {_FAILED_STARTS}",
        f"MY.CondorctlNoContainer = {_LAST_FAILED} && {enough}",
        "periodic_hold           = CondorctlNoContainer",
        f"periodic_hold_reason    = CondorctlNoContainer ? {told}VacateReason) : undefined",
        f"periodic_hold_subcode   = CondorctlNoContainer ? {starts.NOT_STARTED} : 0",
    ]


def site_lines(site: Site | None, gpus: bool) -> list[str]:
    """What `site` wants of a job beside its requirements, one that asks for `gpus` or one without.

    Each is a line of the submit file.
    """
    if not site:
        return []
    names = {
        "accounting_group": site.accounting_group,
        "accounting_group_user": site.accounting_group_user,
    }
    given = [f"{command} = {name}" for command, name in names.items() if name]
    further = {**site.submit, **(site.gpu_submit if gpus else {})}
    return given + [submit_language.further(name, value) for name, value in further.items()]


def _further(stage: Stage) -> list[str]:
    return [submit_language.further(name, value) for name, value in stage.submit.items()]
