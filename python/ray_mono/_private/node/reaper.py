"""The reaper: parent of a node's services, so that nothing of the node outlives it.

It starts services for whoever started it (a driver, or the CLI), tells when each is ready or why it ended,
and ends all of them. As a child subreaper it becomes the parent of everything that a service or a worker
leaves behind: once it has no child at all, nothing of the node is left. It knows no service, only the command
lines that it is told. Services in Python are forked from it (service_process). It first imports what they
share. That import is most of what a service's start costs, and half of its memory.

Control: JSON lines over a socket pair that the starter passes down.

    {"op": "start", "name", "argv", "env", "stdout", "stderr", "cwd", "wants_ready", "after_exit", "link",
     "module", "imports"}
        -> {"name", "pid", "ready": {...}}              what it wrote to its --ready-fd
                                                        ({} where wants_ready is false)
        -> {"name", "pid", "exit": "...", "log_tail"}   when it ended, before that or at any later time
           module: of a service in Python, what argv runs; it is forked where that is safe
           imports: modules that the reaper imports first, for this service and for those after it
           link: [name, flag]: two services of one link share a socket pair; each gets an end as `flag N`
    {"op": "own_files", "paths": [...], "socket_dir"}   removed at the end; of the directory, now and then,
                                                        the sockets that nobody has bound
    {"op": "detach", "rejoin": [...], "record"}
        -> {"detached": true}: from here on the node outlives its starter (`start` without --block)
           rejoin: what this process becomes when the node has ended because it lost its place in the cluster
           (rejoin.py); record: the file by which it is found then
    {"op": "shutdown"}   ends everything; the end of this socket is the answer

Until it is detached, the end of the starter, or of its side of the socket, is a shutdown. (Both are watched:
a fork of the starter may hold the socket open.) SIGTERM is a shutdown too; a second one, or SIGQUIT, a
hurried one.

What the end of a service means, once it was ready, its `after_exit` says: that the node ends, that the
service is started again, or nothing. One that ends again and again is started later each time, and then the
node ends (restarts.py). One that ends with FINAL_STATUS is not started again.

Shutdown: SIGTERM to the services, last started first, each given time to end while the grace period lasts;
SIGKILL to every process below, until there is none; then the files. It runs in a session of its own and
ignores SIGINT: Ctrl-C in the driver's terminal is the driver's alone. One thread: it is forked from.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from ray_mono._private.node.remains import remove_files, remove_stale_sockets
from ray_mono._private.node.restarts import Restarts
from ray_mono._private.node.service_process import (
    END_NODE,
    START_AGAIN,
    Service,
    all_signals_blocked,
    become,
    describe_status,
    last_words,
    log_tail,
    prepare_to_fork,
    raise_descriptor_limit,
)
from ray_mono.common.process import FINAL_STATUS, LOST_PLACE_STATUS, descendants, set_child_subreaper

# How long SIGKILL may take. A process in an uninterruptible wait (a lost network disk) is left behind.
KILL_WAIT_S = 10.0
MESSAGE_BYTES_MAX = 16 << 20
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1)
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGHUP)
ASKED_ENDS = ("exit status 0", "killed by SIGTERM")
KILLED_ENDS = (*ASKED_ENDS, "killed by SIGKILL")
FINAL_END = f"exit status {FINAL_STATUS}"
LOST_PLACE_END = f"exit status {LOST_PLACE_STATUS}"
NOT_STARTED_PAUSE_S = 1.0
ENDING = "ending the node: "
"""What goes before the reason, in the log."""
STARTER_ENDED = "the process that started this node ended"


def log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


class Reaper:
    """The process's one object. `run` returns when everything below it has ended."""

    def __init__(self, control: socket.socket, grace_period_s: float) -> None:
        self._control = control
        self._received = b""
        self._grace_period_s = grace_period_s
        self._services: list[Service] = []
        """In the order of their starts; those that were waited for are out."""
        self._specs: dict[str, dict[str, Any]] = {}
        """How those services are started that are started again."""
        self._restarts: dict[str, Restarts] = {}
        self._due: dict[str, float] = {}
        """When, by the monotonic clock, which of them are."""
        self._links: dict[str, int] = {}
        """The ends of socket pairs that the other service has not been started with yet."""
        self._owned_files: list[str] = []
        self._socket_dir = ""
        self._rejoin: list[str] = []
        self._record = ""
        self._has_lost_place = False
        self._starter_pidfd = -1
        self._is_detached = False
        self._childless = True
        self._end_reason = ""
        """Why everything ends; empty while nothing does."""
        self._hurried = False
        self._poll = select.poll()
        self._wakeup, wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup_writer.setblocking(False)
        self._wakeup_writer = wakeup_writer

    def run(self, starter_pid: int) -> None:
        self._prepare_process(starter_pid)
        try:
            while not self._end_reason:
                self._turn(self._time_until_due())
                self._start_due()
        except Exception:
            # A bug here must not leave a node behind that nobody ends.
            log(traceback.format_exc())
            self._end("the reaper failed")
        self._end_everything()
        if self._rejoins:
            log("the node joins again as a new one")
            os.execv(self._rejoin[0], self._rejoin)

    @property
    def _rejoins(self) -> bool:
        return self._has_lost_place and bool(self._rejoin)

    # ---- events

    def _prepare_process(self, starter_pid: int) -> None:
        try:
            set_child_subreaper()
        except OSError:
            log("cannot become a child subreaper: what a worker leaves behind will not be ended")
        raise_descriptor_limit()
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for signal_number in HANDLED_SIGNALS:
            signal.signal(signal_number, lambda *_: None)
        for signal_number in IGNORED_SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(self._control, select.POLLIN)
        try:
            self._starter_pidfd = os.pidfd_open(starter_pid)
            self._poll.register(self._starter_pidfd, select.POLLIN)
        except OSError as error:
            # It is gone already (see below), or the system lets nobody watch it: the socket's end has to do.
            log(f"cannot watch process {starter_pid}: {error}")
        if os.getppid() != starter_pid:
            self._end(STARTER_ENDED)

    def _turn(self, timeout_s: float | None) -> None:
        """Waits for something to happen and handles it; None waits for as long as nothing does."""
        timeout_ms = None if timeout_s is None else max(0, round(timeout_s * 1000))
        for fd, _ in self._poll.poll(timeout_ms):
            if fd == self._wakeup.fileno():
                self._on_signals(self._wakeup.recv(4096))
            elif fd == self._control.fileno():
                self._on_control()
            elif fd == self._starter_pidfd:
                self._forget_starter()
                self._end(STARTER_ENDED)
            else:
                for service in self._services:
                    if service.ready_fd == fd:
                        self._on_ready_pipe(service)

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGUSR1:
                log(
                    f"services: {[(service.name, service.pid) for service in self._services]}, below:"
                    f" {descendants(os.getpid())}"
                )
            elif number in (signal.SIGTERM, signal.SIGQUIT):
                self._hurried = self._hurried or bool(self._end_reason) or number == signal.SIGQUIT
                self._rejoin = []
                self._end(f"stopped by {signal.Signals(number).name}")
        self._reap()

    def _reap(self) -> None:
        ended = {}
        pid = -1
        while pid:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                break
            ended[pid] = status
        # What failed or was killed first: what else ended at once ended because of it.
        for service in sorted(self._services, key=lambda service: not ended.get(service.pid)):
            if service.pid in ended:
                self._on_exit(service, describe_status(ended[service.pid]))

    def _on_exit(self, service: Service, how: str) -> None:
        self._services.remove(service)
        if service.ready_fd >= 0:
            self._on_ready_pipe(service)
        self._close_ready_pipe(service)
        if how in service.asked_ends:
            return
        # Even while the node ends: another service may have noticed its death, and ended, before we could.
        tail = log_tail(service.stderr, service.stdout)
        why = last_words(tail) if how.startswith("exit status") else ""
        story = f"{service.name} ({service.pid}) ended: {how}{why and f' ({why})'}"
        log(story)
        self._has_lost_place |= how == LOST_PLACE_END
        self._tell(name=service.name, pid=service.pid, exit=how, log_tail=tail)
        if service.after_exit == START_AGAIN:
            self._plan_restart(service, how, story)
        elif service.after_exit == END_NODE and service.answered:
            self._end(story)

    def _plan_restart(self, service: Service, how: str, story: str) -> None:
        """It has ended, and is started again if it had ever been ready: else its starter hears of it."""
        name = service.name
        if name not in self._restarts and not service.answered:
            return
        if how == FINAL_END:
            log(f"{name} is not started again: another one has taken its place")
            return
        restarts = self._restarts.setdefault(name, Restarts())
        at_s = restarts.ended(service.started_s, time.monotonic(), how in KILLED_ENDS)
        if at_s is None:
            self._end(f"{story}; that was the end of {restarts.num_in_a_row} in a row")
        else:
            self._due[name] = at_s

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for name in [name for name, at_s in self._due.items() if at_s <= now_s]:
            del self._due[name]
            self._start_message(self._specs[name])

    def _time_until_due(self) -> float | None:
        return min(self._due.values()) - time.monotonic() if self._due else None

    def _on_ready_pipe(self, service: Service) -> None:
        line = service.ready_line()
        if line is None:
            return
        self._close_ready_pipe(service)
        try:
            info = json.loads(line)
        except ValueError:
            # Without a line it has died, or is of no use.
            self._signal(service, signal.SIGKILL)
            return
        service.set_answered()
        self._tell(name=service.name, pid=service.pid, ready=info)

    def _close_ready_pipe(self, service: Service) -> None:
        if service.ready_fd >= 0:
            self._poll.unregister(service.ready_fd)
            service.close_ready_pipe()

    # ---- the starter

    def _on_control(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except ConnectionError:
            data = b""
        self._received += data
        if not data or len(self._received) > MESSAGE_BYTES_MAX:
            self._poll.unregister(self._control)
            if not self._is_detached:
                self._end("the starter let go of this node")
            return
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))

    def _on_message(self, message: dict[str, Any]) -> None:
        op = message.pop("op")
        if self._end_reason:
            return
        if op == "start":
            self._start_message(message)
        elif op == "own_files":
            self._owned_files += message["paths"]
            self._socket_dir = message["socket_dir"]
            # Those of nodes that were killed with their reapers.
            remove_stale_sockets(self._socket_dir)
        elif op == "detach":
            self._is_detached = True
            self._rejoin, self._record = message["rejoin"], message["record"]
            self._forget_starter()
            self._tell(detached=True)
        elif op == "shutdown":
            self._end("asked by its starter")
        else:
            log(f"unknown request {op!r}")

    def _start_message(self, message: dict[str, Any]) -> None:
        name = message["name"]
        if message["after_exit"] == START_AGAIN:
            self._specs[name] = message
        try:
            self._start(**message)
        except OSError as error:
            # Out of processes or descriptors.
            self._tell(name=name, pid=0, exit=f"it was not started: {error}", log_tail="")
            if name in self._restarts:
                self._due[name] = time.monotonic() + NOT_STARTED_PAUSE_S

    def _forget_starter(self) -> None:
        if self._starter_pidfd >= 0:
            self._poll.unregister(self._starter_pidfd)
            os.close(self._starter_pidfd)
            self._starter_pidfd = -1

    def _tell(self, **message: Any) -> None:
        """A starter that is gone, or reads nothing any more, misses it."""
        try:
            self._control.send(
                json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )
        except OSError:
            pass

    # ---- services

    def _start(
        self,
        name: str,
        argv: list[str],
        env: dict[str, str],
        stdout: str,
        stderr: str,
        cwd: str | None,
        wants_ready: bool,
        after_exit: str,
        link: tuple[str, str] | None,
        module: str,
        imports: list[str],
    ) -> None:
        forked_module = module if module and prepare_to_fork(imports, log) else ""
        ready_reader, ready_writer = os.pipe()
        kept_fds = []
        if wants_ready:
            argv = [*argv, "--ready-fd", str(ready_writer)]
            kept_fds.append(ready_writer)
        if link is not None:
            link_fd = self._link_end(link[0])
            argv = [*argv, link[1], str(link_fd)]
            kept_fds.append(link_fd)
        parent_pid = os.getpid()
        # A signal that reaches the child too early must not run our handlers: they would take it for ours.
        with all_signals_blocked():
            try:
                pid = os.fork()
            except OSError:
                # It is tried again and again, maybe for long.
                os.close(ready_reader)
                os.close(ready_writer)
                raise
            if pid == 0:
                handled = (*HANDLED_SIGNALS, *IGNORED_SIGNALS)
                try:
                    become(parent_pid, handled, argv, env, stdout, stderr, cwd, kept_fds, forked_module)
                finally:
                    os._exit(127)
        os.close(ready_writer)
        if link is not None:
            os.close(link_fd)
        self._childless = False
        service = Service(name, pid, stdout, stderr, after_exit, time.monotonic(), ready_reader)
        self._services.append(service)
        log(f"started {name} ({pid})")
        os.set_blocking(ready_reader, False)
        self._poll.register(ready_reader, select.POLLIN)
        if not wants_ready:
            service.set_answered()
            self._close_ready_pipe(service)
            self._tell(name=name, pid=pid, ready={})

    def _link_end(self, name: str) -> int:
        fd = self._links.pop(name, -1)
        if fd < 0:
            ours, theirs = socket.socketpair()
            self._links[name] = ours.detach()
            fd = theirs.detach()
        return fd

    # ---- the end

    def _end(self, reason: str) -> None:
        if not self._end_reason:
            self._end_reason = reason

    def _end_everything(self) -> None:
        log(f"{ENDING}{self._end_reason}")
        deadline_s = time.monotonic() + self._grace_period_s
        for service in self._services[::-1]:
            service.may_end(ASKED_ENDS)
            self._signal(service, signal.SIGTERM)
            while service in self._services and not self._hurried and time.monotonic() < deadline_s:
                self._turn(deadline_s - time.monotonic())
        for service in self._services:
            log(f"{service.name} ({service.pid}) did not end in time: killing it")
            service.may_end(KILLED_ENDS)
        self._kill_the_rest()
        remove_files(path for path in self._owned_files if not self._rejoins or path != self._record)
        remove_stale_sockets(self._socket_dir)
        log("the node has ended")

    def _kill_the_rest(self) -> None:
        deadline_s = time.monotonic() + KILL_WAIT_S
        self._reap()
        while not self._childless:
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() > deadline_s:
                log(f"still there, and left to the machine: {descendants(os.getpid())}")
                return
            # Woken by SIGCHLD. What was forked while the processes were listed is only seen by looking again.
            self._turn(0.05)
            self._reap()

    def _signal(self, service: Service, signal_number: int) -> None:
        # Not waited for yet, so the pid is still its own.
        if service in self._services:
            os.kill(service.pid, signal_number)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--control-fd", type=int, required=True, help="descriptor of the socket to the starter"
    )
    parser.add_argument(
        "--starter-pid",
        type=int,
        required=True,
        help="the process that this node does not outlive, unless detached",
    )
    parser.add_argument(
        "--title-room", help="not used: its length is room for the titles of what is forked here"
    )
    parser.add_argument("--session-dir", required=True, help="for people who look at the list of processes")
    parser.add_argument(
        "--grace-period-s", type=float, default=5.0, help="how long services may take to end by themselves"
    )
    arguments = parser.parse_args()
    log(f"reaper {os.getpid()} of {arguments.session_dir}")
    control = socket.socket(fileno=arguments.control_fd)
    control.set_inheritable(False)
    Reaper(control, arguments.grace_period_s).run(arguments.starter_pid)


if __name__ == "__main__":
    main()
