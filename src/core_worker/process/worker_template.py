"""The template: one warm process per node, from which workers are forked in milliseconds.

It imports once what every worker needs, and then only waits. It opens no channel and starts no thread: a fork
copies one thread, so the locks of a second one would be held for ever. shared_pages.py has the children share
its memory for long. Over a socket pair the raylet tells the template to fork, or to signal a child
(TemplateCommand), and hears what became of each child (TemplateEvent). The length of each of these messages
goes before it, as u32 little-endian.

    poll ─┬─ command: fork ──► child: files, environment and title of its own (template_child.py); then
          │                    run_worker, which never returns
          ├─ SIGCHLD: reap, kill what is left of the child's process group, tell the raylet
          ├─ SIGTERM, or the raylet ends in order: end every child, then what they left behind, then itself
          └─ the raylet is dead, or this node's time is over: kill every child at once, and so on

A raylet that is dead, or stopped, or cut off from the head, may not have its actors run on: the head starts
them elsewhere. So the raylet says again and again when the children are to be killed
(raylet/head_lease.py).

Children die with the raylet (common/lifeline.py). If only the template dies they go on, and the raylet looks
after them (orphans.py). When a child ends, its process group is killed. When the template ends in order, it
kills what its children left behind, also what has left their groups: the template is a subreaper, so that
became its child.

Something else (a tracer, a .pth file, a library) may have started a thread in this interpreter. Then the
template does not fork: each worker is an interpreter of its own, which takes longer and works the same. The
log says so once.

The template knows no jobs, leases or GCS. `--worker-module` puts another function in run_worker's place, for
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
import sys
import threading
import time

from ray_mono.common import node_time, process
from ray_mono.core_worker.process.shared_pages import prepare_to_fork
from ray_mono.core_worker.process.template_child import (
    Fork,
    Hook,
    Node,
    become_worker,
    load_hook,
    prepare_output,
    set_title,
    start_interpreter,
)
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.framing import LENGTH, prefixed

DEFAULT_WORKER = "ray_mono.core_worker.process.worker:run_worker"
# These are imported for the children, whose first task would be slow otherwise. numpy.random is not: it would
# have to be seeded anew in each child, which costs 0.3 MB (measured), and few use it.
WARM_MODULES = (
    "cloudpickle",
    "numpy",
    "ray_mono._private.worker",
    "ray_mono.actor",
    "ray_mono.core_worker.task_execution.actor_runtime",
    "ray_mono.exceptions",
    "ray_mono.remote_function",
)
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
RECEIVE_BYTES = 1 << 16
KILL_POLL_S = 0.02
"""How often the template looks for children that are still there when it ends."""
LEASE_POLL_S = 0.5
"""How often the template looks whether its time is over. The clock of `poll` stops while the machine sleeps.
"""
KILL_BOUND_S = 5.0
"""A process that SIGKILL does not end within this time hangs in the kernel. It is left to the node's reaper.
"""
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Template:
    """Forks workers on command."""

    def __init__(self, arguments: argparse.Namespace, hook: Hook | None) -> None:
        """hook: called by each fork; None where this process may not be forked."""
        self._arguments = arguments
        self._node = Node(
            raylet_socket=arguments.raylet_socket,
            gcs_address=arguments.gcs_address,
            session_dir=arguments.session_dir,
            node_host=arguments.node_host,
            log_level=arguments.log_level,
            worker_module=arguments.worker_module,
        )
        self._hook = hook
        self._raylet = socket.socket(fileno=arguments.command_fd)
        self._raylet.set_inheritable(False)
        # Living children by pid, with what they were told.
        self._children: dict[int, Fork] = {}
        self._is_stopping = False
        self._grace_s = 0.0
        self._lease_ends_ns, self._lease_ends_awake_ns = node_time.NO_END, 0
        self._wakeup_out, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # ---- the loop

    def serve(self) -> None:
        """Runs until the raylet closes its end, or SIGTERM."""
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        # Ctrl-C in a terminal is meant for the driver. The raylet tells what follows from it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        poll = select.poll()
        poll.register(self._raylet, select.POLLIN)
        poll.register(self._wakeup_out, select.POLLIN)
        self._tell(raylet_pb2.TemplateEvent(ready=raylet_pb2.TemplateEvent.Ready(pid=os.getpid())))
        received = bytearray()
        while not self._is_stopping:
            for descriptor, _ in poll.poll(LEASE_POLL_S * 1000):
                if descriptor == self._wakeup_out:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup_out, RECEIVE_BYTES)
                    self._reap()
                else:
                    self._receive(received)
            if self._is_time_over():
                print("no head has confirmed this node: its workers are killed", file=sys.stderr, flush=True)
                self._is_stopping = True
        self._end_children()

    def _is_time_over(self) -> bool:
        return node_time.is_over(self._lease_ends_ns, self._lease_ends_awake_ns)

    def _on_terminate(self, signum: int, frame: object) -> None:
        self._end_in_order()

    def _end_in_order(self) -> None:
        self._grace_s = self._arguments.exit_grace_s
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
            if command.HasField("end"):
                self._end_in_order()
            if command.lease_ends_ns:
                self._lease_ends_ns = command.lease_ends_ns
                self._lease_ends_awake_ns = command.lease_ends_awake_ns

    def _tell(self, event: raylet_pb2.TemplateEvent) -> None:
        try:
            self._raylet.sendall(prefixed(event.SerializeToString()))
        except OSError:
            self._is_stopping = True

    # ---- children

    def _fork(self, fork: Fork) -> None:
        try:
            pid = self._start_child(fork)
        except (OSError, ValueError) as error:
            failed = raylet_pb2.TemplateEvent.ForkFailed(startup_token=fork.startup_token, message=str(error))
            self._tell(raylet_pb2.TemplateEvent(fork_failed=failed))
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # the child does it, too: whoever comes first
        self._children[pid] = fork
        forked = raylet_pb2.TemplateEvent.Forked(startup_token=fork.startup_token, pid=pid)
        self._tell(raylet_pb2.TemplateEvent(forked=forked))

    def _start_child(self, fork: Fork) -> int:
        hook = self._hook
        if hook is None:
            return start_interpreter(self._node, fork)
        sys.stdout.flush()
        sys.stderr.flush()
        template_pid = os.getpid()
        # A signal that comes before the child has its own handlers waits until it has them.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._let_go_in_child()
                become_worker(self._node, fork, template_pid, lambda: hook)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        return pid

    def _let_go_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        self._raylet.close()
        os.close(self._wakeup_out)
        os.close(self._wakeup_in)
        # self._children stays as it is. To let go of its messages would cost the child 0.1 MB of pages
        # (measured).

    def _signal_child(self, startup_token: int, signum: int) -> None:
        """Signals a child. Does nothing where the child is gone: its Exited is on the way."""
        for pid, fork in self._children.items():
            if fork.startup_token == startup_token:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)

    def _reap(self) -> None:
        """Reaps every process that ended, and reports those that were workers. The others are orphans of
        workers, which became children of the template."""
        while True:
            try:
                # WNOWAIT leaves it a zombie, so that nobody else gets its pid, or its group's, meanwhile.
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
        """A worker that was killed has left the socket that registration.py made for it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._arguments.session_dir, "sockets", f"worker-{worker_id.hex()[:16]}"))

    # ---- the end

    def _end_children(self) -> None:
        """Ends all children: in order by SIGTERM, and after the grace period by SIGKILL. Also kills what they
        left behind."""
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if self._grace_s else signal.SIGKILL)
        deadline_s = time.monotonic() + self._grace_s
        while self._children and time.monotonic() < deadline_s and not self._is_time_over():
            time.sleep(KILL_POLL_S)
            self._reap()
        deadline_s = time.monotonic() + KILL_BOUND_S
        while (pids := process.children(os.getpid())) and time.monotonic() < deadline_s:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(KILL_POLL_S)
            self._reap()
        self._reap()  # also those that had ended before anybody looked


def warm_up(worker_module: str) -> Hook | None:
    """Imports what the children need. Returns what they run, or None if this process has several threads,
    which a fork would break."""
    if process.num_threads() == 1:
        hook = _import_for_children(worker_module)
        if process.num_threads() == 1:
            prepare_to_fork()
            return hook
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print(
        "Workers are started as interpreters of their own, which takes longer than to fork them:"
        " something started threads in this one"
        f" ({process.num_threads() - 1}"
        f"{': ' + ', '.join(names) if names else ', none of them Python threads'}).",
        file=sys.stderr,
        flush=True,
    )
    return None


def _import_for_children(worker_module: str) -> Hook:
    gc.disable()
    # numpy's BLAS would start threads when it is loaded. It may not then, but what a task starts may use all
    # CPUs.
    chosen = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    for name in WARM_MODULES:
        importlib.import_module(name)
    hook = load_hook(worker_module)
    del os.environ[BLAS_THREADS]
    if chosen is not None:
        os.environ[BLAS_THREADS] = chosen
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
    # A launcher that started us has tied our life to its own. For our children another process is the parent.
    process.parent_pid_from_environment()
    prepare_output()
    hook = warm_up(arguments.worker_module)
    set_title("ray_mono::TEMPLATE")
    Template(arguments, hook).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
