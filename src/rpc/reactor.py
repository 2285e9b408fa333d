"""The core worker's transport loop: whoever waits for an answer reads the sockets.

A round trip through a reader thread costs two thread switches; here a caller that waits takes the *lead*: it polls
the one epoll, parses and runs the handlers inline until its own answer is there. At most one thread leads. Others
that wait meanwhile sleep on an event of their own, which a handler sets.

A background thread leads while nobody else does, so that a process whose user code computes still answers its peers.
It must not get in the way of a caller that waits again and again, so it stands by for STANDBY_S after each time
somebody else led, and steps down when a thread had to wait although it could have led itself. While one leader sits
in a long poll (an idle worker), it sleeps without waking.

    lead:      nobody ──wait()──► caller ──answer──► nobody ──STANDBY_S quiet, or waiters──► background ──step down──► nobody

`lock` is the lock of the whole core worker. Handlers run under it, on whichever thread leads; polling and user code
never do. Writes are collected per connection and sent at the end of a turn, when a caller starts to wait, or at once
when nothing else is in flight there.

KeyboardInterrupt: a signal's handler runs on the main thread, anywhere. The poll itself is a safe place to raise it
(events are level-triggered, the parse state lives in the connections); under the lock, and wherever else our code runs,
it is not: `interrupt` only notes it then, and `wait` raises it (interruption.py).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from ray_mono.rpc.interruption import is_in_runtime

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
STANDBY_S = 0.002
"""How long the background thread leaves the sockets to callers: also the longest delay of a buffered write."""


class Pollable(Protocol):
    """Something with a descriptor in the epoll. Both methods run under the lock."""

    def fileno(self) -> int: ...

    def on_events(self, events: int) -> None: ...

    def abandon(self) -> None:
        """In a fork: closes this process's copy of the descriptor, and nothing else."""
        ...


class Flushable(Protocol):
    def flush(self) -> None: ...


class Waiter:
    """One thread's wait: `set` by a handler, under the lock."""

    __slots__ = ("_event", "_reactor", "done")

    def __init__(self, reactor: Reactor) -> None:
        self.done = False
        self._reactor = reactor
        self._event: threading.Event | None = None

    def set(self) -> None:
        """Ends the wait. Lock held."""
        self.done = True
        if self._event is not None:
            self._reactor._sleepers.discard(self)
            self._event.set()
        else:
            # Its thread leads, or is on its way to: the poll ends, unless this is that very thread.
            self._reactor.wake()


class Timer:
    """A call at a time to come. Lock held for everything."""

    __slots__ = ("callback", "time_s")

    def __init__(self, time_s: float, callback: Callable[[], None]) -> None:
        self.time_s = time_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """One epoll, one lock, any number of threads. Connections are in reactor_channel.py."""

    def __init__(self, name: str) -> None:
        self.lock = threading.RLock()
        self.is_closed = False
        self.interrupted = False
        # The main thread is in `wait`, where an interrupt may be raised.
        self._is_at_rest = False
        # Called at the end of every turn and before a thread begins to lead, under the lock: the owner drains what finalizers queued.
        self.after_turn: Callable[[], None] | None = None
        self._epoll = select.epoll()
        self._pollables: dict[int, Pollable] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._wake_sent = False
        self._dirty: list[Flushable] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_counter = itertools.count()
        self._main_ident = threading.main_thread().ident
        self._leader = 0  # thread ident
        self._lead_count = 0  # grows whenever a caller leads or stops
        self._poll_until_s = 0.0  # when the leader's poll ends by itself
        self._sleepers: set[Waiter] = set()
        self._step_down = False
        self._wake_on_leave = False
        self._is_freed = False
        self._standby = threading.Event()
        self._thread = threading.Thread(target=self._background, name=f"{name}-reader", daemon=True)
        self._thread.start()

    # ---- waiting

    def wait(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Blocks until waiter.set(), leading if nobody does. False at the timeout. The lock must not be held by this thread.

        Raises KeyboardInterrupt if `interrupt` noted one.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        me = threading.get_ident()
        self._wait(waiter, deadline_s, me, me == self._main_ident)
        if self.interrupted:
            self.raise_if_interrupted()
        return waiter.done

    def _wait(self, waiter: Waiter, deadline_s: float | None, me: int, on_main: bool) -> None:
        with self.lock:
            self._settle()
            if waiter.done:
                return
            # A second interrupt, or a signal handler that waits too, can find itself here.
            leads = self._leader in (0, me)
            if leads:
                self._leader = me
                self._lead_count += 1
            else:
                waiter._event = threading.Event()
                self._sleepers.add(waiter)
                self._step_down = True
        try:
            while not waiter.done and not self.is_closed:
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return
                if leads:
                    self._turn(left_s, on_main)
                else:
                    self._sleep(waiter, left_s, on_main)
        finally:
            if on_main:
                self._is_at_rest = False
            with self.lock:
                if leads:
                    self._leave()
                self._sleepers.discard(waiter)

    def _sleep(self, waiter: Waiter, timeout_s: float | None, on_main: bool) -> None:
        assert waiter._event is not None
        if on_main:
            self._is_at_rest = True
            self.raise_if_interrupted()
        waiter._event.wait(timeout_s)
        if on_main:
            self._is_at_rest = False

    def _leave(self) -> None:
        self._leader = 0
        self._lead_count += 1
        if self.is_closed:
            self._free()
        if self._wake_on_leave or self._sleepers:
            self._wake_on_leave = False
            self._standby.set()

    def raise_if_interrupted(self) -> None:
        if self.interrupted and threading.get_ident() == self._main_ident:
            self.interrupted = False
            raise KeyboardInterrupt

    def interrupt(self, frame: FrameType | None) -> None:
        """For a SIGINT handler on the main thread: raises KeyboardInterrupt here and now where that is safe, else notes it for `wait`."""
        if self.may_interrupt(frame):
            self.interrupted = False
            raise KeyboardInterrupt
        self.interrupted = True

    def may_interrupt(self, frame: FrameType | None) -> bool:
        """For a signal handler on the main thread that interrupted `frame`: whether it may raise, and leaves nothing of ours half
        changed. True in a wait once: then it has to raise.
        """
        if self._is_at_rest:
            self._is_at_rest = False
            return True
        return not self.lock._is_owned() and not is_in_runtime(frame)  # type: ignore[attr-defined]

    # ---- one turn

    def _turn(self, timeout_s: float | None, on_main: bool = False) -> None:
        """Polls once and runs what came. Only the leader calls it, without the lock. On the main thread it may raise KeyboardInterrupt."""
        now_s = time.monotonic()
        until_s = now_s + 3600.0 if timeout_s is None else now_s + timeout_s
        with self.lock:
            if self._timers and self._timers[0][0] < until_s:
                until_s = self._timers[0][0]
            self._poll_until_s = until_s
        if on_main:
            self._is_at_rest = True
            if self.interrupted:
                self.raise_if_interrupted()
        events = self._epoll.poll(max(0.0, until_s - now_s))
        if on_main:
            self._is_at_rest = False
        with self.lock:
            for fd, mask in events:
                if fd == self._wake_fd:
                    self._wake_sent = False
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                    continue
                pollable = self._pollables.get(fd)
                if pollable is not None:
                    try:
                        pollable.on_events(mask)
                    except Exception:
                        logger.exception("a handler failed; this is a bug of ray_mono")
            self._run_timers()
            self._settle()

    def _settle(self) -> None:
        """What handlers and finalizers left goes out. Also before a first poll: finalizers do not wake a reactor that nobody leads."""
        if self.after_turn is not None:
            try:
                self.after_turn()
            except Exception:
                # It must not cost the thread that leads: nobody would be answered any more.
                logger.exception("the end of a turn failed; this is a bug of ray_mono")
        self.flush()

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                try:
                    timer.callback()
                except Exception:
                    logger.exception("a timer failed; this is a bug of ray_mono")

    def _background(self) -> None:
        me = threading.get_ident()
        seen = -1
        while not self.is_closed:
            with self.lock:
                free = self._leader == 0
                quiet = self._lead_count == seen
                seen = self._lead_count
                take = free and (quiet or bool(self._sleepers))
                sleep_long = not free and quiet and not self._sleepers
                self._standby.clear()
                if take:
                    self._leader = me
                    self._step_down = False
                    self._settle()
                else:
                    self._wake_on_leave = sleep_long
            if not take:
                self._standby.wait(None if sleep_long else STANDBY_S)
                continue
            while not self.is_closed and not (self._step_down and not self._sleepers):
                try:
                    self._turn(None)
                except (OSError, ValueError):
                    if not self.is_closed:
                        logger.exception("polling failed")
                        os._exit(1)
            with self.lock:
                if self._leader == me:
                    self._leader = 0
                self._lead_count += 1
                seen = self._lead_count - 1

    # ---- what connections use; the lock is held

    def add(self, pollable: Pollable, events: int) -> None:
        self._pollables[pollable.fileno()] = pollable
        self._epoll.register(pollable.fileno(), events)

    def modify(self, pollable: Pollable, events: int) -> None:
        self._epoll.modify(pollable.fileno(), events)

    def remove(self, fd: int) -> None:
        if self._pollables.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def mark_dirty(self, connection: Flushable) -> None:
        """`connection` has buffered writes: they go at the end of the turn, at the next wait, or with the background thread.

        Who leaves them to the background thread calls `wake` too, in case that is in a long poll.
        """
        self._dirty.append(connection)

    def flush(self) -> None:
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                try:
                    connection.flush()
                except Exception:
                    logger.exception("a connection could not be flushed; this is a bug of ray_mono")

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.time_s, next(self._timer_counter), timer))
        if self._leader and timer.time_s < self._poll_until_s:
            self.wake()
        return timer

    def wake(self) -> None:
        """Ends the leader's poll. Safe in a finalizer and in any thread: takes no lock. A no-op on the leader itself."""
        if not self._wake_sent and not self._is_freed and self._leader not in (0, threading.get_ident()):
            self._wake_sent = True
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)

    def abandon(self) -> None:
        """In a fork: this copy does nothing any more. Its lock may be held by a thread that exists only in the parent.

        Its copies of the sockets are closed, or peers would not notice the end of the parent while the child lives.
        Nothing is unregistered: the epoll behind the descriptor is the parent's.
        """
        self.lock = threading.RLock()
        self.is_closed = True
        self._leader = 0
        self._dirty = []
        pollables, self._pollables = self._pollables, {}
        for pollable in pollables.values():
            pollable.abandon()
        if not self._is_freed:
            self._is_freed = True
            self._epoll.close()
            os.close(self._wake_fd)

    def close(self) -> None:
        """Stops the background thread and wakes every waiter; connections are their owner's to close first."""
        with self.lock:
            if self.is_closed:
                return
            self.flush()
            self.is_closed = True
            for waiter in list(self._sleepers):
                assert waiter._event is not None
                waiter._event.set()
            self._standby.set()
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=JOIN_TIMEOUT_S)
        with self.lock:
            if self._leader in (0, threading.get_ident()):
                self._free()
            # Else a caller still polls: it frees what it polls when it leaves.

    def _free(self) -> None:
        """The descriptors go, once, when nobody polls any more. Lock held."""
        if not self._is_freed:
            self._is_freed = True
            self._epoll.close()
            os.close(self._wake_fd)
