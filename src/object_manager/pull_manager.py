"""Which objects are copied here next, and from whom.

A machine without I/O, and without the bytes: it asks for fetches and is told how they went. It keeps one pull
per object, however many Gets want it, and only for Gets that are admitted (admission.py): memory is promised
to them. A pull takes its holders in turn, in the order in which owners named them. When none gave the object
it is lost, with a reason for each.

    WAITING   for a place, in order of (priority, arrival)
    FETCHING  from a holder; a place is taken. A holder that sends the object to other nodes already names one
              of these instead, which passes it on: it is asked next (senders.py)
    NO_MEMORY it was refused a place in the store, which has to get pages first, or has its memory in pieces:
              tried again when memory came free

A pull may start if fewer than `active_max` run that are as urgent or more so. So nothing waits for a place
that something less urgent has, and at most three times as many run.

The other holders may bring some of a large object meanwhile (holder_streams.py): what the first one does is
all that counts here.

Room is asked for with the first byte at hand (the header of a fetch names the size). So a pull that waits
holds no stream. What a broken fetch has brought is kept by whoever fetches; the next holder continues there.
A pull whose Gets gave way is cancelled, and what it has brought goes.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check
from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.keys import NodeKey, ObjectKey


class PullState(enum.Enum):
    WAITING = "waiting for its turn"
    FETCHING = "fetching"
    NO_MEMORY = "waiting for memory"


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Effect: fetch the object from this node; if it is larger than max_bytes, only learn its size."""

    object_id: ObjectKey
    node_id: NodeKey
    max_bytes: int
    is_sent_on: bool = False  # another holder has said that this node passes it on
    avoided: tuple[NodeKey, ...] = ()  # these did not give it
    others: tuple[NodeKey, ...] = ()  # these may be asked for some of it at the same time


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Effect: the fetch that runs, and what it has brought, is for nobody."""

    object_id: ObjectKey


@dataclass(frozen=True, slots=True)
class PullLost:
    """Effect: no holder gave the object; what came of it is for nobody."""

    object_id: ObjectKey
    reason: str


PullEffect = StartFetch | StopFetch | PullLost


@dataclass(slots=True)
class Pull:
    """One object on its way here."""

    object_id: ObjectKey
    holders: list[NodeKey]  # not tried yet, or to be tried again
    priority: Priority
    number: int  # in order of arrival
    state: PullState = PullState.WAITING
    is_wanted: bool = True  # False only while FETCHING: bytes that are on their way may come
    current: NodeKey | None = None  # set exactly while FETCHING
    failures: dict[NodeKey, str] = field(default_factory=dict)
    relay: NodeKey | None = None  # asked next: a holder has said that it passes the object on
    is_relayed: bool = False  # while FETCHING: `current` was the relay
    place: Priority | None = None  # while FETCHING: the class in which it counts
    needed_bytes: int = 0  # in NO_MEMORY: how much room it waits for

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.number


class PullManager:
    """Events in, effects out. schedule() is to be called when `changes` grew, or memory came free."""

    def __init__(self, active_max: int) -> None:
        self._active_max = active_max
        self._pulls: dict[ObjectKey, Pull] = {}
        self._waiting: list[tuple[tuple[int, int], ObjectKey]] = []  # a heap; some are out of date
        self._next_number = 0
        self._active = dict.fromkeys(Priority, 0)  # by class of places
        # Grows whenever schedule() may have something new to do, memory aside.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._pulls)

    def __contains__(self, object_id: ObjectKey) -> bool:
        return object_id in self._pulls

    @property
    def num_active(self) -> int:
        return sum(self._active.values())

    def asked(self, object_id: ObjectKey) -> NodeKey | None:
        """Which node sends the object now."""
        pull = self._pulls.get(object_id)
        return None if pull is None else pull.current

    def want(self, object_id: ObjectKey, locations: Iterable[NodeKey], priority: Priority) -> None:
        """Somebody waits for the object; locations that are new to its pull are tried last."""
        self.changes += 1
        pull = self._pulls.get(object_id)
        if pull is None:
            holders = list(dict.fromkeys(locations))
            self._pulls[object_id] = Pull(object_id, holders, priority, self._next_number)
            self._next_number += 1
            self._queue(self._pulls[object_id])
            return
        pull.is_wanted = True
        known = {*pull.holders, *pull.failures, pull.current}
        pull.holders += [node for node in dict.fromkeys(locations) if node not in known]
        if priority < pull.priority:
            pull.priority = priority
            self._queue(pull)

    def unwant(self, object_id: ObjectKey) -> None:
        """Nobody waits for it any more: forgotten, unless bytes are on their way already."""
        pull = self._pulls.get(object_id)
        if pull is None:
            return
        if pull.state is PullState.FETCHING:
            pull.is_wanted = False
        else:
            self._forget(object_id)

    def cancel(self, object_id: ObjectKey) -> list[PullEffect]:
        """It was freed, appeared here by itself, or gives way."""
        is_running = self._stop(object_id) is not None
        self._forget(object_id)
        return [StopFetch(object_id)] if is_running else []

    def schedule(self, obtainable_bytes: int) -> list[PullEffect]:
        """Starts what there are places and memory for. obtainable_bytes: free, or free after evictions."""
        effects: list[PullEffect] = []
        refused: list[Pull] = []
        while self._waiting:
            order, object_id = self._waiting[0]
            pull = self._pulls.get(object_id)
            if pull is None or pull.order != order or pull.state is PullState.FETCHING:
                heapq.heappop(self._waiting)
                continue
            if sum(self._active[each] for each in Priority if each <= pull.priority) >= self._active_max:
                break  # nor is there a place for what is less urgent
            heapq.heappop(self._waiting)
            if pull.needed_bytes > obtainable_bytes:
                refused.append(pull)
                continue
            obtainable_bytes -= pull.needed_bytes
            effects.append(self._start(pull, obtainable_bytes + pull.needed_bytes))
            pull.needed_bytes = 0
        for pull in refused:
            self._queue(pull)
        return effects

    # ---- how a fetch ended; each is ignored where the pull was cancelled meanwhile

    def fetched(self, object_id: ObjectKey) -> None:
        """The object is here, sealed."""
        if self._stop(object_id) is not None:
            self._forget(object_id)

    def fetch_failed(self, object_id: ObjectKey, reason: str, has_brought: bool = False) -> list[PullEffect]:
        """The holder did not give it (all of it): the next one is tried, or the object is lost. A holder that
        gave some of it is asked again, after the others: so often at most as the object has bytes."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.current is None:
            return []
        if not has_brought:
            pull.failures[pull.current] = reason
        elif not pull.is_relayed:
            pull.holders.append(pull.current)
        self._stop(object_id)
        if pull.holders and pull.is_wanted:
            return []
        self._forget(object_id)
        reasons = "; ".join(f"node {node.hex()}: {why}" for node, why in pull.failures.items())
        return [PullLost(object_id, f"no node gave it ({reasons})")]

    def announced(self, object_id: ObjectKey) -> list[PullEffect]:
        """The holder only told of it, and by now there is memory for it: the same holder is asked again."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.current is None:
            return []
        if pull.is_relayed:
            pull.relay = pull.current
        else:
            pull.holders.insert(0, pull.current)
        self._stop(object_id)
        return self._go_on(pull)

    def sent_on(self, object_id: ObjectKey, relay: NodeKey) -> list[PullEffect]:
        """The holder sends it to this node, which passes it on: it is asked next, and then the holder again.

        A node that looks for a sender begins at a holder, and no earlier relay is asked again unless it is
        named again. So it never comes to a node that waits for it."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.current is None:
            return []
        if relay in pull.failures:
            return self.fetch_failed(object_id, f"it names node {relay.hex()}, which did not give it")
        if not pull.is_relayed:
            pull.holders.insert(0, pull.current)
        pull.relay = relay
        self._stop(object_id)
        return self._go_on(pull)

    def no_memory(self, object_id: ObjectKey, size_bytes: int) -> list[PullEffect]:
        """The holder has it, and there was no room here. The same holder is asked again when there is."""
        changes = self.changes
        effects = self.announced(object_id)
        pull = self._pulls.get(object_id)
        if pull is not None:
            self.changes = changes  # it would be refused again; memory that comes free is what it waits for
            pull.needed_bytes = size_bytes
            pull.state = PullState.NO_MEMORY
        return effects

    def of(self, object_id: ObjectKey) -> Pull | None:
        """One pull, for people."""
        return self._pulls.get(object_id)

    def pulls(self) -> list[Pull]:
        """Every pull, for people."""
        return list(self._pulls.values())

    def _go_on(self, pull: Pull) -> list[PullEffect]:
        if pull.is_wanted:
            return []
        self._forget(pull.object_id)
        return [PullLost(pull.object_id, "nobody waits for it any more")]

    def _queue(self, pull: Pull) -> None:
        if pull.state is not PullState.FETCHING:
            heapq.heappush(self._waiting, (pull.order, pull.object_id))

    def _start(self, pull: Pull, max_bytes: int) -> StartFetch:
        pull.state = PullState.FETCHING
        pull.is_relayed = pull.relay is not None
        pull.current = pull.holders.pop(0) if pull.relay is None else pull.relay
        pull.relay = None
        pull.place = pull.priority
        self._active[pull.place] += 1
        avoided = tuple(pull.failures)
        others = () if pull.is_relayed else tuple(pull.holders)
        return StartFetch(pull.object_id, pull.current, max(1, max_bytes), pull.is_relayed, avoided, others)

    def _forget(self, object_id: ObjectKey) -> None:
        self.changes += 1
        self._pulls.pop(object_id, None)

    def _stop(self, object_id: ObjectKey) -> Pull | None:
        pull = self._pulls.get(object_id)
        if pull is None or pull.place is None:
            return None
        self.changes += 1
        self._active[pull.place] -= 1
        pull.state = PullState.WAITING
        pull.current = pull.place = None
        self._queue(pull)
        return pull

    def check_invariants(self) -> None:
        """Raises InternalError."""
        active = dict.fromkeys(Priority, 0)
        for pull in self._pulls.values():
            if pull.place is not None:
                active[pull.place] += 1
        check(active == self._active, f"places are miscounted: {self._active}, {active}")
        check(all(count <= self._active_max for count in active.values()), f"more run than may: {active}")
        queued = {(order, object_id) for order, object_id in self._waiting}
        for pull in self._pulls.values():
            story = f"pull of {pull.object_id.hex()} ({pull.state.value})"
            is_fetching = pull.state is PullState.FETCHING
            check((pull.current is not None) == is_fetching, f"{story} has node {pull.current!r}")
            check((pull.place is not None) == is_fetching, f"{story} has place {pull.place!r}")
            check(is_fetching or (pull.order, pull.object_id) in queued, f"{story} is in no queue")
            is_asked = pull.current is not None or pull.relay is not None
            check(bool(pull.holders) or is_asked, f"{story} has nobody left to ask")
            check(pull.is_wanted or is_fetching, f"{story} is wanted by nobody")
            is_short = pull.state is PullState.NO_MEMORY
            check(is_short or not pull.needed_bytes, f"{story} waits for {pull.needed_bytes} bytes")
