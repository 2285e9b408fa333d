"""The calls on the loops of an async actor: their turns, and what their cancels and its end answer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.our_bug import OUR_BUG
from ray_mono.core_worker.task_errors import ActorExit
from ray_mono.core_worker.task_execution import actor_runtime
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.task_execution.concurrent_actor import Group
from tests.core_worker.worker_scene import CODE, WAIT_S, Code, Worker
from tests.waiting import wait_until


def test_calls_have_their_turns_in_order_and_no_more_than_the_limit_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch, limit=2)
    first, second, third, fourth = worker.start("1", "2", "3", "4")
    assert [worker.log.next(), worker.log.next()] == ["1", "2"] and worker.log.is_empty
    worker.let_go("2")
    assert second.value == "value of 2"
    assert [worker.log.next(), worker.log.next()] == ["end of 2", "3"] and worker.log.is_empty
    assert not first.replies and not fourth.replies
    worker.let_go("1", "3", "4")
    assert [each.value for each in (first, third, fourth)] == ["value of 1", "value of 3", "value of 4"]
    worker.close()


def test_each_group_has_turns_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch, groups=[("io", 1, "do")])
    (waits,) = worker.start("1")
    assert worker.do(lambda: threading.current_thread().name).value == "actor-loop-io", (
        "its method is the group's"
    )
    assert worker.log.next() == "1"
    (other,) = worker.start("2", group="io")
    assert worker.log.next() == "2" and not waits.replies
    worker.let_go("1", "2")
    assert waits.value == "value of 1" and other.value == "value of 2"
    worker.close()


def test_a_call_that_is_cancelled_before_its_turn_never_runs_and_the_next_gets_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    first, second, third = worker.start("1", "2", "3")
    assert worker.cancel(second.task_id)
    # As it is, without a traceback: no code was stopped.
    assert type(second.value) is TaskCancelledError
    worker.let_go("1", "3")
    assert (first.value, third.value) == ("value of 1", "value of 3")
    assert [worker.log.next() for _ in range(4)] == ["1", "end of 1", "3", "end of 3"]
    worker.close()
    assert not worker.running.calls


def test_a_call_that_waited_sees_nothing_that_the_one_before_it_set(monkeypatch: pytest.MonkeyPatch) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    worker = Group(monkeypatch)
    worker.start("1")
    worker.do(lambda: variable.set("of another call"))
    last = worker.do(variable.get)
    worker.let_go("1")
    assert last.value == "unset"
    worker.close()


def test_a_call_that_is_cancelled_just_before_its_turn_gives_the_turn_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    first, second, third = worker.start_on_loop("1", "2", "3")
    with worker.env.lock:
        worker.running.calls[second.task_id].cancel()  # the loop has not heard of it yet
    worker.let_go("1", "3")
    assert (first.value, third.value) == ("value of 1", "value of 3")
    assert type(second.value) is TaskCancelledError
    worker.close()


def test_a_call_that_is_cancelled_before_it_comes_to_the_loop_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the main thread fetches its arguments, the one that reads the sockets may hear of the cancel."""
    worker = Group(monkeypatch)
    worker.before_next_call(lambda: worker.cancel(worker.running.task.task_id))  # type: ignore[union-attr]
    (call,) = worker.start("1")
    assert type(call.value) is TaskCancelledError
    (after,) = worker.start("2")
    worker.let_go("2")
    assert after.value == "value of 2" and worker.log.next() == "2"
    worker.close()


def test_a_call_that_is_cancelled_before_it_comes_to_a_loop_without_room_is_answered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    (first,) = worker.start("1")
    worker.before_next_call(lambda: worker.cancel(worker.running.task.task_id))  # type: ignore[union-attr]
    (cancelled,) = worker.start("2")
    (third,) = worker.start("3")
    worker.let_go("1", "3")
    assert (first.value, third.value) == ("value of 1", "value of 3")
    assert type(cancelled.value) is TaskCancelledError
    assert [worker.log.next() for _ in range(4)] == ["1", "end of 1", "3", "end of 3"]
    worker.close()


def test_a_coroutine_that_is_cancelled_is_stopped_and_says_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    (call,) = worker.start("1")
    assert worker.log.next() == "1" and worker.cancel(call.task_id)
    assert isinstance(call.value.cause, TaskCancelledError) and "in wait" in str(call.value)
    assert worker.log.next() == "end of 1"
    worker.close()
    assert not worker.cancel(call.task_id), "it is over"


def test_a_method_that_makes_the_best_of_its_cancel_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)

    async def go_on() -> int:
        worker.cancel(worker.context.task_id())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(WAIT_S)
        return 1

    assert isinstance(worker.do(go_on).value.cause, TaskCancelledError)
    worker.close()


def test_a_cancelled_error_that_nobody_asked_for_is_a_cancelled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)

    def fail() -> None:
        raise asyncio.CancelledError

    assert isinstance(worker.do(fail).value.cause, TaskCancelledError)
    worker.close()


def test_the_cancel_of_another_call_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)

    def fail() -> None:
        raise TaskCancelledError("of another")

    error = worker.do(fail).value
    assert isinstance(error.cause, TaskCancelledError) and error.cause.task_id == "of another"
    worker.close()


def test_an_error_is_the_calls_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)
    assert isinstance(worker.do(lambda: 1 // 0).value.cause, ZeroDivisionError)
    assert worker.do(lambda: 1).value == 1
    worker.close()


def test_the_end_of_the_actor_cancels_what_runs_and_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)
    calls = worker.start("runs", "waits")
    assert worker.log.next() == "runs"
    worker.close()
    assert worker.log.next() == "end of runs" and worker.log.is_empty
    assert not any(call.replies for call in calls)
    worker.cancel(calls[1].task_id)  # for which there is no loop any more


def test_an_answer_leaves_at_the_end_of_the_loops_round(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)
    (call,) = worker.start("1")
    worker.let_go("1")
    call.wait()
    wait_until(lambda: call.is_flushed, "the answer to leave")
    worker.close()


def test_calls_that_a_task_factory_begins_at_once_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(loop: asyncio.AbstractEventLoop, coroutine: Any) -> asyncio.Future[Any]:
        """As asyncio.eager_task_factory, of Python 3.12 and later, where a coroutine does not wait."""
        with pytest.raises(StopIteration):
            coroutine.send(None)
        over: asyncio.Future[Any] = loop.create_future()
        over.set_result(None)
        return over

    worker = Group(monkeypatch)
    worker.do(lambda: asyncio.get_running_loop().set_task_factory(begun))
    assert [worker.do(lambda number=number: number).value for number in range(3)] == [0, 1, 2]
    worker.do(lambda: asyncio.get_running_loop().set_task_factory(None))
    (after,) = worker.start("1")
    worker.let_go("1")
    assert after.value == "value of 1"
    worker.close()
    assert not worker.running.calls


def test_a_call_whose_answer_fails_is_answered_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)
    worker.start()
    spec = worker.method("wait")
    worker.go["1"] = threading.Event()
    worker.let_go("1")
    call = worker.ask(spec, "1")
    call.reply_failures = [LookupError("no")]
    worker.run()
    assert OUR_BUG in str(call.value)
    worker.close()


def test_a_turn_goes_on_though_the_answer_of_a_cancelled_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)
    first, second, third = worker.start_on_loop("1", "2", "3")
    second.reply_failures = [LookupError("no")]
    with worker.env.lock:
        worker.running.calls[second.task_id].cancel()
    worker.let_go("1", "3")
    assert (first.value, third.value) == ("value of 1", "value of 3")
    assert OUR_BUG in str(second.value)
    worker.close()


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), None], ids=repr)
def test_what_the_actor_starts_on_its_loop_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException | None
) -> None:
    worker = Group(monkeypatch)
    told = threading.Event()
    worker.wire.replies["ReportWorkerDeath"] = lambda request: told.set() or request

    def strike() -> None:
        if raised is None:
            asyncio.get_running_loop().stop()
        else:
            raise raised

    worker.do(lambda: asyncio.get_running_loop().call_soon(strike) and None).wait()
    if isinstance(raised, SystemExit):
        assert told.wait(WAIT_S) and not worker.run()
        assert "SystemExit(3)" in worker.deaths()[0].message
    else:
        assert worker.do(lambda: 1).value == 1 and not worker.deaths()
    worker.close()


@pytest.mark.parametrize("error", [ActorExit(), SystemExit(0)], ids=repr)
def test_a_coroutine_that_ends_the_actor_wakes_its_main_thread_and_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    worker = Group(monkeypatch)
    told = threading.Event()
    worker.wire.replies["ReportWorkerDeath"] = lambda request: told.set() or request

    def leave() -> None:
        raise error

    call = worker.do(leave)
    assert told.wait(WAIT_S)
    while worker.run():
        pass
    assert len(worker.deaths()) == 1 and not call.replies
    worker.close()


def test_terminate_waits_for_the_calls_before_it_in_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch, limit=2, groups=[("io", 2)])
    (first,), (second,) = worker.start("1"), worker.start("2", group="io")
    end = worker.ask(worker.method("__ray_terminate__"))
    worker.run()
    (later,) = worker.start("3")
    assert {worker.log.next(), worker.log.next()} == {"1", "2"}
    worker.let_go("1")
    assert first.value == "value of 1"
    assert not worker.deaths()
    worker.let_go("2")
    assert second.value == "value of 2"
    while worker.run():
        pass
    assert worker.deaths()[0].message == "exit_actor() was called" and not end.replies and not later.replies
    worker.close()


# ---- what runs on threads


def test_a_generator_of_an_async_actor_runs_beside_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch, limit=2)

    def generate() -> Iterator[str]:
        yield threading.current_thread().name
        worker.go["1"].wait(WAIT_S)
        yield worker.context.task_id().decode()

    worker.go["1"] = threading.Event()
    call = worker.do(generate, num_returns=-1)
    assert worker.do(lambda: 1).value == 1, "the loop goes on"
    worker.let_go("1")
    call.wait()
    assert call.items == ["actor-call", call.task_id.decode()]
    worker.close()


def test_an_async_generator_yields_on_its_loop_and_rests_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch, limit=2)

    async def generate() -> AsyncIterator[int]:
        worker.log.add("1")
        yield 1
        worker.log.add("2")
        yield 2

    call = worker.do(generate, num_returns=-1, generator_backpressure_num_objects=1)
    assert worker.log.next() == "1" and worker.do(lambda: 1).value == 1
    for taken in (1, 2):
        with worker.env.lock:
            worker.execution.generators.AcknowledgeItems(
                core_worker_pb2.AcknowledgeItemsRequest(task_id=call.task_id, received=taken, taken=taken)
            )
    assert worker.log.next() == "2"
    call.wait()
    assert call.items == [1, 2]
    worker.close()


def test_an_async_generator_has_no_fixed_number_of_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)

    async def generate() -> AsyncIterator[int]:
        yield 1

    assert "needs num_returns='streaming' or 'dynamic'" in str(worker.do(generate).value)
    none = worker.do(generate, num_returns=0)
    assert none.wait().is_application_error and not none.parts
    worker.close()


def test_an_async_generator_that_is_cancelled_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Group(monkeypatch)

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            worker.log.add("asleep")
            await asyncio.sleep(WAIT_S)
        finally:
            worker.log.add("closed")

    call = worker.do(generate, num_returns=-1)
    assert worker.log.next() == "asleep"
    worker.cancel(call.task_id)
    assert worker.log.next() == "closed" and isinstance(call.value.cause, TaskCancelledError)
    worker.close()


def test_an_async_generator_that_rests_is_closed_when_its_owner_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch, limit=2)

    async def generate() -> AsyncIterator[int]:
        try:
            worker.log.add("begins")
            yield 1
            worker.log.add("goes on")
        finally:
            worker.log.add("closed")

    call = worker.do(generate, num_returns=-1, generator_backpressure_num_objects=1)
    # The loop has time for another call as soon as the generator rests.
    assert worker.log.next() == "begins" and worker.do(lambda: 1).value == 1
    with worker.env.lock:
        worker.connection.close()
    assert worker.log.next() == "closed" and not call.wait().is_application_error
    worker.close()


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_what_ray_call_is_given_runs_on_a_thread_with_the_instance(
    monkeypatch: pytest.MonkeyPatch, is_coroutine: bool
) -> None:
    def look(instance: Any, argument: int) -> Any:
        name = threading.current_thread().name

        async def value() -> Any:
            return type(instance).__name__, argument, name

        return value() if is_coroutine else (type(instance).__name__, argument, name)

    worker = Group(monkeypatch)
    CODE[b"look"] = look
    call = worker.ask(worker.method("__ray_call__"), Code(b"look"), 1)
    worker.run()
    assert call.value == ("Actor", 1, "actor-call")
    worker.close()


def test_a_call_on_a_thread_that_is_cancelled_is_waited_for_and_has_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    goes_on = threading.Event()

    def look(instance: Any) -> int:
        worker.log.add("runs")
        goes_on.wait(WAIT_S)
        worker.log.add("over")
        return 1

    CODE[b"look"] = look
    call = worker.ask(worker.method("__ray_call__"), Code(b"look"))
    worker.run()
    assert worker.log.next() == "runs"
    worker.cancel(call.task_id)
    assert worker.do(lambda: 1) and not call.replies
    goes_on.set()
    assert isinstance(call.value.cause, TaskCancelledError) and worker.log.next() == "over"
    worker.close()


# ---- the constructor and the end


def test_a_constructor_may_be_a_coroutine_and_runs_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        async def __init__(self, value: int) -> None:  # type: ignore[misc]
            await asyncio.sleep(0)
            self.value = value, threading.current_thread().name

        async def tell(self) -> Any:
            return self.value

    worker = Worker(monkeypatch)
    worker.actor(Actor, 3, is_asyncio=True)
    call = worker.ask(worker.method("tell"))
    worker.run()
    assert call.value == (3, "actor-loop")
    worker.execution.close_actor()


def test_an_async_constructor_that_fails_is_answered_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        async def __init__(self) -> None:  # type: ignore[misc]
            raise LookupError("no")

    assert isinstance(Worker(monkeypatch).actor(Actor, is_asyncio=True).value.cause, LookupError)


def test_what_the_actor_left_on_its_loop_is_cancelled_and_its_async_generators_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    kept: list[Any] = []

    async def leave_behind() -> None:
        async def forever() -> None:
            try:
                await asyncio.sleep(WAIT_S)
            finally:
                worker.log.add("cancelled")

        async def generate() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                worker.log.add("closed")

        kept.append(asyncio.get_running_loop().create_task(forever()))
        kept.append(generate())
        await anext(kept[-1])
        await asyncio.sleep(0)

    worker.do(leave_behind).wait()
    worker.close()
    assert [worker.log.next(), worker.log.next()] == ["cancelled", "closed"]


def test_the_loops_thread_ends_with_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    worker = Group(monkeypatch)
    worker.do(lambda: threads.append(threading.current_thread())).wait()
    worker.close()
    threads[0].join(WAIT_S)
    assert not threads[0].is_alive()


def test_a_coroutine_that_blocks_its_thread_does_not_hold_up_the_end_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor_runtime, "CLOSE_TIMEOUT_S", 0.01)
    worker = Group(monkeypatch)
    goes_on = threading.Event()
    call = worker.do(lambda: worker.log.add("blocks") or goes_on.wait(WAIT_S))
    assert worker.log.next() == "blocks"
    worker.close()
    assert not call.replies
    goes_on.set()
