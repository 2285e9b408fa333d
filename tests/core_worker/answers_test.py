"""Answers on their way: who sends them, and that none is left in a buffer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.answers import ALONE_US, UNFLUSHED_MAX, Answers
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
