"""One process below a reaper: what is known of it, how a fork becomes it, and its end in words.

A service in Python is not executed. The fork runs main() of its module itself, and so shares, in time and in
memory, what the reaper has imported. Only its title, the command line, shows which service it is. Everything
else (a Redis) is executed. So are services in Python where something (a tracer, a .pth file) has started a
thread in the reaper: a fork would copy the locks that the thread holds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ray_mono.common.process import AFTER_FAILURE, IN_ORDER, PARENT_PID_VARIABLE, num_threads, set_pdeathsig

# Ray's.
DESCRIPTORS = 65536
LOG_TAIL_BYTES = 4096
READY_BYTES_MAX = 1 << 20
# What follows the end of a service.
END_NODE = "end node"
START_AGAIN = "start again"
GO_ON = "go on"


@dataclass
class Service:
    """A service process, from its fork until it was waited for."""

    name: str
    pid: int
    stdout: str
    stderr: str
    after_exit: str
    started_s: float
    """By the monotonic clock."""
    ready_fd: int
    """The read end of its ready pipe; -1 when that is done with."""
    answered: bool = False
    """Whether the starter was told that it is ready."""
    asked_ends: tuple[str, ...] = ()
    """In describe_status's words, how it ends if it was asked to. Any other end is its own doing."""
    _received: bytes = b""

    def ready_line(self) -> bytes | None:
        """Reads the ready pipe. None while more may come.

        Returns its first line, or what there is where it ended without one.
        """
        try:
            data = os.read(self.ready_fd, 65536)
        except BlockingIOError:
            return None
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        return None if data and not newline and len(line) < READY_BYTES_MAX else line

    def close_ready_pipe(self) -> None:
        os.close(self.ready_fd)
        self.ready_fd = -1

    def set_answered(self) -> None:
        self.answered = True

    def may_end(self, ends: tuple[str, ...]) -> None:
        """From now on these ends are no surprise."""
        self.asked_ends = ends


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


def last_words(tail: str) -> str:
    """Why a service ended, by the end of its log."""
    line = (tail.splitlines() or [""])[-1]
    _, *told = re.split(f"{AFTER_FAILURE}|{IN_ORDER}", line, maxsplit=1)
    return (told[0] if told else line).strip()


def raise_descriptor_limit() -> None:
    """Services and workers have many connections; they inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def prepare_to_fork(names: Sequence[str], log: Callable[[str], None]) -> bool:
    """Imports what the next services are made of, and says whether this process may fork them.

    The children's garbage collections leave out what was imported: they would copy its pages. There is not
    one here: it takes 8 ms, finds next to nothing, and leaves holes, which children fill and so copy.
    """
    if num_threads() == 1 and not all(name in sys.modules for name in names):
        gc.disable()
        try:
            for name in names:
                importlib.import_module(name)
        except Exception:
            # The service will fail at the same place, and that is told.
            log(traceback.format_exc())
        gc.freeze()
        gc.enable()
    if num_threads() == 1:
        return True
    _tell_of_threads(log)
    return False


@functools.cache
def _tell_of_threads(log: Callable[[str], None]) -> None:
    """Once."""
    log(
        f"something started {num_threads() - 1} threads in this interpreter: services are executed, which"
        " takes longer than to fork them"
    )


@contextlib.contextmanager
def all_signals_blocked() -> Iterator[None]:
    """For a fork: the child goes on with them blocked."""
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def become(
    parent_pid: int,
    changed_signals: Iterable[signal.Signals],
    argv: list[str],
    env: dict[str, str],
    stdout: str,
    stderr: str,
    cwd: str | None,
    kept_fds: list[int],
    module: str,
) -> None:
    """Becomes the service, in the child of a fork, where all signals are blocked.

    Returns only where it cannot, and has then said why in its log.

    Args:
        changed_signals: those that the parent handles or ignores.
        kept_fds: what it inherits besides the standard descriptors.
        module: whose main() this process runs; "" executes argv.
    """
    set_pdeathsig(signal.SIGKILL, parent_pid)
    # A group of its own: a worker that signals its group means neither the reaper nor other services.
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signal_number in (*changed_signals, signal.SIGPIPE):
        signal.signal(signal_number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    env = {**env, PARENT_PID_VARIABLE: str(parent_pid)}
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(stdout, flags, 0o600), 1)
        os.dup2(os.open(stderr, flags, 0o600), 2)
        for fd in kept_fds:
            os.set_inheritable(fd, True)
        if cwd is not None:
            os.chdir(cwd)
        if not module:
            os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]} in {cwd or os.getcwd()}: {error}\n".encode())
        return
    # As an interpreter has them that was just started.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _close_descriptors({0, 1, 2, *kept_fds})
    _run_module(module, argv, env)


def _close_descriptors(kept: set[int]) -> None:
    """As an exec would have. Their Python objects stay as they are: the process ends without finalizers."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _run_module(module: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    """Runs main() of the command line's module, with the rest as its arguments. Then the process ends."""
    code: object = 1
    try:
        import setproctitle

        setproctitle.setproctitle(" ".join(argv))
        # After the title, which is written where the old variables lay.
        os.environ.clear()
        os.environ.update(env)
        sys.argv = argv[argv.index(module) :]
        code = importlib.import_module(module).main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
