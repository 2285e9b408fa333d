"""Answers on their way: who sends them, and that none is left in a buffer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker import serialization
from ray_mono.core_worker.answers import ALONE_US, ANSWERS_NOBODY, UNFLUSHED_MAX, Answers
from ray_mono.core_worker.context import TaskContext
from ray_mono.protobuf import common_pb2
from tests.core_worker.fake_core import FakeCore


class Sent:
    """A call, and the reactor that its answer goes through: notes what happens."""

    def __init__(self) -> None:
        self.spec = common_pb2.TaskSpec(type=common_pb2.ACTOR_TASK, num_returns=1)
        self.to = self
        self.steps: list[str] = []

    def reply(self, message: Any, rings: bool = True) -> None:
        self.steps.append("rings" if rings else "buffers")

    def flush(self) -> None:
        self.steps.append("flush")

    def flush_soon(self) -> None:
        self.steps.append("soon")


def answers_of(call: Sent, has_queued: bool) -> Answers:
    core: Any = FakeCore()
    core.reactor = call
    executor: Any = SimpleNamespace(has_queued=has_queued, ends_after=lambda spec: False, actor=None)
    return Answers(core, executor)


@pytest.mark.parametrize(
    ("has_queued", "run_us", "then"),
    [(False, 0, "flush"), (True, ALONE_US, "flush"), (True, 0, "soon")],
)
def test_an_answer_goes_at_once_or_soon_though_the_next_call_takes_its_time(
    has_queued: bool, run_us: int, then: str
) -> None:
    call = Sent()
    answers_of(call, has_queued).finish(call, TaskContext(b"t" * 24, b"job", run_us=run_us), 1)  # type: ignore[arg-type]
    assert call.steps == ["buffers", then]


def test_answers_of_short_calls_share_a_send() -> None:
    call = Sent()
    answers = answers_of(call, has_queued=True)
    for _ in range(UNFLUSHED_MAX):
        answers.finish(call, TaskContext(b"t" * 24, b"job"), 1)  # type: ignore[arg-type]
    assert call.steps.count("flush") == 1 and call.steps[-1] == "flush"


class Trouble(BaseException):
    pass


def failed_call(replies_fail: int) -> tuple[Sent, list[Any]]:
    """A call, the first of whose replies fail, and what is replied."""
    call = Sent()
    call.own = SimpleNamespace(task_id=b"t" * 24)  # type: ignore[attr-defined]
    call.spec.name = "f"
    replies: list[Any] = []

    def reply(message: Any, rings: bool = True) -> None:
        nonlocal replies_fail
        replies_fail -= 1
        if replies_fail >= 0:
            raise Trouble
        replies.append(message)

    call.reply = reply  # type: ignore[method-assign]
    return call, replies


def test_a_call_whose_answer_failed_by_our_fault_is_answered_with_that() -> None:
    call, replies = failed_call(1)
    answers, task = answers_of(call, has_queued=False), TaskContext(b"t" * 24, b"job")
    with pytest.raises(AttributeError) as caught:
        answers.finish(call, task, 1)  # type: ignore[arg-type]
    answers.answer_anyhow(call, task, caught.value)  # type: ignore[arg-type]
    (reply,) = replies
    assert reply.is_application_error
    value = reply.returns[0].value
    error = serialization.deserialize(value.metadata, value.data)
    assert isinstance(error, RaySystemError) and "answering f() failed" in str(error)


def test_a_worker_that_cannot_even_do_that_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call, replies = failed_call(1)
    codes: list[int] = []
    monkeypatch.setattr("ray_mono.core_worker.answers.os._exit", codes.append)
    answers_of(call, has_queued=False).answer_anyhow(call, TaskContext(b"t" * 24, b"job"), Trouble())  # type: ignore[arg-type]
    assert not replies and codes == [ANSWERS_NOBODY]
    assert "this worker ends" in capfd.readouterr().err
