"""The real reactor on a machine of its own:
its threads run one at a time, and stand still where a schedule says so.

A step is a line of reactor.py or lead.py, or the beginning of a thread. A thread runs until it has to wait,
or until a step at which the schedule has it pause: then the others run as far as they can, and only then it
goes on. Locks, epoll, eventfd, sockets and time are the machine's. Time passes when nobody can run. So a
schedule is one interleaving, which happens again whenever it is asked for. A run ends when everybody waits
without end: what is left to do then has been lost.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType, SimpleNamespace
from typing import Any

from ray_mono.rpc import framing, lead, reactor, standby, timers
from ray_mono.rpc.reactor_channel import ReactorChannel, ReactorMethod
from ray_mono.rpc.reactor_socket import READABLE

RUN_TIMEOUT_S = 30.0
"""Real time, for a machine that is broken."""
PAUSED_S = 0.1
"""So much of the machine's time may pass while a thread pauses for long."""
LONG = b"takes long"
"""A request that is not answered."""
_BEGIN_S = 1000.0
_END_S = 1060.0


class _Over(BaseException):
    """Ends a thread when its run is over."""


class _Thread:
    """One thread of the machine, as reactor.py knows threads."""

    def __init__(self, machine: Machine, number: int, target: Callable[[], None]) -> None:
        self.ident = number
        self.has_ended = False
        self.is_paused = False
        self.condition: Callable[[], bool] | None = None
        self.deadline_s = math.inf
        # Runs on this thread where it polls next: a signal's handler.
        self.guest: Callable[[], None] | None = None
        self.baton = threading.Semaphore(0)
        self._machine = machine
        self._target = target
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._machine.threads.append(self)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        self._machine.block(lambda: self.has_ended, timeout)

    def _run(self) -> None:
        self.baton.acquire()
        sys.settrace(self._machine.trace)
        try:
            self._machine.step()
            if not self._machine.is_over:
                self._target()
        except _Over:
            pass
        finally:
            sys.settrace(None)
            self.has_ended = True
            self._machine.hand_over(self)

    def can_run(self, now_s: float) -> bool:
        if self.has_ended or self.is_paused:
            return False
        return self.condition is None or self.deadline_s <= now_s or self.condition()


class _Lock:
    """A lock, re-entrant or not."""

    def __init__(self, machine: Machine, is_reentrant: bool) -> None:
        self._machine = machine
        self._is_reentrant = is_reentrant
        self._owner: _Thread | None = None
        self._depth = 0

    def acquire(self, timeout: float = -1) -> bool:
        machine = self._machine
        if self._is_reentrant and self._owner is machine.current:
            self._depth += 1
            return True
        if not machine.block(lambda: self._owner is None, None if timeout < 0 else timeout):
            return False
        self._owner, self._depth = machine.current, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None

    def locked(self) -> bool:
        return self._owner is not None

    def _is_owned(self) -> bool:
        return self._owner is self._machine.current

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class _Standby:
    """A clock that others can put off."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._waits: _Thread | None = None
        self._end_s = math.inf

    def _set(self, end_s: float) -> None:
        self._end_s = end_s
        if self._waits is not None:
            self._waits.deadline_s = end_s

    def stand_by(self) -> None:
        self._set(self._machine.now_s + standby.STANDBY_S)

    def put_off(self) -> None:
        self._set(self._machine.now_s + standby.STANDBY_S + standby.PUT_OFF_S)

    def sleep_long(self) -> None:
        self._set(math.inf)

    def wake(self) -> None:
        self._set(self._machine.now_s)

    def close(self) -> None: ...

    def wait(self) -> None:
        machine = self._machine
        self._waits = machine.current
        machine.block(lambda: self._end_s <= machine.now_s, self._end_s - machine.now_s)
        self._waits, self._end_s = None, math.inf


class _Epoll:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._fds: set[int] = set()

    def register(self, fd: int, events: int) -> None:
        self._fds.add(fd)

    def modify(self, fd: Any, events: int) -> None: ...

    def unregister(self, fd: int) -> None:
        self._fds.discard(fd)

    def close(self) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        machine = self._machine
        guest, machine.current.guest = machine.current.guest, None
        if guest is not None:
            guest()
        machine.block(lambda: bool(self._ready()), timeout)
        return self._ready()

    def _ready(self) -> list[tuple[int, int]]:
        return [(fd, READABLE) for fd in sorted(self._fds) if self._machine.is_ready[fd]()]


class Socket:
    """Ours of a connection whose peer answers each request. The peer is a thread of its own (`answer`)."""

    family = socket.AF_UNIX

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._parser = framing.FrameParser()
        self._incoming: deque[bytes] = deque()
        self.sent: list[framing.Frame] = []
        self._num_answered = 0
        self._fd = machine.open(lambda: bool(self._incoming))

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None: ...

    def close(self) -> None: ...

    def send(self, data: bytes) -> int:
        self.sent += self._parser.feed(bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self._incoming:
            raise BlockingIOError
        return self._incoming.popleft()

    def answer(self) -> None:
        while True:
            self._machine.block(lambda: self._num_answered < len(self.sent), None)
            kind, _, call_id, payload = self.sent[self._num_answered]
            self._num_answered += 1
            if kind == framing.REQUEST and payload != LONG:
                self._incoming.append(framing.encode(framing.REPLY, 0, call_id, payload))


class Channel(ReactorChannel):
    """A channel over such a socket."""

    def __init__(self, machine: Machine, of: reactor.Reactor) -> None:
        self.socket = Socket(machine)
        super().__init__(of, "unix:the peer", "")

    def _open(self) -> None:
        self._adopt(self.socket)  # type: ignore[arg-type]
        self.reactor.add(self, READABLE)
        self._connecting = False

    def method(self) -> ReactorMethod:
        return ReactorMethod(self, "/m", bytes, bytes)


class Machine:
    """One run."""

    def __init__(self, schedule: dict[int, str]) -> None:
        """schedule: what happens at which step: "pause" until nobody else can run, "long":
        not before time has passed, too; or "guest": `interrupt` runs on the thread that is there."""
        self.threads: list[_Thread] = []
        self.current: _Thread
        self.now_s = _BEGIN_S
        self.num_steps = 0
        # Those at which nobody had the reactor's lock.
        self.free_steps: list[int] = []
        self.lock = _Lock(self, True)
        self.is_over = False
        self.is_ready: dict[int, Callable[[], bool]] = {}
        self.interrupt: Callable[[], None] = lambda: None
        self.check: Callable[[], list[str]]
        self.left: list[str] = []
        self._schedule = schedule
        self._paused: list[_Thread] = []
        self._rung: dict[int, int] = {}
        self._ends_late = 0.0
        self._finished = threading.Semaphore(0)
        self._traced = {module.__file__ for module in (reactor, lead)}

    # ---- for the reactor

    def patched(self) -> list[tuple[Any, str, Any]]:
        """(module, name, stand-in) for what the reactor takes from the system."""
        threads = SimpleNamespace(
            Lock=lambda: _Lock(self, False),
            RLock=lambda: self.lock,
            Thread=lambda target, name, daemon: self.thread(target),
            get_ident=lambda: self.current.ident,
            current_thread=lambda: self.current,
            main_thread=lambda: SimpleNamespace(ident=-1),
            TIMEOUT_MAX=math.inf,
        )
        system = SimpleNamespace(
            eventfd=self._eventfd,
            eventfd_read=self._eventfd_read,
            eventfd_write=self._eventfd_write,
            close=lambda fd: None,
            EFD_NONBLOCK=0,
            EFD_CLOEXEC=0,
        )
        poller = SimpleNamespace(epoll=lambda: _Epoll(self), EPOLLIN=READABLE)
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        stand_ins = {"threading": threads, "os": system, "select": poller, "time": clock}
        stand_ins["Standby"] = lambda: _Standby(self)
        of_reactor = [(reactor, name, stand_in) for name, stand_in in stand_ins.items()]
        return [*of_reactor, (timers, "time", clock)]

    def thread(self, target: Callable[[], None]) -> _Thread:
        return _Thread(self, len(self.threads) + 1, target)

    def open(self, is_ready: Callable[[], bool]) -> int:
        fd = len(self.is_ready) + 3
        self.is_ready[fd] = is_ready
        return fd

    def _eventfd(self, value: int, flags: int) -> int:
        fd = self.open(lambda: self._rung[fd] > 0)
        self._rung[fd] = value
        return fd

    def _eventfd_write(self, fd: int, value: int) -> None:
        self._rung[fd] += value

    def _eventfd_read(self, fd: int) -> int:
        value, self._rung[fd] = self._rung[fd], 0
        if not value:
            raise BlockingIOError
        return value

    def block(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """The thread that runs waits. False at the time-out."""
        if self.is_over:
            return True
        me = self.current
        me.condition = condition
        me.deadline_s = math.inf if timeout is None else self.now_s + timeout
        if not me.can_run(self.now_s):
            self.hand_over(me)
        me.condition = None
        return condition()

    # ---- the schedule

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """See sys.settrace."""
        if frame.f_code.co_filename not in self._traced or self.is_over:
            return None
        if event == "line":
            self.step()
        return self.trace

    def step(self) -> None:
        self.num_steps += 1
        if not self.lock.locked():
            self.free_steps.append(self.num_steps)
        what = self._schedule.get(self.num_steps)
        if what is None or self.is_over:
            return
        if what == "guest":
            self.interrupt()
            return
        me = self.current
        me.is_paused = True
        self._paused.append(me)
        self._ends_late = self.now_s + PAUSED_S if what == "long" else self.now_s
        self.hand_over(me)

    def hand_over(self, me: _Thread) -> None:
        """Another thread runs now, until it is this one's turn again."""
        if self.is_over:
            return
        following = self._following()
        if following is None:
            self.left = self.check()
            self.is_over = True
            for thread in self.threads:
                thread.baton.release()
            self._finished.release()
        elif following is not me:
            self.current = following
            following.baton.release()
        else:
            return
        if not me.has_ended:
            me.baton.acquire()
            if self.is_over:
                raise _Over

    def _following(self) -> _Thread | None:
        while True:
            first = self.threads.index(self.current)
            for thread in self.threads[first + 1 :] + self.threads[: first + 1]:
                if thread.can_run(self.now_s):
                    return thread
            next_s = min(
                (t.deadline_s for t in self.threads if t.condition and not t.has_ended), default=math.inf
            )
            if self._paused and next_s > self._ends_late:
                thread = self._paused.pop()
                thread.is_paused = False
                return thread
            if next_s > _END_S:
                return None
            self.now_s = next_s

    def run(self, programs: Iterable[Callable[[], None]]) -> list[str]:
        """Runs a thread for each program; what is left to do when all wait without end."""
        num_before = len(self.threads)
        for program in programs:
            self.thread(program).start()
        self.current = self.threads[num_before]
        self.current.baton.release()
        assert self._finished.acquire(timeout=RUN_TIMEOUT_S), "the machine is broken"
        return self.left

    def join(self) -> None:
        """Until the threads of a run that is over have gone."""
        for thread in self.threads:
            thread._thread.join(RUN_TIMEOUT_S)
