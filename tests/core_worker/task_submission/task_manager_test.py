"""The end of a task: returns that somebody waits for, and those that nobody wants any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager, return_ids
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.fake_core import FakeCore

TASK_ID = b"t" * 24
ELSEWHERE = b"e" * 28
EXECUTOR = common_pb2.Address(worker_id=b"x" * 28)


def submitted(num_returns: int, wanted: set[int]) -> tuple[FakeCore, TaskManager, PendingTask]:
    """A task some of whose returns (by position) are still referenced."""
    core = FakeCore()
    manager = TaskManager(core)  # type: ignore[arg-type]
    template: Any = SimpleNamespace(
        number=1, num_returns=num_returns, name="f", title="f", spec=common_pb2.TaskSpec(), on_part=None
    )
    task = PendingTask(TASK_ID, template, b"", (), 0, ())
    manager.add(task)
    for position, object_id in enumerate(return_ids(TASK_ID, num_returns)):
        core.references.add_owned(object_id)
        core.memory_store.expect(object_id)
        if position not in wanted:
            core.references.remove_local(object_id)
    return core, manager, task


def in_store(object_id: bytes) -> Any:
    return core_worker_pb2.ReturnObject(
        object_id=object_id, in_plasma=True, size_bytes=10**6, node_id=ELSEWHERE
    )


def inline(object_id: bytes, metadata: bytes = serialization.PLAIN) -> Any:
    value = common_pb2.SerializedObject(metadata=metadata, data=b"value")
    return core_worker_pb2.ReturnObject(object_id=object_id, value=value)


@pytest.mark.parametrize("wanted", [set(), {0}, {0, 1}])
def test_a_large_return_that_nobody_wants_leaves_its_store(wanted: set[int]) -> None:
    core, manager, task = submitted(2, wanted)
    reply = core_worker_pb2.PushTaskReply(returns=[in_store(object_id) for object_id in task.return_ids])
    manager.complete(task, reply, EXECUTOR)
    assert core.freed == [
        (object_id, [ELSEWHERE])
        for position, object_id in enumerate(task.return_ids)
        if position not in wanted
    ]
    assert len(core.references) == len(core.memory_store) == len(wanted)
    assert not manager.pending


def test_an_inline_return_that_nobody_wants_is_forgotten_and_an_error_is_noted() -> None:
    core, manager, task = submitted(2, set())
    first, second = task.return_ids
    reply = core_worker_pb2.PushTaskReply(returns=[inline(first), inline(second, serialization.ERROR)])
    manager.complete(task, reply, EXECUTOR)
    assert len(core.memory_store) == 0 and core.unseen_errors == [second]


def test_a_small_single_return_goes_to_whoever_has_its_reference() -> None:
    for wanted in (set(), {0}):
        core, manager, task = submitted(1, wanted)
        reply = core_worker_pb2.PushTaskReply(
            has_inline=True, inline_metadata=serialization.PLAIN, inline_data=b"value"
        )
        manager.complete(task, reply, EXECUTOR)
        entry = core.memory_store.get(task.return_ids[0])
        assert (entry is not None and entry.data == b"value") == bool(wanted)


def test_another_attempt_is_placed_anew_and_may_go_where_its_arguments_lie() -> None:
    _, manager, task = submitted(1, {0})
    again: list[PendingTask] = []
    task.resubmit, task.retries_left, task.place = again.append, 1, 3
    task.request.waits_for_room = True
    manager.lost(task, Exception)
    assert again == [task] and task.retries_left == 0 and task.request.attempt == 1
    assert not task.request.waits_for_room and not task.place
