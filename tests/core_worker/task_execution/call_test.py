"""What a call brings: its context, however it was pushed."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.core_worker.task_execution.call import Call, KnownSpec, context_of
from ray_mono.core_worker.task_wire import UsualPush
from ray_mono.protobuf import common_pb2, core_worker_pb2

FIRST, SECOND = b"1" * 24, b"2" * 24


class Actor:
    name = "given"
    class_name = "Actor"
    module_name = "m"
    actor_id = b"a" * 16
    job_id = b"job2"
    resources = "its resources"
    resource_ids = {"GPU": [1]}  # noqa: RUF012

    def repr_name(self) -> str:
        return self.class_name


def spec_of(kind: int) -> KnownSpec:
    return KnownSpec(
        common_pb2.TaskSpec(
            type=kind,  # type: ignore[arg-type]
            name="f",
            job_id=b"job1",
            actor_task=common_pb2.ActorTaskSpec(task_name="shown"),
        )
    )


def context(spec: KnownSpec, task_id: bytes, depth: int, actor: Any, *, is_usual: bool) -> Any:
    if is_usual:
        request: Any = UsualPush(1, depth, task_id, b"")
    else:
        request = core_worker_pb2.PushTaskRequest(template_id=1, depth=depth, task_id=task_id)
    return context_of(Call(spec, request, None), actor)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [common_pb2.NORMAL_TASK, common_pb2.ACTOR_TASK])
def test_a_usual_pushs_context_is_what_its_message_would_have(kind: int) -> None:
    spec, here = spec_of(kind), Actor()
    for task_id, depth, actor in [
        (FIRST, 1, None),
        (SECOND, 1, None),
        (FIRST, 2, None),
        (SECOND, 2, here),
        (FIRST, 2, here),
        (FIRST, 2, Actor()),
    ]:
        usual, told = (context(spec, task_id, depth, actor, is_usual=each) for each in (True, False))
        assert usual == told and usual.actor is told.actor


def test_what_one_call_does_is_not_the_next_ones() -> None:
    spec = spec_of(common_pb2.NORMAL_TASK)
    first = context(spec, FIRST, 1, None, is_usual=True)
    first.arrived[b"object"] = b"owner"
    first.held.append(b"object")
    first.ran(1.0)
    first.cancel()
    first.next_task_id(b"a" * 16)
    second = context(spec, SECOND, 1, None, is_usual=True)
    assert second == context(spec, SECOND, 1, None, is_usual=False)
