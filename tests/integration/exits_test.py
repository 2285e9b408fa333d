"""What ends a worker from within, and what its callers see; the same as in Ray 2.60 where nothing else is
said."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import exceptions

pytestmark = pytest.mark.usefixtures("shared_cluster")
TIMEOUT_S = 60.0


@ray.remote
class Actor:
    def exit(self, code: Any) -> None:
        sys.exit(code)

    def interrupt(self) -> None:
        raise KeyboardInterrupt("of its own")

    def pid(self) -> int:
        return os.getpid()


@ray.remote(max_concurrency=2)
class AsyncActor:
    async def exit(self, code: Any) -> None:
        sys.exit(code)

    async def interrupt(self) -> None:
        raise KeyboardInterrupt("of its own")

    async def wait_for(self, path: str) -> str:
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        return path

    async def pid(self) -> int:
        return os.getpid()


@pytest.mark.parametrize("code", [0, 7, None, "text"])
def test_sys_exit_in_a_task_ends_its_worker_and_the_task_has_crashed_and_says_how(code: Any) -> None:
    @ray.remote(max_retries=0)
    def leave() -> None:
        sys.exit(code)

    with pytest.raises(
        exceptions.WorkerCrashedError, match=re.escape(f"SystemExit({code!r}); node 127.0.0.1")
    ):
        ray.get(leave.remote(), timeout=TIMEOUT_S)


def test_a_task_that_exits_is_retried_like_one_whose_worker_died(tmp_path: Path) -> None:
    @ray.remote(max_retries=2)
    def leave_at_first(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size < 3:
            sys.exit(0)
        return path.stat().st_size

    assert ray.get(leave_at_first.remote(tmp_path / "attempts"), timeout=TIMEOUT_S) == 3


def test_a_task_that_exits_while_others_need_what_it_owns_is_not_waited_for() -> None:
    @ray.remote
    class Keeper:
        def keep(self, references: list[Any]) -> None:
            self.references = references

    @ray.remote(max_retries=0)
    def lend_and_leave(keeper: Any) -> None:
        ray.get(keeper.keep.remote([ray.put(1)]))
        sys.exit(0)

    keeper = Keeper.remote()
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(lend_and_leave.remote(keeper), timeout=TIMEOUT_S)


@pytest.mark.parametrize("actor_class", [Actor, AsyncActor])
def test_sys_exit_0_in_an_actor_ends_it_without_a_restart(actor_class: Any) -> None:
    actor = actor_class.options(max_restarts=1).remote()
    with pytest.raises(exceptions.ActorDiedError, match=r"SystemExit\(0\)"):
        ray.get(actor.exit.remote(0), timeout=TIMEOUT_S)
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.pid.remote(), timeout=TIMEOUT_S)


@pytest.mark.parametrize("code", [1, None])
def test_another_exit_of_an_actor_is_a_crash_that_restarts_it(code: Any) -> None:
    actor = Actor.options(max_restarts=1).remote()
    before = ray.get(actor.pid.remote(), timeout=TIMEOUT_S)
    with pytest.raises(exceptions.ActorUnavailableError):
        ray.get(actor.exit.remote(code), timeout=TIMEOUT_S)
    # As in Ray, only a call that may run again waits for the restart.
    assert ray.get(actor.pid.options(max_task_retries=1).remote(), timeout=TIMEOUT_S) != before
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.exit.remote(code), timeout=TIMEOUT_S)


@pytest.mark.parametrize("code", [0, 1])
def test_sys_exit_in_a_constructor_is_the_end_of_the_actor(code: int) -> None:
    @ray.remote
    class Stillborn:
        def __init__(self) -> None:
            sys.exit(code)

        def call(self) -> None: ...

    with pytest.raises(exceptions.ActorDiedError):
        ray.get(Stillborn.remote().call.remote(), timeout=TIMEOUT_S)


def test_a_keyboard_interrupt_of_user_code_is_a_cancelled_call() -> None:
    @ray.remote
    def interrupt() -> None:
        raise KeyboardInterrupt("of its own")

    actor, asyncio_actor = Actor.remote(), AsyncActor.remote()
    for reference in (interrupt.remote(), actor.interrupt.remote(), asyncio_actor.interrupt.remote()):
        with pytest.raises(exceptions.TaskCancelledError) as caught:
            ray.get(reference, timeout=TIMEOUT_S)
        assert isinstance(caught.value, exceptions.RayTaskError) and "of its own" in str(caught.value)
    # And they live on.
    assert all(ray.get([actor.pid.remote(), asyncio_actor.pid.remote()], timeout=TIMEOUT_S))


def test_terminate_of_an_async_actor_lets_waiting_calls_finish(tmp_path: Path) -> None:
    actor = AsyncActor.remote()
    path = str(tmp_path / "go on")
    # Two run, and two wait for their turn.
    calls = [actor.wait_for.remote(path) for _ in range(4)]
    end = actor.__ray_terminate__.remote()
    assert not ray.wait([end], timeout=0)[0]
    Path(path).touch()
    assert ray.get(calls, timeout=TIMEOUT_S) == [path] * 4
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(end, timeout=TIMEOUT_S)


def test_a_traceback_shows_the_users_frames_of_every_hop_and_none_of_ours() -> None:
    @ray.remote
    class Deep:
        async def fail(self) -> None:
            self.innermost()

        def innermost(self) -> None:
            raise ValueError("deep")

    @ray.remote
    def middle(actor: Any) -> None:
        in_the_middle(actor)

    def in_the_middle(actor: Any) -> None:
        try:
            ray.get(actor.fail.remote())
        except ValueError as error:
            raise KeyError("outer") from error

    @ray.remote
    def outer(actor: Any) -> None:
        ray.get(middle.remote(actor))

    with pytest.raises(KeyError) as caught:
        ray.get(outer.remote(Deep.remote()), timeout=TIMEOUT_S)
    text = str(caught.value)
    for function in ("in outer", "in middle", "in in_the_middle", "in fail", "in innermost"):
        assert function in text, (function, text)
    files = {line.split('"')[1] for line in text.splitlines() if line.strip().startswith("File ")}
    assert files == {__file__}, text
    assert isinstance(caught.value, exceptions.RayTaskError)
    assert isinstance(caught.value.cause, KeyError) and caught.value.as_instanceof_cause() is caught.value
    assert "in innermost" in "".join(traceback.format_exception(caught.value))
