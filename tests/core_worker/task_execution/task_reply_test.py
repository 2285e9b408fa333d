"""Answers on their way: who sends them, and that none is left in a buffer."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import ObjectStoreFullError, RaySystemError
from ray_mono.common.ids import object_id_bytes
from ray_mono.common.start_board import BoardOfAnother, StartBoard
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.task_execution.call import KnownSpec
from ray_mono.core_worker.task_execution.generator_runner import STREAMED
from ray_mono.core_worker.task_execution.task_reply import (
    ALONE_US,
    ANSWERS_NOBODY,
    ERROR_BYTES_MAX,
    UNFLUSHED_MAX,
    TaskReplies,
    serialized_error,
)
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from tests.core_worker.fake_core import FakeCore


class Sent:
    """A call, and the reactor that its answer goes through: notes what happens."""

    def __init__(self) -> None:
        self.spec = KnownSpec(common_pb2.TaskSpec(type=common_pb2.ACTOR_TASK, num_returns=1))
        self.to = self
        self.steps: list[str] = []

    def reply(self, message: Any, rings: bool = True) -> None:
        self.steps.append("rings" if rings else "buffers")

    def flush(self) -> None:
        self.steps.append("flush")

    def flush_soon(self) -> None:
        self.steps.append("soon")


WORKER = b"w" * 28


def answers_of(call: Sent, is_next_short: bool, board: StartBoard | None = None) -> TaskReplies:
    core: Any = FakeCore()
    core.reactor = call
    executor: Any = SimpleNamespace(is_next_short=is_next_short, ends_after=lambda spec: False, actor=None)
    return TaskReplies(core, executor, board or StartBoard(WORKER))


@pytest.mark.parametrize(
    ("is_next_short", "run_us", "then"),
    [(False, 0, "flush"), (True, ALONE_US, "flush"), (True, 0, "soon")],
)
def test_an_answer_goes_at_once_or_soon_though_the_next_call_takes_its_time(
    is_next_short: bool, run_us: int, then: str
) -> None:
    call = Sent()
    answers_of(call, is_next_short).finish(call, TaskContext(b"t" * 24, b"job", run_us=run_us), 1)  # type: ignore[arg-type]
    assert call.steps == ["buffers", then]


def test_items_that_were_collected_go_before_the_end_of_their_generator() -> None:
    call = Sent()
    call.spec.num_returns = -1
    items: Any = SimpleNamespace(flush=lambda: call.steps.append("items"), when_settled=lambda then: then())
    task = TaskContext(b"t" * 24, b"job", items=items)
    answers_of(call, is_next_short=False).finish(call, task, STREAMED)  # type: ignore[arg-type]
    assert call.steps == ["items", "buffers", "flush"]


def test_answers_of_short_calls_share_a_send() -> None:
    call = Sent()
    answers = answers_of(call, is_next_short=True)
    for _ in range(2 * UNFLUSHED_MAX):
        answers.finish(call, TaskContext(b"t" * 24, b"job"), 1)  # type: ignore[arg-type]
    assert call.steps.count("flush") == 2 and call.steps[-1] == "flush"


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_call_wrote_is_out_before_its_answer(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Sent()

    def flush() -> None:
        call.steps.append("output")
        if fails:
            raise ValueError("closed by the user")

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(
            f"ray_mono.core_worker.task_execution.task_reply.sys.{stream}", SimpleNamespace(flush=flush)
        )
    answers_of(call, is_next_short=False).finish(call, TaskContext(b"t" * 24, b"job"), 1)  # type: ignore[arg-type]
    assert call.steps == ["output", "output", "buffers", "flush"]


@pytest.mark.parametrize(
    "end",
    [
        lambda answers, call, task: answers.finish(call, task, 1),
        lambda answers, call, task: answers.finish_error(call, task, ValueError()),
        lambda answers, call, task: answers.finish_unstarted(call, task),
        lambda answers, call, task: answers.answer_anyhow(call, task, ValueError()),
    ],
    ids=["value", "error", "no room", "our fault"],
)
def test_a_task_that_is_answered_runs_no_more_for_its_raylet(end: Callable[..., None]) -> None:
    call, board = Sent(), StartBoard(WORKER)
    call.spec.type = common_pb2.NORMAL_TASK
    call.own = SimpleNamespace(task_id=b"t" * 24)  # type: ignore[attr-defined]
    assert board.may_begin(1, "f")
    as_raylet, seen = BoardOfAnother(os.getpid(), board.fd, WORKER), []
    assert as_raylet.running() == "f"
    call.reply = lambda message, rings=True: seen.append(as_raylet.running())  # type: ignore[method-assign]
    end(answers_of(call, is_next_short=True, board=board), call, TaskContext(b"t" * 24, b"job"))
    assert seen == [""], "whoever has the answer may stop it"


def test_a_call_of_an_actor_says_nothing_of_what_its_main_thread_runs() -> None:
    call, board = Sent(), StartBoard(WORKER)
    assert board.may_begin(1, "f")
    answers_of(call, is_next_short=False, board=board).finish(call, TaskContext(b"t" * 24, b"job"), 1)  # type: ignore[arg-type]
    assert BoardOfAnother(os.getpid(), board.fd, WORKER).running() == "f"


class Trouble(BaseException):
    pass


class Large:
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
    answers, task = answers_of(call, is_next_short=False), TaskContext(b"t" * 24, b"job")
    with pytest.raises(AttributeError) as caught:
        answers.finish(call, task, 1)  # type: ignore[arg-type]
    answers.answer_anyhow(call, task, caught.value)  # type: ignore[arg-type]
    (reply,) = replies
    assert reply.is_application_error
    value = reply.returns[0].value
    error = serialization.deserialize(value.metadata, value.data)
    assert isinstance(error, RaySystemError) and "answering f() failed" in str(error)


def test_what_the_failed_steps_hold_is_free_before_the_next_attempt_which_may_need_the_memory() -> None:
    call, replies = failed_call(0)
    held: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError

    call.reply = lambda message, rings=True: replies.append(held[0]())  # type: ignore[method-assign]
    try:
        fail()
    except MemoryError as error:
        answers_of(call, is_next_short=False).answer_anyhow(call, TaskContext(b"t" * 24, b"job"), error)  # type: ignore[arg-type]
    assert replies == [None]


def test_a_worker_that_cannot_even_do_that_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call, replies = failed_call(1)
    codes: list[int] = []
    monkeypatch.setattr("ray_mono.core_worker.task_execution.task_reply.os._exit", codes.append)
    answers_of(call, is_next_short=False).answer_anyhow(call, TaskContext(b"t" * 24, b"job"), Trouble())  # type: ignore[arg-type]
    assert not replies and codes == [ANSWERS_NOBODY]
    assert "this worker ends" in capfd.readouterr().err


HELD = b"h" * 28
"""A reference that a task has as an argument."""


class Acknowledged(Sent):
    """A call with references in it: its answer waits until owners know who has them, which the test says by `settled`."""

    def __init__(self, kind: common_pb2.TaskType = common_pb2.NORMAL_TASK) -> None:
        super().__init__()
        self.spec.type = kind
        self.timers: dict[Any, None] = {}
        self.num_cancelled = 0
        self.answers = answers_of(self, is_next_short=False)
        self.core: Any = self.answers._core
        self.core.ownership.settle_arrived = self._settle
        self.core.getter = SimpleNamespace(
            block=self._block, unblock=lambda epoch: self.steps.append(f"takes back {epoch}")
        )
        self.executor: Any = self.answers._executor
        self.executor.is_resting = True
        self.settled: Any = None
        self.core.references.borrow(HELD, b"another")
        self.core.references.add_submitted([HELD])
        self.task = TaskContext(b"t" * 24, b"job", arrived={HELD: b"another"}, held=[HELD])

    def over(self) -> Acknowledged:
        self.answers.finish(self, self.task, 1)  # type: ignore[arg-type]
        assert self.steps == ["flush"] and self.answers.num_unsettled == 1
        self.steps.clear()
        return self

    def _settle(self, arrived: Any, kept: Any, caller: Any, then: Any) -> None:
        self.settled = then

    def _block(self) -> int:
        self.steps.append("lends")
        return 7

    def call_later(self, delay_s: float, callback: Any) -> Any:
        self.timers[callback] = None
        return SimpleNamespace(cancel=lambda: self._cancel(callback))

    def _cancel(self, callback: Any) -> None:
        self.num_cancelled += 1
        self.timers.pop(callback, None)

    def pass_time(self) -> None:
        timers, self.timers = self.timers, {}
        for callback in timers:
            callback()


def test_a_task_that_is_over_but_for_its_answer_lends_its_cpus_until_that_is_out() -> None:
    call = Acknowledged().over()
    call.pass_time()
    assert call.steps == ["lends"] and not call.timers and HELD in call.core.references
    call.settled([])
    assert call.steps == ["lends", "rings", "takes back 7"]
    assert call.answers.num_unsettled == 0 and HELD not in call.core.references


def test_nothing_is_lent_where_the_owner_acknowledges_soon_or_the_call_is_an_actors() -> None:
    for call in (Acknowledged().over(), Acknowledged(common_pb2.ACTOR_TASK).over()):
        call.settled([])
        call.pass_time()
        assert call.steps == ["rings"]


def test_the_cpus_of_a_worker_that_runs_the_next_task_are_not_lent() -> None:
    call = Acknowledged().over()
    call.executor.is_resting = False
    call.pass_time()
    assert call.steps == [] and call.timers
    call.executor.is_resting = True
    call.pass_time()
    assert call.steps == ["lends"]


def test_nothing_is_kept_of_the_looks_for_a_worker_that_rests() -> None:
    call = Acknowledged().over()
    call.executor.is_resting = False
    for _ in range(100):
        call.pass_time()
    call.settled([])
    assert call.num_cancelled == 1 and not call.timers and call.steps == ["rings"]


def test_a_task_that_goes_elsewhere_lets_go_of_the_arguments_that_it_has() -> None:
    call = Acknowledged()
    call.answers.finish_unstarted(call, call.task)  # type: ignore[arg-type]
    assert call.steps == ["flush"], "its owner hears first who has them"
    call.settled([])
    assert call.steps == ["flush", "rings"] and HELD not in call.core.references


class SharedStore:
    """A node's store in which the first objects find room and a later one does not."""

    def __init__(self, room: int) -> None:
        self._room = room

    def put(self, object_id: bytes, value: Any, owner: bytes) -> None:
        self._room -= 1
        if self._room < 0:
            raise ObjectStoreFullError("full")


def test_what_was_stored_of_returns_that_failed_together_is_freed() -> None:
    call, replies = failed_call(0)
    call.spec.num_returns = 3
    answers = answers_of(call, is_next_short=False)
    core: Any = answers._core
    core.store, core.pid, core.node = SharedStore(room=1), 1, SimpleNamespace(host="")
    large = bytes(INLINE_BYTES_MAX + 1)
    answers.finish(call, TaskContext(b"t" * 24, b"job"), [large, 1, large])  # type: ignore[arg-type]
    (reply,) = replies
    assert reply.is_application_error and not any(returned.in_plasma for returned in reply.returns)
    assert core.freed == [(object_id_bytes(b"t" * 24, 1), [core.node_id])]


def test_an_error_that_is_too_large_to_travel_is_told_by_its_name() -> None:
    value = serialized_error("f", ValueError("x" * ERROR_BYTES_MAX))
    error = serialization.deserialize(value.metadata, value.to_bytes())
    assert isinstance(error, RaySystemError) and "f() raised ValueError, an error of 16 MiB" in str(error)


def test_items_that_were_made_go_before_the_word_that_answering_failed() -> None:
    call, _ = failed_call(0)
    call.reply = lambda message, rings=True: call.steps.append("reply")  # type: ignore[method-assign]
    items: Any = SimpleNamespace(flush=lambda: call.steps.append("items"))
    task = TaskContext(b"t" * 24, b"job", items=items)
    answers_of(call, is_next_short=False).answer_anyhow(call, task, Trouble())  # type: ignore[arg-type]
    assert call.steps == ["items", "reply", "flush"]
