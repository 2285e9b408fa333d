"""How much memory is used, and of how much: by the cgroup that binds this process, or by the machine.

A cgroup is bound by its own limit and by those of all above it, and the machine by what it has. The smallest
of these counts, as in Ray. Used is what the kernel cannot take back without killing:

    the machine     MemTotal - MemAvailable (/proc/meminfo)
    cgroup v2       memory.current          less inactive_file and active_file of memory.stat: page cache
    cgroup v1       memory.usage_in_bytes   less total_inactive_file and total_active_file

What is in shared memory (the object store) counts as used. Swap is not counted: neither as room nor as used.

Where the cgroups are is looked up once, since a process seldom moves. Their limits are read each time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ray_mono.raylet.memory.process_memory import (
    Processes,
    ProcessMemory,
    all_processes,
    has_memory,
    kill,
)

MACHINE = "the machine"


@dataclass(frozen=True)
class MemoryUsage:
    used_bytes: int
    limit_bytes: int
    of: str = MACHINE
    """As a sentence has it."""
    directory: str = ""
    """The cgroup's; empty for the machine."""


class Memory(Protocol):
    """What the monitor asks of the machine that it runs on."""

    def usage(self) -> MemoryUsage:
        """Raises OSError or ValueError where it cannot be read."""
        ...

    def processes(self, usage: MemoryUsage) -> Processes:
        """The processes whose memory that is."""
        ...

    def has_memory(self, process: ProcessMemory) -> bool:
        """Whether it still has what it used: until it has ended, also while it ends."""
        ...

    def kill(self, process: ProcessMemory) -> None:
        """Nothing where it has ended."""
        ...


@dataclass(frozen=True)
class _Files:
    """The names of one version of cgroups."""

    limit: str
    used: str
    page_cache: tuple[bytes, bytes]


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", (b"total_inactive_file", b"total_active_file"))
_V2 = _Files("memory.max", "memory.current", (b"inactive_file", b"active_file"))


@dataclass(frozen=True)
class _Cgroup:
    directory: Path
    name: str
    files: _Files

    def limit_bytes(self) -> int | None:
        """None where it has none: a root has no such file, and v2 says "max"."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.directory / self.files.limit).read_bytes())
        return None

    def used_bytes(self) -> int:
        used = int((self.directory / self.files.used).read_bytes())
        for line in (self.directory / "memory.stat").read_bytes().splitlines():
            name, _, value = line.partition(b" ")
            if name in self.files.page_cache:
                used -= int(value)
        return max(0, used)


class LinuxMemory:
    """Memory by /proc and /sys/fs/cgroup. root: the directory that has them, for tests."""

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)
        self._cgroups = list(_own_cgroups(self._root))

    def usage(self) -> MemoryUsage:
        limits = [(limit, group) for group in self._cgroups if (limit := group.limit_bytes()) is not None]
        machine = self._machine()
        if limits:
            # Of several alike the innermost, which comes first.
            limit_bytes, group = min(limits, key=lambda each: each[0])
            if limit_bytes < machine.limit_bytes:
                of = f"cgroup {group.name}"
                return MemoryUsage(group.used_bytes(), limit_bytes, of, str(group.directory))
        return machine

    def processes(self, usage: MemoryUsage) -> Processes:
        members = _members(usage.directory) if usage.directory else None
        return all_processes() if members is None else all_processes().among(members)

    def has_memory(self, process: ProcessMemory) -> bool:
        return has_memory(process)

    def kill(self, process: ProcessMemory) -> None:
        kill(process)

    def _machine(self) -> MemoryUsage:
        amounts = {}
        path = self._root / "proc/meminfo"
        for line in path.read_bytes().splitlines():
            name, _, amount = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                amounts[name] = int(amount.split()[0]) << 10
        try:
            total = amounts[b"MemTotal"]
            return MemoryUsage(max(0, total - amounts[b"MemAvailable"]), total)
        except KeyError as error:
            raise ValueError(f"{path} has no {error.args[0].decode()}") from None


def _own_cgroups(root: Path) -> Iterator[_Cgroup]:
    """Those that this process is in and that account for memory, each before the one above it."""
    paths = dict(_own_paths(root))
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            # 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
            before, _, after = line.partition(" - ")
            mounted, mount_point = before.split()[3:5]
            kind, _, options = after.split(maxsplit=2)
            is_v1 = kind == "cgroup" and "memory" in options.split(",")
            files = _V1 if is_v1 else _V2 if kind == "cgroup2" else None
            if files is None or files not in paths:
                continue
            # In a container the mount may show a part of the tree only, and its path may lie outside.
            inside = os.path.relpath(paths[files], mounted)
            top = root / mount_point.lstrip("/")
            directory = top if inside.startswith("..") else top / inside
            for one in (directory, *directory.parents):
                if one.is_dir():
                    yield _Cgroup(one, "/" + "/".join(one.relative_to(top).parts), files)
                if one == top:
                    break


def _own_paths(root: Path) -> Iterator[tuple[_Files, str]]:
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                yield _V2, path
            elif "memory" in controllers.split(","):
                yield _V1, path


def _members(directory: str) -> set[int] | None:
    """The pids in a cgroup and in those below it; None where they cannot be read."""
    members: set[int] = set()
    for folder, _, names in os.walk(directory):
        if "cgroup.procs" in names:
            with contextlib.suppress(OSError, ValueError):
                members.update(map(int, Path(folder, "cgroup.procs").read_bytes().split()))
    return members or None
