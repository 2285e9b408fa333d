"""`cancel` at a task's owner: what becomes of the task, and of those that it submitted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.fake_core import FakeCore

EXECUTOR = common_pb2.Address(worker_id=b"x" * 28)
JOB = b"\x01\0\0\0"
NO_ACTOR, ACTOR = ids.nil_actor_of(JOB), b"a" * 12 + JOB


class Owner:
    """A process with tasks that were pushed."""

    def __init__(self) -> None:
        core: Any = FakeCore()
        self.core = core
        core.tasks = self.tasks = TaskManager(core)
        core.task_submitter = SimpleNamespace(cancel=lambda task, request: self.told.append(request))
        core.actor_submitter = SimpleNamespace(cancel=lambda task, request: self.told.append(request))
        self.told: list[Any] = []
        self.again: list[PendingTask] = []
        self.cancellation = TaskCanceller(core)

    def submit(self, parent: TaskContext, actor_id: bytes = NO_ACTOR) -> PendingTask:
        kind = common_pb2.NORMAL_TASK if actor_id == NO_ACTOR else common_pb2.ACTOR_TASK
        template: Any = SimpleNamespace(
            number=1, num_returns=1, name="f", on_part=None, spec=common_pb2.TaskSpec(type=kind)
        )
        task = PendingTask(parent.next_task_id(actor_id), template, b"", (), 0, ())
        task.retries_left, task.retry_exceptions, task.resubmit = 3, True, self.again.append
        self.core.references.add_owned(task.return_ids[0])
        self.tasks.add(task)
        return task


def root(name: bytes = b"r") -> TaskContext:
    return TaskContext(name * 8 + NO_ACTOR, JOB)


def test_a_task_that_was_cancelled_is_not_run_again_whatever_ends_it() -> None:
    owner, parent = Owner(), root()
    for ends in ("with an error", "with its worker"):
        task = owner.submit(parent)
        assert owner.cancellation.cancel_own(task.task_id, False, True)
        if ends == "with an error":
            error = common_pb2.SerializedObject(metadata=serialization.ERROR, data=b"error")
            returned = core_worker_pb2.ReturnObject(object_id=task.return_ids[0], value=error)
            reply = core_worker_pb2.PushTaskReply(is_application_error=True, returns=[returned])
            owner.tasks.complete(task, reply, EXECUTOR)
        else:
            owner.tasks.lost(task, Exception)
        assert not owner.again and not owner.tasks.pending and not owner.tasks.cancelled
    assert not owner.cancellation.cancel_own(task.task_id, False, True), "it is over"


def test_a_call_of_an_actor_is_not_forced() -> None:
    owner = Owner()
    call = owner.submit(root(), ACTOR)
    with pytest.raises(ValueError, match="not supported for calls to actors"):
        owner.cancellation.cancel_own(call.task_id, True, True)
    assert not owner.told and not owner.tasks.cancelled


def test_children_are_cancelled_and_nobody_else_by_force_where_that_is_possible() -> None:
    owner, parent, other = Owner(), root(), root(b"o")
    children = [owner.submit(parent), owner.submit(parent, ACTOR)]
    owner.submit(other)
    owner.cancellation.cancel_children(parent, force=True)
    assert [(request.task_id, request.force) for request in owner.told] == [
        (children[0].task_id, True),
        (children[1].task_id, False),
    ]
