"""Values this process knows: small ones as bytes, large ones as the nodes that hold them, and those that do not exist yet.

A machine without I/O, called under the core worker's lock. Values stay serialized: a value is frozen at `put`, and
two `get`s give independent objects. Entries live exactly as long as the reference counter's row of the same id.

    (no entry) ──expect──► PENDING ──put_inline──► READY inline
                              └─────put_in_store──► READY in stores (locations)      READY ──expect──► PENDING   (its
                              task runs again)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        # Called with the id of each value that turns out to be an error, before its waiters.
        self.on_error: Callable[[bytes], None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

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
        if metadata == ERROR and self.on_error is not None:
            self.on_error(object_id)
        self._wake(entry)

    def put_in_store(self, object_id: bytes, locations: list[bytes], size_bytes: int) -> None:
        entry = self._own_entry(object_id)
        entry.data = None
        entry.locations = locations
        entry.size_bytes = size_bytes
        self._wake(entry)

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
        """True if the value is ready now; otherwise callback() runs once, under the lock, when it is (or was removed)."""
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
