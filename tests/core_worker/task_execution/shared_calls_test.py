"""Calls that came in one frame: each is a call by itself, and their answers leave together."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import RayTaskError, TaskCancelledError
from tests.core_worker.scene import Connection
from tests.core_worker.worker_scene import Reply, Spec, Worker

LEASE = 7


def known(worker: Worker, spec: Spec) -> Spec:
    """Its template, by a call that came alone: the first of the lease."""
    worker.ask(spec, 0, lease_id=b"lease", lease_number=LEASE)
    worker.run()
    return spec


def places(worker: Worker) -> tuple[int, list[bytes]]:
    """What the board keeps: the first one's place, and the answers."""
    return worker.as_raylet().kept(LEASE)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(monkeypatch)


# ---- values


def test_calls_that_take_the_usual_way_come_before_what_is_behind_them(worker: Worker) -> None:
    ran: list[int] = []
    spec = known(worker, worker.function(lambda x: ran.append(x), max_calls=100))
    calls, behind = worker.ask_all(spec, [1, 2, 3]), worker.ask(spec, 4)
    worker.run()
    assert ran == [0, 1, 2, 3, 4] and calls.outcomes == [None] * 3 and behind.value is None


def test_an_interrupt_that_was_not_raised_in_one_call_is_not_left_for_the_next(worker: Worker) -> None:
    def cancelled_meanwhile(x: int) -> bool:
        if x == 1:
            worker.cancel(worker.context.task_id())
            worker.reactor.note_interrupt()
        return worker.reactor.interrupted

    calls = worker.ask_all(known(worker, worker.function(lambda x: cancelled_meanwhile(x))), [1, 2])
    worker.run()
    assert calls.outcomes == [True, False]


def test_each_item_is_the_argument_of_its_call_and_short_answers_leave_together(worker: Worker) -> None:
    spec = known(worker, worker.function(lambda x: (x or 0) * 2))
    calls = worker.ask_all(spec, [1, 2.5, None, True, "a"])
    worker.run()
    assert calls.outcomes == [2, 5.0, 0, 2, "aa"]
    assert calls.parts_had == [5]


@pytest.mark.parametrize("hides_events", [True, False])
def test_each_is_a_task_of_the_timeline(worker: Worker, hides_events: bool) -> None:
    spec = known(worker, worker.function(lambda x: x, name="f", hides_events=hides_events))
    worker.ask_all(spec, range(3))
    worker.ask(worker.function(lambda: None, name="last"))
    worker.run()
    worker.idle()
    told = worker.wire.last("AddTaskEvents").request
    assert [told.names[index] for index in told.name_indices] == [*["f"] * (0 if hides_events else 4), "last"]


def test_no_more_answers_wait_for_others_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, shared_answers_max=3)
    calls = worker.ask_all(known(worker, worker.function(lambda x: x)), range(8))
    worker.run()
    assert (calls.outcomes, calls.parts_had) == (list(range(8)), [3, 3, 2])


def test_the_first_call_of_a_function_goes_the_way_of_every_call(worker: Worker) -> None:
    spec = worker.function(lambda x: x)
    worker.ask(spec, 0)
    calls = worker.ask_all(spec, range(4))
    worker.run()
    assert calls.outcomes == list(range(4))


def test_a_call_that_ran_long_is_answered_at_once(worker: Worker) -> None:
    seen: list[int] = []

    def run(x: int) -> int:
        seen.append(len(calls.parts))
        worker.busy(10_000 if x == 2 else 1)
        return x

    spec = worker.function(lambda x: run(x))
    worker.ask(spec, -1)
    calls = worker.ask_all(spec, range(5))
    worker.run()
    assert calls.outcomes == list(range(5))
    assert (seen[1:], calls.parts_had) == ([0, 0, 0, 1, 1], [3, 2])


def test_answers_do_not_wait_for_the_end_of_a_later_call(worker: Worker) -> None:
    def run(x: int) -> int:
        if x == 3:
            assert calls.outcomes == [None] * 5
            worker.pass_time(worker.config.shared_answers_s)
            assert calls.outcomes == [0, 1, 2, None, None]
        return x

    spec = known(worker, worker.function(lambda x: run(x)))
    calls = worker.ask_all(spec, range(5))
    worker.run()
    assert calls.outcomes == list(range(5))


def test_large_values_and_those_with_something_inside_are_answers_of_their_own(worker: Worker) -> None:
    made: list[Any] = [1, [2], b"x" * 1000, (3,), 4]
    calls = worker.ask_all(known(worker, worker.function(lambda x: made[x])), range(5))
    worker.run()
    assert calls.outcomes == made
    assert calls.parts_had == [1, 1, 1, 1, 1]


def test_each_call_has_a_context_of_its_own(worker: Worker) -> None:
    seen: list[Any] = []

    def run(x: int) -> None:
        task = worker.context.get()
        seen.append((task.task_id, task.kind.name, task.attempt, task.kind.depth, task.num_submitted))
        task.next_task_id(b"")

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x), "named")), range(3))
    worker.run()
    assert seen[1:] == [(task_id, "named", 0, 1, 0) for task_id in calls.task_ids]


# ---- errors and ends


def test_an_error_is_its_own_calls(worker: Worker) -> None:
    def run(x: int) -> int:
        return 6 // x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), [1, 0, 2, 3])
    worker.run()
    assert [calls.outcomes[at] for at in (0, 2, 3)] == [6, 3, 2]
    error = calls.outcomes[1]
    assert isinstance(error, RayTaskError) and isinstance(error.cause, ZeroDivisionError)
    assert "shared_runner" not in str(error)
    assert calls.parts_had == [1, 1, 2]


def test_a_call_that_exits_costs_those_before_it_nothing_and_those_behind_it_do_not_begin(
    worker: Worker,
) -> None:
    ran: list[int] = []

    def run(x: int) -> int:
        ran.append(x)
        if x == 2:
            raise SystemExit(1)
        return x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(5))
    assert not worker.run()
    assert calls.outcomes == [0, 1, None, None, None] and ran[1:] == [0, 1, 2]
    worker.execution.receiver.give_back()
    assert calls.outcomes == [0, 1, None, Reply.NOT_STARTED, Reply.NOT_STARTED]


@pytest.mark.parametrize("after_its_queue", [False, True])
def test_a_worker_that_ends_refuses_all_of_them(worker: Worker, after_its_queue: bool) -> None:
    spec = known(worker, worker.function(lambda x: x))
    if after_its_queue:
        worker.execution.receiver.exit_after_queue()
    else:
        worker.execution.running.end()
    calls = worker.ask_all(spec, range(3))
    assert (calls.outcomes, calls.parts_had) == ([Reply.WRONG_WORKER] * 3, [3])


def test_a_function_that_ends_its_worker_after_some_calls_does_so_in_a_frame(worker: Worker) -> None:
    spec = worker.function(lambda x: x, max_calls=3)
    worker.ask(spec, 0)
    calls = worker.ask_all(spec, range(5))
    assert not worker.run()
    assert calls.outcomes == [0, 1, None, None, None]


# ---- given back, taken back, cancelled


def test_a_call_that_blocks_gives_back_those_behind_it(worker: Worker) -> None:
    def run(x: int) -> int:
        if x == 1:
            worker.execution.receiver.give_back()
            assert calls.outcomes == [0, None, Reply.NOT_STARTED, Reply.NOT_STARTED]
        return x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(4))
    worker.run()
    assert calls.outcomes == [0, 1, Reply.NOT_STARTED, Reply.NOT_STARTED]
    assert calls.parts_had == [1, 2, 1]


def test_only_what_a_connection_pushed_is_given_back_to_it(worker: Worker) -> None:
    spec = known(worker, worker.function(lambda x: x))
    other = Connection(state={**worker.connection.state, "other": True})
    kept, given = worker.ask_all(spec, range(2), other), worker.ask_all(spec, range(2))
    worker.execution.receiver.give_back(worker.connection)
    worker.run()
    assert (kept.outcomes, given.outcomes) == ([0, 1], [Reply.NOT_STARTED] * 2)


def test_of_a_closed_lease_none_begins(worker: Worker) -> None:
    ran: list[int] = []

    def run(x: int) -> int:
        ran.append(x)
        if x == 1:
            worker.as_raylet().close_lease(LEASE)
        return x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(4))
    worker.run()
    assert calls.outcomes == [0, 1, Reply.NOT_STARTED, Reply.NOT_STARTED] and ran[1:] == [0, 1]


def test_a_call_that_has_not_begun_is_cancelled_alone(worker: Worker) -> None:
    ran: list[int] = []

    def run(x: int) -> int:
        ran.append(x)
        if x == 1:
            assert worker.cancel(calls.task_ids[3]) and not worker.cancel(calls.task_ids[0])
        return x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(5))
    worker.run()
    assert calls.outcomes == [0, 1, 2, Reply.CANCELLED, 4] and ran[1:] == [0, 1, 2, 4]


def test_when_all_that_are_left_are_cancelled_what_follows_goes_on(worker: Worker) -> None:
    spec = known(worker, worker.function(lambda x: x))
    calls, behind = worker.ask_all(spec, range(2)), worker.ask(spec, 5)
    assert all(worker.cancel(task_id) for task_id in calls.task_ids)
    worker.run()
    assert (calls.outcomes, behind.value) == ([Reply.CANCELLED] * 2, 5)


def test_the_call_that_runs_is_interrupted_alone(worker: Worker) -> None:
    def run(x: int) -> int:
        if x == 1:
            assert worker.cancel(calls.task_ids[1])
            raise KeyboardInterrupt
        return x

    calls = worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(3))
    worker.run()
    assert isinstance(calls.outcomes[1].cause, TaskCancelledError)
    assert (calls.outcomes[0], calls.outcomes[2]) == (0, 2)
    assert worker.struck


# ---- what the board keeps


def test_answers_that_have_not_left_are_on_the_board(worker: Worker) -> None:
    seen: list[Any] = []

    def run(x: int) -> int:
        seen.append((worker.as_raylet().begun(LEASE), places(worker)[0], len(places(worker)[1])))
        return x

    worker.ask_all(known(worker, worker.function(lambda x: run(x))), range(4))
    worker.run()
    # The first of the lease came alone.
    assert [begun for begun, _, _ in seen[1:]] == [2, 3, 4, 5]
    assert [kept for _, _, kept in seen[1:]] == [0, 1, 2, 3]
    assert {first for _, first, _ in seen[2:]} == {2}
    assert places(worker)[1] == []


def test_they_stay_there_while_their_connection_does_not_take_them(worker: Worker) -> None:
    spec = known(worker, worker.function(lambda x: x))
    worker.connection.has_unsent = True
    worker.ask_all(spec, range(3))
    worker.run()
    assert len(places(worker)[1]) == 3
    worker.connection.has_unsent = False
    worker.ask_all(spec, range(2))
    worker.run()
    assert places(worker)[1] == []


def test_answers_for_which_the_board_has_no_room_leave_at_once(worker: Worker) -> None:
    lost: list[int] = []
    num_run = 0

    def run(x: int) -> bytes:
        nonlocal num_run
        if num_run:
            # Of those before it, in this frame: what has neither left nor is on the board.
            lost.append(num_run - 1 - sum(calls.parts_had) - len(places(worker)[1]))
        num_run += 1
        return b"%040000d" % x

    spec = known(worker, worker.function(lambda x: run(x)))
    calls = worker.ask_all(spec, range(1, 6))
    worker.run()
    assert calls.outcomes == [b"%040000d" % x for x in range(1, 6)]
    assert lost == [0] * 5


def test_calls_without_a_number_are_on_no_board(worker: Worker) -> None:
    spec = worker.function(lambda x: x)
    worker.ask(spec, 0)
    worker.run()
    calls = worker.ask_all(spec, range(3))
    worker.run()
    assert (calls.outcomes, calls.parts_had) == ([0, 1, 2], [3])


# ---- actors


class Log:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, x: Any) -> int:
        if x == "bad":
            raise ValueError(x)
        self.seen.append(x)
        return len(self.seen)


class Coroutines:
    async def add(self, x: int) -> int:
        return x + 1


def test_calls_of_an_actor_run_in_order(worker: Worker) -> None:
    worker.actor(Log)
    spec = worker.method("add")
    first, calls, last = worker.ask(spec, "a"), worker.ask_all(spec, ["b", "bad", "c"]), worker.ask(spec, "d")
    worker.run()
    assert (first.value, calls.outcomes[0], calls.outcomes[2], last.value) == (1, 2, 3, 4)
    assert isinstance(calls.outcomes[1], RayTaskError)


@pytest.mark.parametrize("creation", [{"max_concurrency": 2}, {"is_asyncio": True, "max_concurrency": 10}])
def test_calls_of_a_concurrent_actor_are_dispatched_one_by_one(
    monkeypatch: pytest.MonkeyPatch, creation: Any
) -> None:
    worker = Worker(monkeypatch)
    worker.actor(Coroutines if "is_asyncio" in creation else Log, **creation)
    spec = worker.method("add")
    worker.ask(spec, 0)
    calls = worker.ask_all(spec, range(5))
    worker.run()
    calls.wait_all()
    if "is_asyncio" in creation:
        assert calls.outcomes == [1, 2, 3, 4, 5]
    else:
        assert sorted(calls.outcomes) == [2, 3, 4, 5, 6]


def test_an_actors_call_that_was_told_to_stop_has_no_value(worker: Worker) -> None:
    class Cancelled:
        def run(self, x: int) -> int:
            if x == 1:
                assert worker.cancel(calls.task_ids[1])
            return x

    worker.actor(Cancelled)
    spec = worker.method("run")
    worker.ask(spec, 0)
    calls = worker.ask_all(spec, range(3))
    worker.run()
    assert (calls.outcomes[0], calls.outcomes[2]) == (0, 2)
    assert isinstance(calls.outcomes[1], TaskCancelledError)


def test_a_method_that_is_not_there_fails_each_call(worker: Worker) -> None:
    worker.actor(Log)
    spec = worker.method("missing")
    worker.ask(spec, 0)
    calls = worker.ask_all(spec, range(2))
    worker.run()
    assert [type(each.cause) for each in calls.outcomes] == [AttributeError] * 2
