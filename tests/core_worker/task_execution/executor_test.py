"""The main loop of a worker: what is run, answered, given back, and what ends it."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from typing import Any

import pytest

from ray_mono.common.exceptions import RayError, RaySystemError, RayTaskError, TaskCancelledError
from ray_mono.protobuf import common_pb2, core_worker_pb2, object_manager_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import ELSEWHERE, NODE_ID, status
from tests.core_worker.worker_scene import ACTOR_ID, CODE, WAIT_S, Made, Reply, Spec, Worker, referenced

FULL = RpcError(StatusCode.RESOURCE_EXHAUSTED, "full")
OBJECT = b"o" * 28
LONGEST_WALK = 27
"""So many functions a small call may enter in its worker, which rests before and after it: from the bytes of
its push to those of its answer, sockets and locks apart."""


def nothing() -> None: ...


# ---- what runs


def test_tasks_run_in_the_order_in_which_they_came_and_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    task = worker.function(lambda number: ran.append(number) or number + 1)
    calls = [worker.ask(task, number) for number in range(3)]
    assert worker.run()
    assert ran == [0, 1, 2] and [call.value for call in calls] == [1, 2, 3]


def test_arguments_come_by_position_and_by_keyword(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda *args, **kwargs: (args, kwargs))
    call = worker.ask(task, 1, keywords={"key": 2})
    worker.run()
    assert call.value == ((1,), {"key": 2})


def test_the_first_call_makes_the_worker_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: len(worker.bound))
    calls = [worker.ask(task), worker.ask(task)]
    worker.run()
    assert [call.value for call in calls] == [1, 1]


def test_what_every_worker_runs_first_has_run_before_the_next_call_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    task = worker.function(lambda: len(ran))
    before = worker.ask(task)
    worker.run()
    worker.before_next_call(lambda: ran.append(1))
    after = [worker.ask(task), worker.ask(task)]
    worker.run()
    assert before.value == 0 and [call.value for call in after] == [1, 1]


def test_a_job_that_cannot_be_joined_fails_the_task_and_the_next_one_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    failures = [RpcError(StatusCode.UNAVAILABLE, "no GCS")]

    def bind(spec: Any) -> None:
        if failures:
            raise failures.pop()

    worker.bind = bind
    task = worker.function(lambda: 1)
    first, second = worker.ask(task), worker.ask(task)
    worker.run()
    assert isinstance(first.value, RayTaskError) and "no GCS" in str(first.value)
    assert second.value == 1


def test_a_call_for_an_actor_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.method("m"))
    worker.run()
    assert "the actor of this worker is not there" in str(call.value) and isinstance(call.value, RayError)


def test_what_the_function_raises_is_the_value_and_the_next_task_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    failed = worker.ask(worker.function(lambda: 1 // 0))
    after = worker.ask(worker.function(lambda: 1))
    worker.run()
    assert failed.answer.is_application_error and isinstance(failed.value.cause, ZeroDivisionError)
    assert after.value == 1 and not after.answer.is_application_error


def test_an_interrupt_that_the_code_raises_itself_is_a_cancelled_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    def interrupt() -> None:
        raise KeyboardInterrupt

    call = worker.ask(worker.function(interrupt))
    worker.run()
    assert isinstance(call.value.cause, TaskCancelledError)


def test_arguments_do_not_outlive_their_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Argument: ...

    seen: list[weakref.ref[Any]] = []

    def look(argument: Any, fails: bool) -> bool:
        was_alive = bool(seen) and seen[-1]() is not None
        seen.append(weakref.ref(argument))
        if fails:
            raise ValueError
        return was_alive

    worker = Worker(monkeypatch)
    monkeypatch.setitem(CODE, b"class", Argument)
    task = worker.function(look)
    calls = [worker.ask(task, Made(b"class"), fails) for fails in (False, False, True)]
    gc.disable()
    try:
        worker.run()
        assert seen[-2]() is None
    finally:
        gc.enable()
    assert [call.value for call in calls[:2]] == [False, False]


def test_a_worker_at_rest_keeps_nothing_of_its_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    call = weakref.ref(worker.ask(worker.function(nothing)))
    alive: list[bool] = []
    gc.disable()
    try:
        worker.run(lambda: alive.append(call() is not None))
    finally:
        gc.enable()
    assert alive == [False]


def test_the_cycles_that_errors_left_are_collected_when_the_worker_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Held: ...

    seen: list[weakref.ref[Any]] = []

    def fail() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        error = ValueError()
        error.me = (error, held)  # type: ignore[attr-defined]
        raise error

    worker = Worker(monkeypatch)
    worker.ask(worker.function(fail))
    gc.disable()
    try:
        worker.run()
        assert seen[0]() is not None
        worker.idle()
        assert seen[0]() is None
    finally:
        gc.enable()


def test_the_raylet_sees_which_task_runs_and_that_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    raylet = worker.as_raylet()
    call = worker.ask(worker.function(raylet.running, name="task"))
    worker.run()
    assert call.value == "task" and raylet.running() == ""


def test_waits_that_an_earlier_task_left_behind_are_not_counted_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    waits, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        goes_on.wait(WAIT_S)

    def leave_a_wait_behind() -> None:
        worker.meanwhile(wait)
        ref = worker.submit()
        thread.append(threading.Thread(target=lambda: worker.core.wait([ref], 1, 0.001, True)))
        thread[0].start()
        waits.wait(WAIT_S)

    thread: list[threading.Thread] = []
    worker.ask(worker.function(leave_a_wait_behind), lease_id=b"lease")
    worker.run()
    assert len(worker.wire.all("NotifyBlocked")) == 1 and not worker.wire.all("NotifyUnblocked")
    worker.ask(worker.function(nothing), lease_id=b"next")
    worker.run()
    assert len(worker.wire.all("NotifyUnblocked")) == 1
    goes_on.set()
    thread[0].join(WAIT_S)
    assert len(worker.wire.all("NotifyUnblocked")) == 1


def test_nothing_is_collected_again_before_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    fine, failed = worker.function(nothing), worker.function(lambda: 1 // 0)
    counts = []
    for task in (fine, failed, fine, failed):
        worker.ask(task)
        worker.run()
        worker.idle()
        counts.append(len(collected))
    assert counts == [0, 1, 1, 2]


@pytest.mark.parametrize("of_actor", [False, True])
def test_a_small_call_enters_few_functions(of_actor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    if of_actor:
        worker.actor(Actor)
    spec = worker.method("method") if of_actor else worker.function(nothing)
    for _ in range(2):
        worker.ask(spec)
    worker.run()
    entered: list[str] = []

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_globals["__name__"].startswith("ray_mono."):
            entered.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        worker.ask(spec)
        worker.run()
    finally:
        sys.setprofile(None)
    assert len(entered) <= LONGEST_WALK, "\n".join(entered)


# ---- answers


def test_answers_wait_for_calls_of_methods_that_ran_short_and_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    flushed: list[bool] = []

    class Actor:
        def short(self, run_us: int = 0) -> None:
            worker.busy(run_us)

        long = short

    worker.actor(Actor)
    long_us = worker.config.answered_alone_us
    short, long = worker.method("short"), worker.method("long")
    plan: list[tuple[Spec, int]] = [
        (short, 0), (short, 0), (long, long_us), (short, 0), (long, long_us), (short, 0), (short, 0)
    ]  # fmt: skip
    calls = [worker.ask(spec, run_us) for spec, run_us in plan]
    for before, call in enumerate(calls[1:]):
        call.on_reply = lambda before=before: flushed.append(calls[before].is_flushed)  # type: ignore[misc]
    worker.run()
    flushed.append(calls[-1].is_flushed)
    assert flushed == [
        False,  # the next one is short
        True,  # the next one may hold the GIL, or end the process: it has not run yet
        True,  # it took long
        True,  # the next one took long the last time
        True,
        False,
        True,  # nothing follows
    ]
    assert worker.reactor.is_flushed_later


def test_whether_a_method_runs_short_is_what_it_did_last(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def method(self, run_us: int) -> None:
            worker.busy(run_us)

    worker.actor(Actor)
    spec, flushed = worker.method("method"), []
    calls = [worker.ask(spec, us) for us in (0, worker.config.answered_alone_us, 0, 0)]
    for before, call in enumerate(calls[1:]):
        call.on_reply = lambda before=before: flushed.append(calls[before].is_flushed)  # type: ignore[misc]
    worker.run()
    assert flushed == [False, True, False]


def test_what_a_task_dropped_is_counted_before_its_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    call = worker.ask(worker.function(lambda: worker.core.put(bytes(1 << 18)) and None))
    told: list[int] = []
    call.on_reply = lambda: told.append(len(worker.wire.all("Free")))
    worker.run()
    assert told == [1]


def test_the_answer_of_a_task_is_out_before_the_next_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    first = worker.ask(worker.function(nothing))
    second = worker.ask(worker.function(lambda: first.is_flushed))
    worker.run()
    assert second.value is True


def test_a_call_in_which_our_own_code_fails_is_answered_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: 1)
    first, last = worker.ask(task), worker.ask(task)
    first.reply_failures = [SystemExit(3)]
    assert worker.run()
    assert isinstance(first.value, RaySystemError) and "answering f() failed" in str(first.value)
    assert last.value == 1


# ---- arguments that find no room


@pytest.mark.parametrize(
    "kind", [common_pb2.NORMAL_TASK, common_pb2.ACTOR_CREATION_TASK, common_pb2.ACTOR_TASK]
)
@pytest.mark.parametrize("waits_for_room", [True, False])
def test_a_task_and_a_constructor_are_moved_to_their_arguments_once_and_a_call_never(
    monkeypatch: pytest.MonkeyPatch, kind: common_pb2.TaskType, waits_for_room: bool
) -> None:
    class Actor:
        def __init__(self, *args: Any) -> None: ...

        def f(self, argument: Any) -> None: ...

    worker = Worker(monkeypatch)
    if kind == common_pb2.ACTOR_TASK:
        worker.actor(Actor)
        spec = worker.method("f")
    else:
        spec = worker.function(Actor, type=kind)
    arg = referenced(OBJECT, location_node_ids=[ELSEWHERE], size_bytes=9)
    call = worker.ask(spec, None, by_reference=[arg], waits_for_room=waits_for_room)
    worker.run(lambda: worker.wire.last("Get").fail(FULL))
    may_go = kind != common_pb2.ACTOR_TASK and not waits_for_room
    assert worker.wire.last("Get").request.may_go_elsewhere == may_go
    assert call.status == (Reply.NO_ROOM if may_go else Reply.DONE)
    if not may_go:
        assert "full" in str(call.value) and call.answer.is_application_error
    assert worker.core.reference_counts() == 0, "it lets go of its argument"


def test_an_argument_that_its_store_has_lost_is_asked_of_its_owner_and_let_go_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    arg = referenced(OBJECT, location_node_ids=[NODE_ID], size_bytes=9)
    call = worker.ask(worker.function(lambda value: value), None, by_reference=[arg])
    found = object_manager_pb2.ObjectFound(
        object_id=OBJECT, metadata=b"", state=object_manager_pb2.ObjectFound.LOST
    )

    def lost() -> None:
        wanted = worker.wire.last("Get").request.objects
        assert [(each.object_id, list(each.location_node_ids)) for each in wanted] == [(OBJECT, [NODE_ID])]
        worker.wire.last("Get").answer(object_manager_pb2.GetReply(objects=[found]))

    def told() -> None:
        worker.wire.last("GetObjectStatus", "unix:caller").answer(status("the owner's"))

    # Its store is asked what is here at once, and then to fetch it; then its owner, where else it is.
    worker.run(lost, lost, told)
    assert call.value == "the owner's" and worker.core.reference_counts() == 0


# ---- cancelled


def test_a_task_that_is_cancelled_while_it_is_prepared_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    call = worker.ask(worker.function(lambda: ran.append(1)))
    worker.bind = lambda spec: worker.cancel(call.task_id) or None  # type: ignore[assignment,return-value]
    worker.run()
    assert isinstance(call.value, TaskCancelledError) and not ran
    worker.bind = worker.bound.append
    after = worker.ask(worker.function(lambda: 1))
    worker.run()
    assert after.value == 1


def test_a_call_of_an_actor_that_is_cancelled_while_it_runs_is_told_and_its_value_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def method(self, raises: bool) -> Any:
            told = worker.context.is_cancelled()
            assert worker.cancel(worker.context.task_id())
            assert not told and worker.core.is_task_cancelled()
            if raises:
                raise TaskCancelledError("mine")
            return 1

    worker.actor(Actor)
    for raises in (False, True):
        call = worker.ask(worker.method("method"), raises)
        worker.run()
        assert type(call.value) is TaskCancelledError and call.task_id.hex() in str(call.value)


def test_a_task_that_goes_on_after_its_interrupt_has_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def go_on() -> int:
        worker.cancel(worker.context.task_id())
        try:
            worker.execution.interrupter.on_signal(2, None)
        except KeyboardInterrupt:
            return 1
        return 2

    call = worker.ask(worker.function(go_on))
    worker.run()
    assert call.value == 1


# ---- what shows


def test_the_title_names_the_task_and_later_that_the_worker_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    worker.ask(worker.function(nothing, name="task"))
    worker.run()
    worker.idle()
    assert worker.titles == ["ray_mono::task", "ray_mono::IDLE"]
    worker.idle()
    assert len(worker.titles) == 2


def test_events_are_sent_when_the_worker_becomes_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.ask(worker.function(nothing, name="told"))
    worker.ask(worker.function(nothing, name="hidden", hides_events=True))
    worker.run()
    assert not worker.wire.all("AddTaskEvents")
    worker.idle()
    assert list(worker.wire.last("AddTaskEvents").request.names) == ["told"]


def test_gpus_are_shown_to_the_task_that_has_some_and_taken_away_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    worker = Worker(monkeypatch)
    task = worker.function(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    given: Any = {"GPU": core_worker_pb2.PushTaskRequest().resource_ids["GPU"]}
    given["GPU"].ids.append(1)
    calls = [worker.ask(task, resource_ids=given), worker.ask(task)]
    worker.run()
    assert [call.value for call in calls] == ["1", None]


def test_an_actors_calls_run_in_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def method(self) -> Any:
            context = worker.context
            return context.actor_id(), context.actor_name(), context.task_name()

    worker.actor(Actor, name="given")
    calls = [worker.ask(worker.method("method")), worker.ask(worker.method("method", task_name="shown"))]
    worker.run()
    assert [call.value for call in calls] == [
        (ACTOR_ID, "given", "Actor.method"),
        (ACTOR_ID, "given", "shown"),
    ]
