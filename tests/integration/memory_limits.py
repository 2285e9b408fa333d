"""Little memory for a cluster: a cgroup of its own, where this user may make one, or a made-up one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ray_mono.raylet.memory.process_memory import all_processes
from tests.waiting import wait_until

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
MEASURED_EACH_S = 0.02


@contextlib.contextmanager
def a_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """One with this limit, of version 1 or 2. None where none can be made. In the end it is empty."""
    group = _make(_V1, "memory.limit_in_bytes", limit_bytes) or _make(_V2, "memory.max", limit_bytes)
    yield group
    if group is not None:
        wait_until(lambda: not _members(group), f"{group} is empty")
        group.rmdir()


def _make(parent: Path, limit: str, limit_bytes: int) -> Path | None:
    group = parent / f"ray_mono_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_bytes))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    return group


def _members(group: Path) -> str:
    return (group / "cgroup.procs").read_text()


@contextlib.contextmanager
def joined(group: Path) -> Iterator[None]:
    """What this process starts meanwhile is in the cgroup."""
    before = [
        _V1 / path.lstrip("/") if controllers == "memory" else _V2 / path.lstrip("/")
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        for _, controllers, path in [line.split(":", 2)]
        if controllers == "memory" or (not controllers and group.parent == _V2)
    ][0]
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def made_up(root: Path, limit_bytes: int) -> Iterator[None]:
    """A machine's files, for raylets with root as `memory_root`: those of a cgroup with this limit, in which
    is all that this process has started. What that uses is measured again and again."""
    group = root / "sys/fs/cgroup/made_up"
    _write(root / "proc/meminfo", f"MemTotal: {1 << 40} kB\nMemAvailable: {1 << 39} kB\n")
    _write(root / "proc/self/cgroup", "0::/made_up\n")
    _write(root / "proc/self/mountinfo", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    _write(group / "memory.max", str(limit_bytes))
    _write(group / "memory.stat", "")
    is_over = threading.Event()

    def measure() -> None:
        while True:
            _, *others = all_processes().family(os.getpid())
            below = sum(process.used_bytes for process in others)
            _write(group / "memory.current", str(below))
            if is_over.wait(MEASURED_EACH_S):
                return

    measuring = threading.Thread(target=measure)
    _write(group / "memory.current", "0")
    measuring.start()
    try:
        yield
    finally:
        is_over.set()
        measuring.join()


def _write(path: Path, text: str) -> None:
    """At once, for whoever reads it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)
