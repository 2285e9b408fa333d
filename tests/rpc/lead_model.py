"""A model of one process with its reactor, run through every interleaving of its threads' steps.

A state is where each thread stands, the real `Lead` (src/rpc/lead.py), and what the reactor has besides:
lock, eventfd, buffers, timers, deques, sockets. A thread's program is the sequence of reactor.py, one step
for each access to what others reach without the lock, and for each hold of the lock. `explore` visits all
states, and returns the way to one from which no way leads to an end where everything is done: there a wake-up
was lost. Only short waits may end by themselves (STANDBY_S, a timer that the poll knows of); a poll or a
sleep without end may not.

The programs are in lead_programs.py. Faults are planted by name (Model.faults), to see that they are found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ray_mono.rpc.lead import Lead

BLOCKED = "blocked"
END = "end"

Step = Callable[["Model", "Thread"], str | None]


class Thread:
    """Where one thread stands. A guest runs on the thread of its host, which stands still meanwhile."""

    __slots__ = ("events", "last_move", "nap", "number", "part", "pc", "program")

    def __init__(self, number: int, program: Program) -> None:
        self.number = number
        self.program = program
        self.pc = 0
        self.nap = 0
        self.part = 0
        # What its poll returned: (bell, sockets, timers).
        self.events = (False, False, False)
        self.last_move = ""  # for whoever compares with the product

    def copy(self) -> Thread:
        other = Thread.__new__(Thread)
        other.number, other.program, other.pc = self.number, self.program, self.pc
        other.nap, other.part, other.events, other.last_move = (
            self.nap,
            self.part,
            self.events,
            self.last_move,
        )
        return other

    @property
    def at(self) -> str:
        return self.program.labels[self.pc] if self.pc < len(self.program.labels) else END


class FlagLead(Lead):
    """As it was: one flag for "rung", which somebody has to reset."""

    def bell(self) -> int:
        return 1 if self.leader and not self.rung else 0

    def rang(self, nap: int) -> None:
        self.rung = 1


class Model:
    """One state of the process."""

    moving: Thread
    """Whose step is being taken."""

    def __init__(self, threads: list[Thread], faults: frozenset[str]) -> None:
        self.faults = faults
        self.lead: Lead = FlagLead() if "flag reset before the eventfd is read" in faults else Lead()
        self.threads = threads
        self.lock = 0
        self.bell = False
        self.queue = 0  # left by finalizers
        self.dirty: tuple[int, ...] = ()  # buffered: the caller who waits for an answer, or 0
        self.timer = self.poll_knows_timer = self.standby = False
        self.wire: tuple[int, ...] = ()  # sent
        self.answers: tuple[int, ...] = ()  # in our sockets
        self.done: frozenset[int] = frozenset()
        self.woken: frozenset[int] = frozenset()  # whose own event is set

    def copy(self) -> Model:
        other = Model.__new__(Model)
        other.__dict__.update(self.__dict__)
        other.threads = [thread.copy() for thread in self.threads]
        lead = other.lead = type(self.lead)()
        for name in Lead.__slots__:
            setattr(lead, name, getattr(self.lead, name))
        lead.sleepers = set(self.lead.sleepers)
        return other

    def key(self) -> Any:
        """Equal for states that differ by nothing that counts; makes numbers that only grow small again."""
        lead = self.lead
        naps = sorted({lead.nap, lead.rung, *(thread.nap for thread in self.threads)} - {0})
        small = {0: 0, **{nap: index for index, nap in enumerate(naps, 1)}}
        if type(lead) is Lead:
            lead.nap, lead.rung, lead._naps = small[lead.nap], small[lead.rung], len(naps)
            for thread in self.threads:
                thread.nap = small[thread.nap]
        lead._changes, lead._seen_changes = 1, int(lead._changes == lead._seen_changes)
        decided = (
            lead.leader,
            lead.nap,
            lead.rung,
            frozenset(lead.sleepers),
            lead._step_down,
            lead._is_wanted,
            lead._seen_changes,
        )
        told = (
            self.bell,
            self.timer,
            self.poll_knows_timer,
            self.standby,
            self.queue,
        )
        at = tuple((thread.pc, thread.nap, thread.part, thread.events) for thread in self.threads)
        return at, self.lock, decided, told, self.dirty, self.wire, self.answers, self.done, self.woken

    @property
    def is_over(self) -> bool:
        """Everything was sent and drained, everyone has an answer, no guest is under way."""
        ended = all(
            thread.program.is_endless or thread.at == END or (thread.program.only_at and not thread.pc)
            for thread in self.threads
        )
        return ended and not (self.dirty or self.queue or self.wire or self.answers)

    # ---- what several steps do

    def flush(self) -> None:
        self.wire += tuple(caller for caller in self.dirty if caller)
        self.dirty = ()

    def settle(self) -> None:
        """Each thing that a finalizer left leads to a message."""
        self.dirty += (0,) * self.queue
        self.queue = 0
        self.flush()

    def set_waiter(self, caller: int) -> None:
        """Waiter.set, by the leader: who is awake rings for nobody."""
        self.done |= {caller}
        if caller in self.lead.sleepers:
            self.lead.sleepers.discard(caller)
            self.woken |= {caller}


class Program:
    """The steps of one thread, by label."""

    def __init__(
        self,
        steps: list[tuple[str, Step]],
        is_endless: bool = False,
        host: int = 0,
        only_at: str = "",
        gives_up: bool = False,
    ) -> None:
        """host: the thread that it runs on, if any; only_at: where that must stand for it to begin.
        gives_up: its wait has an end.
        """
        self.labels = [label for label, _ in steps]
        self.steps = [step for _, step in steps]
        self.is_endless = is_endless
        self.host = host
        self.only_at = only_at
        self.gives_up = gives_up

    def jump(self, label: str) -> int:
        return len(self.steps) if label == END else self.labels.index(label)


# ---------------------------------------------------------------- the search


def successors(model: Model) -> list[tuple[str, Model]]:
    hosted = {t.program.host for t in model.threads if t.program.host and 0 < t.pc < len(t.program.steps)}
    found = []
    for index, thread in enumerate(model.threads):
        if thread.at == END or thread.number in hosted:
            continue
        if thread.program.only_at and not thread.pc:
            host = model.threads[thread.program.host - 1]
            if host.at != thread.program.only_at:
                continue
        ways = [None, "end part"] if thread.program.gives_up and thread.at in ("poll", "sleep") else [None]
        for given_up in ways:
            after = model.copy()
            moved = after.threads[index]
            name = f"{thread.number} {thread.at}"
            Model.moving = moved
            to = given_up or moved.program.steps[moved.pc](after, moved)
            if to == BLOCKED:
                continue
            moved.pc = moved.pc + 1 if to is None else moved.program.jump(to)
            found.append((name, after))
    return found


def explore(programs: list[Program], faults: frozenset[str] = frozenset()) -> tuple[int, list[str] | None]:
    """(states, the steps that lead to one in which something is left undone for good;
    None where there is none).

    The programs' threads are numbered from 1.
    """
    first = Model([Thread(number, program) for number, program in enumerate(programs, 1)], faults)
    came_from: dict[Any, tuple[Any, str]] = {first.key(): (None, "")}
    before: dict[Any, list[Any]] = {}
    over: list[Any] = []
    ahead: deque[tuple[Any, Model]] = deque([(first.key(), first)])
    while ahead:
        key, model = ahead.popleft()
        if model.is_over:
            over.append(key)
        for name, after in successors(model):
            after_key = after.key()
            before.setdefault(after_key, []).append(key)
            if after_key not in came_from:
                came_from[after_key] = (key, name)
                ahead.append((after_key, after))
    good = set(over)
    while over:
        for key in before.get(over.pop(), ()):
            if key not in good:
                good.add(key)
                over.append(key)
    for key in came_from:
        if key not in good:
            way: list[str] = []
            while key is not None:
                key, name = came_from[key]
                way.append(name)
            return len(came_from), way[::-1]
    return len(came_from), None
