"""What a process tells of what it ran: when it is sent, what is left out, and how it is named."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ray_mono.core_worker.context import TaskContext, TaskKind
from ray_mono.core_worker.task_execution.task_events import EVENTS_MAX, SEND_PERIOD_S, TaskEvents
from tests.core_worker.scene import JOB_ID, NODE_ID, Scene
from tests.core_worker.worker_scene import Worker


class Told(Scene):
    """Events of one process."""

    def __init__(self) -> None:
        super().__init__()
        self.events = TaskEvents(self.env, self.context)

    def ran(self, name: str = "f", task_id: bytes = b"t" * 24, started_s: float = 0.0, **fields: Any) -> None:
        self.events.add(
            TaskContext(task_id, TaskKind(JOB_ID, name, **fields)), started_s, time.perf_counter()
        )

    def sent(self) -> list[Any]:
        return [each.request for each in self.wire.all("AddTaskEvents")]


class Names:
    """An actor."""

    name, class_name, module_name = "", "Actor", "m"

    def repr_name(self) -> str:
        return ""


def test_events_of_a_second_go_in_one_message() -> None:
    told = Told()
    told.ran("f", b"1" * 24)
    told.ran("g", b"2" * 24)
    told.pass_time(SEND_PERIOD_S * 0.99)
    told.ran("f", b"3" * 24)
    assert not told.sent()
    told.pass_time(SEND_PERIOD_S * 0.02)
    (message,) = told.sent()
    assert (list(message.names), list(message.name_indices)) == (["f", "g"], [0, 1, 0])
    assert message.task_ids == b"1" * 24 + b"2" * 24 + b"3" * 24
    assert (message.job_id, message.node_id, message.worker_id) == (JOB_ID, NODE_ID, b"me")
    assert (message.host, message.pid, message.dropped, message.collection) == ("here", 1, 0, b"")


def test_who_runs_nothing_sends_nothing_and_who_goes_on_sends_again() -> None:
    told = Told()
    told.ran()
    told.pass_time(10.0)
    assert len(told.sent()) == 1 and not told.reactor.timers
    told.ran()
    told.pass_time(SEND_PERIOD_S)
    assert len(told.sent()) == 2


def test_only_the_latest_are_kept_and_the_others_counted() -> None:
    told = Told()
    for number in range(EVENTS_MAX + 3):
        told.ran(str(number))
    told.events.send()
    told.ran("last")
    told.events.send()
    first, second = told.sent()
    assert (len(first.names), first.names[0], first.dropped) == (EVENTS_MAX, "3", 3)
    assert (list(second.names), second.dropped) == (["last"], 0)


def test_times_are_of_the_day() -> None:
    told = Told()
    began_s = time.perf_counter()
    told.ran(started_s=began_s - 5.0)
    told.events.send()
    (message,) = told.sent()
    assert abs(message.start_time_s[0] - (time.time() - 5.0)) < 1.0
    assert 5.0 <= message.end_time_s[0] - message.start_time_s[0] < 6.0


def test_calls_are_named_by_class_and_method_or_as_they_were_named() -> None:
    told = Told()
    told.ran("method", actor=Names())
    told.ran("method", actor=Names(), given_name="given")
    told.events.send()
    assert list(told.sent()[0].names) == ["Actor.method", "given"]


def test_spans_come_behind_the_calls_with_what_the_user_said_of_them() -> None:
    told = Told()
    told.events.add_span("span", '{"a": 1}', b"s" * 24, 0.0)
    told.ran("f", b"t" * 24)
    told.events.send()
    (message,) = told.sent()
    assert [message.names[index] for index in message.name_indices] == ["f", "span"]
    assert dict(message.spans) == {1: '{"a": 1}'} and message.task_ids == b"t" * 24 + b"s" * 24


def test_a_program_that_only_marks_spans_tells_them_too() -> None:
    told = Told()
    told.events.add_span("span", "{}", b"s" * 24, 0.0)
    told.pass_time(SEND_PERIOD_S)
    assert list(told.sent()[0].names) == ["span"] and told.sent()[0].dropped == 0


def test_who_asked_gets_an_answer_even_an_empty_one() -> None:
    told = Told()
    told.events.send()
    assert not told.sent()
    told.events.send(b"collection")
    assert [(each.collection, len(each.names)) for each in told.sent()] == [(b"collection", 0)]


def test_an_answer_to_who_asked_does_not_end_the_second_that_runs() -> None:
    told = Told()
    told.ran()
    told.events.send(b"collection")
    told.ran()
    told.pass_time(SEND_PERIOD_S)
    assert [len(each.names) for each in told.sent()] == [1, 1]
    told.pass_time(10.0)
    assert len(told.sent()) == 2


def test_nothing_is_sent_by_a_process_that_has_left() -> None:
    told = Told()
    told.ran()
    told.reactor.is_closed = True
    told.events.send(b"collection")
    assert not told.sent()


def test_a_span_of_a_task_is_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda: worker.core.add_span("span", "{}", 0.0), hides_events=True))
    worker.run()
    worker.core.send_events()
    assert worker.wire.last("AddTaskEvents").request.task_ids == call.task_id
