"""What a job's GPUs are and how busy they were, from HTCondor's event log and the job's own record.

HTCondor tells the properties of the GPUs that it gave away with each start of a job (manual,
"condor_gpu_discovery"), and at its end, where the node runs `condor_gpu_utilization`, how many of
them were busy on average and the most memory in use. The job's record has the driver's version
beside, and a measure of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

# Less is mostly waiting: for data, for a core, for the disk.
WAITED = 0.3
_MOST_GPUS = 64


def given(told: Any) -> list[Json]:
    """The GPUs in what the log tells of a slot: name, memory_mb, capability and cuda of each.

    `cuda` is the latest CUDA that the node's driver can run. What is not told is missing.
    """
    found = []
    for name in list(told)[:1000]:
        device: Any = told[name] if str(name).startswith("GPUs_") else None
        if not hasattr(device, "keys"):
            continue
        properties: Json = {str(key).lower(): device[key] for key in device}
        wanted = {
            "name": (properties.get("devicename"), str),
            "memory_mb": (properties.get("globalmemorymb"), int | float),
            "capability": (properties.get("capability"), int | float),
            "cuda": (properties.get("driverversion"), int | float),
        }
        found.append(
            {key: value for key, (value, kind) in wanted.items() if isinstance(value, kind)}
        )
    return found[:_MOST_GPUS]


def used(event: Mapping[str, Any], number: int | None) -> dict[str, float]:
    """The use of a job's GPUs, of which it had `number`, in its last event; empty if not told."""
    told = {key.lower(): value for key, value in event.items()}
    busy, memory = told.get("gpususage"), told.get("gpusmemoryusage")
    found = {}
    if isinstance(busy, int | float) and number:
        found = use(busy / number, None)
    if isinstance(memory, int | float):
        found |= use(None, memory)
    return found


def use(busy: float | None, memory_mb: float | None) -> dict[str, float]:
    """As `Job.usage` holds it: the mean utilisation, 0..1, and the most memory on one of them."""
    found = {}
    if busy is not None:
        found["gpu_busy"] = round(min(max(busy, 0.0), 1.0), 3)
    if memory_mb is not None:
        found["gpu_memory_mb"] = memory_mb
    return found


def joined(seen: Json, told: Json | None) -> Json:
    """The machine as the job saw it, and what HTCondor told of the same GPUs."""
    devices = (told or {}).get("gpus", [])
    if not devices:
        return seen
    own = seen.get("gpus", [])
    if len(own) == len(devices):
        devices = [{**theirs, **ours} for theirs, ours in zip(devices, own, strict=True)]
    return {**seen, "gpus": devices}


def words(machine: Json) -> list[str]:
    """The GPUs of a machine in words, and what its driver is."""
    told = []
    for gpu in machine.get("gpus", []):
        parts = [
            f"{gpu['memory_mb']:g} MB" if gpu.get("memory_mb") else "",
            f"capability {gpu['capability']:.1f}" if gpu.get("capability") else "",
            f"CUDA {gpu['cuda']:.1f}" if gpu.get("cuda") else "",
        ]
        beside = ", ".join(filter(None, parts))
        told.append(gpu.get("name", "a GPU") + (f" ({beside})" if beside else ""))
    return [*told, *([f"driver {machine['driver']}"] if machine.get("driver") else [])]


def use_in_words(usage: Json | None) -> str | None:
    """``GPU 87 % busy, 10.2 GB of its memory used``; None where nobody looked."""
    found = usage or {}
    busy, memory = found.get("gpu_busy"), found.get("gpu_memory_mb")
    told = [
        f"{busy:.0%} busy".replace("%", " %") if busy is not None else "",
        f"at most {memory / 1024:.1f} GB of its memory used" if memory is not None else "",
    ]
    return f"GPU {', '.join(filter(None, told))}" if any(told) else None


def hint(usage: Json | None) -> str | None:
    """What to make of GPUs that mostly waited; None when they did not, or nobody looked."""
    busy = (usage or {}).get("gpu_busy")
    if busy is None or busy >= WAITED:
        return None
    return (
        f"the GPU waited {1 - busy:.0%} of the time".replace("%", " %")
        + ": more data loader workers with as many request_cpus, larger batches, or a CPU slot"
    )
