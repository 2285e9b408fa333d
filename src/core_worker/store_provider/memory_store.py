"""Values this process knows: small ones as bytes, large ones as the nodes that hold them, and those that do
not exist yet.

A machine without I/O, called under the core worker's lock. Values stay serialized: a value is frozen at
`put`, and two `get`s give independent objects. Entries live exactly as long as the reference counter's row of
the same id.

    (no entry) ──expect──► PENDING ──put_inline──► READY inline
                              └─────put_in_store──► READY in stores (locations)
    READY ──expect──► PENDING      (its owner is asked anew, or its task runs again)

Who waits for one value leaves a callback with it. A wait for several (ValueWait) ends with the last of them,
or with the first error among all that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ray_mono.core_worker.values.serialization import ERROR

Callback = Callable[[], None]


class Entry:
    """One value. `data` is None while pending and for values in stores."""

    __slots__ = ("data", "is_seen", "locations", "metadata", "ready", "size_bytes", "waiters")

    def __init__(self) -> None:
        self.ready = False
        # Of an error: somebody was given it.
        self.is_seen = False
        self.metadata = b""
        self.data: bytes | None = None
        # Node ids, in the order in which they got their copy; None for inline values.
        self.locations: list[bytes] | None = None
        self.size_bytes = 0
        self.waiters: list[Callback] | None = None


_PENDING = Entry()
"""Stands for every pending value that nobody waits for: there may be a million. Never changed."""


class MemoryStore:
    """The table of values by object id."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._ended_by_errors: list[ValueWait] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_waiters(self) -> int:
        """Callbacks that wait for values."""
        return sum(len(entry.waiters or ()) for entry in self._entries.values())

    def get(self, object_id: bytes) -> Entry | None:
        return self._entries.get(object_id)

    def expect(self, object_id: bytes) -> None:
        """A value that will come. Waiters of an entry that was there stay."""
        entry = self._entries.setdefault(object_id, _PENDING)
        if entry is not _PENDING:
            entry.ready = False
            entry.data = entry.locations = None

    def put_inline(self, object_id: bytes, metadata: bytes, data: bytes) -> None:
        entry = self._own_entry(object_id)
        entry.metadata = metadata
        entry.data = data
        entry.locations = None
        entry.size_bytes = len(data)
        if metadata == ERROR and self._ended_by_errors:
            for wait in self._ended_by_errors:
                wait.error_came(object_id)
        self._wake(entry)

    def put_in_store(self, object_id: bytes, locations: list[bytes], size_bytes: int) -> None:
        entry = self._own_entry(object_id)
        entry.data = None
        entry.locations = locations
        entry.size_bytes = size_bytes
        self._wake(entry)

    def add_location(self, object_id: bytes, node_id: bytes) -> bool:
        """One more node has a copy. False where the value is not known to lie in stores."""
        entry = self._entries.get(object_id)
        if entry is None or entry.locations is None:
            return False
        if node_id not in entry.locations:
            entry.locations.append(node_id)
        return True

    def remove_location(self, object_id: bytes, node_id: bytes) -> None:
        entry = self._entries.get(object_id)
        if entry is not None and entry.locations is not None and node_id in entry.locations:
            entry.locations.remove(node_id)

    def is_ready(self, object_id: bytes) -> bool:
        """Or was removed."""
        entry = self._entries.get(object_id)
        return entry is None or entry.ready

    def first_error(self, object_ids: Iterable[bytes]) -> bytes | None:
        """Of these, the first whose value is there and is an error."""
        for object_id in object_ids:
            entry = self._entries.get(object_id)
            if entry is not None and entry.ready and entry.metadata == ERROR:
                return object_id
        return None

    def when_ready(self, object_id: bytes, callback: Callback) -> bool:
        """True if the value is ready now; otherwise callback() runs once, under the lock, when it is (or was
        removed)."""
        entry = self._entries.get(object_id)
        if entry is None or entry.ready:
            return True
        entry = self._own_entry(object_id)
        if entry.waiters is None:
            entry.waiters = [callback]
        else:
            entry.waiters.append(callback)
        return False

    def forget_waiter(self, object_id: bytes, callback: Callback) -> None:
        entry = self._entries.get(object_id)
        if entry is not None and entry.waiters is not None and callback in entry.waiters:
            entry.waiters.remove(callback)

    def start_wait(
        self, watched: Sequence[bytes], wanted: Sequence[bytes], ended: Callback
    ) -> ValueWait | None:
        """A wait for the `watched` values, which are some of those `wanted`. None if all are ready now. Else
        ended() runs, under the lock, when they are, or when one that is wanted is an error: at once, if one
        is. Whoever waits closes it."""
        wait = ValueWait(self, watched, wanted, ended)
        if not wait.num_missing:
            return None
        if len(wanted) > 1:
            if self.first_error(wanted) is not None:
                ended()
            else:
                self._ended_by_errors.append(wait)
        return wait

    def end_wait(self, wait: ValueWait) -> None:
        if wait in self._ended_by_errors:
            self._ended_by_errors.remove(wait)

    def mark_seen(self, object_id: bytes) -> None:
        """Somebody was given the value, which is an error: nobody else has to be told of it."""
        entry = self._entries.get(object_id)
        if entry is not None and entry is not _PENDING:
            entry.is_seen = True

    def remove(self, object_id: bytes) -> Entry | None:
        entry = self._entries.pop(object_id, None)
        if entry is not None and entry.waiters:
            self._wake(entry)
        return entry

    def _own_entry(self, object_id: bytes) -> Entry:
        entry = self._entries.get(object_id)
        if entry is None or entry is _PENDING:
            entry = self._entries[object_id] = Entry()
        return entry

    def _wake(self, entry: Entry) -> None:
        entry.ready = True
        waiters, entry.waiters = entry.waiters, None
        if waiters:
            for callback in waiters:
                callback()


class ValueWait:
    """Several values that somebody waits for. Made by MemoryStore.start_wait; lock held."""

    __slots__ = ("_ended", "_store", "_wanted", "_wanted_set", "_watched", "num_missing")

    def __init__(
        self, store: MemoryStore, watched: Sequence[bytes], wanted: Sequence[bytes], ended: Callback
    ) -> None:
        self._store = store
        self._watched = watched
        self._wanted = wanted
        # Made when the first error comes: most waits see none.
        self._wanted_set: set[bytes] | None = None
        self._ended = ended
        self.num_missing = sum(not store.when_ready(object_id, self._one_ready) for object_id in watched)

    def _one_ready(self) -> None:
        self.num_missing -= 1
        if not self.num_missing:
            self._ended()

    def error_came(self, object_id: bytes) -> None:
        if self._wanted_set is None:
            self._wanted_set = set(self._wanted)
        if object_id in self._wanted_set:
            self._ended()

    def close(self) -> None:
        """Nobody waits any more."""
        self._store.end_wait(self)
        if self.num_missing:
            for object_id in self._watched:
                self._store.forget_waiter(object_id, self._one_ready)
