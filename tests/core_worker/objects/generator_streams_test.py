"""The caller's side of a stream: items that come once, twice or too late, what the executor is told, and what
the end is."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, TaskCancelledError
from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.object_ref import ObjectRef, SessionEnded
from ray_mono.core_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from ray_mono.core_worker.options import DYNAMIC_RETURNS
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.called_generator import END, OTHER_NODE, Generator, part
from tests.core_worker.scene import ELSEWHERE, OWNER, Reply, failure


def values(generator: Generator, refs: list[ObjectRef[Any]]) -> list[Any]:
    return generator.scene.core.get(refs, None)


# ---- items that come once, twice, or too late


def test_items_are_handed_out_in_order_and_counted_until_they_are_let_go() -> None:
    generator = Generator()
    before = generator.references
    generator.push.part(part(1, "one", "two"))
    generator.push.part(part(3, "three"))
    refs = [next(generator.made) for _ in range(3)]
    assert [ref.binary() for ref in refs] == [generator.item_id(number) for number in (1, 2, 3)]
    assert values(generator, refs) == ["one", "two", "three"]
    assert generator.references == before + 3
    del refs
    assert generator.references == before


def test_items_that_another_attempt_sends_again_stay_what_they_are() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part(1, "one", "two"))
    before = generator.references
    generator.fail(KeyError("no"))
    generator.push.part(part(1, "ONE", "TWO", "three"))
    assert generator.references == before + 1
    assert values(generator, [next(generator.made) for _ in range(3)]) == ["one", "two", "three"]
    assert not generator.made.next_ready()


def test_items_behind_some_that_never_came_are_none() -> None:
    """The worker died, and of what it had yielded its raylet has only the last."""
    generator = Generator()
    generator.push.part(part(1, "one"))
    generator.push.part(part(3, "three"))
    generator.push.part(part(1, "one", "two"))
    assert values(generator, [next(generator.made), next(generator.made)]) == ["one", "two"]
    assert not generator.made.next_ready()


def test_an_attempt_that_begins_anew_hears_what_was_taken_before_it_rests() -> None:
    generator = Generator(backpressure=1, retry_exceptions=True)
    generator.push.part(part(1, "one"))
    first = next(generator.made)
    assert generator.told == [(1, 1, False)]
    # It makes one item, which is one that nobody takes again: without a word it would rest for ever.
    generator.fail(KeyError("no"))
    generator.push.part(part(1, "one"))
    assert generator.told[1:] == [(1, 1, False)]
    # What was not taken is not acknowledged as taken.
    generator.push.part(part(2, "two"))
    assert len(generator.told) == 2
    del first


def test_what_was_taken_goes_out_at_once_where_the_generator_rests_for_it() -> None:
    generator = Generator(backpressure=2)
    generator.push.part(part(1, "one", "two"))
    before = generator.scene.reactor.num_flushes
    next(generator.made)
    assert generator.told == [(2, 1, False)] and generator.scene.reactor.num_flushes == before + 1
    next(generator.made)
    assert generator.told == [(2, 1, False), (2, 2, False)]


def test_without_backpressure_nobody_is_told_what_was_taken() -> None:
    generator = Generator()
    generator.push.part(part(1, "one", "two"))
    next(generator.made)
    assert generator.told == []


def test_a_copy_of_an_item_in_a_store_is_one_more_place_or_is_freed() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part(1, None, "two", None))
    taken = [next(generator.made) for _ in range(3)]
    del taken[2]
    assert generator.freed == [(generator.item_id(3), [ELSEWHERE])]
    generator.fail(KeyError("no"))
    again = part(1, None, None, None)
    for each in again.items:
        each.node_id = OTHER_NODE
    generator.push.part(again)
    location = generator.scene.core.location_of(taken[0])
    assert location is not None and location[0] == [ELSEWHERE, OTHER_NODE]
    # The second is inline here, the third is gone.
    assert generator.freed[1:] == [
        (generator.item_id(2), [OTHER_NODE]),
        (generator.item_id(3), [OTHER_NODE]),
    ]


def test_what_comes_for_a_dropped_stream_is_thrown_away_and_said() -> None:
    generator = Generator()
    generator.push.part(part(1, "one", None))
    del generator.made
    assert generator.freed == [(generator.item_id(2), [ELSEWHERE])]
    assert generator.told == [(2, 0, True)]
    before = generator.references
    generator.push.part(part(3, None, "four"))
    assert generator.freed[1:] == [(generator.item_id(3), [ELSEWHERE])]
    assert generator.references == before
    assert generator.told[1:] == [(4, 0, True)]
    generator.push.answer(END)
    assert generator.references == 0 and generator.scene.core.describe()["values"] == 0


def test_only_what_was_not_taken_is_freed_with_the_generator() -> None:
    generator = Generator()
    generator.push.part(part(1, None, None, None))
    taken = next(generator.made)
    del generator.made
    assert sorted(generator.freed) == [
        (generator.item_id(2), [ELSEWHERE]),
        (generator.item_id(3), [ELSEWHERE]),
    ]
    assert generator.told == [(3, 1, True)]
    del taken
    assert generator.freed[2:] == [(generator.item_id(1), [ELSEWHERE])]


def test_a_generator_that_is_dropped_before_its_worker_said_anything_is_told_with_the_first_items() -> None:
    generator = Generator()
    del generator.made
    generator.scene.turn()
    assert generator.told == []
    generator.push.part(part(1, "one"))
    assert generator.told == [(1, 0, True)]


def test_a_generator_that_has_ended_is_dropped_without_a_word() -> None:
    generator = Generator()
    generator.push.part(part(1, "one"))
    generator.push.answer(END)
    del generator.made
    assert generator.references == 0 and generator.told == []


@pytest.mark.parametrize("ends_first", [True, False])
def test_of_a_generator_that_has_ended_and_is_dropped_nothing_is_said_any_more(ends_first: bool) -> None:
    generator = Generator()
    generator.push.part(part(1, "one"))
    if ends_first:
        generator.push.answer(END)
    del generator.made
    generator.scene.turn()
    if not ends_first:
        generator.push.answer(END)
    told = generator.told
    generator.push.part(part(2, "late", None))
    assert generator.told == told and generator.freed == [(generator.item_id(3), [ELSEWHERE])]


def test_the_executor_hears_what_was_received_where_it_wants_to() -> None:
    generator = Generator()
    generator.push.part(part(1, "one"))
    assert not generator.told
    generator.push.part(part(2, "two", "three", wants=True))
    assert generator.told == [(3, 0, False)]


def test_what_a_new_attempt_has_sent_is_counted_from_its_beginning() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part(1, "one", "two", "three"))
    generator.fail(KeyError("no"))
    generator.push.part(part(1, "one", wants=True))
    assert generator.told == [(1, 0, False)]


def test_items_of_a_task_that_nobody_knows_any_more_leave_the_store() -> None:
    generator = Generator()
    push = generator.push
    del generator.made
    push.answer(END)
    push.part(part(4, "inline", None, None))
    assert generator.freed == [(generator.item_id(5), [ELSEWHERE]), (generator.item_id(6), [ELSEWHERE])]
    assert generator.references == 0


# ---- who waits


def test_who_asks_for_an_item_waits_until_it_comes_and_after_the_last_until_the_end() -> None:
    generator = Generator()
    generator.scene.meanwhile(lambda: generator.push.part(part(1, "one")))
    first = next(generator.made)
    assert values(generator, [first]) == ["one"]
    generator.scene.meanwhile(lambda: generator.push.answer(END))
    with pytest.raises(StopIteration):
        next(generator.made)
    assert generator.made.is_finished()
    assert generator.scene.core.get([generator.made.completed()], None) == [None]


def test_the_end_is_no_item_and_leaves_nothing() -> None:
    generator = Generator()
    generator.scene.meanwhile(lambda: generator.push.answer(END))
    assert list(generator.made) == []
    del generator.made
    assert generator.references == 0 and generator.scene.core.describe()["values"] == 0


def test_a_generator_is_not_finished_while_an_item_is_not_taken() -> None:
    generator = Generator()
    assert not generator.made.is_finished() and not generator.made.next_ready()
    generator.push.part(part(1, "one"))
    generator.push.answer(END)
    assert generator.made.next_ready() and not generator.made.is_finished()
    next(generator.made)
    assert generator.made.is_finished() and not generator.made.next_ready()


def test_who_waits_for_an_item_after_the_end_does_not_wait() -> None:
    generator = Generator()
    generator.push.answer(END)
    with pytest.raises(StopIteration):
        next(generator.made)
    ready, _ = generator.scene.core.wait([generator.made], 1, None, False)
    assert ready == [generator.made]


def test_wait_tells_whether_the_next_item_is_there() -> None:
    generator = Generator()
    assert generator.scene.core.wait([generator.made], 1, 0, False) == ([], [generator.made])
    generator.push.part(part(1, "one"))
    assert generator.scene.core.wait([generator.made], 1, 0, False) == ([generator.made], [])
    next(generator.made)
    assert generator.scene.core.wait([generator.made], 1, 0, False) == ([], [generator.made])


def test_who_gives_the_next_item_some_time_gets_nothing_when_that_is_over() -> None:
    generator = Generator()
    before_s = generator.scene.reactor.now_s
    assert generator.made._next_sync(3).is_nil()
    assert generator.scene.reactor.now_s == before_s + 3
    generator.scene.meanwhile(lambda: generator.push.part(part(1, "one")))
    assert values(generator, [generator.made._next_sync(3)]) == ["one"]


def test_a_wait_for_an_item_ends_with_the_session() -> None:
    generator = Generator()
    generator.scene.meanwhile(generator.scene.core.shutdown)
    with pytest.raises(RaySystemError, match="disconnected"):
        next(generator.made)


def test_coroutines_wait_for_items_and_the_end() -> None:
    generator = Generator()

    async def take() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.call_soon(generator.push.part, part(1, "one"))
        first = await anext(generator.made)
        assert (await generator.made._next_async(0)).is_nil()
        loop.call_soon(generator.push.answer, END)
        with pytest.raises(StopAsyncIteration):
            await anext(generator.made)
        return values(generator, [first])

    assert asyncio.run(asyncio.wait_for(take(), 30)) == ["one"]
    assert generator.scene.core.describe()["waiters"] == 0


def test_a_coroutine_that_gave_up_leaves_no_waiter() -> None:
    generator = Generator()
    assert asyncio.run(generator.made._next_async(0)).is_nil()
    assert generator.scene.core.describe()["waiters"] == 0


def test_a_coroutine_that_waits_for_an_item_is_cancelled_at_the_end_of_the_session() -> None:
    generator = Generator()

    async def take() -> None:
        asyncio.get_running_loop().call_soon(generator.scene.core.shutdown)
        await anext(generator.made)

    with pytest.raises(SessionEnded):
        asyncio.run(asyncio.wait_for(take(), 30))
    with pytest.raises(SessionEnded):
        asyncio.run(generator.made._next_async(1))


def test_somebody_elsewhere_can_wait_for_an_item_on_its_way() -> None:
    generator = Generator()
    question = core_worker_pb2.WaitForRefRemovedRequest(
        object_id=b"x" * 28, contained_in=generator.item_id(1)
    )
    asked = generator.scene.ask("WaitForRefRemoved", question)
    assert asked.replies == []
    generator.push.part(part(1, "one"))
    assert len(asked.replies) == 1
    late = generator.scene.ask("WaitForRefRemoved", question)
    assert len(late.replies) == 1


# ---- the end


def test_an_error_is_the_last_item() -> None:
    generator = Generator()
    generator.push.part(part(1, "one"))
    generator.fail(KeyError("why"))
    first, last = next(generator.made), next(generator.made)
    assert values(generator, [first]) == ["one"]
    with pytest.raises(KeyError, match="why"):
        values(generator, [last])
    assert generator.made.is_finished()
    assert values(generator, [generator.made.completed()]) == [None]


def test_what_an_error_has_inside_lives_with_it() -> None:
    generator = Generator()
    before = generator.references
    reply = failure(KeyError("why"), object_id_bytes(generator.task_id, 1))
    reply.returns[0].value.nested.add(object_id=b"i" * 28, owner=OWNER)
    generator.push.answer(reply)
    last = next(generator.made)
    assert generator.references == before + 2
    del last
    assert generator.references == before


def test_a_cancelled_generator_has_that_for_its_last_item_and_its_end() -> None:
    generator = Generator()
    generator.push.part(part(1, "one"))
    generator.scene.core.cancel(generator.made.completed(), False, False)
    generator.push.answer(Reply(status=Reply.CANCELLED))
    assert values(generator, [next(generator.made)]) == ["one"]
    for ref in (next(generator.made), generator.made.completed()):
        with pytest.raises(TaskCancelledError):
            values(generator, [ref])
    assert generator.made.is_finished()


def test_items_keep_what_they_have_inside() -> None:
    generator = Generator()
    inner = generator.scene.borrow(b"i" * 28)
    generator.push.part(part(1, [inner]))
    before = generator.references
    del inner
    assert generator.references == before
    taken = next(generator.made)
    del taken
    assert generator.references == before - 2


def test_the_items_of_a_dynamic_generator_are_its_value() -> None:
    generator = Generator(DYNAMIC_RETURNS)
    end = generator.made
    assert type(end) is ObjectRef
    generator.push.part(part(1, "one", "two"))
    with pytest.raises(GetTimeoutError):
        generator.scene.core.get([end], 0)
    generator.push.answer(END)
    with generator.scene.as_this_process():
        (first,) = generator.scene.core.get([end], None)
        assert type(first) is DynamicObjectRefGenerator and len(first) == 2
        assert values(generator, list(first)) == ["one", "two"] and len(first) == 0
        # The value holds its items.
        (again,) = generator.scene.core.get([end], None)
    assert values(generator, list(again)) == ["one", "two"]
    del again, first, end, generator.made
    assert generator.references == 0


def test_the_error_of_a_dynamic_generator_is_the_last_of_its_items() -> None:
    generator = Generator(DYNAMIC_RETURNS)
    generator.push.part(part(1, "one"))
    generator.fail(KeyError("why"))
    with generator.scene.as_this_process():
        (refs,) = generator.scene.core.get([generator.made], None)
    one, error = refs
    assert values(generator, [one]) == ["one"]
    with pytest.raises(KeyError):
        values(generator, [error])


def test_a_dynamic_generator_that_nobody_wants_leaves_nothing() -> None:
    generator = Generator(DYNAMIC_RETURNS)
    generator.push.part(part(1, None))
    del generator.made
    generator.scene.turn()
    generator.push.answer(END)
    assert generator.freed == [(generator.item_id(1), [ELSEWHERE])] and generator.references == 0


# ---- the object


def test_a_generator_cannot_be_sent() -> None:
    generator = Generator()
    assert type(generator.made) is ObjectRefGenerator
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(generator.made)


def test_a_generator_takes_neither_values_nor_exceptions() -> None:
    made = Generator().made
    for use in (lambda: made.send(1), lambda: made.throw(KeyError()), made.close):
        with pytest.raises(NotImplementedError):
            use()
    for started in (lambda: made.asend(1), lambda: made.athrow(KeyError()), made.aclose):
        with pytest.raises(NotImplementedError):
            asyncio.run(started())
