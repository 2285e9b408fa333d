"""Which Gets may have their objects copied here now: admission by memory, the most urgent first.

A machine over the Store, without I/O. A Get that needs copies is a *request*: all its objects, or none of
them. Ray's pull manager has the same unit, the bundle.

    WAITING   holds nothing: no pin, no memory, no fetch
    ADMITTED  what it lacks is promised to it, and what is here is pinned for it

    submit ──► WAITING ──step: all that it lacks fits──► ADMITTED ──withdraw: answered, or given up──► gone
                  ▲                                         │
                  └──────────────── GiveWay ◄───────────────┘

- Requests are in order of (priority, arrival): `get`, then `wait`, then arguments of tasks. Only the first of
  those that wait is looked at, so a large one finds room in the end. A get that has no room makes requests of
  lower priority give way, the last ones first, if that is enough.
- **Invariant**: what is promised to requests that are admitted, and not placed yet, was obtainable when they
  were admitted. So two tasks cannot hold one half of their arguments each. If a create takes promised memory
  all the same, the last requests give way until the rest fits.
- A place may be refused where the numbers say that it fits: memory is in pieces, or the size was not known.
  Nobody is admitted then, others give way, and at last the request itself. It is tried once more with all
  that this has left, and then when memory came free.
- An object that several want is copied once, in the first one's turn: its priority is the highest of theirs.
- Nothing starves: who has waited for `overtaken_max_s` is in the first class from then on, by its arrival.
- A request in the first class that has waited for memory for `disk_after_s`, or that comes when none came
  free for so long (and none can be made by spilling), is admitted all the same. So is one that can never fit.
  Those of its copies for which there is no memory are *for disk*, and nothing is promised to them. If memory
  is short later, its other copies become that, too, before it has to give way. If the disk has no room either
  it waits on; one that can never fit fails.
- A request that has waited for memory for `memory_timeout_s`, without a byte placed, fails.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from ray_mono.common.our_bug import check
from ray_mono.object_manager.allocator import aligned
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.store import Store


class Priority(enum.IntEnum):
    """The lower the more urgent."""

    GET = 0
    WAIT = 1
    TASK_ARGUMENTS = 2


@dataclass(frozen=True, slots=True)
class Admit:
    """Effect: the Get may pin what is here, and have the rest copied."""

    number: int


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Effect: the Get lets go of all that it holds, and its fetches stop. It waits again."""

    number: int


@dataclass(frozen=True, slots=True)
class NeverAdmitted:
    """Effect: there was no room in time; the largest of what the Get lacks."""

    number: int
    object_id: ObjectKey
    size_bytes: int
    why: str = ""
    """It was not written to disk either."""


@dataclass(slots=True)
class _Request:
    number: int
    priority: Priority
    since_s: float
    sizes: dict[ObjectKey, int]  # aligned; 0: not known yet
    may_use_disk: bool
    is_admitted: bool = False
    short_since_s: float | None = None  # since the first time that there was no room
    num_refused: int = 0  # since memory came free last: how often it gave way, and nobody else could
    refused_at: int = -1  # the state of the memory in which it cannot be placed
    is_due_for_disk: bool = False
    why_not_on_disk: str = ""

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.number


class Admission:
    """Every Get that needs copies."""

    def __init__(
        self,
        store: Store,
        memory_timeout_s: float,
        overtaken_max_s: float,
        disk_after_s: float | None = None,
    ) -> None:
        """disk_after_s: None where nothing can be written to disk."""
        self._store = store
        self._memory_timeout_s = memory_timeout_s
        self._overtaken_max_s = overtaken_max_s
        self._disk_after_s = disk_after_s
        self._requests: dict[int, _Request] = {}
        self._waiting: list[tuple[int, int]] = []  # a heap of orders; some are out of date
        self._admitted: dict[int, _Request] = {}
        # Those that are not in the first class yet, in order of arrival.
        self._may_be_overtaken: dict[int, _Request] = {}
        # Those that wait, and for which there was no room.
        self._short: dict[int, _Request] = {}
        # By object: the admitted requests that want it. Dicts as ordered sets.
        self._wanting: dict[ObjectKey, dict[int, None]] = {}
        self._promised: dict[ObjectKey, int] = {}
        self._promised_bytes = 0
        # Promised objects that get no memory, but a file: 0 bytes are promised to each.
        self._for_disk: set[ObjectKey] = set()
        # Promised objects that were refused a place.
        self._refused: set[ObjectKey] = set()
        # Those that gave way since nothing else helped: the next step sees what memory that left.
        self._refused_requests: list[_Request] = []
        self._memory_state = -1
        self._freed_s = 0.0  # when memory came free last
        # Grows whenever step() may have something new to do, memory aside.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, number: int) -> bool:
        return number in self._requests

    def is_admitted(self, number: int) -> bool:
        """Also a Get that is no request: it needs no copies."""
        return number not in self._requests or number in self._admitted

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for memory."""
        head = self._head()
        return bool(self._refused) or (head is not None and head.short_since_s is not None)

    @property
    def wanted_bytes(self) -> int:
        """The room for all that is promised and for the first that waits; 0 where nobody is short of it."""
        head = self._head()
        if not self.is_short:
            return 0
        is_in_vain = head is None or not self._may_ever_fit(head)
        return self._promised_bytes + (0 if head is None or is_in_vain else self._need(head))

    def short_since_s(self, number: int) -> float | None:
        """Since when the Get waits for memory, or behind one that does; None where it waits otherwise."""
        request = self._requests.get(number)
        if request is None or request.is_admitted:
            return None
        head = self._head()
        return head.short_since_s if head is not None else None

    @property
    def next_deadline_s(self) -> float | None:
        deadlines = []
        for request in self._short.values():
            if request.short_since_s is not None:
                deadlines.append(request.short_since_s + self._memory_timeout_s)
            if (due_s := self._disk_due_s(request)) is not None:
                deadlines.append(due_s)
        return min(deadlines, default=None)

    def is_for_disk(self, object_id: ObjectKey) -> bool:
        """Whether a copy is to get a file, and no memory."""
        return object_id in self._for_disk

    # ---- events

    def submit(
        self,
        number: int,
        priority: Priority,
        sizes: Mapping[ObjectKey, int],
        now_s: float,
        may_use_disk: bool = True,
    ) -> None:
        """A Get needs copies of some of these. It holds nothing from now on, until it is admitted. Again: one
        of its objects has to be copied that was to appear here. Sizes are bytes; 0: not known. What the store
        can never hold is promised nothing: its copy gets a file, or is refused at once. Who may not use the
        disk waits for it, for as long as it likes."""
        self.changes += 1
        known = self._requests.get(number)
        if known is not None:
            self._take_back(known)
            heapq.heappush(self._waiting, known.order)
            return
        waits_in_vain = self._disk_after_s is not None and not may_use_disk
        rounded = {
            object_id: aligned(size) if size and (waits_in_vain or self._store.can_hold(size)) else 0
            for object_id, size in sizes.items()
        }
        request = _Request(number, priority, now_s, rounded, may_use_disk)
        self._requests[number] = request
        if priority is not Priority.GET:
            self._may_be_overtaken[number] = request
        heapq.heappush(self._waiting, request.order)

    def withdraw(self, number: int) -> None:
        """It is answered, or nobody waits for it."""
        request = self._requests.pop(number, None)
        if request is not None:
            self.changes += 1
            self._short.pop(number, None)
            self._may_be_overtaken.pop(number, None)
            self._take_back(request)

    def spare(self, number: int, object_id: ObjectKey) -> None:
        """It does not need this object any more: it is lost."""
        request = self._requests.get(number)
        if request is not None and request.sizes.pop(object_id, None) is not None:
            self.changes += 1
            if request.is_admitted:
                self._unwant(request, object_id)

    def settled(self, object_id: ObjectKey, size_bytes: int = 0) -> None:
        """A copy has its place, or the object came here otherwise: nothing is promised to it any more. Its
        size may not have been known."""
        for number in self._wanting.get(object_id, ()) if size_bytes else ():
            self._requests[number].sizes[object_id] = aligned(size_bytes)
        self._refused.discard(object_id)
        self._for_disk.discard(object_id)
        if object_id not in self._promised:
            return
        self.changes += 1
        self._promised_bytes -= self._promised.pop(object_id)
        for number in self._wanting[object_id]:
            self._requests[number].short_since_s = None

    def may_place(self, object_id: ObjectKey, size_bytes: int, obtainable_bytes: int) -> bool:
        """Whether a copy takes nothing that is promised to others. Its size may not have been known."""
        more_bytes = aligned(size_bytes) - self._promised.get(object_id, 0)
        return more_bytes <= 0 or more_bytes <= obtainable_bytes - self._promised_bytes

    def learned(self, object_id: ObjectKey, size_bytes: int) -> None:
        """How large a copy is, which has no place yet. Nobody may have known."""
        self.changes += 1
        for number in self._wanting.get(object_id, ()):
            self._requests[number].sizes[object_id] = aligned(size_bytes)
        if object_id in self._promised and object_id not in self._for_disk:
            self._promised_bytes += aligned(size_bytes) - self._promised[object_id]
            self._promised[object_id] = aligned(size_bytes)

    def refused(self, object_id: ObjectKey, size_bytes: int) -> GiveWay | None:
        """A copy was refused a place. Somebody else lets go, or at last who wants it."""
        self.learned(object_id, size_bytes)
        wanting = self._wanting.get(object_id, ())
        if not wanting:
            return None
        self._refused.add(object_id)
        first = min(self._requests[number].order for number in wanting)
        last = max(self._admitted.values(), key=lambda request: request.order)
        if self._makes_do_with_disk(last):
            return None
        if last.order == first:
            last.num_refused += 1
            if last.num_refused > 1:  # the first time it lay badly in what is free now
                self._refused_requests.append(last)
        return self._give_way(last)

    def refused_a_file(self, object_id: ObjectKey, why: str) -> list[GiveWay]:
        """The disk has no room for a copy. Who wants it waits for memory as if there were no disk; nobody
        does if one of them would wait in vain."""
        wanting = [self._requests[number] for number in self._wanting.get(object_id, ())]
        if object_id not in self._for_disk or not all(map(self._may_ever_fit, wanting)):
            return []
        for request in wanting:
            request.is_due_for_disk, request.why_not_on_disk = False, why
        return [self._give_way(request) for request in wanting]

    # ---- steps

    def step(self, obtainable_bytes: int, memory_state: int, now_s: float) -> Admit | GiveWay | None:
        """One decision, to be carried out before the next is asked for; None where there is none.

        obtainable_bytes: free, or free after evictions. memory_state: differs after memory came free.
        """
        if memory_state != self._memory_state:
            self._memory_state, self._freed_s = memory_state, now_s
        for request in self._refused_requests:
            request.refused_at = memory_state
        self._refused_requests.clear()
        while self._promised_bytes > obtainable_bytes and self._admitted:
            last = max(self._admitted.values(), key=lambda request: request.order)
            if not self._makes_do_with_disk(last):
                return self._give_way(last)
        self._promote(now_s)
        head = self._head()
        if head is None:
            return None
        need = self._need(head)
        left_bytes = obtainable_bytes - self._promised_bytes
        may_be_placed = not self._refused and head.refused_at != memory_state
        if need <= left_bytes and may_be_placed:
            return self._admit(head, left_bytes)
        if self._may_use_disk(head) and self._taken(head) <= left_bytes:
            return self._admit(head, left_bytes if may_be_placed else 0)
        if head.short_since_s is None:
            head.short_since_s = now_s
        self._short[head.number] = head
        lower = [each for each in self._admitted.values() if each.priority > head.priority]
        if lower and need <= left_bytes + sum(sum(each.sizes.values()) for each in lower):
            return self._give_way(max(lower, key=lambda request: request.order))
        return None

    def expire(self, now_s: float) -> list[NeverAdmitted]:
        """Gives up on those that have waited too long for memory. They are to be withdrawn. Others may use
        the disk from now on."""
        for request in self._short.values():
            due_s = self._disk_due_s(request)
            if due_s is not None and due_s <= now_s:
                request.is_due_for_disk = True
                self.changes += 1
        late = []
        for request in self._short.values():
            since_s = request.short_since_s
            if since_s is None or since_s + self._memory_timeout_s > now_s:
                continue
            sizes = request.sizes
            lacking = [each for each in sizes if self._store.taken_by(each) is None] or list(sizes)
            largest = max(lacking, key=lambda object_id: sizes[object_id])
            late.append(NeverAdmitted(request.number, largest, sizes[largest], request.why_not_on_disk))
        return late

    # ---- inside

    def _head(self) -> _Request | None:
        while self._waiting:
            order = self._waiting[0]
            request = self._requests.get(order[1])
            if request is not None and not request.is_admitted and request.order == order:
                return request
            heapq.heappop(self._waiting)
        return None

    def _promote(self, now_s: float) -> None:
        """Who has been overtaken for long is not overtaken any more."""
        while self._may_be_overtaken:
            request = next(iter(self._may_be_overtaken.values()))
            if request.since_s + self._overtaken_max_s > now_s:
                return  # those that follow came later
            del self._may_be_overtaken[request.number]
            request.priority = Priority.GET
            if not request.is_admitted:
                heapq.heappush(self._waiting, request.order)

    def _need(self, request: _Request) -> int:
        """How much of what is obtainable it would take."""
        need = 0
        for object_id, size in request.sizes.items():
            if object_id in self._promised:
                continue
            taken = self._store.taken_by(object_id)
            need += size if taken is None else taken
        return need

    def _taken(self, request: _Request) -> int:
        """How much less would be obtainable if it pinned what is here."""
        return sum(self._store.taken_by(object_id) or 0 for object_id in request.sizes)

    def _may_ever_fit(self, request: _Request) -> bool:
        return self._store.can_hold(sum(request.sizes.values()))

    def _may_use_disk(self, request: _Request) -> bool:
        never_fits = self._disk_after_s is not None and not self._may_ever_fit(request)
        return request.may_use_disk and (request.is_due_for_disk or never_fits)

    def _disk_due_s(self, request: _Request) -> float | None:
        """When a request that is short of memory may use the disk; None: never, or it may already."""
        since_s, after_s = request.short_since_s, self._disk_after_s
        if since_s is None or after_s is None or not request.may_use_disk:
            return None
        if request.why_not_on_disk or self._may_use_disk(request):
            return None
        stuck_since_s = since_s if self._store.spillable else min(since_s, self._freed_s)
        if request.priority is Priority.GET:
            return stuck_since_s + after_s
        return max(stuck_since_s + after_s, min(stuck_since_s, request.since_s) + self._overtaken_max_s)

    def _makes_do_with_disk(self, request: _Request) -> bool:
        """Whether it could give memory back that was promised to it: those copies are for disk now."""
        if not self._may_use_disk(request):
            return False
        promised = [each for each in request.sizes if self._promised.get(each, 0)]
        for object_id in promised:
            self._promised_bytes -= self._promised[object_id]
            self._promised[object_id] = 0
            self._for_disk.add(object_id)
            self._refused.discard(object_id)
        self.changes += bool(promised)
        return bool(promised)

    def _admit(self, request: _Request, left_bytes: int) -> Admit:
        """left_bytes: of memory. What it lacks beyond that is for disk."""
        self.changes += 1
        request.is_admitted = True
        if request.refused_at >= 0:
            request.num_refused, request.refused_at = 0, -1
        self._admitted[request.number] = request
        self._short.pop(request.number, None)
        left_bytes -= self._taken(request)
        for object_id, size in request.sizes.items():
            self._wanting.setdefault(object_id, {})[request.number] = None
            if object_id not in self._promised and self._store.taken_by(object_id) is None:
                is_for_disk = size > left_bytes
                self._for_disk.update([object_id] if is_for_disk else ())
                self._promised[object_id] = 0 if is_for_disk else size
                self._promised_bytes += self._promised[object_id]
                left_bytes -= self._promised[object_id]
        return Admit(request.number)

    def _give_way(self, request: _Request) -> GiveWay:
        self.changes += 1
        self._take_back(request)
        if request.short_since_s is not None:
            self._short[request.number] = request
        heapq.heappush(self._waiting, request.order)
        return GiveWay(request.number)

    def _take_back(self, request: _Request) -> None:
        if not request.is_admitted:
            return
        request.is_admitted = False
        del self._admitted[request.number]
        for object_id in request.sizes:
            self._unwant(request, object_id)

    def _unwant(self, request: _Request, object_id: ObjectKey) -> None:
        wanting = self._wanting[object_id]
        del wanting[request.number]
        if not wanting:
            del self._wanting[object_id]
            self._promised_bytes -= self._promised.pop(object_id, 0)
            self._refused.discard(object_id)
            self._for_disk.discard(object_id)

    def check_invariants(self) -> None:
        """Raises InternalError."""
        admitted = {number for number, request in self._requests.items() if request.is_admitted}
        check(admitted == self._admitted.keys(), "requests that are admitted and their table differ")
        wanting = sorted(
            (object_id, request.number) for request in self._admitted.values() for object_id in request.sizes
        )
        indexed = sorted((object_id, number) for object_id, some in self._wanting.items() for number in some)
        check(wanting == indexed, "admitted requests and the objects that they want differ")
        check(self._promised.keys() <= self._wanting.keys(), "memory is promised to nobody")
        check(not self._short.keys() & admitted, "who is admitted waits for memory")
        check(sum(self._promised.values()) == self._promised_bytes, "promised bytes are miscounted")
        check(not any(self._promised.get(each, 1) for each in self._for_disk), "a file is promised memory")
        check(self._refused <= self._promised.keys(), "what was refused a place is not promised one")
        waiting = {number for _, number in self._waiting}
        check(self._requests.keys() - admitted <= waiting, "a request waits in no queue")
