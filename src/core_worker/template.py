"""The template: one warm process per node from which workers are forked in milliseconds.

It imports what every worker needs, once, and then only waits: it opens no channel and starts no thread (a
fork copies one thread, so a second would leave its locks behind, held for ever), and `gc.freeze` keeps the
collector of the children off the shared pages. Its raylet tells it over a socket pair to fork or to signal a
child (TemplateCommand) and hears what became of each (TemplateEvent); both are preceded by their length, u32
little-endian.

    poll ─┬─ command: fork ──► child: its own session of files, environment, titles; then run_worker, which never returns
          ├─ SIGCHLD: reap, kill what is left of the child's process group, tell the raylet
          └─ SIGTERM, or the raylet's end closed: end every child, then what they left behind, then itself

Children die with the template (PDEATHSIG). What a child started and did not take along (its process group, or
for those that left the group, whatever is reparented to the template, a subreaper) is killed when the child,
or the template, ends.

It does not know jobs, leases or the GCS. `--worker-module` puts another function in run_worker's place: for
tests, and for workers with another main.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from ray_mono.common import process
from ray_mono.core_worker.config import WorkerConfig
from ray_mono.protobuf import raylet_pb2

Hook = Callable[[WorkerConfig], object]

DEFAULT_WORKER = "ray_mono.core_worker.worker:run_worker"
# Imported for the children's sake; importing them is what makes a first task slow. Not numpy.random: it would have to be seeded anew in
# each child, which costs it 0.3 MB (measured), and few use it.
WARM_MODULES = ("cloudpickle", "numpy", "ray_mono.core_worker.actor_runtime")
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
LENGTH = struct.Struct("<I")
RECEIVE_BYTES = 1 << 16
KILL_POLL_S = 0.02
"""How often the end looks for children that are still there: only in the last moments of a process."""
KILL_BOUND_S = 5.0
"""A process that SIGKILL does not end within this hangs in the kernel: left to the node's reaper."""
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

class Template:
    """Forks workers on command."""

    def __init__(self, arguments: argparse.Namespace, hook: Hook) -> None:
        self._arguments = arguments
        self._hook = hook
        self._raylet = socket.socket(fileno=arguments.command_fd)
        # Living children by pid, with what they were told.
        self._children: dict[int, raylet_pb2.TemplateCommand.Fork] = {}
        self._is_stopping = False
        self._wakeup_out, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # ---- the loop

    def serve(self) -> None:
        """Runs until the raylet closes its end, or SIGTERM."""
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        # A terminal's Ctrl-C goes to the driver; what follows from it comes from the raylet.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        poll = select.poll()
        poll.register(self._raylet, select.POLLIN)
        poll.register(self._wakeup_out, select.POLLIN)
        self._tell(raylet_pb2.TemplateEvent(ready=raylet_pb2.TemplateEvent.Ready(pid=os.getpid())))
        received = bytearray()
        while not self._is_stopping:
            for descriptor, _ in poll.poll():
                if descriptor == self._wakeup_out:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup_out, RECEIVE_BYTES)
                    self._reap()
                else:
                    self._receive(received)
        self._end_children()

    def _on_terminate(self, signum: int, frame: object) -> None:
        self._is_stopping = True

    def _receive(self, received: bytearray) -> None:
        try:
            data = self._raylet.recv(RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._is_stopping = True
            return
        received += data
        while len(received) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(received)
            if len(received) < LENGTH.size + size:
                break
            command = raylet_pb2.TemplateCommand.FromString(bytes(received[LENGTH.size : LENGTH.size + size]))
            del received[: LENGTH.size + size]
            if command.HasField("fork"):
                self._fork(command.fork)
            if command.HasField("kill"):
                self._signal_child(command.kill.startup_token, command.kill.signal)

    def _tell(self, event: raylet_pb2.TemplateEvent) -> None:
        data = event.SerializeToString()
        try:
            self._raylet.sendall(LENGTH.pack(len(data)) + data)
        except OSError:
            self._is_stopping = True

    # ---- children

    def _fork(self, fork: raylet_pb2.TemplateCommand.Fork) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        template_pid = os.getpid()
        # A signal that comes before the child has its own handlers waits until it has.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(fork, template_pid)
        except OSError as error:
            failed = raylet_pb2.TemplateEvent.ForkFailed(startup_token=fork.startup_token, message=str(error))
            self._tell(raylet_pb2.TemplateEvent(fork_failed=failed))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # the child does it too: whoever comes first
        self._children[pid] = fork
        forked = raylet_pb2.TemplateEvent.Forked(startup_token=fork.startup_token, pid=pid)
        self._tell(raylet_pb2.TemplateEvent(forked=forked))

    def _become_worker(self, fork: raylet_pb2.TemplateCommand.Fork, template_pid: int) -> NoReturn:
        """In the child: a process of its own, then the worker, then the end, whatever happens."""
        code = 1
        try:
            config = self._make_child(fork, template_pid)
            self._hook(config)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _make_child(self, fork: raylet_pb2.TemplateCommand.Fork, template_pid: int) -> WorkerConfig:
        arguments = self._arguments
        os.setpgid(0, 0)
        process.set_pdeathsig(signal.SIGKILL, template_pid)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        self._raylet.close()
        os.close(self._wakeup_out)
        os.close(self._wakeup_in)
        # self._children stays as it is: to let go of its messages would cost the child 0.1 MB of pages (measured).
        _open_own_files(os.path.join(arguments.session_dir, fork.log_prefix))
        for name, value in fork.env_vars.items():  # an update() of nothing costs each child 0.15 MB of pages (measured)
            os.environ[name] = value
        sys.path[:0] = fork.sys_path
        if fork.working_dir:
            os.chdir(fork.working_dir)
        _set_title("ray_mono::IDLE")
        gc.enable()
        return WorkerConfig(
            raylet_socket=arguments.raylet_socket,
            gcs_address=arguments.gcs_address,
            session_dir=arguments.session_dir,
            worker_id=fork.worker_id,
            job_id=fork.job_id,
            startup_token=fork.startup_token,
            log_level=arguments.log_level,
            node_host=arguments.node_host,
        )

    def _signal_child(self, startup_token: int, signum: int) -> None:
        """Nothing where the child is gone: its Exited is on the way."""
        for pid, fork in self._children.items():
            if fork.startup_token == startup_token:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)

    def _reap(self) -> None:
        """Reports every child that ended. Orphans of children, which come to us, are reaped in silence."""
        while True:
            try:
                # Left as it is first: while it is a zombie its pid, and its group's, are nobody else's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            fork = self._children.pop(ended.si_pid, None)
            if fork is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            os.waitpid(ended.si_pid, 0)
            if fork is not None:
                self._remove_socket(fork.worker_id)
                killed = ended.si_code != os.CLD_EXITED
                exited = raylet_pb2.TemplateEvent.Exited(
                    pid=ended.si_pid,
                    exit_code=0 if killed else ended.si_status,
                    signal=ended.si_status if killed else 0,
                    startup_token=fork.startup_token,
                )
                self._tell(raylet_pb2.TemplateEvent(exited=exited))

    def _remove_socket(self, worker_id: bytes) -> None:
        """A worker that was killed leaves the socket that membership.py made for it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._arguments.session_dir, "sockets", f"worker-{worker_id.hex()[:16]}"))

    # ---- the end

    def _end_children(self) -> None:
        """SIGTERM for all, SIGKILL after the grace period, and SIGKILL for what they left behind."""
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + self._arguments.exit_grace_s
        while self._children and time.monotonic() < deadline_s:
            time.sleep(KILL_POLL_S)
            self._reap()
        deadline_s = time.monotonic() + KILL_BOUND_S
        while (pids := _children_of(os.getpid())) and time.monotonic() < deadline_s:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(KILL_POLL_S)
            self._reap()


def _open_own_files(log_prefix: str) -> None:
    """Output to <log_prefix>-<pid>.out and .err; no input."""
    _open_as(0, os.devnull, os.O_RDONLY)
    pid = os.getpid()
    for descriptor, suffix in ((1, "out"), (2, "err")):
        _open_as(descriptor, f"{log_prefix}-{pid}.{suffix}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _open_as(descriptor: int, path: str, flags: int) -> None:
    """Without a file object, which would cost each child 0.1 MB of pages (measured)."""
    opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _children_of(parent_pid: int) -> list[int]:
    """Living children, our own and those that were reparented to us."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, ppid = file.read().rpartition(b")")[2].split()[:2]
                if int(ppid) == parent_pid and state not in (b"Z", b"X"):
                    found.append(int(name))
    return found


def _set_title(title: str) -> None:
    import setproctitle

    setproctitle.setproctitle(title)


def load_hook(name: str) -> Hook:
    """The function named "module:function". Raises ImportError, AttributeError, or ValueError for another
    form.
    """
    module_name, separator, function_name = name.partition(":")
    if not separator:
        raise ValueError(f"--worker-module takes MODULE:FUNCTION, got {name!r}")
    hook: Hook = getattr(importlib.import_module(module_name), function_name)
    return hook


def _prepare_output() -> None:
    """Standard output and error as the workers have them: their files are read as UTF-8 whatever the locale is, and line by line."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def warm_up(worker_module: str) -> Hook:
    """Imports what the children need. Raises RuntimeError naming the threads that an import started: a fork
    would break them.
    """
    gc.disable()
    # numpy's BLAS would start threads when it is loaded. Only then: what a task starts may use all that there
    # is.
    chosen = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    for name in WARM_MODULES:
        importlib.import_module(name)
    hook = load_hook(worker_module)
    del os.environ[BLAS_THREADS]
    if chosen is not None:
        os.environ[BLAS_THREADS] = chosen
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        import threading

        names = [thread.name for thread in threading.enumerate()]
        raise RuntimeError(f"the template must have one thread to fork from, and has {len(threads)}: {names}")
    gc.collect()
    gc.freeze()
    return hook


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="template", description="Forks the workers of a node; its raylet starts it."
    )
    parser.add_argument(
        "--raylet-socket", required=True, metavar="PATH", help="Unix socket of the raylet, for the workers"
    )
    parser.add_argument(
        "--gcs-address", required=True, metavar="ADDRESS", help='"host:port" or "unix:/path", for the workers'
    )
    parser.add_argument(
        "--node-host",
        default="127.0.0.1",
        help="the node's address, where workers answer (default: %(default)s)",
    )
    parser.add_argument("--session-dir", required=True, metavar="DIR")
    parser.add_argument(
        "--command-fd", required=True, type=int, metavar="N", help="one end of a socket pair with the raylet"
    )
    parser.add_argument("--log-level", default="info")
    parser.add_argument(
        "--exit-grace-s", type=float, default=2.0, metavar="S", help="between SIGTERM and SIGKILL at the end"
    )
    parser.add_argument(
        "--worker-module",
        default=DEFAULT_WORKER,
        metavar="MODULE:FUNCTION",
        help="what a child runs (default: %(default)s)",
    )
    arguments = parser.parse_args()
    process.set_child_subreaper()
    # Where a launcher started us, it has tied our life to its own; our children's parent is another.
    process.parent_pid_from_environment()
    _prepare_output()
    hook = warm_up(arguments.worker_module)
    _set_title("ray_mono::TEMPLATE")
    Template(arguments, hook).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
