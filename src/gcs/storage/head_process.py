"""Which process a head is, for the next head on the same machine: that need not wait for the lease of one
that has ended.

The name is one only where pids mean the same: in one pid namespace, until the machine starts again. For a
process of any other place nothing is known.
"""

from __future__ import annotations

import contextlib
import os

from ray_mono.common.process import living

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


def own_name() -> str:
    """This process's. Empty where it cannot be told."""
    process = living(os.getpid())
    place = _place()
    return f"{place} {process.pid} {process.start_ticks}" if place and process is not None else ""


def has_ended(name: str) -> bool:
    """Whether that process has surely ended. One that is stopped has not."""
    place, _, process = name.partition(" ")
    if not place or place != _place():
        return False
    pid, _, start_ticks = process.partition(" ")
    try:
        found = living(int(pid))
        return found is None or found.start_ticks != int(start_ticks)
    except (OSError, ValueError):
        return False


def _place() -> str:
    """Where pids mean the same; empty where that cannot be told."""
    with contextlib.suppress(OSError):
        with open(BOOT_ID_PATH) as file:
            boot = file.read().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    return ""
