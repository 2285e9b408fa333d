"""What a process can tell Linux about its own end: die with the parent, adopt the orphans below, and wait for a process without polling.

Parents die between a fork and the child's first line, so every function that ties a life to a parent also looks whether it is still
there. ctypes is imported only when it is needed, since it costs every process milliseconds, and what it makes is kept: to make it anew
in every fork costs each 0.25 MB of pages (measured).
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

PARENT_PID_VARIABLE = "RAY_MONO_PARENT_PID"
"""A launcher sets it to its own process id for the service that it starts, so that the service can tell a parent that died early."""


@functools.cache
def _prctl_function() -> Callable[[int, int, int, int, int], int]:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int, *4 * [ctypes.c_ulong]]
    return function


def _prctl(option: int, argument: int) -> None:
    if _prctl_function()(option, argument, 0, 0, 0) != 0:
        import ctypes

        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {argument}): {os.strerror(error)}")


def set_pdeathsig(signum: signal.Signals = signal.SIGKILL, parent_pid: int | None = None) -> None:
    """Has the kernel send `signum` to this process when its parent ends (more exactly: when the parent's thread that forked it ends).

    parent_pid: the process that should be the parent. If it is not any more, the signal is sent at once. A fork's child knows it
    from before the fork; None means whoever is the parent now. Not inherited by children; cleared by an exec of a set-uid program.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def set_child_subreaper() -> None:
    """Orphaned descendants become children of this process, which must then reap them, instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def parent_pid_from_environment() -> int | None:
    """The launcher's process id, where the launcher told it; removed from the environment, since it is not true of our children."""
    value = os.environ.pop(PARENT_PID_VARIABLE, "")
    return int(value) if value.isdecimal() else None


def is_alive(pid: int) -> bool:
    """Whether a process of this id exists and has not ended (a zombie has). Any user's; ids are reused, so ask soon."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything; the state follows the last one.
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
