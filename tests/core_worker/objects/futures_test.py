"""Futures of references: complete at once where the value is here, and none waits behind another's value."""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects.futures import ObjectFutures, SessionEnded
from ray_mono.core_worker.values import serialization
from tests.core_worker.fake_core import FakeCore

WAIT_S = 30.0


class Core(FakeCore):
    """Has no store: what lies elsewhere is brought here when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.futures = ObjectFutures(self)  # type: ignore[arg-type]
        self.getter = SimpleNamespace(get=self._get)
        self.waits = SimpleNamespace(pull=self._pull)
        self.pulls: dict[bytes, Callable[[], None]] = {}

    def _get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        entry = self.memory_store.get(refs[0]._id)
        assert entry is not None and entry.data is not None
        value = serialization.deserialize(entry.metadata, entry.data)
        if isinstance(value, BaseException):
            raise value
        return [value]

    def _pull(self, object_id: bytes, then: Callable[[], None]) -> None:
        self.pulls[object_id] = then

    def as_future(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]:
        return self.futures.of(ref)

    def ref(self, name: bytes) -> ObjectRef[Any]:
        """To a value that is not there yet."""
        object_id = name * 28
        self.references.add_owned(object_id)
        self.memory_store.expect(object_id)
        return ObjectRef(object_id, self)  # type: ignore[arg-type]

    def arrive(self, ref: ObjectRef[Any], value: Any) -> None:
        serialized = serialization.serialize(value)
        with self.lock:
            self.memory_store.put_inline(ref._id, serialized.metadata, serialized.to_bytes())


@pytest.fixture
def core() -> Iterator[Core]:
    made = Core()
    yield made
    made.futures.close()


def test_a_value_that_is_here_costs_no_turn_of_the_loop(core: Core) -> None:
    refs = [core.ref(name) for name in (b"a", b"b", b"c")]
    for number, ref in enumerate(refs):
        core.arrive(ref, number)

    async def take() -> None:
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert [await ref for ref in refs] == [0, 1, 2]
        assert refs[0].as_future().done() and not turns

    asyncio.run(take())
    assert refs[0].future().done()


def test_a_value_that_comes_later_ends_the_wait(core: Core) -> None:
    ref = core.ref(b"a")

    async def take() -> Any:
        asyncio.get_running_loop().call_later(0.01, core.arrive, ref, "late")
        return await asyncio.wait_for(ref, WAIT_S)

    assert asyncio.run(take()) == "late"


def test_an_error_is_raised_whether_it_is_here_or_comes(core: Core) -> None:
    for error, seen in ((KeyError("k"), KeyError), (StopIteration("s"), RuntimeError)):
        for is_late in (False, True):
            ref = core.ref(bytes([65 + is_late + 2 * (seen is KeyError)]))

            async def take(
                ref: ObjectRef[Any] = ref, is_late: bool = is_late, error: Exception = error
            ) -> None:
                if is_late:
                    asyncio.get_running_loop().call_later(0.01, core.arrive, ref, error)
                else:
                    core.arrive(ref, error)
                await asyncio.wait_for(ref, WAIT_S)

            with pytest.raises(seen):
                asyncio.run(take())


@pytest.mark.parametrize("is_late", [False, True])
def test_the_traceback_of_an_error_ends_where_it_was_awaited(core: Core, is_late: bool) -> None:
    ref = core.ref(b"a")

    async def take() -> list[str]:
        if is_late:
            asyncio.get_running_loop().call_later(0.01, core.arrive, ref, KeyError("k"))
        else:
            core.arrive(ref, KeyError("k"))
        try:
            await ref
        except KeyError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return []

    assert asyncio.run(asyncio.wait_for(take(), WAIT_S)) == ["take"]


def test_nothing_waits_behind_a_value_that_is_still_on_its_way_from_another_node(core: Core) -> None:
    far, near = core.ref(b"f"), core.ref(b"n")
    with core.lock:
        core.memory_store.put_in_store(far._id, [b"another node"], 10**6)
    slow, quick = far.future(), near.future()
    core.arrive(near, "near")
    assert quick.result(WAIT_S) == "near" and not slow.done()
    core.arrive(far, "far")
    core.pulls[far._id]()
    assert slow.result(WAIT_S) == "far"


def test_a_coroutine_that_outlives_the_session_is_cancelled_and_who_asks_for_it_hears_why() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    async def wait() -> None:
        await asyncio.wrap_future(future)

    async def scene() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        waiting, forgotten = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        future.set_exception(SessionEnded())
        with pytest.raises(RaySystemError, match="disconnected"):
            await waiting
        await asyncio.wait({forgotten})
        assert forgotten.cancelled()
        del forgotten
        assert not complaints

    asyncio.run(scene())
