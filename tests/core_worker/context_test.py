"""What runs on which thread, and the ids that derive from it."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind, WorkerContext
from ray_mono.protobuf import common_pb2

JOB = b"job1"
MAIN = ids.TaskID.for_driver(JOB).binary()
TASK = ids.child_task_id(ids.task_seed(MAIN), 1, ids.nil_actor_of(JOB))


class Named:
    """An actor, as its tasks name it."""

    name = "given"
    class_name = "Counter"
    module_name = "shop"

    def repr_name(self) -> str:
        return "Counter()"


@pytest.fixture
def context() -> WorkerContext:
    return WorkerContext(TaskContext(MAIN, TaskKind(JOB)), JobContext(JOB))


def on_a_thread(ask: Any) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_thread_has_the_task_that_it_entered_until_it_leaves_it(context: WorkerContext) -> None:
    task = TaskContext(TASK, TaskKind(JOB, "f"))
    assert context.is_main and context.task_id() == MAIN
    token = context.enter(task)
    assert not context.is_main and context.get() is task
    inner = context.enter(TaskContext(b"inner", TaskKind(JOB)))
    assert context.task_id() == b"inner"
    context.leave(inner)
    assert context.get() is task
    context.leave(token)
    assert context.is_main and context.task_id() == MAIN


def test_threads_of_user_code_have_the_main_task(context: WorkerContext) -> None:
    token = context.enter(TaskContext(TASK, TaskKind(JOB)))
    assert on_a_thread(lambda: (context.is_main, context.task_id())) == (True, MAIN)
    copied = contextvars.copy_context()
    assert on_a_thread(lambda: copied.run(context.task_id)) == TASK
    context.leave(token)


def test_threads_of_user_code_are_part_of_the_workers_actor(context: WorkerContext) -> None:
    creation = TaskContext(TASK, TaskKind(JOB, "Counter.__init__", 2, b"a" * 16, {"CPU": 1}, {"GPU": [0]}))
    context.hold(Named(), creation)
    kind = on_a_thread(context.get).kind
    assert (kind.actor_id, kind.depth, kind.resource_ids) == (b"a" * 16, 2, {"GPU": [0]})
    assert on_a_thread(lambda: (context.is_main, context.actor_name())) == (True, "given")
    assert (context.task_name(), context.function_name()) == ("", "")
    # Another task than those that ran before and after.
    assert context.task_id() not in (MAIN, TASK, creation.next_task_id(context.job.nil_actor))
    assert context.task_id().endswith(context.job.nil_actor)


def test_threads_of_user_code_share_the_resources_of_the_task_beside_them(context: WorkerContext) -> None:
    class Runs:
        task: TaskContext | None = None

    running = Runs()
    context.share(running)
    assert (context.assigned_resources(), context.resource_ids()) == ({}, {})
    running.task = TaskContext(TASK, TaskKind(JOB, "f", resources=ResourceSet.from_units({"CPU": 0.5})))
    running.task.kind.resource_ids["GPU"] = [1]
    assert on_a_thread(context.assigned_resources) == {"CPU": 0.5}
    assert on_a_thread(context.resource_ids) == {"GPU": [1]} and on_a_thread(context.task_id) == MAIN
    # A call's own are told where it runs.
    own = TaskContext(TASK, TaskKind(JOB, resources=ResourceSet.from_units({"CPU": 2})))
    assert told(context, own, context.assigned_resources) == {"CPU": 2.0}


def test_a_worker_becomes_its_jobs(context: WorkerContext) -> None:
    main = TaskContext(b"main", TaskKind(b"job2"))
    context.enter_job(JobContext(b"job2", "space"), main)
    assert context.job.job_id == b"job2" and context.job.namespace == "space"
    assert context.get() is main and context.is_main
    assert context.job.nil_actor == ids.nil_actor_of(b"job2")


def test_a_process_that_leaves_says_so(context: WorkerContext) -> None:
    assert not context.is_leaving
    context.leave_cluster()
    assert context.is_leaving


# ---- ids


def test_a_task_that_runs_again_makes_other_ids_in_each_attempt_and_the_same_in_the_same() -> None:
    def made(attempt: int) -> list[bytes]:
        task = TaskContext(TASK, TaskKind(JOB), attempt)
        nil = ids.nil_actor_of(JOB)
        return [
            task.next_task_id(nil),
            task.next_task_id(nil),
            task.next_actor_id(),
            task.next_actor_id(),
            task.next_put_id(),
            task.next_put_id(),
        ]

    assert made(0) == made(0) and made(1) == made(1)
    everything = made(0) + made(1)
    assert len(set(everything)) == len(everything)


def test_puts_and_submissions_are_numbered_from_one() -> None:
    task = TaskContext(TASK, TaskKind(JOB))
    assert task.next_put_id() == ids.object_id_bytes(TASK, ids.PUT_INDEX_BASE + 1)
    assert task.next_put_id() == ids.object_id_bytes(TASK, ids.PUT_INDEX_BASE + 2)
    nil = ids.nil_actor_of(JOB)
    assert task.next_task_id(nil) == ids.child_task_id(ids.task_seed(TASK), 1, nil)
    assert task.next_actor_id() == ids.ActorID.of(JOB, TASK, 2).binary()
    assert task.next_task_id(nil) == ids.child_task_id(ids.task_seed(TASK), 3, nil)
    assert (task.num_submitted, task.num_puts) == (3, 2)


# ---- what is told of it


def test_a_task_is_called_what_it_was_named() -> None:
    assert TaskKind(JOB, "f").shown_name == "f"
    assert TaskKind(JOB, "add", actor=Named()).shown_name == "Counter.add"
    assert TaskKind(JOB, "add", actor=Named(), given_name="mine").shown_name == "mine"


def told(context: WorkerContext, task: TaskContext, ask: Any) -> Any:
    token = context.enter(task)
    try:
        return ask()
    finally:
        context.leave(token)


def descriptor(**fields: str) -> common_pb2.FunctionDescriptor:
    return common_pb2.FunctionDescriptor(python=common_pb2.PythonFunctionDescriptor(**fields))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (TaskContext(TASK, TaskKind(JOB, "f")), "f"),
        (TaskContext(TASK, TaskKind(JOB, "add", actor=Named())), "shop.Counter.add"),
        (
            TaskContext(TASK, TaskKind(JOB, "x", function=descriptor(module_name="m", function_name="f"))),
            "m.f",
        ),
        (
            TaskContext(
                TASK, TaskKind(JOB, "x", function=descriptor(module_name="m", function_name="g.<locals>.f"))
            ),
            "m.f",
        ),
        (
            TaskContext(
                TASK,
                TaskKind(
                    JOB, "x", function=descriptor(module_name="m", class_name="A", function_name="__init__")
                ),
            ),
            "m.A.__init__",
        ),
    ],
)
def test_a_function_is_told_with_its_module(context: WorkerContext, task: TaskContext, name: str) -> None:
    assert told(context, task, context.function_name) == name


def test_the_actor_and_the_attempt_of_a_task_are_told(context: WorkerContext) -> None:
    task = TaskContext(TASK, TaskKind(JOB, "add", actor_id=b"a" * 16, actor=Named()), 2)
    assert told(context, task, context.actor_id) == b"a" * 16
    assert told(context, task, context.actor_name) == "given"
    assert told(context, task, context.task_name) == "Counter.add"
    assert told(context, task, context.attempt) == 2
    assert (context.actor_id(), context.actor_name(), context.attempt()) == (b"", "", 0)


def test_a_task_that_nobody_wants_any_more_hears_of_it(context: WorkerContext) -> None:
    task = TaskContext(TASK, TaskKind(JOB))
    assert told(context, task, context.is_cancelled) is False
    task.cancel()
    assert told(context, task, context.is_cancelled) is True and not context.is_cancelled()


def test_how_long_it_ran_is_told_in_microseconds() -> None:
    task = TaskContext(TASK, TaskKind(JOB))
    task.ran(0.25)
    assert task.run_us == 250_000


def test_resources_are_told_in_units_whatever_they_came_as(context: WorkerContext) -> None:
    resources = ResourceSet.from_units({"CPU": 0.5, "GPU": 1})
    for given in (resources, resources.to_proto()):
        task = TaskContext(TASK, TaskKind(JOB, resources=given, resource_ids={"GPU": [3]}))
        assert told(context, task, context.assigned_resources) == {"CPU": 0.5, "GPU": 1.0}
        assert told(context, task, context.resource_ids) == {"GPU": [3]}
    assert context.assigned_resources() == {} and context.resource_ids() == {}
