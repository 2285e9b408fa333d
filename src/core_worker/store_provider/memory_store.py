"""Values this process knows: small ones as bytes, large ones as the nodes that hold them.

A machine without I/O, called under the core worker's lock. Values stay serialized: a value is frozen at
`put`, and two `get`s give independent objects. What is known of a value is removed when the reference counter
lets go of its id.

    absent            ──somebody refers to it, or expect──► PENDING
    absent, PENDING   ──put_plain, put_inline──► inline
    absent, PENDING   ──put_in_store──► in stores (locations)
    inline, in stores ──forget──► PENDING    (its owner is asked anew)
    any of them       ──remove──► absent

A pending value is on its way. It has no entry, since there may be a million. Most values are small and have
no references inside. Such a value is kept as its bytes alone (`put_plain`); `get` makes an Entry of it for
those who want one.

Whoever waits for one value leaves a callback (`when_ready`). A wait for several (ValueWait) ends with the
last of them, or with the first error among them. Whoever wants some of many, whichever come first, watches
them (Watch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import filterfalse, repeat
from typing import Any, Protocol

from ray_mono.core_worker.values.serialization import ERROR, PLAIN

Callback = Callable[[], None]


class InlineValue(Protocol):
    """What messages have that bring a value: SerializedObject, StreamedItem."""

    metadata: bytes
    data: bytes
    nested: Sequence[Any]


class Entry:
    """One value that is known. `data` is None for values in stores."""

    __slots__ = ("data", "locations", "metadata", "size_bytes")

    def __init__(
        self, metadata: bytes, data: bytes | None, locations: list[bytes] | None, size_bytes: int
    ) -> None:
        self.metadata = metadata
        self.data = data
        # Node ids, in the order in which they got their copy; None for inline values.
        self.locations = locations
        self.size_bytes = size_bytes


class MemoryStore:
    """The table of values by object id."""

    def __init__(self, is_referenced: Callable[[bytes], bool]) -> None:
        """is_referenced(object id): whether somebody needs it, so that its value, if not here, will come."""
        self._is_referenced = is_referenced
        self._values: dict[bytes, bytes | Entry] = {}
        self._waiters: dict[bytes, list[Callback]] = {}
        # Values that will come, though nobody refers to them yet.
        self._expected: set[bytes] = set()
        # Values here that are errors, and that somebody was given.
        self._seen: set[bytes] = set()
        # Waits that an error among their values ends.
        self._ended_by_errors: list[ValueWait] = []
        self._watches: list[Watch] = []
        # What is known of an object: bytes, if it is a small value without references inside; else its Entry,
        # or None. It is the dictionary's own method, since every `get` calls it. Any thread may call it
        # without the lock, since what is there does not change.
        self.plain_or_entry: Callable[[bytes], bytes | Entry | None] = self._values.get
        # Whether its value is here. As above.
        self.is_known: Callable[[bytes], bool] = self._values.__contains__

    def __len__(self) -> int:
        return len(self._values)

    @property
    def num_waiters(self) -> int:
        """Callbacks that wait for values."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def get(self, object_id: bytes) -> Entry | None:
        """None while it is pending, and for what nobody refers to."""
        value = self._values.get(object_id)
        if type(value) is bytes:
            return Entry(PLAIN, value, None, len(value))
        return value  # type: ignore[return-value]

    def is_pending(self, object_id: bytes) -> bool:
        """Whether its value will come."""
        return object_id not in self._values and (
            object_id in self._expected or self._is_referenced(object_id)
        )

    # ---- what becomes known

    def expect(self, object_id: bytes) -> None:
        """It will come, whether or not anybody refers to it yet. That ends with `remove`, or when it is
        here."""
        if object_id not in self._values:
            self._expected.add(object_id)

    def put_plain(self, object_id: bytes, data: bytes) -> None:
        """A small value: one pickle, without references inside."""
        self._values[object_id] = data
        if self._expected:
            self._expected.discard(object_id)
        if object_id in self._waiters or self._watches:
            self._wake(object_id)

    def put_all_plain(self, object_ids: Sequence[bytes], values: Sequence[bytes]) -> None:
        """As put_plain of each."""
        self._values.update(zip(object_ids, values, strict=True))
        if self._expected:
            self._expected.difference_update(object_ids)
        if self._watches:
            woken: Iterable[bytes] = object_ids
        elif len(self._waiters) > len(object_ids):
            woken = filter(self._waiters.__contains__, object_ids)
        else:
            woken = list(filter(self.is_known, self._waiters))  # nobody waits for what was known before
        for object_id in woken:
            self._wake(object_id)

    def put_value(self, object_id: bytes, value: InlineValue) -> None:
        """A value as another process sent it."""
        if value.metadata or value.nested:
            self.put_inline(object_id, value.metadata, value.data)
        else:
            self.put_plain(object_id, value.data)

    def put_inline(self, object_id: bytes, metadata: bytes, data: bytes) -> None:
        """A value in memory of any kind: an error, say, or one with references inside."""
        self._values[object_id] = Entry(metadata, data, None, len(data))
        self._expected.discard(object_id)
        if metadata == ERROR:
            self._seen.discard(object_id)
            for wait in self._ended_by_errors:
                wait.error_came(object_id)
        self._wake(object_id)

    def put_in_store(self, object_id: bytes, locations: list[bytes], size_bytes: int) -> None:
        """A value in the stores of these nodes."""
        self._values[object_id] = Entry(PLAIN, None, locations, size_bytes)
        self._expected.discard(object_id)
        self._wake(object_id)

    def forget(self, object_id: bytes) -> None:
        """What was known does not hold any more. While it is referenced it is pending again."""
        self._values.pop(object_id, None)

    def remove(self, object_id: bytes) -> Entry | bytes | None:
        """Nobody needs it any more. Whoever waits for it is woken, and does not find it. Returns what
        `plain_or_entry` would have returned."""
        value = self._values.pop(object_id, None)
        if type(value) is bytes:
            return value  # nobody waits for what is known
        if self._expected:
            self._expected.discard(object_id)
        if object_id in self._waiters or self._watches:
            self._wake(object_id)
        return value

    def forget_plain(self, object_id: bytes) -> bool:
        """As remove, if it is a small value, as most are. Else it stays. Returns which."""
        if type(self._values.get(object_id)) is bytes:
            del self._values[object_id]
            return True
        return False

    def forget_all_plain(self, object_ids: Sequence[bytes]) -> bool:
        """As forget_plain of all of them, or of none."""
        values = list(map(self._values.pop, object_ids, repeat(None)))
        if set(map(type, values)) == {bytes}:
            return True
        taken = zip(object_ids, values, strict=True)
        self._values.update((object_id, value) for object_id, value in taken if value is not None)
        return False

    def add_location(self, object_id: bytes, node_id: bytes) -> bool:
        """One more node has a copy. Returns False if the value is not known to lie in stores."""
        entry = self.get(object_id)
        if entry is None or entry.locations is None:
            return False
        if node_id not in entry.locations:
            entry.locations.append(node_id)
        return True

    # ---- errors

    def first_error(self, object_ids: Sequence[bytes]) -> bytes | None:
        """The first of these whose value is here and is an error."""
        if Entry not in set(map(type, map(self.plain_or_entry, object_ids))):
            return None  # as most are, of many
        for object_id in object_ids:
            value = self._values.get(object_id)
            if type(value) is Entry and value.metadata == ERROR:
                return object_id
        return None

    def mark_seen(self, object_id: bytes) -> None:
        """Somebody was given the value. If it is an error, nobody has to print it any more."""
        if type(value := self._values.get(object_id)) is Entry and value.metadata == ERROR:
            self._seen.add(object_id)

    def take_seen(self, object_id: bytes) -> bool:
        """Whether somebody was given this error. It is being removed, so this is forgotten."""
        is_seen = object_id in self._seen
        self._seen.discard(object_id)
        return is_seen

    # ---- waiting

    def when_ready(self, object_id: bytes, callback: Callback) -> bool:
        """Returns True if the value is here, or will not come. Otherwise callback() runs once, under the
        lock, when it is here or was removed."""
        if object_id in self._values or not (object_id in self._expected or self._is_referenced(object_id)):
            return True  # as is_pending, since many wait
        self._waiters.setdefault(object_id, []).append(callback)
        return False

    def forget_waiter(self, object_id: bytes, callback: Callback) -> None:
        waiters = self._waiters.get(object_id)
        if waiters is not None and callback in waiters:
            waiters.remove(callback)
            if not waiters:
                del self._waiters[object_id]

    def start_wait(
        self, missing: Sequence[bytes], wanted: Sequence[bytes], ended: Callback
    ) -> ValueWait | None:
        """A wait for those that are missing now among those wanted, none of which is an error; None if none
        is pending. ended() runs, under the lock, when none is pending any more, or when one that is wanted
        becomes an error. Whoever waits closes it."""
        wait = ValueWait(self, missing, wanted, ended)
        if wait.is_over:
            return None
        self._ended_by_errors.append(wait)
        return wait

    def end_wait(self, wait: ValueWait) -> None:
        if wait in self._ended_by_errors:
            self._ended_by_errors.remove(wait)

    def watch(self, object_ids: Iterable[bytes], came: Callback) -> Watch:
        """These are pending. From now on, until `end_watch`, came() runs under the lock for each that comes
        or is removed."""
        watch = Watch(set(object_ids), came)
        self._watches.append(watch)
        return watch

    def end_watch(self, watch: Watch) -> None:
        self._watches.remove(watch)

    def _wake(self, object_id: bytes) -> None:
        for callback in self._waiters.pop(object_id, ()):
            callback()
        for watch in self._watches:
            if object_id in watch.object_ids:
                watch.object_ids.discard(object_id)
                watch.came()


class Watch:
    """Somebody who counts how many of these come. Two watches of the same objects are not equal."""

    __slots__ = ("came", "object_ids")

    def __init__(self, object_ids: set[bytes], came: Callback) -> None:
        self.object_ids = object_ids
        self.came = came


class ValueWait:
    """Several values that somebody waits for. Made by MemoryStore.start_wait. Lock held.

    It waits for one at a time, and begins with the last, which in most cases is the last to come. What is
    ready by then is passed over.
    """

    __slots__ = ("_awaited", "_ended", "_pending", "_store", "_wanted", "_wanted_set")

    def __init__(
        self, store: MemoryStore, missing: Sequence[bytes], wanted: Sequence[bytes], ended: Callback
    ) -> None:
        self._store = store
        self._wanted = wanted
        # Those that are left, without what is known when it is its turn. It is the interpreter's own loop,
        # since a wait for many passes over as many.
        self._pending = filterfalse(store.is_known, reversed(missing))
        self._awaited: bytes | None = None
        # Made when the first error comes: most waits see none.
        self._wanted_set: set[bytes] | None = None
        self._ended = ended
        self._go_on()

    @property
    def is_over(self) -> bool:
        """Whether none is pending."""
        return self._awaited is None

    def _go_on(self) -> None:
        for object_id in self._pending:
            if not self._store.when_ready(object_id, self._one_ready):
                self._awaited = object_id
                return
        self._awaited = None

    def _one_ready(self) -> None:
        self._go_on()
        if self.is_over:
            self._ended()

    def error_came(self, object_id: bytes) -> None:
        if self._wanted_set is None:
            self._wanted_set = set(self._wanted)
        if object_id in self._wanted_set:
            self._ended()

    def close(self) -> None:
        """Nobody waits any more."""
        self._store.end_wait(self)
        if self._awaited is not None:
            self._store.forget_waiter(self._awaited, self._one_ready)
            self._awaited = None
