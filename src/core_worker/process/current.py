"""The connected core worker of the process. It is a global, so that user code deep inside a task finds it."""

from __future__ import annotations

import os
import sys

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker import object_ref
from ray_mono.core_worker.interface import CoreInterface

core: CoreInterface | None = None
"""Everybody reads it, since every call begins with it. Only `set` and a fork set it."""
# This process is a copy of one that was connected. The sockets and threads are the other's.
_is_fork = False

FORK_MESSAGE = (
    "this process was forked from one that is connected to a cluster, and a connection cannot be shared: "
    "run the work as a task or an actor, or start the process anew (multiprocessing's start method 'spawn')"
)


ENDING_MESSAGE = "the interpreter is ending, and cannot connect to a cluster any more"
"""For a `__del__` that Python calls last. No thread can start then, and whoever waits for one waits for ever.
"""


def is_fork() -> bool:
    """Whether this process is a fork of a connected one."""
    return _is_fork


def require() -> CoreInterface:
    """The connected core worker. Raises RaySystemError if there is none."""
    if core is None and _is_fork:
        raise RaySystemError(FORK_MESSAGE)
    if core is None and sys.is_finalizing():
        raise RaySystemError(ENDING_MESSAGE)
    if core is None:
        raise RaySystemError(
            "ray_mono is not connected to a cluster in this process: call ray_mono.init() first"
        )
    return core


def set(connected: CoreInterface | None) -> None:
    global core
    core = connected


def _after_fork_in_child() -> None:
    global core, _is_fork
    if core is not None:
        core.abandon()
        core = None
        _is_fork = True


os.register_at_fork(after_in_child=_after_fork_in_child)
object_ref.found_by(require)
