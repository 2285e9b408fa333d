"""The task submitter with workers that are played: what it pushes ahead, and what becomes of it when the first task is long."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_manager import NOT_STARTED
from ray_mono.core_worker.task_submitter import TaskSubmitter
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2

Reply = core_worker_pb2.PushTaskReply


class FakeTask:
    """A PendingTask, as far as the submitter knows it."""

    def __init__(self, number: int) -> None:
        self.task_id = bytes([number]) * 24
        self.name = f"task {number}"
        self.template = SimpleNamespace()
        self.request = core_worker_pb2.PushTaskRequest()


class Scene:
    """One submitter, one worker, and time that passes by `fire`."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.completed: list[Any] = []
        self.cancelled: list[Any] = []
        self.given_back = 0
        self.pushed: dict[str, Callable[[Any, Any], None]] = {}
        self.told: list[bytes] = []
        tasks = SimpleNamespace(
            cancelled=set(),
            complete=lambda task, reply, address: self.completed.append(task),
            fail_cancelled=self.cancelled.append,
        )
        stub = SimpleNamespace(
            GiveBackTasks=SimpleNamespace(notify=self._on_give_back),
            CancelTask=SimpleNamespace(start=lambda request, done: self.told.append(request.task_id)),
        )
        peer = SimpleNamespace(stub=stub, push=self._on_push)
        self._lease: list[Callable[[Any, Any], None]] = []
        raylet = SimpleNamespace(
            RequestWorkerLease=SimpleNamespace(start=lambda request, done: self._lease.append(done)),
            CancelWorkerLease=SimpleNamespace(start=lambda request, done: self._lease.pop()),
            ReturnWorker=SimpleNamespace(notify=lambda request: None),
        )
        self.core: Any = SimpleNamespace(
            raylet=raylet,
            tasks=tasks,
            address=common_pb2.Address(),
            job_id=b"",
            outlives_job=False,
            new_id=lambda: bytes([len(self._lease) + 1]),
            peer=lambda address: peer,
            reactor=SimpleNamespace(call_later=self._call_later),
        )
        self.submitter = TaskSubmitter(self.core)
        self.queue = self.submitter.queue_for(TaskOptions())

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.timers.append(callback)
        return SimpleNamespace(cancel=lambda: None)

    def _on_give_back(self, request: Any) -> None:
        self.given_back += 1

    def _on_push(self, template: Any, request: Any, on_done: Callable[[Any, Any], None]) -> None:
        self.pushed[self.names[len(self.pushed)]] = on_done

    def submit(self, *numbers: int) -> list[Any]:
        tasks = [FakeTask(number) for number in numbers]
        for task in tasks:
            self.submitter.submit(self.queue, task)  # type: ignore[arg-type]
        return tasks

    def grant(self) -> None:
        self._lease.pop(0)(raylet_pb2.RequestWorkerLeaseReply(grant=raylet_pb2.Grant()), None)

    def fire(self) -> None:
        """Every timer that is set now."""
        timers, self.timers = self.timers, []
        for callback in timers:
            callback()

    @property
    def lease(self) -> Any:
        (lease,) = self.queue.leases.values()
        return lease

    names = [f"push {number}" for number in range(20)]


def a_worker_with(scene: Scene, *numbers: int) -> list[Any]:
    """Has these pushed to one worker whose tasks were short so far."""
    scene.queue.run_us = 1.0
    tasks = scene.submit(*numbers)
    scene.grant()
    assert list(scene.lease.tasks) == tasks
    return tasks


def test_a_stalled_worker_is_told_again_when_more_was_pushed_while_it_gave_back() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    # On its way when the worker blocked and gave back what it had: it sits there now, behind a task that may wait for it.
    (third,) = scene.submit(3)
    scene.submitter._push_ahead(scene.lease)
    assert list(scene.lease.tasks) == [first, second, third]
    scene.pushed["push 1"](Reply(status=NOT_STARTED), None)
    assert list(scene.lease.tasks) == [first, third] and list(scene.queue.tasks) == [second]
    scene.fire()
    scene.fire()
    assert scene.given_back == 1
    scene.pushed["push 2"](Reply(status=NOT_STARTED), None)
    assert list(scene.lease.tasks) == [first]
    assert set(scene.queue.tasks) == {second, third}


def test_a_cancelled_task_leaves_the_queue() -> None:
    scene = Scene()
    first, second = scene.submit(1, 2)
    for task in (first, second):
        scene.submitter.cancel(task, core_worker_pb2.CancelTaskRequest(task_id=task.task_id))
    assert scene.cancelled == [first, second]
    assert not scene.queue.tasks


def test_a_cancelled_task_that_was_pushed_is_not_pushed_again() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    scene.core.tasks.cancelled.add(second.task_id)
    scene.submitter.cancel(second, core_worker_pb2.CancelTaskRequest(task_id=second.task_id))
    assert scene.told == [second.task_id] and not scene.cancelled
    scene.pushed["push 1"](Reply(status=NOT_STARTED), None)
    assert scene.cancelled == [second]
    assert not scene.queue.tasks and list(scene.lease.tasks) == [first]
