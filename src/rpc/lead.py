"""Who reads the sockets, who sleeps, and who has to be woken: the reactor's decisions, without its sockets.

Every thread of a process is in one of these states, and this class moves them. That nobody leads is a state
of the process.

    thread        who wakes it                         how                  what it does first when it wakes
    LEADS awake   nobody has to                        -                    looks at everything before it naps
    LEADS, naps   socket, timer; who leaves a thing    bell (eventfd)       rises, then looks at everything
    SLEEPS        who sets its waiter (the leader)     its own gate         leaves
    background:
      STANDS_BY   its clock, when no caller has led    -                    looks whether to lead
                  for STANDBY_S; who ceases to lead    sets it to now
                  where another sleeps
      SLEEPS_LONG who ceases to lead                   sets the clock       looks whether to lead

    a thing to do is left by            where                        who sees to it
    a handler, a timer (in a turn)      lock held, leader is awake   the leader, at the end of that turn
    a thread that has the lock          buffer, timer, waiter        itself (flush), or the leader: it rings
    a finalizer (any thread, no lock)   a deque                      the leader: it rings
    any of them, while nobody leads     as above                     who leads next, before it naps;
                                                                     the background, at its second look

The rules that no wake-up is lost by:

1. A leader says that it naps (`doze`) before it looks for the last time. Whoever leaves a thing does so
   before it looks at `nap` (`bell`). So one of the two sees the other.
2. A ring belongs to one nap, by its number. Who rings is late at worst, and a late ring makes one more turn,
   never one less. Nothing has to be reset, so nothing can be reset too early.
3. The bell is rung before it is noted (`rang`): who is interrupted in between makes another ring.
4. Who leaves the lead flushes. It wakes the background where somebody sleeps, and sets its clock elsewhere.
5. The background takes the lead where nobody has it and somebody sleeps or handed it over, or where nobody
   had it between two of its looks. They are STANDBY_S apart, and up to PUT_OFF_S more where callers led.

All but `rise`, `bell` and `rang` are called under the reactor's lock. Two tests hold the rules:
tests/rpc/lead_model.py runs these methods through all interleavings, and tests/rpc/machine.py runs the
reactor with a pause at every step.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Sleeper = TypeVar("Sleeper")

NO_PART = 0
LEADS = 1
NESTED = 2
"""Leads already: a signal handler that waits, on the thread that waits below it."""
SLEEPS = 3
STANDS_BY = 4
SLEEPS_LONG = 5


class Lead(Generic[Sleeper]):
    """The state of one reactor. Threads are named by numbers other than 0."""

    __slots__ = (
        "_changes",
        "_is_wanted",
        "_naps",
        "_seen_changes",
        "_step_down",
        "leader",
        "nap",
        "rung",
        "sleepers",
    )

    def __init__(self) -> None:
        self.leader = 0
        # The leader's nap, by its number; 0 while it is awake, or nobody leads.
        self.nap = 0
        # The nap that the bell was rung for last.
        self.rung = 0
        # Waiters of threads that wait without leading.
        self.sleepers: set[Sleeper] = set()
        self._naps = 0
        # Grows whenever a caller begins or ceases to lead.
        self._changes = 0
        # A thread sleeps that could lead itself, did the background not.
        self._step_down = False
        # The background is to lead as soon as nobody else does.
        self._is_wanted = False
        self._seen_changes = -1

    # ---- who waits

    def take(self, me: int) -> int:
        """A thread begins to wait: LEADS, NESTED or SLEEPS (then its waiter belongs into `sleepers`)."""
        if self.leader == 0:
            self.leader = me
            self._changes += 1
            return LEADS
        if self.leader == me:
            return NESTED
        self._step_down = True
        return SLEEPS

    def take_turn(self, me: int, is_busy: bool) -> bool:
        """A thread that does not wait wants to make one turn. is_busy: it wanted one a moment ago, too. Then
        the background makes room for the next one, if it leads."""
        if self.leader == 0:
            self.leader = me
            self._changes += 1
            return True
        self._step_down = self._step_down or is_busy
        return False

    def hand_over(self) -> bool:
        """A thread waits for what comes, and will not lead meanwhile. Whether the background is to look at
        once."""
        self._is_wanted = self.leader == 0
        return self._is_wanted

    def leave(self) -> bool:
        """A caller ceases to lead. Whether the background is to look at once, and not after STANDBY_S."""
        self.leader = self.nap = 0
        self._changes += 1
        return bool(self.sleepers)

    # ---- the leader's nap

    def doze(self) -> None:
        """The leader is about to poll, and looks once more."""
        self._naps += 1
        self.nap = self._naps

    def rise(self) -> None:
        """Its poll has ended. It looks at everything before it naps again."""
        self.nap = 0

    def bell(self) -> int:
        """The nap that has to be ended for something that was left; 0 where none has to. Then:
        ring, `rang(nap)`.
        """
        nap = self.nap
        return nap if nap != self.rung else 0

    def rang(self, nap: int) -> None:
        self.rung = nap

    # ---- the background thread

    def look(self, background: int) -> int:
        """LEADS, STANDS_BY (looks again after STANDBY_S) or SLEEPS_LONG (until somebody ceases to lead)."""
        quiet = self._changes == self._seen_changes
        self._seen_changes = self._changes
        if self.leader == 0:
            if quiet or self.sleepers or self._is_wanted:
                self.leader = background
                self._step_down = self._is_wanted = False
                return LEADS
        elif quiet and not self.sleepers:
            return SLEEPS_LONG
        return STANDS_BY

    @property
    def is_relieved(self) -> bool:
        """Whether the background steps down:
        whoever had to sleep may lead the next time, and nobody sleeps now.
        """
        return self._step_down and not self.sleepers

    def step_down(self) -> None:
        """It stands by first, for whom it made room."""
        self.leader = self.nap = 0
        self._changes += 1
        self._seen_changes = self._changes - 1
