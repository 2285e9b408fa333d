"""Which objects are copied here next, and from whom.

A machine without I/O, and without the bytes: it asks for fetches and is told how they went. It keeps one pull
per object, however many Gets want it. A pull takes its holders in turn, in the order in which owners named
them. When none gave the object it is lost, with a reason for each.

    WAITING   for one of the `active_max` places, in order of arrival
    FETCHING  from a holder; a place is taken
    NO_MEMORY its size is known, there was no room: waits, in order of arrival, for memory to come free.
              Nothing that came later is started meanwhile, or a large object would never find room.

Room is asked for with the first byte at hand (the header of a fetch names the size). So a pull that waits
holds no memory and no stream. What a broken fetch has brought is kept by whoever fetches; the next holder
continues there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check
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


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Effect: the fetch that runs, and what it has brought, is for nobody."""

    object_id: ObjectKey


@dataclass(frozen=True, slots=True)
class PullLost:
    """Effect: no holder gave the object; what came of it is for nobody."""

    object_id: ObjectKey
    reason: str


@dataclass(frozen=True, slots=True)
class PullUnobtainable:
    """Effect: there was no room for the object in time."""

    object_id: ObjectKey
    size_bytes: int
    holder: NodeKey


PullEffect = StartFetch | StopFetch | PullLost | PullUnobtainable


@dataclass(slots=True)
class Pull:
    """One object on its way here."""

    object_id: ObjectKey
    holders: list[NodeKey]  # not tried yet, or to be tried again
    state: PullState = PullState.WAITING
    is_wanted: bool = True  # False only while FETCHING: bytes that are on their way may come
    current: NodeKey | None = None  # set exactly while FETCHING
    failures: dict[NodeKey, str] = field(default_factory=dict)
    needed_bytes: int = 0  # in NO_MEMORY: how much room it waits for
    deadline_s: float | None = None  # from the first time that there was no room


class PullManager:
    """Events in, effects out. schedule() is to be called when `changes` grew, or memory came free."""

    def __init__(self, active_max: int, memory_timeout_s: float) -> None:
        self._active_max = active_max
        self._memory_timeout_s = memory_timeout_s
        self._pulls: dict[ObjectKey, Pull] = {}  # in order of arrival
        self._short_of_memory: dict[ObjectKey, Pull] = {}  # exactly those in NO_MEMORY
        self.num_active = 0
        # Grows whenever schedule() may have something new to do, memory aside.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._pulls)

    def __contains__(self, object_id: ObjectKey) -> bool:
        return object_id in self._pulls

    @property
    def next_deadline_s(self) -> float | None:
        return min(
            (pull.deadline_s for pull in self._short_of_memory.values() if pull.deadline_s is not None),
            default=None,
        )

    @property
    def is_short_of_memory(self) -> bool:
        return bool(self._short_of_memory)

    @property
    def wanted_bytes(self) -> int:
        """The room that the first of those waits for that wait for room; 0 where none does."""
        return next((pull.needed_bytes for pull in self._short_of_memory.values()), 0)

    def short_since_s(self, object_id: ObjectKey) -> float | None:
        """Since when the object waits for room, or behind one that does; None where it waits otherwise."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.state is PullState.FETCHING or not self._short_of_memory:
            return None
        return min(pull.deadline_s or 0.0 for pull in self._short_of_memory.values()) - self._memory_timeout_s

    def asked(self, object_id: ObjectKey) -> NodeKey | None:
        """Which node sends the object now."""
        pull = self._pulls.get(object_id)
        return None if pull is None else pull.current

    def want(self, object_id: ObjectKey, locations: Iterable[NodeKey]) -> None:
        """Somebody waits for the object; locations that are new to its pull are tried last."""
        self.changes += 1
        pull = self._pulls.get(object_id)
        if pull is None:
            self._pulls[object_id] = Pull(object_id, list(dict.fromkeys(locations)))
            return
        pull.is_wanted = True
        known = {*pull.holders, *pull.failures, pull.current}
        pull.holders += [node for node in dict.fromkeys(locations) if node not in known]

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
        """It was freed, or appeared here by itself."""
        pull = self._forget(object_id)
        if pull is None or pull.state is not PullState.FETCHING:
            return []
        self.num_active -= 1
        return [StopFetch(object_id)]

    def schedule(self, obtainable_bytes: int) -> list[PullEffect]:
        """Starts what there are places and memory for. obtainable_bytes: free, or free after evictions."""
        effects: list[PullEffect] = []
        for pull in self._pulls.values():
            if self.num_active >= self._active_max:
                break
            if pull.state is PullState.FETCHING:
                continue
            if pull.needed_bytes > obtainable_bytes:
                break
            self._short_of_memory.pop(pull.object_id, None)
            pull.state = PullState.FETCHING
            pull.current = pull.holders.pop(0)
            self.num_active += 1
            effects.append(StartFetch(pull.object_id, pull.current, max(1, obtainable_bytes)))
            obtainable_bytes -= pull.needed_bytes
            pull.needed_bytes = 0
        return effects

    # ---- how a fetch ended; each is ignored where the pull was cancelled meanwhile

    def fetched(self, object_id: ObjectKey) -> None:
        """The object is here, sealed."""
        if self._stop(object_id) is not None:
            self._forget(object_id)

    def fetch_failed(self, object_id: ObjectKey, reason: str) -> list[PullEffect]:
        """The holder did not give it (all of it): the next one is tried, or the object is lost."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.current is None:
            return []
        pull.failures[pull.current] = reason
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
        pull.holders.insert(0, pull.current)
        self._stop(object_id)
        if pull.is_wanted:
            return []
        self._forget(object_id)
        return [PullLost(object_id, "nobody waits for it any more")]

    def no_memory(self, object_id: ObjectKey, size_bytes: int, now_s: float) -> list[PullEffect]:
        """The holder has it, and there was no room here. The same holder is asked again when there is."""
        changes = self.changes
        effects = self.announced(object_id)
        pull = self._pulls.get(object_id)
        if pull is not None:
            self.changes = changes  # it would be refused again; memory that comes free is what it waits for
            if pull.deadline_s is None:
                pull.deadline_s = now_s + self._memory_timeout_s
            pull.needed_bytes = size_bytes
            pull.state = PullState.NO_MEMORY
            self._short_of_memory[object_id] = pull
        return effects

    def expire(self, now_s: float) -> list[PullEffect]:
        """Gives up on pulls that have waited too long for memory."""
        late = [
            pull
            for pull in self._short_of_memory.values()
            if pull.deadline_s is not None and pull.deadline_s <= now_s
        ]
        for pull in late:
            self._forget(pull.object_id)
        return [PullUnobtainable(pull.object_id, pull.needed_bytes, pull.holders[0]) for pull in late]

    def pulls(self) -> list[Pull]:
        """Every pull, for people."""
        return list(self._pulls.values())

    def _forget(self, object_id: ObjectKey) -> Pull | None:
        self.changes += 1
        self._short_of_memory.pop(object_id, None)
        return self._pulls.pop(object_id, None)

    def _stop(self, object_id: ObjectKey) -> Pull | None:
        pull = self._pulls.get(object_id)
        if pull is None or pull.state is not PullState.FETCHING:
            return None
        self.changes += 1
        self.num_active -= 1
        pull.state = PullState.WAITING
        pull.current = None
        return pull

    def check_invariants(self) -> None:
        """Raises InternalError."""
        fetching = [pull for pull in self._pulls.values() if pull.state is PullState.FETCHING]
        check(
            len(fetching) == self.num_active, f"num_active is {self.num_active}, {len(fetching)} fetches run"
        )
        check(self.num_active <= self._active_max, f"{self.num_active} fetches, at most {self._active_max}")
        short = [pull for pull in self._pulls.values() if pull.state is PullState.NO_MEMORY]
        check(
            sorted(self._short_of_memory) == sorted(pull.object_id for pull in short),
            "pulls short of memory differ",
        )
        for pull in self._pulls.values():
            story = f"pull of {pull.object_id.hex()} ({pull.state.value})"
            check(
                (pull.current is not None) == (pull.state is PullState.FETCHING),
                f"{story} has node {pull.current!r}",
            )
            check(bool(pull.holders) or pull.current is not None, f"{story} has nobody left to ask")
            check(pull.is_wanted or pull.state is PullState.FETCHING, f"{story} is wanted by nobody")
            is_short = pull.state is PullState.NO_MEMORY
            check(is_short or not pull.needed_bytes, f"{story} waits for {pull.needed_bytes} bytes")
            check(not is_short or pull.deadline_s is not None, f"{story} has no deadline")
