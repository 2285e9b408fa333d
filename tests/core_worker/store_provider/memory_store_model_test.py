"""The memory store against a model: every waiter hears of its own object, once, whether it is told by its
name or watches several."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ray_mono.core_worker.store_provider.memory_store import MemoryStore

OBJECTS = [b"a", b"b", b"c"]
objects = st.sampled_from(OBJECTS)

Value = tuple[str, bytes | tuple[bytes, ...]]


class MemoryStoreAgainstAModel(RuleBasedStateMachine):
    """The model: the value of each object that is known (None: pending), and who waits for it."""

    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(lambda object_id: object_id in self.values)
        self.values: dict[bytes, Value | None] = {}
        self.waiting: dict[bytes, list[int]] = {object_id: [] for object_id in OBJECTS}
        self.callbacks: dict[int, Callable[[], None]] = {}
        # By waiter: the object that it waits for next, as soon as it hears.
        self.then: dict[int, bytes] = {}
        self.heard: list[int] = []
        self.expected: list[int] = []

    # ---- the model

    def wake(self, object_id: bytes) -> None:
        woken, self.waiting[object_id] = self.waiting[object_id], []
        for waiter in woken:
            self.expected.append(waiter)
            if waiter in self.then:
                self.model_waits(self.then.pop(waiter), waiter)

    def model_waits(self, object_id: bytes, waiter: int) -> bool:
        """Whether it does not have to."""
        if object_id not in self.values or self.values[object_id] is not None:
            return True
        self.waiting[object_id].append(waiter)
        return False

    # ---- what happens

    @rule(object_id=objects, by_name=st.booleans())
    def expect(self, object_id: bytes, by_name: bool) -> None:
        """It is referenced, or somebody says that it will come; a value that was there does not hold."""
        self.store.forget(object_id)
        if by_name:
            self.store.expect(object_id)
        self.values[object_id] = None

    @rule(object_id=objects, data=st.binary(max_size=3))
    def put_plain(self, object_id: bytes, data: bytes) -> None:
        self.values[object_id] = ("inline", data)
        self.wake(object_id)
        self.store.put_plain(object_id, data)

    @rule(object_id=objects, data=st.binary(max_size=3))
    def put_inline(self, object_id: bytes, data: bytes) -> None:
        self.values[object_id] = ("inline", data)
        self.wake(object_id)
        self.store.put_inline(object_id, b"how", data)

    @rule(object_id=objects, nodes=st.lists(st.sampled_from([b"n1", b"n2"]), unique=True))
    def put_in_store(self, object_id: bytes, nodes: list[bytes]) -> None:
        self.values[object_id] = ("stores", tuple(nodes))
        self.wake(object_id)
        self.store.put_in_store(object_id, nodes, 10)

    @rule(target=waiters, object_id=objects, then=st.none() | objects)
    def wait(self, object_id: bytes, then: bytes | None) -> tuple[bytes, int]:
        """then: who hears waits for another one at once, from inside the store's call."""
        waiter = len(self.callbacks)

        def hear() -> None:
            self.heard.append(waiter)
            if again:
                self.store.when_ready(again.pop(), hear)

        again = [then] if then is not None else []
        self.callbacks[waiter] = hear
        if then is not None:
            self.then[waiter] = then
        assert self.store.when_ready(object_id, hear) == self.model_waits(object_id, waiter)
        return object_id, waiter

    @rule(waiter=consumes(waiters))
    def forget(self, waiter: tuple[bytes, int]) -> None:
        object_id, number = waiter
        self.store.forget_waiter(object_id, self.callbacks[number])
        if number in self.waiting[object_id]:
            self.waiting[object_id].remove(number)

    @rule(object_id=objects)
    def remove(self, object_id: bytes) -> None:
        was_known = self.values.pop(object_id, None) is not None
        self.wake(object_id)
        assert (self.store.remove(object_id) is not None) == was_known

    # ---- what must hold

    @invariant()
    def who_waited_has_heard(self) -> None:
        assert self.heard == self.expected

    @invariant()
    def the_values_are_those_of_the_model(self) -> None:
        assert len(self.store) == sum(value is not None for value in self.values.values())
        assert self.store.num_waiters == sum(len(waiting) for waiting in self.waiting.values())
        for object_id in OBJECTS:
            entry = self.store.get(object_id)
            value = self.values.get(object_id)
            assert self.store.is_pending(object_id) == (object_id in self.values and value is None)
            assert (entry is not None) == (value is not None)
            if entry is None or value is None:
                continue
            assert entry.data == (value[1] if value[0] == "inline" else None)
            assert entry.locations == (list(value[1]) if value[0] == "stores" else None)


MemoryStoreAgainstAModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, print_blob=True
)
TestMemoryStoreAgainstAModel = MemoryStoreAgainstAModel.TestCase
