"""The tables of the lives of tasks, leases and called actors: a move that is not in them is our bug, and says
whose life it is."""

from __future__ import annotations

import ast
import enum
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission import called_actor, pending_task
from ray_mono.core_worker.task_submission import lease as lease_table
from ray_mono.core_worker.task_submission.called_actor import CalledActor, CalledActorState
from ray_mono.core_worker.task_submission.lease import Lease, LeaseState, SchedulingQueue
from ray_mono.core_worker.task_submission.pending_task import PendingTask, TaskState
from ray_mono.protobuf import common_pb2, raylet_pb2

ARGUMENT = common_pb2.TaskArg(reference=common_pb2.ObjectReference(object_id=b"a" * 28))


def a_task(args: Any = (), retries: int = 0, number: int = 0) -> PendingTask:
    template = CallTemplate(common_pb2.TaskSpec(name="f", num_returns=1), 7)
    return PendingTask(b"t" * 24, template, b"flat", args, 3, (), retries, number=number)


def a_lease() -> Lease:
    granted = raylet_pb2.Grant(worker=common_pb2.Address(worker_id=b"w" * 28), number=5)
    queue = SchedulingQueue(TaskOptions(), 0, CoreWorkerConfig())
    nobody: Any = None
    lease = queue.leases[b"lease"] = Lease(b"lease", queue, nobody, granted, nobody)
    return lease


# ---- the tables, as the heads of their modules draw them: a state, and those that may follow it

TASK = """
PENDING_ARGS_AVAIL      PENDING_NODE_ASSIGNMENT FAILED
PENDING_NODE_ASSIGNMENT PENDING_ARGS_AVAIL SUBMITTED_TO_WORKER FAILED
SUBMITTED_TO_WORKER     PENDING_NODE_ASSIGNMENT FINISHED FAILED
FINISHED                PENDING_ARGS_AVAIL
FAILED
"""
LEASE = """
IDLE     BUSY ENDING RETURNED LOST
BUSY     IDLE STALLED ENDING RETURNED LOST
STALLED  BUSY ENDING RETURNED LOST
ENDING   RETURNED LOST
RETURNED
LOST
"""
CALLED_ACTOR = """
UNKNOWN          PENDING_CREATION CONNECTED DISCONNECTED RESTARTING DEAD
PENDING_CREATION CONNECTED DISCONNECTED RESTARTING DEAD
CONNECTED        CONNECTED DISCONNECTED RESTARTING DEAD
DISCONNECTED     CONNECTED RESTARTING DEAD
RESTARTING       CONNECTED DISCONNECTED DEAD
DEAD
"""


@pytest.mark.parametrize(
    ("states", "drawn", "moves"),
    [
        (TaskState, TASK, pending_task.MOVES),
        (LeaseState, LEASE, lease_table.MOVES),
        (
            CalledActorState,
            CALLED_ACTOR,
            {(start, end) for start, ends in called_actor.MOVES.items() for end in ends},
        ),
    ],
    ids=["task", "lease", "called actor"],
)
def test_a_life_has_the_moves_that_are_drawn_and_no_others(
    states: type[enum.Enum], drawn: str, moves: Iterable[tuple[enum.Enum, enum.Enum]]
) -> None:
    rows = {row.split()[0]: set(row.split()[1:]) for row in drawn.strip().splitlines()}
    assert set(rows) == {state.name for state in states}
    wanted = {(start, end) for start, ends in rows.items() for end in ends}
    assert {(start.name, end.name) for start, end in moves} == wanted


BEGINNINGS = {"__init__"}


@pytest.mark.parametrize(
    ("module", "moves"), [(pending_task, pending_task.MOVES), (lease_table, lease_table.MOVES)]
)
def test_a_usual_move_that_is_written_out_is_in_the_table(module: ModuleType, moves: Any) -> None:
    """`if self.state is …: self.state = …` saves the call of the method that looks into the table."""
    set_at: set[int] = set()
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(function, ast.FunctionDef) and function.name not in {*BEGINNINGS, "_move"}:
            set_at |= {each.lineno for each in ast.walk(function) if to_of(each)}
            for node in ast.walk(function):
                if isinstance(node, ast.If) and ast.unparse(node.test).startswith("self.state is "):
                    start = ast.unparse(node.test).removeprefix("self.state is ")
                    for end in filter(to_of, node.body):
                        assert (getattr(module, start), getattr(module, to_of(end))) in moves
                        set_at.discard(end.lineno)
    assert not set_at, "the state is set, whatever it was"


def to_of(node: ast.AST) -> str:
    """What a statement sets the state to."""
    is_move = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self.state"
    return ast.unparse(node.value) if is_move else ""  # type: ignore[attr-defined]


# ---- tasks


def test_the_life_of_a_task_with_a_retry() -> None:
    task = a_task([ARGUMENT], retries=1)
    states = [task.state]
    for step in (task.arguments_came, task.pushed, task.again, task.pushed, task.not_started, task.pushed):
        step()
        states.append(task.state)
    task.finished()
    assert [state.name for state in [*states, task.state]] == [
        "PENDING_ARGS_AVAIL",
        "PENDING_NODE_ASSIGNMENT",
        "SUBMITTED_TO_WORKER",
        "PENDING_NODE_ASSIGNMENT",
        "SUBMITTED_TO_WORKER",
        "PENDING_NODE_ASSIGNMENT",
        "SUBMITTED_TO_WORKER",
        "FINISHED",
    ]
    assert task.retries_left == 0 and task.request.attempt == 1


def pushed_task() -> PendingTask:
    task = a_task()
    task.pushed()
    return task


def ended_task(how: str) -> PendingTask:
    task = pushed_task()
    getattr(task, how)()
    return task


@pytest.mark.parametrize(
    ("task", "step"),
    [
        (lambda: a_task([ARGUMENT]), "pushed"),
        (lambda: a_task([ARGUMENT]), "finished"),
        (a_task, "arguments_came"),
        (a_task, "finished"),
        (a_task, "again"),
        (a_task, "not_started"),
        (pushed_task, "pushed"),
        *(
            (lambda how=how: ended_task(how), step)
            for how in ("finished", "failed")
            for step in ("pushed", "again", "not_started", "finished", "failed", "arguments_came")
        ),
    ],
)
def test_a_step_that_a_task_cannot_take_is_refused_with_its_story(
    task: Callable[[], PendingTask], step: str
) -> None:
    made = task()
    before = made.state
    with pytest.raises(InternalError, match=f"task {made.task_id.hex()} of f\\(\\) {before.value}"):
        getattr(made, step)()
    assert made.state is before


@pytest.mark.parametrize("task", [lambda: a_task([ARGUMENT]), a_task, pushed_task])
def test_a_task_may_fail_at_any_time_before_its_end(task: Callable[[], PendingTask]) -> None:
    made = task()
    made.failed()
    assert made.state is TaskState.FAILED


@pytest.mark.parametrize(("args", "waits"), [((), False), ([ARGUMENT], True)])
def test_only_what_has_arguments_looks_for_them_again(args: Any, waits: bool) -> None:
    task = a_task(args)
    if waits:
        task.arguments_came()
    task.look_again_for_arguments()
    assert task.waits_for_arguments is waits
    task.look_again_for_arguments()
    assert task.waits_for_arguments is waits


def test_its_message_is_made_once_with_all_that_is_its_own() -> None:
    task = a_task([ARGUMENT])
    request = task.request
    assert request is task.request and list(request.args) == [ARGUMENT] and not task.args and task.has_args
    assert (request.template_id, request.task_id, request.flat_args, request.depth) == (
        7,
        b"t" * 24,
        b"flat",
        3,
    )


def test_a_place_on_a_lease_is_its_own_only_while_it_is_there() -> None:
    for leave in (PendingTask.again, PendingTask.not_started):
        task = a_task(retries=1)
        task.pushed(4)
        assert task.place == 4
        leave(task)
        assert task.place <= 0 and task.came_back == (leave is PendingTask.not_started)


# ---- leases


def test_a_lease_rests_runs_stalls_and_goes_on() -> None:
    lease = a_lease()
    first, second = a_task(), a_task()
    assert lease.state is LeaseState.IDLE and not lease.takes_more
    lease.push(first)
    lease.push(second)
    assert lease.takes_more and (first.place, second.place) == (1, 2) and lease.num_unanswered == 2
    lease.stall()
    assert not lease.takes_more
    with pytest.raises(InternalError, match="no more go"):
        lease.push(a_task())
    assert lease.answered(first)
    lease.go_on()
    assert lease.takes_more and lease.answered(second) and not lease.num_unanswered
    lease.rest()
    assert lease.state is LeaseState.IDLE


def test_what_was_taken_back_is_waited_for_no_more_and_its_answer_still_counts() -> None:
    lease = a_lease()
    tasks = [a_task() for _ in range(4)]
    for task in tasks:
        lease.push(task)
    assert lease.take_unbegun(2) == tasks[2:] and list(lease.tasks) == tasks[:2]
    assert lease.num_unanswered == 4
    assert not lease.answered(tasks[3]) and lease.num_unanswered == 3
    assert lease.answered(tasks[1]) and list(lease.tasks) == tasks[:1]


def test_answers_come_together_and_some_of_them_are_of_what_was_taken_back() -> None:
    lease = a_lease()
    tasks = [a_task() for _ in range(5)]
    for task in tasks:
        lease.push(task)
    lease.take_unbegun(3)
    lease.answered_all([tasks[1], tasks[0], tasks[3]])
    assert list(lease.tasks) == [tasks[2]] and lease.num_unanswered == 2
    lease.answered_all([tasks[2], tasks[4]])
    assert not lease.tasks and not lease.num_unanswered


def test_looks_count_how_long_the_same_task_is_first() -> None:
    lease = a_lease()
    first, second = a_task(), a_task()
    lease.push(first)
    lease.push(second)
    assert [lease.look(), lease.look(), lease.look()] == [0, 1, 2]
    lease.answered(first)
    assert [lease.look(), lease.look()] == [0, 1]


@pytest.mark.parametrize("end", ["returned", "lost"])
def test_a_lease_that_is_over_does_nothing_more(end: str) -> None:
    lease = a_lease()
    lease.push(a_task())
    getattr(lease, end)()
    assert lease.is_over and not lease.takes_more
    for step in ("end", "rest", "returned", "lost"):
        with pytest.raises(InternalError, match="lease 6c65617365"):
            getattr(lease, step)()
    lease.stall()
    lease.go_on()
    assert lease.is_over


def test_a_lease_that_ends_takes_nothing_and_is_returned_or_lost() -> None:
    for end in (Lease.returned, Lease.lost):
        lease = a_lease()
        lease.push(a_task())
        lease.end()
        lease.end()
        assert lease.is_ending and not lease.takes_more and not lease.is_over
        lease.stall()
        lease.go_on()
        assert lease.is_ending
        end(lease)
        assert lease.is_over and not lease.is_ending


def test_a_lease_that_is_forgotten_rests_no_more() -> None:
    lease = a_lease()
    lease.queue.idle.append(lease)
    lease.queue.forget(lease)
    assert not lease.queue.idle and not lease.queue.leases


def test_a_task_that_comes_back_goes_before_all_that_were_submitted_after_it() -> None:
    queue = SchedulingQueue(TaskOptions(), 0, CoreWorkerConfig())
    tasks = [a_task(number=number) for number in range(5)]
    queue.tasks.extend(tasks)
    taken = queue.take_all()
    assert list(taken) == tasks and not queue.tasks
    for number in (2, 0, 4, 1, 3):
        queue.take_back(tasks[number])
    assert list(queue.tasks) == tasks


# ---- called actors


def an_actor() -> CalledActor:
    return CalledActor(b"a" * 16, CoreWorkerConfig(calls_in_flight_max=2, calls_waiting_warned=10))


def connect(actor: CalledActor) -> None:
    peer: Any = object()
    actor.connect(common_pb2.Address(worker_id=b"w"), peer)


def test_a_dead_actor_stays_dead() -> None:
    actor = an_actor()
    actor.die(common_pb2.DeathCause(message="it was killed"))
    for step in (lambda: connect(actor), actor.disconnect, actor.restart, partial(actor.begins, b"")):
        with pytest.raises(InternalError, match="is dead"):
            step()
    assert actor.is_dead and actor.death is not None and actor.death.message == "it was killed"


@pytest.mark.parametrize("leave", [CalledActor.disconnect, CalledActor.restart])
def test_who_is_not_connected_has_no_address(leave: Callable[[CalledActor], Any]) -> None:
    actor = an_actor()
    connect(actor)
    assert actor.is_connected and actor.worker is not None
    leave(actor)
    assert not actor.is_connected and actor.worker is None


def test_an_actor_that_has_not_lived_cannot_have_lived_before() -> None:
    created, heard, lived = an_actor(), an_actor(), an_actor()
    created.begins(b"")
    connect(lived)
    assert [created.restart(), heard.restart(), lived.restart()] == [False, True, True]
    # Again: it lives no more than before.
    assert [created.restart(), heard.restart(), lived.restart()] == [False, True, True]
    assert lived.is_restarting and not created.is_restarting


def test_the_warning_comes_at_a_number_and_at_its_doubles() -> None:
    actor = an_actor()
    assert [number for number in range(1, 50) if actor.warns_of(number)] == [10, 20, 40]


def test_a_task_of_a_map_has_all_that_one_made_alone_has() -> None:
    first = a_task()
    (one,) = first.with_items([first.task_id], [7])
    alone = PendingTask(first.task_id, first.template, depth=first.depth, item=7)
    for field in PendingTask.__slots__:
        assert getattr(one, field, None) == getattr(alone, field, None), field
    assert one.last_failure == alone.last_failure == ""
