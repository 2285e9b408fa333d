"""The core worker's transport loop: whoever waits for an answer reads the sockets.

A round trip through a reader thread costs two thread switches. Here a caller that waits takes the *lead*: it
polls the one epoll, parses, and runs the handlers inline until its own answer is there. At most one thread
leads. Others that wait meanwhile sleep, each on a gate of its own, which a handler opens. Who may do what
when, and who wakes whom, is decided in lead.py: its table is the theory of this file.

A background thread leads while nobody else does, so that a process whose user code computes still answers its
peers. It must not get in the way of a caller that waits again and again. So it stands by for STANDBY_S after
each time somebody else led (standby.py), and steps down when a thread had to sleep that could have led
itself. While one leader sits in a long poll (an idle worker), the background sleeps without waking.

A thread that makes call after call without a wait leads as well, for a turn now and then (`take_turn`). Else
the background would compete with it for the interpreter, and win it once in 5 ms. Who waits for a future does
not lead, and says so (`hand_over`).

    nobody leads ──wait()──► a caller leads ──its answer──► nobody leads
                 ──take_turn()──► a caller leads ──one turn──► nobody leads
                 ──nobody led between two looks of the background,
                   somebody sleeps, or hand_over()──► the background leads
                 ◄──relieved── the background leads

`lock` is the lock of the whole core worker. Handlers run under it, on whichever thread leads; polling and
user code never do. Writes are collected per connection, and sent at the end of a turn or when a caller starts
to wait. A write by a thread that does not lead rings the leader, unless that thread says that it sends by
itself (`rings=False`): then it calls `flush`, or `flush_soon`, before it lets go of the lock.

KeyboardInterrupt: a signal's handler runs on the main thread, anywhere. The poll is a safe place to raise it:
events are level-triggered, and the parse state lives in the connections. Under the lock, and wherever else
our code runs, it is not: there `takes_interrupt` only notes it, and `wait` raises it (interruption.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Sequence, Sized
from types import FrameType
from typing import Protocol, TypeAlias

from ray_mono.common.our_bug import OUR_BUG, known
from ray_mono.rpc.interruption import is_in_runtime
from ray_mono.rpc.lead import LEADS, NESTED, NO_PART, SLEEPS, SLEEPS_LONG, Lead
from ray_mono.rpc.standby import PUT_OFF_S, Standby
from ray_mono.rpc.timers import Timer, Timers

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
BUSY_S = 0.002
"""A thread that wants a turn again so soon makes many calls."""
LATE_FLUSH_S = 0.004
"""The longest delay of a write that nobody rang for. While such writes keep coming the leader wakes so often,
which costs the thread that makes them: with 1 ms 4 to 7 % of an actor's short calls."""


class Pollable(Protocol):
    """Something with a descriptor in the epoll. Both methods run under the lock."""

    def fileno(self) -> int: ...

    def on_events(self, events: int) -> None: ...

    def abandon(self) -> None:
        """In a fork: closes this process's copy of the descriptor, and nothing else."""
        ...


class Flushable(Protocol):
    def flush(self) -> None: ...


class Wakeable(Protocol):
    def wake(self) -> None: ...


Sleepers: TypeAlias = "set[Waiter]"


class Waiter:
    """One thread's wait on a reactor."""

    __slots__ = ("_gate", "_reactor", "_sleepers", "done")

    def __init__(self, reactor: Wakeable) -> None:
        self.done = False
        self._reactor = reactor
        # Those that this one is among while it sleeps.
        self._sleepers: Sleepers
        # While its thread sleeps: locked until the wait is over.
        # An Event has steps of Python's, between which a signal's handler may wait.
        self._gate: threading.Lock | None = None

    def set(self) -> None:
        """Ends the wait. Lock held."""
        self.done = True
        if self._gate is not None:
            self._sleepers.discard(self)
            self.open()
        else:
            # Its thread leads, or is on its way to: the poll ends.
            self._reactor.wake()

    def fall_asleep(self, sleepers: Sleepers) -> None:
        """It is one of these now, until it is done or wakes up. Lock held."""
        self._sleepers = sleepers
        self._gate = threading.Lock()
        self._gate.acquire()
        sleepers.add(self)

    def sleep(self, deadline_s: float, look_s: float) -> None:
        """Until `open`, or the deadline; looks for signals every look_s. Without the lock."""
        gate = known(self._gate, "what a waiter sleeps on")
        is_over = False
        while not is_over:
            left_s = math.inf if deadline_s == math.inf else max(0.0, deadline_s - time.monotonic())
            step_s = min(left_s, look_s)
            is_over = (
                gate.acquire(timeout=-1 if step_s > threading.TIMEOUT_MAX else step_s) or left_s <= step_s
            )

    def open(self) -> None:
        """Wakes its thread, if that sleeps. Lock held."""
        if self._gate is not None and self._gate.locked():
            self._gate.release()

    def wake_up(self) -> None:
        """It sleeps no more: it may wait again, and lead then. Lock held."""
        self._sleepers.discard(self)
        self._gate = None


class Reactor:
    """One epoll, one lock, any number of threads. Connections are in reactor_channel.py."""

    def __init__(self, name: str) -> None:
        self.lock = threading.RLock()
        self.is_closed = False
        self.interrupted = False
        self.look_s = math.inf
        # The main thread is in `wait`, where an interrupt may be raised.
        self._is_at_rest = False
        self._served: list[tuple[Sequence[Sized], Callable[[], None]]] = []
        self._queues: tuple[Sized, ...] = ()  # all of these
        self._epoll = select.epoll()
        self._pollables: dict[int, Pollable] = {}
        # Added since the leader looked:
        # what its poll says of such a descriptor may be of the one that had its number before.
        self._new: set[int] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # With this object and not before:
        # whoever is about to ring would write into somebody else's descriptor.
        self._close_wake_fd = weakref.finalize(self, os.close, self._wake_fd)
        self._close_wake_fd.atexit = False
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._dirty: list[Flushable] = []
        self._timers = Timers()
        self._late_flush: Timer | None = None
        # Since it was last looked at something was left to it.
        self._flushes_late = False
        self._main_ident = threading.main_thread().ident
        self._lead: Lead[Waiter] = Lead()
        self._poll_until_s = 0.0  # when the leader's poll ends by itself
        self._is_freed = False
        self._standby = Standby()
        # Before that it need not be put off again.
        self._put_off_again_s = 0.0
        self._wanted_turn_s = 0.0
        self._thread = threading.Thread(target=self._background, name=f"{name}-reader", daemon=True)
        self._thread.start()

    def serve_queues(self, queues: Sequence[Sized], drain: Callable[[], None]) -> None:
        """Finalizers and others, any thread without the lock, leave things in `queues`, and then call `wake`.

        drain() takes them out, under the lock:
        at the end of each turn in which there are any, and before a thread polls. Of several, each takes out
        what is of its queues, in the order in which they came here.
        """
        self._served.append((queues, drain))
        self._queues += tuple(queues)

    # ---- waiting

    def wait(self, waiter: Waiter, timeout_s: float | None = None) -> bool:
        """Blocks until waiter.set(), leading if nobody does. False at the timeout.
        The lock must not be held by this thread.

        Raises KeyboardInterrupt if one was noted.
        """
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        me = threading.get_ident()
        self._take_turns(waiter, deadline_s, me, me == self._main_ident)
        if self.interrupted:
            self.raise_if_interrupted()
        return waiter.done

    def rest_in(self, wait: Callable[[float | None], bool], timeout_s: float | None) -> bool:
        """wait(timeout_s), which is Python's, and says whether what it is for has come. So it is no wait of
        ours; but an interrupt, or a handler of the user's, may raise in it. The lock must not be held.

        Raises KeyboardInterrupt if one was noted.
        """
        if threading.get_ident() != self._main_ident:
            return wait(timeout_s)
        try:
            self._is_at_rest = True
            self.raise_if_interrupted()
            return wait(timeout_s)
        finally:
            self._is_at_rest = False

    def _take_turns(self, waiter: Waiter | None, deadline_s: float, me: int, on_main: bool) -> None:
        """Leads, turn after turn, until the waiter is done or its time is over.
        Where another leads it sleeps instead.

        The background has no waiter: it leads already, and does until it is relieved. The lock is not held.
        On the main thread it may raise KeyboardInterrupt.
        """
        lead = self._lead
        part = LEADS if waiter is None else NO_PART
        events: list[tuple[int, int]] | None = None  # None before the first poll
        try:
            while True:
                with self.lock:
                    if events is not None:
                        self._handle(events)
                    # What handlers, finalizers and others left. Before the first poll, too:
                    # nobody wakes a reactor that nobody leads.
                    if self._dirty or any(self._queues):
                        self._settle()
                    if (
                        self.is_closed
                        or (lead.is_relieved if waiter is None else waiter.done)
                        or (deadline_s != math.inf and deadline_s <= time.monotonic())
                    ):
                        if part == LEADS and waiter is not None and not self.is_closed:
                            # As most waits end: in the same hold of the lock. The others end below.
                            part = NO_PART
                            self._leave()
                        return
                    if waiter is not None and part == NO_PART:
                        part = lead.take(me)
                        if part == SLEEPS:
                            waiter.fall_asleep(lead.sleepers)
                    if part != SLEEPS:
                        # From here on whoever leaves a thing rings.
                        # So this look is the last one before the poll.
                        lead.doze()
                        if self._dirty or any(self._queues):
                            self._settle()
                        self._poll_until_s = until_s = min(self._timers.first_s, deadline_s)
                if on_main:
                    self._is_at_rest = True
                    if self.interrupted:
                        self.raise_if_interrupted()
                if waiter is not None and part == SLEEPS:
                    waiter.sleep(deadline_s, self.look_s if on_main else math.inf)
                    return
                left_s = math.inf if until_s == math.inf else max(0.0, until_s - time.monotonic())
                if on_main and left_s > self.look_s:
                    left_s = self.look_s
                events = self._epoll.poll(None if left_s == math.inf else left_s)
                if on_main:
                    self._is_at_rest = False
                lead.rise()
        finally:
            if on_main:
                self._is_at_rest = False
            if part != NO_PART:
                with self.lock:
                    self._end_part(part, waiter)

    def take_turn(self) -> None:
        """One turn without a wait, for a thread that makes call after call and does not wait for the answers.
        So it reads them itself, and the background need not compete with it for the interpreter. Nothing
        happens where another leads."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            return  # in the middle of something, which a finalizer of the user's has interrupted
        with self.lock:
            now_s = time.monotonic()
            is_busy, self._wanted_turn_s = now_s - self._wanted_turn_s < BUSY_S, now_s
            if self.is_closed or not self._lead.take_turn(threading.get_ident(), is_busy):
                return
            self._handle(self._epoll.poll(0))
            self._settle()
            self._leave()

    def hand_over(self) -> None:
        """A thread waits for what comes by other means than `wait`. Lock held."""
        if self._lead.hand_over():
            self._standby.wake()

    def _leave(self) -> None:
        """A caller ceases to lead. Lock held."""
        if self._lead.leave():
            self._standby.wake()
            return
        now_s = time.monotonic()
        if now_s >= self._put_off_again_s:
            self._put_off_again_s = now_s + PUT_OFF_S
            self._standby.put_off()

    def _handle(self, events: list[tuple[int, int]]) -> None:
        """What a poll told, and the timers that are due. Lock held."""
        for fd, mask in events:
            pollable = self._pollables.get(fd)
            if pollable is None:
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
            elif fd not in self._new:
                try:
                    pollable.on_events(mask)
                except Exception:
                    logger.exception("a handler failed; %s", OUR_BUG)
        self._new.clear()
        if self._timers.first_s <= time.monotonic():
            self._timers.run()

    def _end_part(self, part: int, waiter: Waiter | None) -> None:
        """What a thread does that leads or sleeps no more, an interrupt perhaps in between. Lock held."""
        if waiter is None:
            self._lead.step_down()
        elif part == LEADS:
            if self._dirty:
                self.flush()
            self._leave()
            if self.is_closed:
                self._free()
        elif part == SLEEPS:
            waiter.wake_up()
        elif part == NESTED and not self._is_freed:
            # The wait below this one looks as well: what was rung for it may have ended our polls.
            self._lead.rise()
            os.eventfd_write(self._wake_fd, 1)

    def _settle(self) -> None:
        """The owner sees to what was left in the queues, and what is buffered goes out. Lock held."""
        for queues, drain in self._served:
            if any(queues):
                try:
                    drain()
                except Exception:
                    # It must not cost the thread that leads: nobody would be answered any more.
                    logger.exception("the end of a turn failed; %s", OUR_BUG)
        if self._dirty:
            self.flush()

    def _background(self) -> None:
        me = threading.get_ident()
        while True:
            with self.lock:
                if self.is_closed:
                    return
                part = self._lead.look(me)
                if part == SLEEPS_LONG:
                    # No caller has ceased to lead for STANDBY_S. So the next one sets the clock.
                    self._standby.sleep_long()
                elif part != LEADS:
                    self._standby.stand_by()
            if part != LEADS:
                self._standby.wait()
                continue
            try:
                self._take_turns(None, math.inf, me, False)
            except (OSError, ValueError):
                if not self.is_closed:
                    logger.exception("polling failed")
                    os._exit(1)

    # ---- interrupts

    def raise_if_interrupted(self) -> None:
        if self.interrupted and threading.get_ident() == self._main_ident:
            self.interrupted = False
            raise KeyboardInterrupt

    def note_interrupt(self, is_wanted: bool = True) -> None:
        """The main thread's next wait raises KeyboardInterrupt. Not is_wanted: it does so no more."""
        self.interrupted = is_wanted

    def look_for_signals(self, every_s: float) -> None:
        """How long the main thread waits at most without a look for signals (signal_handlers.py)."""
        self.look_s = every_s

    def takes_interrupt(self, frame: FrameType | None) -> bool:
        """For a SIGINT handler on the main thread: whether it is to raise KeyboardInterrupt here and now.
        Else that is noted for `wait`.
        """
        self.interrupted = not self.may_interrupt(frame)
        return not self.interrupted

    def may_interrupt(self, frame: FrameType | None) -> bool:
        """For a signal handler on the main thread that interrupted `frame`: whether it may raise, and leaves
        nothing of ours half changed. True in a wait once: then it has to raise.
        """
        may = self.may_run_handler(frame)
        if may:
            self._is_at_rest = False
        return may

    def may_run_handler(self, frame: FrameType | None) -> bool:
        """The same for a handler that may raise, call the API, or neither."""
        is_ours = self.lock._is_owned() or is_in_runtime(frame)  # type: ignore[attr-defined]
        return self._is_at_rest or not is_ours

    @property
    def is_at_rest(self) -> bool:
        """Whether the main thread is in a wait, and nothing of ours half changed."""
        return self._is_at_rest

    def run_at_rest(self, handler: Callable[[], object]) -> None:
        """Runs what came in a wait. If it raises, that ends; else it goes on."""
        self._is_at_rest = False
        handler()
        self._is_at_rest = True

    # ---- what connections use; the lock is held

    def add(self, pollable: Pollable, events: int) -> None:
        self._pollables[pollable.fileno()] = pollable
        self._new.add(pollable.fileno())
        self._epoll.register(pollable.fileno(), events)

    def modify(self, pollable: Pollable, events: int) -> None:
        self._epoll.modify(pollable.fileno(), events)

    def remove(self, fd: int) -> None:
        if self._pollables.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def mark_dirty(self, connection: Flushable, rings: bool = True) -> None:
        """`connection` has buffered writes:
        they go at the end of this turn, or of one that the leader is woken for.

        Who says rings=False calls `flush` or `flush_soon` before it lets go of the lock.
        """
        self._dirty.append(connection)
        if rings and self._lead.nap:
            self.wake()

    def flush_soon(self) -> None:
        """What was buffered without a ring, or left in a queue, goes within LATE_FLUSH_S;
        what others buffer meanwhile goes with it. Any thread; without the lock for what is in a queue.
        """
        self._flushes_late = True
        if self._lead.nap and self._late_flush is None:
            with self.lock:
                if self._late_flush is None:
                    self._late_flush = self.call_later(LATE_FLUSH_S, self._flush_late)

    def _flush_late(self) -> None:
        """The turn that this runs in flushes. While there is more each time the leader looks by itself:
        rings cost as much as calls.
        """
        is_busy, self._flushes_late = self._flushes_late, False
        self._late_flush = self.call_later(LATE_FLUSH_S, self._flush_late) if is_busy else None

    def flush(self) -> None:
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                try:
                    connection.flush()
                except Exception:
                    logger.exception("a connection could not be flushed; %s", OUR_BUG)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = self._timers.add(delay_s, callback)
        if self._lead.nap and timer.time_s < self._poll_until_s:
            self.wake()
        return timer

    def wake(self) -> None:
        """Ends the leader's poll, if it sleeps. Takes no lock: for finalizers and any thread, the leader's
        too (a signal handler of the user's, say, while it polls).
        """
        lead = self._lead
        if not lead.nap:
            return
        nap = lead.bell()
        if nap:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)
            lead.rang(nap)

    def abandon(self) -> None:
        """In a fork: this copy does nothing any more.
        Its lock may be held by a thread that exists only in the parent.

        Its copies of the sockets are closed, or peers would not notice the end of the parent while the child
        lives. Nothing is unregistered: the epoll behind the descriptor is the parent's.
        """
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]
        self.is_closed = True
        self._lead = Lead()
        self._dirty = []
        pollables, self._pollables = self._pollables, {}
        for pollable in pollables.values():
            pollable.abandon()
        self._free()
        self._close_wake_fd()
        self._standby.close()

    def close(self) -> None:
        """Stops the background thread and wakes every waiter;
        connections are their owner's to close first.
        """
        with self.lock:
            if self.is_closed:
                return
            self.flush()
            self.is_closed = True
            for waiter in list(self._lead.sleepers):
                waiter.open()
            self._standby.wake()
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=JOIN_TIMEOUT_S)
        with self.lock:
            if self._lead.leader == 0 or threading.current_thread() is self._thread:
                self._free()
            # Else a caller still polls, this thread perhaps, below a signal handler:
            # it frees what it polls when it leaves.

    def _free(self) -> None:
        """The epoll goes, once, when nobody polls any more. Lock held."""
        if not self._is_freed:
            self._is_freed = True
            self._lead.rise()
            self._epoll.close()
