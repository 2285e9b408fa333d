"""How worker processes come to be and go: the interface, and the real one, which has a template fork them.

The raylet sees only WorkerLauncher, and the simulator has its own. A worker is named by its startup token,
never by its pid: pids are reused, and only the template, the parent, knows which are still its own.

TemplateLauncher keeps one template running; the first may be one that was started beside the raylet. Orders
that come before the template is warm wait for it. When a template dies its workers go on (orphans.py), the
orders that it had not carried out fail, and another template is started, after a pause that grows while
templates fail. One that carries out no order for SILENT_S (it is stopped, say) is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_mono.common import node_time, process
from ray_mono.common.background import BackgroundTasks
from ray_mono.common.backoff import Backoff
from ray_mono.common.descriptors import is_readable
from ray_mono.common.lifeline import Lifeline
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.worker.orphans import Orphans
from ray_mono.raylet.worker.room_for_workers import why_no_more
from ray_mono.rpc.framing import LENGTH, prefixed

logger = logging.getLogger(__name__)

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 5.0
"""Pauses before another template: doubled from the first to this while they die before they are warm."""
READY_TIMEOUT_S = 60.0
"""A template that is not warm by then (an import that waits for something) is given up, and said to be."""
SILENT_S = 5.0
"""How long a template may say nothing while it has orders. A fork takes milliseconds."""
END_POLL_S = 0.01
END_MARGIN_S = 2.0
"""Beyond its grace period a template gets this long to end before it is killed."""


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker process is started with."""

    startup_token: int
    worker_id: bytes


@dataclass(frozen=True)
class WorkerExit:
    """The end of a worker process, or of the attempt to start one."""

    startup_token: int
    pid: int
    """0 where it never had one."""
    exit_code: int
    signal: int
    """0 where it ended by itself."""
    message: str
    """One sentence for people."""


class WorkerLauncher(Protocol):
    """Starts and ends worker processes. Nothing here waits, but open and close."""

    async def open(self, on_exit: Callable[[WorkerExit], None], tasks: BackgroundTasks) -> None:
        """Once, before anything else. on_exit(exit) will run in the loop once for every order, and never
        inside start or kill.

        tasks: the owner's, for what runs beside; close() comes before theirs.
        """
        ...

    def start(self, order: WorkerOrder) -> None: ...

    def registered(self, startup_token: int, pid: int) -> None:
        """The worker of this order runs, and says so itself."""
        ...

    def kill(self, startup_token: int, force: bool) -> None:
        """SIGKILL, or SIGTERM without `force`; nothing where the worker is gone. Its end is told as any
        other.
        """
        ...

    def cpu_time_s(self, startup_token: int) -> float | None:
        """How much CPU the worker has used, with all processes that it started; None where it is gone."""
        ...

    def found_dead(self, startup_token: int) -> WorkerExit | None:
        """How a worker ended whose end was not told yet; None where it lives, or that is not known."""
        ...

    def lease_ends(self, at_ns: int, awake_ns: int) -> None:
        """Every worker is killed at this time (common/node_time.py), even if nothing else is heard from here,
        unless another time is said before."""
        ...

    async def close(self) -> None:
        """Ends every worker and waits until nothing is left. Ends are no longer told."""
        ...


class TemplateProcess(Protocol):
    """What the launcher does with a template, as subprocess.Popen has it."""

    returncode: int | None

    def poll(self) -> int | None:
        """None while it runs."""
        ...

    def kill(self) -> None: ...


class AdoptedTemplate:
    """TemplateProcess that is the child of another process, which waits for it. It cannot be watched until
    it has said who it is."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._pidfd = -1

    def watch(self, pid: int) -> None:
        """pid: its own word. Raises OSError where no such process is left."""
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and (self._pidfd < 0 or is_readable(self._pidfd, 0)):
            # How it ended only its parent knows.
            self.returncode = 0
            if self._pidfd >= 0:
                os.close(self._pidfd)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class TemplateLauncher:
    """WorkerLauncher by a template process."""

    def __init__(
        self,
        command: Sequence[str],
        log_prefix: str,
        exit_grace_s: float,
        first_fd: int | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        silent_s: float = SILENT_S,
        lifeline_path: str | None = None,
    ) -> None:
        """command: the template's, without --command-fd and --exit-grace-s. log_prefix: of the workers'
        files, in the session directory. first_fd: of a socket to a template that runs already. lifeline_path:
        of a FIFO, where workers live as long as this process; None: they live as long as their template."""
        self._command = list(command)
        self._first_fd = first_fd
        self._log_prefix = log_prefix
        self._exit_grace_s = exit_grace_s
        self._ready_timeout_s = ready_timeout_s
        self._silent_s = silent_s
        self._lifeline_path = lifeline_path
        self._lifeline: Lifeline | None = None
        self._orphans = Orphans(self._orphan_ended)
        self._last_event_s = 0.0
        self._on_exit: Callable[[WorkerExit], None] = lambda exit_: None
        self._template: TemplateProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        # Orders that no warm template has taken yet, and the pids of living workers by token (0: not forked
        # yet).
        self._pending: dict[int, WorkerOrder] = {}
        self._living: dict[int, int] = {}
        # What was last sent to a living worker. A template that dies may not have passed it on.
        self._signalled: dict[int, int] = {}
        self._is_warm = False
        self._is_closing = False
        self._lease_ends = (node_time.NO_END, 0)

    async def open(self, on_exit: Callable[[WorkerExit], None], tasks: BackgroundTasks) -> None:
        self._on_exit = on_exit
        if self._lifeline_path is not None:
            self._lifeline = Lifeline(self._lifeline_path)
        tasks.spawn(self._keep_template(), "worker template")

    def start(self, order: WorkerOrder) -> None:
        refusal = why_no_more(len(self._living) + len(self._pending) + len(self._orphans))
        if refusal:
            exit_ = WorkerExit(order.startup_token, 0, 0, 0, refusal)
            asyncio.get_running_loop().call_soon(self._on_exit, exit_)
        elif self._is_warm:
            self._fork(order)
        else:
            self._pending[order.startup_token] = order

    def registered(self, startup_token: int, pid: int) -> None:
        # A template that dies just after the fork has not told of it.
        if self._living.get(startup_token) == 0:
            self._living[startup_token] = pid

    def kill(self, startup_token: int, force: bool) -> None:
        if self._pending.pop(startup_token, None) is not None:
            exit_ = WorkerExit(startup_token, 0, 0, 0, "it was ended before it was started")
            asyncio.get_running_loop().call_soon(self._on_exit, exit_)
            return
        signum = signal.SIGKILL if force else signal.SIGTERM
        if startup_token in self._living:
            self._signalled[startup_token] = signum
            kill = raylet_pb2.TemplateCommand.Kill(startup_token=startup_token, signal=signum)
            self._send(raylet_pb2.TemplateCommand(kill=kill))
        else:
            self._orphans.signal(startup_token, signum)

    async def close(self) -> None:
        self._is_closing = True
        self._on_exit = lambda exit_: None
        self._send(raylet_pb2.TemplateCommand(end=raylet_pb2.TemplateCommand.End()))
        if self._writer is not None:
            self._writer.close()
        try:
            if self._template is not None:
                await self._await_end(self._template, self._exit_grace_s + END_MARGIN_S)
            is_time_over = node_time.is_over(*self._lease_ends)
            await self._orphans.end(0.0 if is_time_over else self._exit_grace_s)
        finally:
            if self._lifeline is not None:
                self._lifeline.close()

    def lease_ends(self, at_ns: int, awake_ns: int) -> None:
        self._lease_ends = at_ns, awake_ns
        if self._is_warm:
            self._tell_lease()

    def _tell_lease(self) -> None:
        at_ns, awake_ns = self._lease_ends
        self._send(raylet_pb2.TemplateCommand(lease_ends_ns=at_ns, lease_ends_awake_ns=awake_ns))

    # ---- the template

    async def _keep_template(self) -> None:
        backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
        while not self._is_closing:
            try:
                template, reader = await self._start_template()
            except OSError as error:
                # Out of processes or descriptors: others may give some back.
                pause_s = backoff.next_s()
                message = f"the worker template could not be started: {error.strerror}"
                logger.error("%s; tried again in %.1f s", message, pause_s)
                self._template_ended(message)
                await asyncio.sleep(pause_s)
                continue
            await self._read_events(reader)
            if self._is_closing:
                return
            if self._is_warm:
                backoff.reset()
            pause_s = backoff.next_s()
            await self._await_end(template, END_MARGIN_S)
            message = f"the worker template {_describe_end(template.returncode or None)}"
            logger.error("%s; its workers go on; another is started in %.1f s", message, pause_s)
            self._template_ended(message)
            await asyncio.sleep(pause_s)

    async def _start_template(self) -> tuple[TemplateProcess, asyncio.StreamReader]:
        if self._first_fd is not None:
            sock, self._first_fd = socket.socket(fileno=self._first_fd), None
            self._template = AdoptedTemplate()
            reader, self._writer = await asyncio.open_unix_connection(sock=sock)
            return self._template, reader
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack, theirs:
            stack.callback(ours.close)
            arguments = ["--command-fd", str(theirs.fileno()), "--exit-grace-s", str(self._exit_grace_s)]
            template = subprocess.Popen(
                [*self._command, *arguments],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=os.environ,
            )
            stack.pop_all()
        self._template = template
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        logger.info("started the worker template, pid %d", template.pid)
        return template, reader

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        """Until the template's end of the socket closes, or it is not warm in time."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            try:
                async with asyncio.timeout(self._ready_timeout_s):
                    await self._read_event(reader)
            except TimeoutError:
                logger.error("the worker template was not ready within %g s", self._ready_timeout_s)
                return
            while True:
                await self._read_event(reader)

    def cpu_time_s(self, startup_token: int) -> float | None:
        pid = self._living.get(startup_token) or self._orphans.pid_of(startup_token)
        try:
            return process.cpu_time_s(pid) if pid else None
        except OSError:
            return None

    def found_dead(self, startup_token: int) -> WorkerExit | None:
        pid = self._living.get(startup_token)
        returncode = process.unwaited_exit(pid) if pid else None
        return None if pid is None or returncode is None else _exit_of(startup_token, pid, returncode)

    async def _read_event(self, reader: asyncio.StreamReader) -> None:
        (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        self._on_event(raylet_pb2.TemplateEvent.FromString(await reader.readexactly(size)))

    def _on_event(self, event: raylet_pb2.TemplateEvent) -> None:
        self._last_event_s = asyncio.get_running_loop().time()
        kind = event.WhichOneof("event")
        if kind == "ready":
            self._is_warm = True
            if isinstance(self._template, AdoptedTemplate):
                self._template.watch(event.ready.pid)
            self._tell_lease()
            orders, self._pending = self._pending, {}
            for order in orders.values():
                self._fork(order)
        elif kind == "forked":
            self._living[event.forked.startup_token] = event.forked.pid
        elif kind == "exited":
            exited = event.exited
            self._living.pop(exited.startup_token, None)
            self._signalled.pop(exited.startup_token, None)
            returncode = -exited.signal if exited.signal else exited.exit_code
            self._worker_ended(exited.startup_token, exited.pid, returncode)
        elif kind == "fork_failed":
            token = event.fork_failed.startup_token
            self._living.pop(token, None)
            self._signalled.pop(token, None)
            message = f"the worker could not be forked: {event.fork_failed.message}"
            self._on_exit(WorkerExit(token, 0, 0, 0, message))

    def _worker_ended(self, startup_token: int, pid: int, returncode: int) -> None:
        self._on_exit(_exit_of(startup_token, pid, returncode))

    def _orphan_ended(self, startup_token: int, pid: int, returncode: int | None) -> None:
        if returncode is not None:
            self._worker_ended(startup_token, pid, returncode)
            return
        message = f"worker pid {pid} ended; how is not known, since the template that had forked it was dead"
        self._on_exit(WorkerExit(startup_token, pid, 0, 0, message))

    def _template_ended(self, message: str) -> None:
        self._is_warm = False
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        ended = {**self._living, **dict.fromkeys(self._pending, 0)}
        signalled, self._signalled = self._signalled, {}
        self._living.clear()
        self._pending.clear()
        for token, pid in ended.items():
            if pid and self._orphans.adopt(token, pid):
                if token in signalled:
                    self._orphans.signal(token, signalled[token])
            elif pid:
                self._orphan_ended(token, pid, None)
            else:
                self._on_exit(WorkerExit(token, 0, 0, 0, message))

    def _look_whether_forked(self, startup_token: int, template: TemplateProcess | None) -> None:
        """A template that was given this order silent_s ago or longer has either carried it out, or another
        one meanwhile."""
        if template is not self._template or self._living.get(startup_token) != 0:
            return
        loop = asyncio.get_running_loop()
        left_s = self._last_event_s + self._silent_s - loop.time()
        if left_s > 0:
            loop.call_later(left_s, self._look_whether_forked, startup_token, template)
        elif template is not None:
            logger.error("the worker template has carried out no order for %g s: killing it", self._silent_s)
            template.kill()

    async def _await_end(self, template: TemplateProcess, timeout_s: float) -> None:
        """Waits for the process, whose socket has ended or is about to; kills it after timeout_s."""
        for _ in range(int(timeout_s / END_POLL_S)):
            if template.poll() is not None:
                return
            await asyncio.sleep(END_POLL_S)
        logger.warning("the worker template does not end: killing it")
        template.kill()
        while template.poll() is None:
            await asyncio.sleep(END_POLL_S)

    def _fork(self, order: WorkerOrder) -> None:
        self._living[order.startup_token] = 0
        asyncio.get_running_loop().call_later(
            self._silent_s, self._look_whether_forked, order.startup_token, self._template
        )
        fork = raylet_pb2.TemplateCommand.Fork(
            startup_token=order.startup_token,
            worker_id=order.worker_id,
            log_prefix=f"{self._log_prefix}{order.worker_id.hex()}",
        )
        self._send(raylet_pb2.TemplateCommand(fork=fork))

    def _send(self, command: raylet_pb2.TemplateCommand) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(prefixed(command.SerializeToString()))


def _exit_of(startup_token: int, pid: int, returncode: int) -> WorkerExit:
    message = f"worker pid {pid} {_describe_end(returncode)}"
    return WorkerExit(startup_token, pid, max(0, returncode), max(0, -returncode), message)


def _describe_end(returncode: int | None) -> str:
    """exited with code 1; was killed by signal 9 (SIGKILL)."""
    if returncode is None:
        return "ended"
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-returncode} ({name})"
