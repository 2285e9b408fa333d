"""The store of one node, alive: the machines bound to each other, to the mapped file and to timers.

A request goes into a machine (CreateQueue, GetQueue, Admission, PullManager, over one Store). What a machine
decides is carried out by a room of its own: CreateRequests answers clients and has pages put under the file,
GetRequests answers clients and asks who may have copies made, Spills has objects written to disk and read
from it, Pulls starts and stops fetches, PressureNotices asks for help. A further machine brings its own room,
and gets its place in `_settle` and among the timers.

After every step `_settle` asks whether memory came free, and if so tries those who wait for it: creates and
restores in the order of their coming, pulls then. Where room is still wanted it has objects spilled. Nothing
here awaits in the middle of a step, so every step sees the machines whole.

It does not know protobuf, connections or sockets. Fetches are carried out by a Fetcher (puller.py); without
one this is a store alone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence, Set
from typing import Any, assert_never

from ray_mono.common.world import Clock
from ray_mono.object_manager.admission import Admission, Priority
from ray_mono.object_manager.backing import Backing
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import CreateQueue, RoomWanted
from ray_mono.object_manager.create_requests import CreateRequests
from ray_mono.object_manager.errors import NoRoomInTime, StoreFull
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.get_requests import GetRequests
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.large_creates import LargeCreates
from ray_mono.object_manager.no_room import NoRoom
from ray_mono.object_manager.pressure_notices import PressureNotices
from ray_mono.object_manager.pull_manager import PullManager
from ray_mono.object_manager.pulls import Fetcher, Pulls
from ray_mono.object_manager.seams import Arrival, ObjectHeader, SharedMemory, SpillDisk
from ray_mono.object_manager.spill_files import Extent, SpillFiles
from ray_mono.object_manager.spills import Spills
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import KEPT, Allocated, Full, NeedsBacking, StoredObject


class NodeStore:
    """Everything that happens to this node's objects. Belongs to the loop's thread."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        node_id: NodeKey,
        memory: SharedMemory,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        disk: SpillDisk | None = None,
    ) -> None:
        """spawn(coroutine, name) starts a background task whose failure ends the process. disk: where objects
        go for which there is no room; None: nowhere."""
        self.config = config
        self.node_id = node_id
        self.memory = memory
        self._clock = clock
        directory = os.path.dirname(memory.path)
        self.files = SpillFiles(config.sparse_share)
        self.store = Store(config.capacity_bytes, self.files, config.dead_owners_max, directory)
        self._backing = Backing(config, self.store, memory, spawn, self._on_backed)
        self._create_queue = CreateQueue(self.store, config.create_timeout_s, config.create_to_disk_s)
        self._admission = Admission(
            self.store,
            config.pull_memory_timeout_s,
            config.overtaken_max_s,
            config.copy_to_disk_after_s if disk is not None else None,
        )
        self._pull_manager = PullManager(config.pulls_active_max)
        no_room = NoRoom(config, node_id, self.store, self._create_queue)
        self.pressure = PressureNotices(self._create_queue, no_room, clock)
        self.creates = CreateRequests(self._create_queue, self.store, self._backing, clock, self._settle)
        self.pulls = Pulls(
            node_id,
            self._pull_manager,
            no_room,
            lambda object_id, reason: self.gets.lost(object_id, reason),
            lambda object_id, error: self.gets.unobtainable(object_id, error),
        )
        self.spills = Spills(
            config,
            self.store,
            self.files,
            memory,
            disk,
            clock,
            spawn,
            self._backing.extend,
            lambda: self.gets,
            self._settle,
            self.pressure.tell_of_spilling,
        )
        self._spilling = self.spills.manager
        self.gets = GetRequests(
            self.store, node_id, self._admission, self.pulls, self.spills, no_room, clock, self._settle
        )
        self._large_creates = LargeCreates(self.store, self.spills, spawn, self._settle)
        # Everything that has deadlines, in the order in which it is looked at when one has come: who gets a
        # file now is none of whom people are told.
        self._timed = (self.creates, self.pressure, self._spilling, self.gets)
        self._next_client = TRANSFERS + 1
        self._times_backed = 0
        self._settled = (0, 0, 0, 0, 0, 0)  # of what _settle looks at, what it last saw
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._backing.keep_ahead()

    def attach(self, fetcher: Fetcher) -> None:
        """There are other nodes to copy objects from."""
        self.pulls.attach(fetcher)

    # ---- clients

    def connect(self) -> ClientKey:
        """A new client connection."""
        client = ClientKey(self._next_client)
        self._next_client += 1
        self.store.connect(client)
        return client

    def disconnect(self, client: ClientKey) -> None:
        """Its connection ended: what it owned is freed, what it asked for is forgotten."""
        self.gets.client_gone(client)
        aborted = self.store.disconnect(client)
        self.creates.client_gone(client)
        self.gets.given_up(aborted)
        self._settle()

    # ---- requests

    async def create(self, wanted: RoomWanted) -> int | Extent:
        """Offset of the object's memory, waiting in the queue if need be; the file, for what is larger than
        the store, and where readers hold all of it. Raises ObjectExists, StoreFull.

        One that another client is writing is awaited for a while: that client ran the task before, and may
        end before the object is whole. One that is on disk is looked at there: if it is lost, it is made
        again by this run of its task, though nobody has asked for it since.
        """
        if self.store.is_made_here(wanted.object_id):
            await self._await_seal(wanted.object_id)
        if self.store.is_spilled(wanted.object_id):
            await self.spills.check(wanted.object_id, self.store.extent_of(wanted.object_id))
        if self._large_creates.takes(wanted.size_bytes):
            return await self._large_creates.create(wanted)
        try:
            return await self.creates.create(wanted)
        except NoRoomInTime as error:
            if not self.spills.has_disk:
                raise
            return await self._large_creates.create(wanted, str(error))

    def seal(self, object_id: ObjectKey, client: ClientKey) -> None:
        """Raises ObjectUnknown."""
        is_kept = self.store.seal(object_id, client)
        if is_kept and self.store.is_spilled(object_id):
            self.spills.made(self.store.extent_of(object_id).file)
        self._sealed(object_id, is_kept, pulled=False)

    def abort(self, object_id: ObjectKey, client: ClientKey) -> None:
        """The client gives up an object that it made, or wanted to make. Raises ObjectUnknown."""
        is_waiting = self.creates.give_up(object_id, client) or self._large_creates.give_up(object_id, client)
        if not is_waiting:
            self.store.abort(object_id, client)
            self.gets.given_up([object_id])
        self._settle()

    def get(
        self,
        client: ClientKey,
        wanted: Sequence[Wanted],
        timeout_s: float | None,
        may_go_elsewhere: bool = False,
        priority: Priority = Priority.GET,
    ) -> Coroutine[Any, Any, tuple[Found, ...]]:
        """See GetQueue. Raises StoreFull where an object that is elsewhere found no room here in time."""
        room_timeout_s = self.config.elsewhere_timeout_s if may_go_elsewhere else None
        return self.gets.get(client, wanted, timeout_s, room_timeout_s, priority)

    def release(self, object_id: ObjectKey, client: ClientKey) -> None:
        """Raises ObjectUnknown."""
        self.store.release(object_id, client)
        self._settle()

    def free(self, object_ids: Iterable[ObjectKey]) -> None:
        """Their owner says that nobody can ask for them any more."""
        for object_id in object_ids:
            self.pulls.cancel(object_id)
            self.spills.unwant(object_id)
            self.store.free(object_id)
            self.gets.lost(object_id, "its owner freed it")
        self._settle()

    def free_owned_by(self, owner: WorkerKey) -> None:
        """The owner is dead."""
        for object_id in self.store.free_owned_by(owner):
            self.pulls.cancel(object_id)
            self.spills.unwant(object_id)
            self.gets.lost(object_id, f"its owner, worker {owner.hex()}, died")
        self._settle()

    def primaries(self, except_owners: Set[WorkerKey], most: int) -> list[StoredObject]:
        """Primary copies, in memory or on disk, that nobody freed."""
        rows = (row for row in self.store.objects() if row.is_primary and row.state in KEPT)
        return list(itertools.islice((row for row in rows if row.owner not in except_owners), most))

    def mark_primary(self, object_ids: Iterable[ObjectKey], is_primary: bool) -> list[ObjectKey]:
        """See Store. Returns those that are here."""
        here = [object_id for object_id in object_ids if self.store.mark_primary(object_id, is_primary)]
        self._settle()
        return here

    # ---- for the fetcher

    def place_copy(self, object_id: ObjectKey, header: ObjectHeader) -> int | None:
        """Offset of memory for a copy that arrives; None where there is no room now.

        Raises ObjectExists; StoreFull where it never fits.
        """
        self.store.check_new(object_id, header.owner, is_primary=False)
        if self.gets_a_file(object_id, header.size_bytes):
            return None
        if not self._may_place(object_id, header.size_bytes):
            return None
        allocation = self.store.create(
            object_id, header.size_bytes, header.metadata, header.owner, TRANSFERS, is_primary=False
        )
        match allocation:
            case Allocated(offset):
                self._backing.keep_ahead()
                self._admission.settled(object_id, header.size_bytes)
                return offset
            case NeedsBacking(until_bytes):
                self._backing.extend(until_bytes)
                return None
            case Full():
                return None
            case _:
                assert_never(allocation)

    def gets_a_file(self, object_id: ObjectKey, size_bytes: int) -> bool:
        """Whether a copy that arrives is to be written to disk."""
        return self._admission.is_for_disk(object_id) or self._large_creates.takes(size_bytes)

    async def place_copy_in_file(self, object_id: ObjectKey, header: ObjectHeader) -> memoryview:
        """The bytes of a file for it. Raises ObjectExists; StoreFull where the disk has no room either."""
        wanted = RoomWanted(TRANSFERS, header.size_bytes, object_id, header.metadata, header.owner)
        why = "" if not self.store.can_hold(header.size_bytes) else self.store.describe_memory()
        extent = await self._large_creates.create(wanted, why, is_primary=False)
        self._admission.settled(object_id, header.size_bytes)
        try:
            return self.spills.map(extent)
        except OSError as error:
            self.drop_copy(object_id)
            raise StoreFull(f"its file cannot be mapped: {error}") from None

    def _may_place(self, object_id: ObjectKey, size_bytes: int) -> bool:
        """Whether a copy takes nothing that is promised to others. True where it can never be placed."""
        obtainable_bytes = self.store.obtainable_bytes
        may = self._admission.may_place(object_id, size_bytes, obtainable_bytes)
        return may or not self.store.can_hold(size_bytes)

    def drop_copy(self, object_id: ObjectKey) -> None:
        """A copy that will not be whole: its memory goes. Whoever drops it settles."""
        self.store.abort(object_id, TRANSFERS)

    def fetched(self, object_id: ObjectKey) -> None:
        """A copy is whole."""
        self.pulls.fetched(object_id)
        self._sealed(object_id, self.store.seal(object_id, TRANSFERS), pulled=True)
        self.store.drop_copy(object_id, self.gets.wants(object_id))
        self._settle()

    def appeared(self, object_id: ObjectKey) -> None:
        """A fetch found that somebody here makes or has the object meanwhile: the pull has nothing to do."""
        self.pulls.fetched(object_id)
        if self.store.is_spilled(object_id):
            self.spills.want(object_id)
        elif self.store.contains(object_id):
            self.gets.sealed(object_id, pulled=False)
        self._settle()

    def fetch_failed(self, object_id: ObjectKey, reason: str, has_brought: bool) -> None:
        """has_brought: some bytes came first."""
        self.pulls.failed(object_id, reason, has_brought)
        self._settle()

    def fetch_sent_on(self, object_id: ObjectKey, relay: NodeKey) -> None:
        """The holder sends it to this node already, which passes it on."""
        self.pulls.sent_on(object_id, relay)
        self._settle()

    def arriving(self, object_id: ObjectKey) -> Arrival | None:
        """An object that is on its way here."""
        return self.pulls.arriving(object_id)

    def fetch_announced(self, object_id: ObjectKey) -> None:
        """It was larger than the memory that there was when it was asked for; now its memory is there."""
        self.pulls.announced(object_id)
        self._settle()

    def fetch_found_no_memory(self, object_id: ObjectKey, size_bytes: int) -> None:
        """It is tried again when memory comes free (and not before: it would be refused again); at once where
        it gets a file."""
        if self.gets_a_file(object_id, size_bytes):
            self.fetch_announced(object_id)
            return
        self.pulls.found_no_memory(object_id, size_bytes)
        self._admission.learned(object_id, size_bytes)
        if not self._may_place(object_id, size_bytes) or not self.store.needs_pages(size_bytes):
            self.gets.refused_a_place(object_id, size_bytes)
        self._settle()

    def never_fits(self, object_id: ObjectKey, error: StoreFull) -> None:
        """It is larger than the store, or the disk has no room for it."""
        if not self.gets.refused_a_file(object_id, str(error)):
            self.pulls.never_fits(object_id, error)
        self._settle()

    async def read_for_transfer(self, object_id: ObjectKey) -> StoredObject | None:
        """A sealed object, pinned until release(object_id, TRANSFERS); None where there is none. It may have
        to be read on disk.

        One that a client is writing is awaited for a while: the client's seal comes over another connection
        than what made the other node ask, and perhaps later.
        """
        if self.store.is_made_here(object_id):
            await self._await_seal(object_id)
        return self.store.pin_on_disk(object_id, TRANSFERS)

    def path(self, extent: Extent) -> str:
        """The file in which clients read what is on disk."""
        return self.spills.path(extent.file)

    async def content(self, entry: StoredObject, start: int, length: int) -> memoryview:
        """Bytes of an object that is pinned, from memory or disk. Raises OSError."""
        if entry.is_in_memory:
            return self.memory.view(entry.offset + start, length)
        extent = self.store.extent_of(entry.object_id)
        try:
            return await self.spills.read(extent, start, length)
        except OSError as error:
            self.spills.unreadable(entry.object_id, extent, error)
            self._settle()
            raise

    async def _await_seal(self, object_id: ObjectKey) -> None:
        """Waits for the client that is writing it: until it is sealed or given up, or seal_timeout_s."""
        wanted = Wanted(object_id, (self.node_id,))
        (found,) = await self.gets.get(TRANSFERS, [wanted], self.config.seal_timeout_s, None)
        if found.state is FoundState.FOUND:
            self.release(object_id, TRANSFERS)

    # ---- steps

    def _sealed(self, object_id: ObjectKey, kept: bool, pulled: bool) -> None:
        if kept:
            if not pulled:
                self.pulls.cancel(object_id)
            self.gets.sealed(object_id, pulled)
        else:
            self.gets.lost(object_id, "its owner freed it")
        self._settle()

    def _on_backed(self) -> None:
        self._times_backed += 1
        self.spills.backed()
        self._settle()

    def _settle(self) -> None:
        """Gives memory and places that came free to who waits for them, until nothing more can be given."""
        waiting, pulls, spilling = self._create_queue, self._pull_manager, self._spilling
        while (
            state := (
                self.store.releases,
                self._times_backed,
                pulls.changes,
                self._admission.changes,
                spilling.changes,
                len(waiting),
            )
        ) != self._settled:
            self._settled = state
            if waiting or spilling.is_wanted:
                self._serve_waiting()
            # Creates come first: what is produced here waits for a client that produces it. But where room
            # is made for them all the time, pulls would never have their turn.
            if not waiting or spilling.can_make_room:
                if self._admission:
                    self.gets.admit(lambda: self.store.obtainable_bytes, self._memory_state)
                if pulls:
                    self.pulls.schedule(self.store.obtainable_bytes)
        if waiting or spilling.is_due or self._admission.is_short:
            self._make_room()
        self._set_timer()

    def _memory_state(self) -> int:
        return self.store.releases + self._times_backed

    def _serve_waiting(self) -> None:
        """Creates and restores, in the order of their coming: who came later waits while room is made."""
        waiting, spilling = self._create_queue, self._spilling
        create_s, restore_s = waiting.oldest_s, spilling.oldest_s
        restores_first = restore_s is not None and (create_s is None or restore_s <= create_s)
        if restores_first:
            self.spills.restore()
            if spilling.wanted_bytes:
                return
        if waiting:
            self.creates.pump()
        if not restores_first and not (waiting.head_bytes and spilling.can_make_room):
            self.spills.restore()

    def _make_room(self) -> None:
        waiting, spilling = self._create_queue, self._spilling
        wanted_bytes = max(waiting.head_bytes, spilling.wanted_bytes, self._admission.wanted_bytes)
        self.spills.make_room(wanted_bytes)
        if spilling.can_make_room:
            waiting.goes_on()
        else:
            waiting.stuck(self._clock.time_s(), self.spills.has_disk and not spilling.is_disk_failing)

    # ---- time

    def _set_timer(self) -> None:
        """One timer, for the earliest deadline of all machines."""
        earliest_s: float | None = None
        for one in self._timed:
            deadline_s = one.next_deadline_s
            if deadline_s is not None and (earliest_s is None or deadline_s < earliest_s):
                earliest_s = deadline_s
        if self._timer is not None:
            if earliest_s is not None and self._timer_s <= earliest_s:
                return  # it rings early enough, and sets the next one
            self._timer.cancel()
            self._timer = None
        if earliest_s is not None:
            delay_s = max(0.0, earliest_s - self._clock.time_s())
            self._timer_s = earliest_s
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self._clock.time_s()
        for one in self._timed:
            one.expire(now_s)
        self._settle()

    def close(self) -> None:
        """Stops the timers, and removes what is on disk. Requests that wait are cancelled with their
        callers."""
        self._backing.close()
        self.spills.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self.store.check_invariants()
        self.gets.check_invariants()
        self.pulls.check_invariants()
        self.spills.check_invariants()
