"""What is written by hand is what its message parses to."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from ray_mono.core_worker import task_wire
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_wire import SHORT_MAX, USUAL_ANSWER, PushReader, usual_answer
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.scene import Scene, value
from tests.core_worker.worker_scene import Worker

Request, Reply = core_worker_pb2.PushTaskRequest, core_worker_pb2.PushTaskReply
TASK = b"t" * 24


@pytest.mark.parametrize("number", [1, 127, 128, 300, 1 << 20])
@pytest.mark.parametrize("depth", [0, 1, 200])
@pytest.mark.parametrize("flat", [b"", b"a", bytes(SHORT_MAX)])
def test_a_usual_push_is_the_request_that_it_stands_for(number: int, depth: int, flat: bytes) -> None:
    template = CallTemplate(common_pb2.TaskSpec(num_returns=1), number)
    task = PendingTask(TASK, template, flat, (), depth)
    for _ in range(2):
        payload = task.usual_push()
        assert payload is not None
        assert Request.FromString(payload) == Request(
            template_id=number, depth=depth, task_id=TASK, flat_args=flat
        )
    assert Request.FromString(payload) == task.request


@pytest.mark.parametrize("number", [1, 0x3A, 127, 128, 300, (1 << 32) - 1])
@pytest.mark.parametrize("depth", [0, 1, 0x3A, 200, (1 << 31) - 1])
@pytest.mark.parametrize("flat", [b"", b"a", bytes(SHORT_MAX)])
def test_a_usual_push_is_read_as_its_message_would_be(number: int, depth: int, flat: bytes) -> None:
    payload = PendingTask(
        TASK, CallTemplate(common_pb2.TaskSpec(num_returns=1), number), flat, (), depth
    ).usual_push()
    assert payload is not None
    for _ in range(2):
        read, message = PushReader.FromString(payload), Request.FromString(payload)
        assert read == (message.template_id, message.depth, message.task_id, message.flat_args)
        template_id, depth, task_id, flat_args = read  # type: ignore[misc]
        assert message == Request(
            template_id=template_id, depth=depth, task_id=task_id, flat_args=flat_args
        ), "it has nothing else"


@pytest.mark.parametrize(
    "request_",
    [
        Request(template_id=1, task_id=TASK, flat_args=bytes(SHORT_MAX + 1)),
        Request(template_id=1, task_id=TASK, flat_args=b"a", attempt=1),
        Request(template_id=1, task_id=TASK, depth=2),
        Request(template_id=1, task_id=TASK, args=[common_pb2.TaskArg(position=1)]),
        Request(template_id=1, task_id=TASK, lease_id=b"l"),
        Request(template_id=1, task_id=TASK, waits_for_room=True),
        Request(template_id=1, task_id=b"short"),
        Request(task_id=TASK, spec=common_pb2.TaskSpec(name="f")),
        Request(template_id=1, task_id=TASK, spec=common_pb2.TaskSpec(name="f")),
        Request(task_id=TASK),
        Request(),
    ],
)
def test_any_other_push_is_read_as_the_message_that_it_is(request_: core_worker_pb2.PushTaskRequest) -> None:
    assert PushReader.FromString(request_.SerializeToString()) == request_


def test_bytes_that_are_no_push_are_refused() -> None:
    usual = task_wire.push_head(1, 0, len(TASK)) + TASK
    for bad in (usual[:-1], b"\xff" + usual, usual + b"\x42\x05ab"):
        with pytest.raises(DecodeError):
            PushReader.FromString(bad)


def test_what_is_not_usual_is_pushed_as_a_message() -> None:
    template = CallTemplate(common_pb2.TaskSpec(num_returns=1), 1)
    assert PendingTask(TASK, template, bytes(SHORT_MAX + 1)).usual_push() is None
    assert PendingTask(TASK, template, b"", [common_pb2.TaskArg()]).usual_push() is None
    generator = CallTemplate(common_pb2.TaskSpec(num_returns=-1), 2, on_part=lambda peer, task_id, part: None)
    assert PendingTask(TASK, generator).usual_push() is None
    again = PendingTask(TASK, template)
    again.pushed()
    again.again()
    assert again.usual_push() is None and again.request.attempt == 1


@pytest.mark.parametrize("run_us", [0, 1, (1 << 32) - 1])
@pytest.mark.parametrize("plain", [b"", b"v", bytes(SHORT_MAX)])
def test_a_usual_answer_is_the_reply_that_it_stands_for(run_us: int, plain: bytes) -> None:
    payload = usual_answer(run_us, plain)
    reply = Reply.FromString(payload)
    assert reply.HasField("plain") and (reply.run_us, reply.plain, reply.status) == (
        run_us,
        plain,
        Reply.DONE,
    )
    assert reply == Reply(run_us=run_us, plain=plain)
    tag, us, value_tag, size = USUAL_ANSWER.unpack_from(payload)
    assert (tag, us, value_tag, size) == (task_wire.RUN_US, run_us, task_wire.PLAIN, len(plain))


@pytest.mark.parametrize("encode", [Reply.SerializeToString, lambda reply: usual_answer(7, reply.plain)])
def test_an_answer_is_read_however_it_was_written(encode: Callable[[Any], bytes]) -> None:
    """Another writer's fields may come in another order."""
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    push = scene.wire.last("PushTask")
    push.answer_bytes(encode(value("it", run_us=7)))
    assert scene.core.get([ref], 0) == ["it"]


@pytest.mark.parametrize(
    ("returned", "is_plain"),
    [
        (1, True),
        ("x" * 110, True),
        ("x" * 1000, True),
        (b"x" * 1023, True),
        (b"x" * 1024, False),
        ([1, 2], True),
        (None, True),
    ],
)
def test_a_small_value_is_answered_plain_whatever_its_length(
    returned: object, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: returned))
    worker.run()
    reply = call.answer
    assert reply.HasField("plain") == is_plain and call.value == returned
    assert not is_plain or pickle.loads(reply.plain) == returned
