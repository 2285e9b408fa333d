"""What a call brings: its context, however it was pushed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ray_mono.core_worker.context import InGroup
from ray_mono.core_worker.task_execution.call import NO_EXTRAS, Call, KnownSpec, call_of, context_of
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
    group = InGroup(b"g" * 18, True)
    is_detached = True

    def repr_name(self) -> str:
        return self.class_name

    def concurrency_group_of(self, spec: KnownSpec) -> str:
        return "the default one"


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
    answer_to: Any = None
    if is_usual:
        call = Call(spec, task_id, depth, b"", NO_EXTRAS, answer_to)
    else:
        request = core_worker_pb2.PushTaskRequest(template_id=1, depth=depth, task_id=task_id)
        call = call_of(spec, request, answer_to, 0)
    return context_of(call, actor)


def contents(task: Any) -> list[Any]:
    return [getattr(task, field.name) for field in fields(task)]


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
        assert contents(usual) == contents(told) and usual.kind.actor is told.kind.actor


def test_what_one_call_does_is_not_the_next_ones() -> None:
    spec = spec_of(common_pb2.NORMAL_TASK)
    first = context(spec, FIRST, 1, None, is_usual=True)
    first.arriving()[b"object"] = b"owner"
    first.hold(b"object")
    first.ran(1.0)
    first.cancel()
    first.next_task_id(b"a" * 16)
    second = context(spec, SECOND, 1, None, is_usual=True)
    assert contents(second) == contents(context(spec, SECOND, 1, None, is_usual=False))


def test_a_push_without_a_template_brings_the_whole_call() -> None:
    message = common_pb2.TaskSpec(
        task_id=FIRST, depth=3, attempt=2, flat_args=b"flat", args=[common_pb2.TaskArg(position=1)]
    )
    request = core_worker_pb2.PushTaskRequest(spec=message, waits_for_room=True)
    request.resource_ids["GPU"].ids.append(4)
    answer_to: Any = None
    call = call_of(KnownSpec(message), request, answer_to, 7)
    assert (call.task_id, call.depth, call.flat_args, call.number) == (FIRST, 3, b"flat", 7)
    assert list(call.extras.args) == list(message.args) and call.extras.waits_for_room
    told = context_of(call, None)
    assert (told.task_id, told.kind.depth, told.attempt, told.kind.resource_ids) == (
        FIRST,
        3,
        2,
        {"GPU": [4]},
    )
