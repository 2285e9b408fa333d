"""What a program asks of the core itself: what it is, who may leave or was cancelled, and how it ends."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.task_errors import ActorExit
from tests.core_worker.scene import NODE_ID, Scene
from tests.core_worker.worker_scene import Worker


def test_a_core_says_what_it_is_and_serves() -> None:
    core = Scene().core
    assert (core.is_driver, core.node_id, core.node_host) == (True, NODE_ID, "here")
    assert (core.session_dir, core.namespace, dict(core.node_labels)) == ("/session", "namespace", {})
    assert (core.runtime_env, core.task_runtime_env, core.default_actor_lifetime) == ("{}", "", "")


def test_a_driver_is_no_actor_and_no_task() -> None:
    core = Scene().core
    with pytest.raises(TypeError, match="called outside of an actor"):
        core.exit_actor()
    with pytest.raises(RuntimeError, match="this process is a driver"):
        core.is_task_cancelled()


def test_a_worker_that_is_no_actor_cannot_leave_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def leave() -> bool:
        worker.core.exit_actor()
        return worker.core.is_task_cancelled()

    call = worker.ask(worker.function(leave))
    worker.run()
    assert isinstance(call.value.cause, TypeError)


def test_an_actor_leaves_from_its_methods_and_from_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    raised: list[BaseException] = []

    def leave() -> None:
        try:
            worker.core.exit_actor()
        except BaseException as error:
            raised.append(error)

    class Actor:
        def method(self) -> bool:
            leave()
            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()
            return worker.core.is_task_cancelled()

    worker.actor(Actor)
    call = worker.ask(worker.method("method"))
    assert not worker.run() and call.value is False
    assert [type(each) for each in raised] == [ActorExit, SystemExit]


def test_an_async_actor_hears_of_a_cancel_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        async def method(self) -> bool:
            return worker.core.is_task_cancelled()

    worker.actor(Actor, is_asyncio=True, max_concurrency=1)
    call = worker.ask(worker.method("method"))
    worker.run()
    assert "asyncio.CancelledError" in str(call.value)
    worker.execution.close_actor()


def test_who_leaves_takes_its_steps_in_order_and_once() -> None:
    scene = Scene()
    steps: list[str] = []
    scene.core.at_shutdown(lambda: steps.append("second"))
    scene.core.at_shutdown(lambda: steps.append("third"))
    scene.core.first_at_shutdown(lambda: steps.append("first"))
    scene.core.shutdown()
    scene.core.shutdown()
    assert steps == ["first", "second", "third"]


def test_an_interrupt_of_the_last_steps_is_raised_when_everything_is_closed() -> None:
    scene = Scene()
    steps: list[str] = []

    def interrupted() -> Any:
        raise KeyboardInterrupt

    scene.core.at_shutdown(interrupted)
    scene.core.at_shutdown(lambda: steps.append("next"))
    ref = scene.submit()
    with pytest.raises(KeyboardInterrupt):
        scene.core.shutdown()
    assert steps == ["next"] and scene.reactor.is_closed
    with pytest.raises(RaySystemError):
        scene.core.get([ref], None)


def test_a_fork_says_nothing_and_does_nothing_any_more() -> None:
    scene = Scene()
    steps: list[str] = []
    scene.core.at_shutdown(lambda: steps.append("parent's"))
    ref = scene.core.put(1)
    said = len(scene.wire.said)
    scene.core.abandon()
    scene.core.shutdown()
    assert scene.reactor.is_closed and scene.context.is_leaving
    del ref
    assert len(scene.wire.said) == said and steps == []
