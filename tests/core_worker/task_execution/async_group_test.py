"""The calls on one loop of an async actor: their turns, and what their cancels and the actor's end answer."""

from __future__ import annotations

import asyncio
import queue
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.task_execution.async_group import AsyncGroup

WAIT_S = 30
CALL: Any = SimpleNamespace(spec=SimpleNamespace(hides_events=True, name="method"))


class Scene:
    """A group that runs one call at a time. `answers` gets (task id, value or error)."""

    def __init__(self) -> None:
        self.answers: queue.Queue[tuple[bytes, Any]] = queue.Queue()
        self.ran: queue.Queue[bytes] = queue.Queue()
        self.go = asyncio.Event()

        def answer(call: Any, task: TaskContext, value: Any) -> None:
            self.answers.put((task.task_id, value))

        self.exits: queue.Queue[BaseException] = queue.Queue()
        self.actor: Any = SimpleNamespace(calls={}, answer_error=answer, exit_by=self.exits.put)
        answers = SimpleNamespace(finish=answer, finish_error=answer, answer_anyhow=answer)
        executor: Any = SimpleNamespace(answers=answers)
        core: Any = SimpleNamespace(context=WorkerContext(TaskContext(b"", b"")))
        self.group = AsyncGroup(self.actor, executor, core, "", 1)

    def start(self, name: bytes, is_cancelled: bool = False) -> None:
        async def method() -> bytes:
            self.ran.put(name)
            try:
                await self.go.wait()
            finally:
                self.ran.put(b"end of " + name)
            return b"value of " + name

        task = TaskContext(name, b"", is_cancelled=is_cancelled)
        self.actor.calls[name] = task
        self.group.start(CALL, task, [method, [], {}])

    def let_go(self) -> None:
        async def let() -> None:
            self.go.set()

        self.group.run(let())


def test_a_call_that_is_cancelled_before_its_turn_never_runs_and_the_next_gets_the_turn() -> None:
    scene = Scene()
    for name in (b"first", b"second", b"third"):
        scene.start(name)
    scene.group.cancel(b"second")
    name, error = scene.answers.get(timeout=WAIT_S)
    # As it is, without a traceback: no code was stopped.
    assert (name, type(error)) == (b"second", TaskCancelledError)
    scene.let_go()
    answers = [scene.answers.get(timeout=WAIT_S) for _ in range(2)]
    assert answers == [(b"first", b"value of first"), (b"third", b"value of third")]
    assert b"second" not in scene.ran.queue
    scene.group.close().result(WAIT_S)
    assert not scene.actor.calls


def test_a_call_that_is_cancelled_before_it_comes_to_the_loop_never_runs() -> None:
    """While the main thread fetches its arguments, the one that reads the sockets may hear of the cancel."""
    scene = Scene()
    scene.start(b"first")
    scene.group.cancel(b"second")
    scene.start(b"second", is_cancelled=True)
    name, error = scene.answers.get(timeout=WAIT_S)
    assert (name, type(error)) == (b"second", TaskCancelledError)
    scene.let_go()
    assert scene.answers.get(timeout=WAIT_S) == (b"first", b"value of first")
    assert b"second" not in scene.ran.queue
    scene.group.close().result(WAIT_S)
    assert not scene.actor.calls


def test_the_end_of_the_actor_cancels_what_runs_and_answers_nothing() -> None:
    scene = Scene()
    for name in (b"runs", b"waits"):
        scene.start(name)
    assert scene.ran.get(timeout=WAIT_S) == b"runs"
    scene.group.close().result(WAIT_S)
    assert scene.ran.get_nowait() == b"end of runs"
    assert scene.ran.empty() and scene.answers.empty()


def test_a_call_whose_answer_fails_is_answered_anyhow() -> None:
    def fail(call: Any, task: TaskContext, error: BaseException) -> None:
        raise LookupError(type(error).__name__)

    async def method() -> None:
        raise KeyError

    scene = Scene()
    scene.actor.answer_error = fail
    scene.group.start(CALL, TaskContext(b"call", b""), [method, [], {}])
    name, error = scene.answers.get(timeout=WAIT_S)
    assert (name, str(error)) == (b"call", "KeyError") and isinstance(error, LookupError)
    scene.group.close().result(WAIT_S)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), None], ids=repr)
def test_what_the_actor_starts_on_its_loop_does_not_end_the_loop(raised: BaseException | None) -> None:
    def strike() -> None:
        if raised is None:
            asyncio.get_running_loop().stop()
        else:
            raise raised

    async def start() -> None:
        asyncio.get_running_loop().call_soon(strike)

    scene = Scene()
    scene.group.run(start())
    scene.let_go()
    scene.start(b"next")
    assert scene.answers.get(timeout=WAIT_S) == (b"next", b"value of next")
    scene.group.close().result(WAIT_S)
    assert scene.exits.qsize() == isinstance(raised, SystemExit)
