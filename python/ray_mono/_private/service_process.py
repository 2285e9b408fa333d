"""One process below a reaper: what is known of it, how a fork becomes it, and its end in words. Imports nothing that takes time."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from ray_mono.common.process import PARENT_PID_VARIABLE

PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 4096

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Service:
    """A service process, from its fork until it was waited for."""

    name: str
    pid: int
    stdout: str
    stderr: str
    ends_node: bool
    ready_fd: int
    """The read end of its ready pipe; -1 when that is done with."""
    received: bytes = b""
    answered: bool = False
    """Whether the starter was told that it is ready."""


def describe_status(status: int) -> str:
    """A wait status in words."""
    if not os.WIFSIGNALED(status):
        return f"exit status {os.WEXITSTATUS(status)}"
    try:
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    except ValueError:
        return f"killed by signal {os.WTERMSIG(status)}"


def log_tail(*paths: str) -> str:
    """The end of the first of these files that says something."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
                text = file.read().decode(errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return ""


def become(
    parent_pid: int,
    changed_signals: Iterable[signal.Signals],
    argv: list[str],
    env: dict[str, str],
    stdout: str,
    stderr: str,
    cwd: str | None,
    ready_fd: int,
) -> None:
    """In the child of a fork, where all signals are blocked: becomes the service. Returns only where it cannot, having said why in its
    log. changed_signals: those that the parent handles or ignores."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        return
    # A group of its own: a worker that signals its process group means neither the reaper nor the other services.
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signal_number in (*changed_signals, signal.SIGPIPE):
        signal.signal(signal_number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(stdout, flags, 0o600), 1)
        os.dup2(os.open(stderr, flags, 0o600), 2)
        if ready_fd >= 0:
            os.set_inheritable(ready_fd, True)
        if cwd is not None:
            os.chdir(cwd)
        os.execve(argv[0], argv, {**env, PARENT_PID_VARIABLE: str(parent_pid)})
    except OSError as error:
        os.write(2, f"cannot start {argv[0]} in {cwd or os.getcwd()}: {error}\n".encode())
