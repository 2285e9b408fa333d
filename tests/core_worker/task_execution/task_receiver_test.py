"""The calls that wait in a worker: counted, given back, cancelled, refused."""

from __future__ import annotations

import pytest

from ray_mono.common.start_board import cell_of
from ray_mono.protobuf import common_pb2
from tests.core_worker.scene import Connection, Served
from tests.core_worker.worker_scene import CALLER, Pushed, Reply, Worker


def nothing() -> None: ...


def test_the_lease_is_known_although_the_task_that_named_it_was_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: worker.core.wait([worker.submit()], 1, 1.0, True) and None)
    first = worker.ask(task, lease_id=b"lease")
    with worker.env.lock:
        worker.execution.receiver.GiveBackTasks(common_pb2.Empty(), first)
    assert first.status == Reply.NOT_STARTED
    # The next one of the lease does not name it, and has to say that it waits.
    worker.ask(task)
    worker.run()
    assert worker.core.lease_id == worker.wire.last("NotifyBlocked").request.lease_id == b"lease"


def test_tasks_of_a_lease_are_counted_as_they_come_whatever_becomes_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    raylet, begun = worker.as_raylet(), []
    task = worker.function(lambda number: begun.append(raylet.begun(number)))
    worker.ask(task, 7, lease_id=b"first", lease_number=7)
    worker.cancel(worker.ask(task, 7).task_id)
    worker.ask(task, 7)
    worker.run()
    worker.ask(task, 9, lease_id=b"second", lease_number=9)
    worker.run()
    assert begun == [1, 3, 1]


def test_callers_of_an_actor_whose_connection_has_ended_are_named_on_the_board_until_they_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    raylet = worker.as_raylet()
    worker.actor(Actor)
    worker.connection.close()  # the head's, which brought the constructor
    method = worker.method("method")
    first, second = Connection(), Connection()
    for connection in (first, first, second):
        worker.ask(method, connection=connection)
    assert raylet.lost_callers() == []
    first.close()
    assert raylet.lost_callers() == [cell_of(CALLER.worker_id)]
    worker.ask(method, connection=Connection())
    assert raylet.lost_callers() == []


def test_calls_that_have_not_begun_when_their_caller_comes_back_on_another_connection_never_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self, name: str) -> str:
            ran.append(name)
            if name == "runs":
                taken_back.append(worker.execution.receiver.take_back(CALLER.worker_id, new))
                again.append(worker.ask(method, "again", connection=new))
            return name

    ran: list[str] = []
    taken_back: list[bytes] = []
    again: list[Pushed] = []
    worker = Worker(monkeypatch)
    worker.actor(Actor)
    method, lost, new = worker.method("method"), Connection(), Connection()
    worker.ask(method, "runs", connection=lost)
    waits = worker.ask(method, "waits", connection=lost)
    worker.ask_all(method, ["waits", "waits"], connection=lost)
    worker.run()
    assert taken_back == [waits.task_id]
    assert ran == ["runs", "again"] and again[0].value == "again"


def test_nothing_more_is_read_from_the_connection_that_a_caller_has_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    method, method_of_another = worker.method("method"), worker.method("method")
    method_of_another.caller.worker_id = b"another"
    given_up, new, of_another = Connection(), Connection(), Connection()
    worker.ask(method, connection=given_up)
    worker.ask(method_of_another, connection=of_another)
    with worker.env.lock:
        worker.execution.receiver.take_back(CALLER.worker_id, new)
    worker.ask(method, connection=new)
    with worker.env.lock:
        worker.execution.receiver.take_back(CALLER.worker_id, new)
    assert [given_up.is_closed, of_another.is_closed, new.is_closed] == [True, False, False]


def test_an_actor_that_leaves_in_order_loses_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    worker.ask(worker.method("method"))
    raylet = worker.as_raylet()
    worker.context.leave_cluster()
    worker.connection.close()
    assert raylet.lost_callers() == []


def test_a_lease_whose_holder_does_not_count_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    raylet, begun = worker.as_raylet(), []
    task = worker.function(lambda: begun.append((raylet.begun(7), raylet.begun(0))))
    worker.ask(task, lease_id=b"first", lease_number=7)
    worker.ask(task, lease_id=b"second")
    worker.ask(task)
    worker.run()
    assert begun == [(1, 0), (0, 0), (0, 0)]


def test_a_task_of_a_lease_that_was_closed_is_answered_and_never_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    call = worker.ask(worker.function(lambda: ran.append(1)), lease_id=b"lease", lease_number=7)
    worker.as_raylet().close_lease(7)
    worker.run()
    assert call.status == Reply.NOT_STARTED and call.is_flushed and not ran


def test_what_is_queued_runs_before_an_end_in_order_and_nothing_that_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: 1)
    before = worker.ask(task)
    worker.execution.receiver.exit_after_queue()
    after = worker.ask(task)
    assert not worker.run()
    assert before.value == 1 and after.status == Reply.WRONG_WORKER


def test_a_worker_that_rests_and_is_told_to_end_does(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    assert worker.run()
    assert not worker.run(worker.execution.receiver.exit_after_queue)


def test_a_cancelled_call_is_answered_and_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    task = worker.function(ran.append)
    calls = [worker.ask(task, number) for number in range(3)]
    assert worker.cancel(calls[1].task_id)
    assert not worker.cancel(calls[1].task_id), "it is gone"
    worker.run()
    assert [call.status for call in calls] == [Reply.DONE, Reply.CANCELLED, Reply.DONE] and ran == [0, 2]


def test_what_waits_behind_a_task_that_blocks_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    blocks = worker.ask(
        worker.function(lambda: worker.core.wait([worker.submit()], 1, 1.0, True)[0]), lease_id=b"lease"
    )
    other = Connection()
    behind = worker.ask(worker.function(nothing)), worker.ask(worker.function(nothing), connection=other)
    worker.run()
    assert [call.status for call in behind] == [Reply.NOT_STARTED] * 2 and blocks.value == []
    assert worker.wire.last("NotifyUnblocked").request.lease_id == b"lease"


def test_only_what_one_connection_pushed_is_given_back_to_it_and_no_actors_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    other = Connection()
    task = worker.function(nothing)
    mine, call, others = (
        worker.ask(task),
        worker.ask(worker.method("method")),
        worker.ask(task, connection=other),
    )
    with worker.env.lock:
        worker.execution.receiver.GiveBackTasks(common_pb2.Empty(), mine)
    assert (mine.status, call.status, others.status) == (Reply.NOT_STARTED, None, None)
    with worker.env.lock:
        worker.execution.receiver.give_back()
    assert others.status == Reply.NOT_STARTED and call.status is None


def test_calls_of_an_actor_that_moves_are_given_back_and_it_says_when_it_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self) -> int:
            return 7

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    receiver, mover, late_mover = worker.execution.receiver, Served(), Served()
    raylet = worker.as_raylet()
    queued = worker.ask(worker.method("method"))
    with worker.env.lock:
        receiver.move(mover)  # type: ignore[arg-type]
    later = worker.ask(worker.method("method"))
    assert [call.status for call in (queued, later)] == [Reply.NOT_STARTED] * 2
    assert not worker.run() and not mover.replies and receiver.told_again() and not raylet.has_moved
    with worker.env.lock:
        receiver.moved(owes_answers=False)
        receiver.move(late_mover)  # type: ignore[arg-type]
    assert len(mover.replies) == len(late_mover.replies) == 1 and not receiver.told_again()
    assert raylet.has_moved


def test_a_task_that_is_meant_for_another_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: 1)
    other, mine = worker.ask(task, intended_worker_id=b"other"), worker.ask(task, intended_worker_id=b"me")
    worker.run()
    assert other.status == Reply.WRONG_WORKER and mine.value == 1


def test_functions_that_every_worker_runs_first_are_learned_from_the_push(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    worker.ask(worker.function(nothing), run_first=[b"key"])
    assert worker.core.worker_runs.known == [b"key"]
