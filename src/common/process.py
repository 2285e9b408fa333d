"""How processes of ours are started from Python, and what one can tell Linux about its own end: die with the
parent, adopt the orphans below, and wait for a process without polling.

Parents die between a fork and the child's first line, so every function that ties a life to a parent also
looks whether it is still there. ctypes is imported only when it is needed, since it costs every process
milliseconds, and what it makes is kept: to make it anew in every fork costs each 0.25 MB of pages (measured).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple


def _own_interpreter() -> str:
    """The path of the interpreter that runs this, as other processes can use it. A link to it is not
    followed: it makes the virtualenv."""
    folder, name = os.path.split(sys.executable)
    # The interpreter itself drops the dots in `../venv/bin/python`, so one process of it would not know the
    # path of another for its own.
    return (
        os.path.join(os.path.realpath(folder), name)
        if name and os.pardir in folder.split(os.sep)
        else sys.executable
    )


# At import: a program may change the current directory, or sys.executable, later.
INTERPRETER = _own_interpreter()

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

PARENT_PID_VARIABLE = "RAY_MONO_PARENT_PID"
"""A launcher sets it to its own process id for the service that it starts, so that the service can tell a
parent that died early."""


def module_command(module: str) -> list[str]:
    """How a module of ours is run as a process by this interpreter. Raises RuntimeError where Python runs
    inside of another program, which names no interpreter.

    -P: not with the current directory on its path, where a file of the user's may have the name of a module
    that it imports.
    """
    if not INTERPRETER:
        raise RuntimeError(
            "sys.executable is empty: processes of a cluster are started by the Python interpreter that it"
            " names"
        )
    return [INTERPRETER, "-P", "-m", module]


def num_threads() -> int:
    """Threads of this process, also those that Python does not know. Only a process with one can be forked
    and go on safely."""
    return len(os.listdir("/proc/self/task"))


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
    """Has the kernel send `signum` to this process when its parent ends (more exactly: when the parent's
    thread that forked it ends).

    parent_pid: the process that should be the parent. If it is not any more, the signal is sent at once. A
    fork's child knows it from before the fork; None means whoever is the parent now. Not inherited by
    children; cleared by an exec of a set-uid program.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def set_child_subreaper() -> None:
    """Orphaned descendants become children of this process, which must then reap them, instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def parent_pid_from_environment() -> int | None:
    """The launcher's process id, where the launcher told it; removed from the environment, since it is not
    true of our children."""
    value = os.environ.pop(PARENT_PID_VARIABLE, "")
    return int(value) if value.isdecimal() else None


def _stat_fields(pid: int | str) -> list[bytes]:
    """What Linux says of a process from its state on, which is its field 3. Raises OSError where there is
    none of this id."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name in parentheses may hold anything; the state follows the last one.
        return file.read().rpartition(b")")[2].split()


def unwaited_exit(pid: int) -> int | None:
    """How a process ended for which its parent has not waited yet, as subprocess has it; None where there is
    none of this id that has ended, or the kernel does not tell us. Ids are reused: ask only while it is known
    that nobody has waited for it."""
    try:
        fields = _stat_fields(pid)
    except OSError:
        return None
    # exit_code is field 52; the first one here is field 3.
    return os.waitstatus_to_exitcode(int(fields[49])) if fields[0] == b"Z" else None


def states_of(pid: int) -> set[str]:
    """Of all threads of a process, as Linux has them: "R" runs, "S" sleeps, "T" and "t" are stopped. Empty
    where there is no such process."""
    states: set[str] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                states.add(_stat_fields(f"{pid}/task/{thread}")[0].decode())
    return states


def cpu_time_s(pid: int) -> float:
    """How much CPU the process has used, with all processes below it. Raises OSError where it is gone."""
    # utime, stime, and those of children that have ended: fields 14 to 17; the first one here is field 3.
    used_s = sum(map(int, _stat_fields(pid)[11:15])) / os.sysconf("SC_CLK_TCK")
    for thread in os.listdir(f"/proc/{pid}/task"):
        with (
            contextlib.suppress(OSError),  # what has ended meanwhile counts when its parent has waited for it
            open(f"/proc/{pid}/task/{thread}/children", "rb") as file,
        ):
            used_s += sum(cpu_time_s(int(child)) for child in file.read().split())
    return used_s


def hide_argument(option: str) -> None:
    """Has the values of `option` ("--name X" and "--name=X") shown as asterisks where every user can read
    this process's command line.

    Not in sys.argv. What stood there before this call may have been read.
    """
    try:
        fields = _stat_fields("self")
    except OSError:
        return
    # arg_start and arg_end are fields 48 and 49; the first one here is field 3.
    start, end = int(fields[45]), int(fields[46])
    if not start < end or not any(argument.startswith(option) for argument in sys.argv):
        return
    import ctypes

    position, is_value = start, False
    name = option.encode()
    for argument in ctypes.string_at(start, end - start).split(b"\0"):
        shown = 0 if is_value else len(name) + 1 if argument.startswith(name + b"=") else len(argument)
        ctypes.memset(position + shown, ord("*"), len(argument) - shown)
        is_value = argument == name and not is_value
        position += len(argument) + 1


AFTER_FAILURE = " after a failure: "
IN_ORDER = " in order: "
"""In the last line of a service's log: what follows is why it ended."""

FINAL_STATUS = 76
"""The exit status of a service that must not be started again: another one has taken its place."""

LOST_PLACE_STATUS = 77
"""The exit status of a raylet whose node has lost its place in the cluster: it may join as a new one."""

_PF_EXITING = 0x4
"""Linux's, among the flags of a process."""


class LivingProcess(NamedTuple):
    """What Linux says of a process that has not ended."""

    pid: int
    parent_pid: int
    start_ticks: int
    """Clock ticks between the machine's start and the process's: with the pid, they name it for as long as
    the machine runs."""
    is_ending: bool
    """True before anybody sees that its connections end."""


def living(pid: int) -> LivingProcess | None:
    """The process of this id; None where there is none, or only its remains (a zombie). Any user's; ids are
    reused, so ask soon."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return LivingProcess(pid, int(fields[1]), int(fields[19]), bool(int(fields[6]) & _PF_EXITING))


def all_living() -> Iterator[LivingProcess]:
    """Every user's. Not of one moment: meanwhile some end, and others are forked."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := living(int(name))) is not None:
            yield process


def children(pid: int) -> list[int]:
    """The living children of a process, also those that were reparented to it."""
    return [process.pid for process in all_living() if process.parent_pid == pid]


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents before their children. More may be forked meanwhile."""
    below: dict[int, list[int]] = {}
    for process in all_living():
        below.setdefault(process.parent_pid, []).append(process.pid)
    found = list(below.get(pid, ()))
    for parent in found:
        found.extend(below.get(parent, ()))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of this id exists and has not ended (a zombie has). Any user's; ids are reused, so
    ask soon."""
    return living(pid) is not None


def has_ended(pid: int) -> bool:
    """Whether a process has ended or is about to. Ids are reused, so ask soon."""
    try:
        process = living(pid)
    except OSError:
        return True
    return process is None or process.is_ending
