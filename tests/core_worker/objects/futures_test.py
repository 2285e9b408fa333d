"""Futures of references: complete at once where the value is here, and none waits behind another's value."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import OwnerDiedError, RaySystemError
from ray_mono.core_worker.object_ref import ObjectRef, SessionEnded
from ray_mono.protobuf import object_manager_pb2
from tests.core_worker.scene import ELSEWHERE, Scene, failure, in_store, status_in_stores, value
from tests.core_worker.scene_time import ended
from tests.no_threads import no_threads

WAIT_S = 30.0
LARGE = b"l" * 28


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(store_file=tmp_path / "store")
    yield made
    made.core.shutdown()


def arrive(scene: Scene, ref: ObjectRef[Any], what: Any) -> None:
    scene.finish(ref, failure(what, ref.binary()) if isinstance(what, BaseException) else value(what))


def test_a_value_that_is_here_costs_no_turn_of_the_loop(scene: Scene) -> None:
    refs = [scene.core.put(number) for number in range(3)]

    async def take() -> None:
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert [await ref for ref in refs] == [0, 1, 2]
        assert refs[0].as_future().done() and not turns

    asyncio.run(take())
    assert refs[0].future().done()


def test_a_value_that_comes_later_ends_the_wait(scene: Scene) -> None:
    ref = scene.submit()

    async def take() -> Any:
        asyncio.get_running_loop().call_later(0.01, arrive, scene, ref, "late")
        return await asyncio.wait_for(ref, WAIT_S)

    assert asyncio.run(take()) == "late"


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("error", "seen"), [(KeyError("k"), KeyError), (StopIteration("s"), RuntimeError)])
def test_an_error_is_raised_whether_it_is_here_or_comes(
    scene: Scene, error: Exception, seen: type[Exception], is_late: bool
) -> None:
    ref = scene.submit()

    async def take() -> None:
        if is_late:
            asyncio.get_running_loop().call_later(0.01, arrive, scene, ref, error)
        else:
            arrive(scene, ref, error)
        await asyncio.wait_for(ref, WAIT_S)

    with pytest.raises(seen):
        asyncio.run(take())


@pytest.mark.parametrize("is_late", [False, True])
def test_the_traceback_of_an_error_ends_where_it_was_awaited(scene: Scene, is_late: bool) -> None:
    ref = scene.submit()

    async def take() -> list[str]:
        if is_late:
            asyncio.get_running_loop().call_later(0.01, arrive, scene, ref, KeyError("k"))
        else:
            arrive(scene, ref, KeyError("k"))
        try:
            await ref
        except KeyError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return []

    assert asyncio.run(asyncio.wait_for(take(), WAIT_S)) == ["take"]


def test_nothing_waits_behind_a_value_that_is_still_on_its_way_from_another_node(scene: Scene) -> None:
    far, near = scene.submit(), scene.submit()
    scene.finish(far, in_store(far.binary(), ELSEWHERE))
    slow, quick = far.future(), near.future()
    arrive(scene, near, "near")
    assert ended(quick).result() == "near" and not slow.done()
    found = scene.lay(far.binary(), "far", pulled=True)
    scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(objects=[found])
    scene.wire.open("Get")[0].answer(object_manager_pb2.GetReply(objects=[found]))
    assert ended(slow).result() == "far"


def test_what_lies_in_this_nodes_store_is_not_pulled(scene: Scene) -> None:
    ref = scene.submit()
    scene.finish(ref, in_store(ref.binary()))
    found = scene.lay(ref.binary(), "here")
    scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(objects=[found])
    assert ended(ref.future()).result() == "here"
    assert [each.request.timeout_ms for each in scene.wire.all("Get")] == [0]


def test_a_future_of_a_borrowed_value_asks_its_owner(scene: Scene) -> None:
    ref, lost = scene.borrow(LARGE), scene.borrow(b"o" * 28)
    future, hopeless = ref.future(), lost.future()
    found = scene.lay(LARGE, "large")
    scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(objects=[found])
    scene.owner_answers(ref, status_in_stores(ELSEWHERE))
    assert ended(future).result() == "large"
    scene.wire.end("unix:owner")
    with pytest.raises(OwnerDiedError):
        ended(hopeless).result()


def test_a_future_that_is_cancelled_leaves_no_waiter_and_no_reference(scene: Scene) -> None:
    ref = scene.submit()
    for _ in range(3):
        future = ref.future()
        assert future.cancel()
    assert scene.core.describe()["waiters"] == 0
    del future
    arrive(scene, ref, 1)
    assert ended(ref.future()).result() == 1


def test_a_future_that_was_cancelled_while_its_value_was_on_its_way_stays_cancelled(scene: Scene) -> None:
    far, next_one = scene.submit(), scene.submit()
    scene.finish(far, in_store(far.binary(), ELSEWHERE))
    future, later = far.future(), next_one.future()
    future.cancel()
    scene.wire.open("Get")[0].answer(object_manager_pb2.GetReply())
    arrive(scene, next_one, 1)
    assert ended(later).result() == 1 and future.cancelled()


def test_a_future_that_is_done_holds_no_reference(scene: Scene) -> None:
    ref = scene.submit()
    future = ref.future()
    arrive(scene, ref, 1)
    assert ended(future).result() == 1
    # The thread of futures lets go when it goes on to the next.
    other = scene.submit()
    waits = other.future()
    arrive(scene, other, 2)
    ended(waits).result()
    del ref
    gc.collect()
    assert scene.core.reference_counts() == 1


def test_open_futures_end_with_the_session_and_no_new_ones_begin(scene: Scene) -> None:
    ref = scene.submit()
    future = ref.future()
    scene.core.shutdown()
    assert isinstance(ended(future).exception(), SessionEnded)
    with pytest.raises(SessionEnded):
        ref.future()


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


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_would_end_the_thread_ends_no_other_future(
    scene: Scene, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = scene.submit(), scene.submit()

    def fails(future: concurrent.futures.Future[Any]) -> None:
        raise raised("by the callback")

    first.future().add_done_callback(fails)
    future = second.future()
    arrive(scene, first, 1)
    arrive(scene, second, 2)
    assert ended(future).result() == 2
    assert f"a callback of a future of {first!r} failed" in caplog.text and "by the callback" in caplog.text


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_who_does_not_wait_for_a_future_is_told_at_once_that_it_is_not_done(
    scene: Scene, timeout_s: float
) -> None:
    future = scene.submit().future()
    for ask in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            ask(timeout_s)


def test_where_no_thread_may_be_made_a_future_is_an_error_and_the_next_one_is_none(scene: Scene) -> None:
    ref = scene.submit()
    with no_threads(), pytest.raises(OSError, match="can't start new thread"):
        ref.future()
    future = ref.future()
    arrive(scene, ref, "late")
    assert ended(future).result() == "late"
