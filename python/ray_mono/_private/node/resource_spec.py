"""What a node offers: what it was told to offer, and otherwise what the machine has.

It looks at the processors that this process may use, at the free memory and at NVIDIA's driver; in a
container at the container's limits. Amounts are in user units: CPUs, GPUs, bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mono._private.argument_checks import amount, check_resource_name
from ray_mono._private.node.accelerators import gpu_type, visible_gpus

CGROUP = Path("/sys/fs/cgroup")

# Of the memory that is free at the start; Ray's share.
MEMORY_SHARE = 0.7

HAVE_OPTIONS = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
}


def node_resources(
    *,
    num_cpus: float | None,
    num_gpus: float | None,
    memory_bytes: int | None,
    object_store_bytes: int,
    custom: Mapping[str, float] | None,
    node_ip_address: str,
    is_head: bool,
) -> dict[str, float]:
    """Everything that the node offers, in units.

    Raises ValueError or TypeError naming the argument that cannot be.
    """
    cpus, gpus, memory = num_cpus, num_gpus, memory_bytes
    amounts: dict[str, float] = {
        "CPU": usable_cpus() if cpus is None else amount("num_cpus", cpus, is_whole=True),
        "GPU": visible_gpus() if gpus is None else amount("num_gpus", gpus, is_whole=True),
        # A byte has no parts: as Ray does, they are left out.
        "memory": int(
            machine_memory().available_bytes * MEMORY_SHARE if memory is None else amount("memory", memory)
        ),
        "object_store_memory": amount("object_store_memory", object_store_bytes),
    }
    if amounts["GPU"] and (kind := gpu_type()):
        amounts[f"accelerator_type:{kind}"] = 1.0
    amounts.update(custom_resources(custom or {}))
    amounts[f"node:{node_ip_address}"] = 1.0
    if is_head:
        amounts["node:__internal_head__"] = 1.0
    return {name: units for name, units in amounts.items() if units}


def custom_resources(given: Any) -> dict[str, float]:
    """More resources of a node. Whole amounts, as in Ray: tasks take parts, nodes have wholes.

    Raises ValueError or TypeError naming what cannot be.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"resources must be a dict from names to whole numbers, got {given!r}")
    for name in given:
        check_resource_name(name)
        if name in HAVE_OPTIONS:
            raise ValueError(f"resources may not hold {name!r}: use {HAVE_OPTIONS[name]} instead")
    return {name: amount(f"resources[{name!r}]", units, is_whole=True) for name, units in given.items()}


def usable_cpus() -> int:
    """Processors that this process may run on, or fewer where the container has a quota."""
    count = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


@dataclass(frozen=True)
class MachineMemory:
    """What this process may use: of the machine, and in the container."""

    total_bytes: int
    available_bytes: int
    """What programs can still get of it."""


def machine_memory() -> MachineMemory:
    """As it is now."""
    sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(sizes[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for directory in _cgroup_directories("memory"):
        for limit_name, usage_name, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit, usage = _read(directory / limit_name), _read(directory / usage_name)
            if limit.isdigit() and usage.isdigit():
                total = min(total, int(limit))
                # The two are read one after the other, so there may be more of the second.
                used = max(0, int(usage) - _cached_files(directory, prefix))
                available = min(available, max(0, int(limit) - used))
    return MachineMemory(total, available)


def _cached_files(directory: Path, prefix: str) -> int:
    """Bytes of a control group's memory that hold copies of files. The kernel gives them to others that need
    room."""
    stat = dict(line.split(" ", 1) for line in _read(directory / "memory.stat").splitlines() if " " in line)
    sizes = [stat.get(f"{prefix}{name}_file", "") for name in ("inactive", "active")]
    return sum(int(size) for size in sizes if size.isdigit())


def _cpu_quota() -> float | None:
    """Processors' worth of time that the container may use; None for no limit."""
    quotas = []
    for directory in _cgroup_directories("cpu"):
        quota, period = (_read(directory / "cpu.max").split() + ["", ""])[:2]
        if not quota:
            quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_directories(controller: str) -> list[Path]:
    """Where this process's limits stand: its own group and those above, in cgroup v2 or v1."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP / controller if controllers else CGROUP
        group = root / path.lstrip("/")
        while group != root:
            found.append(group)
            group = group.parent
        found.append(root)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
