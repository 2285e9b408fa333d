"""Answers on their way: what is in them, what goes before them, and that none is left in a buffer."""

from __future__ import annotations

import gc
import os
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.task_execution.task_reply import ANSWERS_NOBODY, serialized_error
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import ELSEWHERE
from tests.core_worker.worker_scene import (
    CALLER,
    OTHER_OWNER,
    Arriving,
    Pushed,
    Reply,
    Worker,
    referenced,
)

OBJECT = b"o" * 28


class Trouble(BaseException):
    pass


# ---- when they go


def test_answers_of_short_calls_share_a_send_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def short(self) -> None: ...

    worker = Worker(monkeypatch, unflushed_answers_max=3)
    worker.actor(Actor)
    spec = worker.method("short")
    calls = [worker.ask(spec) for _ in range(8)]
    flushed: list[bool] = []
    for before, call in enumerate(calls[1:]):
        call.on_reply = lambda before=before: flushed.append(calls[before].is_flushed)  # type: ignore[misc]
    worker.run()
    assert flushed == [False, False, True, False, False, True, False] and calls[-1].is_flushed


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_call_wrote_is_out_before_its_answer(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    steps: list[str] = []

    def flush() -> None:
        steps.append("output")
        if fails:
            raise ValueError("closed by the user")

    call = worker.ask(worker.function(lambda: 1))
    call.on_reply = lambda: steps.append("answer")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(
            f"ray_mono.core_worker.task_execution.task_reply.sys.{stream}",
            SimpleNamespace(flush=flush, write=lambda text: None),
        )
    worker.run()
    assert steps[-3:] == ["output", "output", "answer"] and call.value == 1


def fail() -> None:
    raise ValueError


@pytest.mark.parametrize("end", ["value", "error", "no room", "our fault"])
def test_a_task_that_is_answered_runs_no_more_for_its_raylet(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch)
    raylet = worker.as_raylet()
    argument = referenced(OBJECT, location_node_ids=[ELSEWHERE], size_bytes=9)
    if end == "no room":
        call = worker.ask(worker.function(lambda it: 1), None, by_reference=[argument])
    else:
        call = worker.ask(worker.function(fail if end == "error" else lambda: 1))
    if end == "our fault":
        call.reply_failures = [Trouble()]
    seen: list[str] = []
    call.on_reply = lambda: seen.append(raylet.running())
    full = RpcError(StatusCode.RESOURCE_EXHAUSTED, "full")
    worker.run(*[lambda: worker.wire.last("Get").fail(full)] * (end == "no room"))
    assert seen == [""], "whoever has the answer may stop it"


def test_a_call_of_an_actor_says_nothing_of_what_its_main_thread_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    assert worker.board.may_begin(1, "f")
    worker.ask(worker.method("method"))
    worker.run()
    assert worker.as_raylet().running() == "f"


# ---- what is in them


def test_an_actor_tells_its_process_and_its_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def __repr__(self) -> str:
            return "mine"

    reply = Worker(monkeypatch).actor(Actor).answer
    assert (reply.pid, reply.repr_name, reply.HasField("plain"), len(reply.returns)) == (1, "mine", False, 1)


@pytest.mark.parametrize(
    ("num_returns", "value", "told"),
    [
        (0, None, []),
        (0, "thrown away", []),
        (2, (1, 2), [1, 2]),
        (2, [1, 2, 3], "f() has num_returns=2 but returned 3 values"),
        (2, [1], "f() has num_returns=2 but returned 1 values"),
        (2, 1, "f() has num_returns=2 but returned a int, which cannot be split into several values"),
        (-1, 1, "f() has to be a generator, but it returned a int"),
    ],
)
def test_several_returns_are_split_and_what_does_not_fit_is_an_error(
    monkeypatch: pytest.MonkeyPatch, num_returns: int, value: Any, told: Any
) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: value, num_returns=num_returns))
    worker.run()
    if isinstance(told, list):
        assert call.value == told and not call.answer.is_application_error
        return
    values = call.value if isinstance(call.value, list) else [call.value]
    assert len(values) == max(1, num_returns) and all(told in str(each) for each in values)
    assert [each.object_id for each in call.answer.returns] == [
        call.returned_id(index + 1) for index in range(max(1, num_returns))
    ]


def test_how_long_the_code_ran_is_told_with_values_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def run(fails: bool) -> list[int]:
        worker.busy(150)
        if fails:
            raise ValueError
        return [1, 2]

    calls = [
        worker.ask(worker.function(run, num_returns=number), fails)
        for number, fails in [(1, False), (2, False), (1, True)]
    ]
    worker.run()
    assert [round(call.answer.run_us, -1) for call in calls] == [150] * 3


def test_what_does_not_pickle_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    lock = __import__("threading").Lock()
    call = worker.ask(worker.function(lambda: lock))
    worker.run()
    assert isinstance(call.value.cause, TypeError) and "what f() returned" in str(call.value)


def test_an_error_that_is_too_large_to_travel_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, error_bytes_max=1 << 20)

    def fail(size: int) -> None:
        raise ValueError("x" * size)

    large, small = worker.ask(worker.function(fail), 1 << 20), worker.ask(worker.function(fail), 1 << 10)
    worker.run()
    assert isinstance(large.value, RaySystemError)
    assert "f() raised RayTaskError, an error of" in str(large.value)
    assert isinstance(small.value.cause, ValueError)


@pytest.mark.parametrize("spare_bytes", [0, -1])
def test_an_error_may_be_as_large_as_the_limit_and_no_larger(spare_bytes: int) -> None:
    size = serialization.serialize_error(ValueError("x" * 100)).size_bytes
    value = serialized_error("f", ValueError("x" * 100), size + spare_bytes)
    error = serialization.deserialize(value.metadata, value.to_bytes())
    assert isinstance(error, RaySystemError if spare_bytes else ValueError)


def test_an_error_that_cannot_be_sent_is_told_with_the_reason() -> None:
    class Unsendable(Exception):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise LookupError("not me")

    value = serialized_error("f", Unsendable("text"), 1 << 20)
    error = str(serialization.deserialize(value.metadata, value.to_bytes()))
    assert all(word in error for word in ("f() raised", "Unsendable", "LookupError: not me", "text"))


# ---- when our own code fails


def test_a_call_whose_answer_failed_by_our_fault_is_answered_with_that_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: [1, 2], num_returns=2))
    call.reply_failures = [Trouble()]
    worker.run()
    assert call.answer.is_application_error and call.is_flushed
    assert all(
        isinstance(each, RaySystemError) and "answering f() failed" in str(each) for each in call.value
    )
    assert "answering f() failed" in caplog.text


def test_what_the_failed_steps_hold_is_free_before_the_next_attempt_which_may_need_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Large: ...

    held: list[weakref.ref[Large]] = []

    def no_memory() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError

    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: 1))
    seen: list[Any] = []
    call.on_reply = lambda: seen.append(held[0]()) if held else no_memory()
    gc.disable()
    try:
        worker.run()
    finally:
        gc.enable()
    assert seen == [None] and isinstance(call.value, RaySystemError)


def test_a_worker_that_cannot_even_do_that_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(monkeypatch)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    call = worker.ask(worker.function(lambda: 1))
    call.reply_failures = [Trouble(), Trouble()]
    worker.run()
    assert not call.replies and codes == [ANSWERS_NOBODY]
    assert "this worker ends" in capfd.readouterr().err


# ---- answers that wait for owners


class Keeping(Worker):
    """Its task keeps a reference that came with its arguments: the owner has to hear of it before the answer
    goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any = OTHER_OWNER, **limits: Any) -> None:
        super().__init__(monkeypatch, **limits)
        self.kept: list[Any] = []
        self.arriving = Arriving(OBJECT, owner)

    def keep(self, reference: Any) -> int:
        self.kept.append(reference)
        return 1

    def over(self, lease_id: bytes = b"lease") -> Pushed:
        call = self.ask(self.function(self.keep), self.arriving, lease_id=lease_id)
        self.run()
        return call

    def acknowledge(self) -> None:
        with self.env.lock:
            self.wire.open("AddBorrower")[0].answer(common_pb2.Empty())


def test_a_reference_that_the_caller_owns_is_named_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch, CALLER)
    call = worker.over()
    assert [each.object_id for each in call.answer.borrowed] == [OBJECT] and call.value == 1
    assert not worker.wire.all("AddBorrower")


@pytest.mark.parametrize("is_over", [False, True])
def test_one_that_was_named_in_an_answer_that_may_be_lost_is_registered(
    monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    worker = Keeping(monkeypatch, CALLER)
    call = worker.over()
    if is_over:
        worker.kept.clear()
        worker.turn()
    with worker.env.lock:
        call.connection.close()
    told = [each.request for each in worker.wire.all("AddBorrower")]
    assert [(each.object_id, each.borrower) for each in told] == [(OBJECT, worker.address)] * (not is_over)


def test_one_that_is_not_kept_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda reference: 1), Arriving(OBJECT, OTHER_OWNER))
    worker.run()
    assert call.value == 1 and not call.answer.borrowed and not worker.wire.all("AddBorrower")
    assert worker.core.reference_counts() == 0


def test_the_answer_waits_until_the_owner_of_what_is_kept_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()
    assert not call.replies and not worker.execution.replies.are_settled
    asked = worker.wire.last("AddBorrower", "unix:other")
    assert (asked.request.object_id, asked.request.borrower) == (OBJECT, worker.address)
    worker.acknowledge()
    assert call.value == 1 and worker.execution.replies.are_settled and not call.answer.borrowed
    assert worker.core.reference_counts() == 1


def test_the_worker_runs_on_while_an_answer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()
    after = worker.ask(worker.function(lambda: 2))
    worker.run()
    assert after.value == 2 and not call.replies


def test_a_task_that_is_over_but_for_its_answer_lends_its_cpus_until_that_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()
    worker.pass_time(worker.config.unsettled_s)
    assert worker.wire.last("NotifyBlocked").request.lease_id == b"lease"
    assert not worker.wire.all("NotifyUnblocked")
    worker.pass_time(10.0)
    assert len(worker.wire.all("NotifyBlocked")) == 1
    worker.acknowledge()
    assert call.value == 1 and len(worker.wire.all("NotifyUnblocked")) == 1


def test_nothing_is_lent_where_the_owner_acknowledges_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    worker.over()
    worker.pass_time(worker.config.unsettled_s / 2)
    worker.acknowledge()
    worker.pass_time(10.0)
    assert not worker.wire.all("NotifyBlocked") and not worker.reactor.timers


def test_nothing_is_lent_by_an_actors_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    keep = worker.keep

    class Actor:
        def method(self, reference: Any) -> int:
            return keep(reference)

    worker.actor(Actor)
    call = worker.ask(worker.method("method"), worker.arriving)
    worker.run()
    worker.pass_time(10.0)
    assert not call.replies and not worker.wire.all("NotifyBlocked")
    worker.acknowledge()
    assert call.value == 1


def test_the_cpus_of_a_worker_that_runs_the_next_task_are_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()
    blocked: list[int] = []

    def runs() -> None:
        for _ in range(3):
            worker.pass_time(worker.config.unsettled_s)
        blocked.append(len(worker.wire.all("NotifyBlocked")))

    worker.ask(worker.function(runs))
    worker.run()
    assert blocked == [0]
    worker.pass_time(worker.config.unsettled_s)
    assert len(worker.wire.all("NotifyBlocked")) == 1 and not call.replies


def test_nothing_is_kept_of_the_looks_for_a_worker_that_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()

    def runs() -> None:
        for _ in range(20):
            worker.pass_time(worker.config.unsettled_s)

    worker.ask(worker.function(runs, hides_events=True))
    worker.run()
    worker.acknowledge()
    worker.pass_time(10.0)
    assert call.value == 1 and not worker.wire.all("NotifyBlocked") and not worker.reactor.timers


def test_a_task_that_goes_elsewhere_lets_go_of_its_arguments_when_their_owner_knows_who_had_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Keeping(monkeypatch)
    full = RpcError(StatusCode.RESOURCE_EXHAUSTED, "full")
    argument = referenced(b"p" * 28, position=3, location_node_ids=[ELSEWHERE], size_bytes=9)
    call = worker.ask(worker.function(lambda *args: 1), worker.arriving, None, by_reference=[argument])
    worker.run(lambda: worker.wire.last("Get").fail(full))
    assert not call.replies, "its owner hears first who has them"
    worker.acknowledge()
    assert call.status == Reply.NO_ROOM and worker.core.reference_counts() == 0


# ---- references in what is returned


def test_who_gets_a_reference_of_ours_is_watched_as_its_borrower(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: [worker.core.put(1)]))
    worker.run()
    (nested,) = call.answer.returns[0].value.nested
    asked = worker.wire.last("WaitForRefRemoved", "unix:caller").request
    assert (asked.object_id, asked.contained_in) == (nested.object_id, call.returned_id())
    assert worker.core.reference_counts() == 1
    with worker.env.lock:
        worker.wire.last("WaitForRefRemoved").answer(common_pb2.Empty())
    assert worker.core.reference_counts() == 0


def test_the_answer_waits_until_the_owner_of_a_returned_reference_knows_who_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Keeping(monkeypatch)
    call = worker.ask(worker.function(lambda reference: [reference, reference]), worker.arriving)
    worker.run()
    (asked,) = worker.wire.all("AddBorrower")
    assert (asked.request.borrower, asked.request.contained_in) == (CALLER, call.returned_id())
    assert not call.replies and worker.core.reference_counts() == 1
    worker.acknowledge()
    assert {each.object_id for each in call.answer.returns[0].value.nested} == {OBJECT}
    assert worker.core.reference_counts() == 0 and not call.answer.borrowed


def test_a_returned_reference_of_the_callers_is_held_until_the_answer_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda reference: [reference]), Arriving(OBJECT, CALLER))
    counts: list[int] = []
    call.on_reply = lambda: counts.append(worker.core.reference_counts())
    worker.run()
    assert counts == [1] and worker.core.reference_counts() == 0 and call.replies
    assert not worker.wire.all("AddBorrower")


def test_each_of_several_returns_waits_for_its_own_references(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    other = Arriving(b"p" * 28, OTHER_OWNER)
    call = worker.ask(
        worker.function(lambda *references: [[each] for each in references], num_returns=2),
        Arriving(OBJECT, OTHER_OWNER),
        other,
    )
    worker.run()
    first, second = worker.wire.all("AddBorrower")
    assert [each.request.contained_in for each in (first, second)] == [
        call.returned_id(1),
        call.returned_id(2),
    ]
    with worker.env.lock:
        first.answer(common_pb2.Empty())
        assert not call.replies
        second.answer(common_pb2.Empty())
    assert len(call.answer.returns) == 2


def test_an_owner_that_is_gone_keeps_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Keeping(monkeypatch)
    call = worker.over()
    with worker.env.lock:
        worker.wire.end(worker.wire.open("AddBorrower")[0].to)
    assert call.value == 1 and worker.execution.replies.are_settled
