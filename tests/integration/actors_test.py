"""Actors and workers at their edges: how they end, whom their waits concern, what user code may do to its
process."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.core_worker.process import current
from ray_mono.exceptions import ActorDiedError, RayActorError, WorkerCrashedError
from tests.integration.bounded import GET_TIMEOUT_S, get, process_ends
from tests.integration.conftest import NUM_CPUS

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Leaving:
    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        ray.actor.exit_actor()


class LeavingAsync(Leaving):
    async def later(self) -> None:
        ray.actor.exit_actor()


@pytest.mark.parametrize("threads", [1, 4])
def test_an_actor_that_exits_ends_its_process(threads: int) -> None:
    actor = ray.remote(Leaving).options(max_concurrency=threads).remote()
    process = get(actor.pid.remote())
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(actor.leave.remote())
    process_ends(process)


def test_an_async_actor_that_exits_ends_its_process() -> None:
    actor = ray.remote(LeavingAsync).remote()
    process = get(actor.pid.remote())
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(actor.later.remote())
    process_ends(process)


class Silent:
    def close_output(self) -> str:
        sys.stdout.close()
        return "closed"


class SilentAsync:
    async def close_output(self) -> str:
        sys.stdout.close()
        return "closed"


def test_closed_output_costs_no_answer() -> None:
    @ray.remote(max_retries=0)
    def task() -> str:
        sys.stdout.close()
        return "closed"

    threaded = ray.remote(Silent).options(max_concurrency=2).remote()
    on_a_loop = ray.remote(SilentAsync).remote()
    calls = [task.remote(), task.remote(), threaded.close_output.remote(), on_a_loop.close_output.remote()]
    assert get(calls) == ["closed"] * 4


def test_calls_run_in_order_though_the_first_waits_for_its_argument(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = str(tmp_path / "gate")

    @ray.remote
    def later() -> int:
        touch_and_wait(None, gate)
        return 0

    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int) -> list[int]:
            self.seen.append(number)
            return self.seen

    actor = ray.remote(Log).remote()
    actor.note.remote(later.remote())
    calls = [actor.note.remote(number) for number in range(1, 50)]
    Path(gate).touch()
    assert get(calls[-1]) == list(range(50))


def test_retried_calls_keep_their_order_through_a_restart(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int) -> list[int]:
            if number == 5 and not marker.exists():
                marker.touch()
                os._exit(1)
            self.seen.append(number)
            return self.seen

    actor = ray.remote(Log).options(max_restarts=1, max_task_retries=1).remote()
    calls = [actor.note.remote(number) for number in range(20)]
    seen = get(calls[-1])
    # Answers that the first process did not send any more are made again by the second.
    assert seen[0] <= 5 and seen == list(range(seen[0], 20))


def test_a_thread_that_a_task_left_waiting_is_not_the_next_tasks_wait(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = str(tmp_path / "gate")

    @ray.remote(num_cpus=0)
    def open_later() -> None:
        touch_and_wait(None, gate)

    @ray.remote
    def one() -> int:
        return 1

    @ray.remote(num_cpus=NUM_CPUS)
    def leaves_a_thread(boxed: Any) -> None:
        waits = threading.Event()

        def wait() -> None:
            waits.set()
            ray.get(boxed, timeout=GET_TIMEOUT_S)

        threading.Thread(target=wait, daemon=True).start()
        waits.wait(GET_TIMEOUT_S)
        ray.wait(boxed, timeout=0.1)

    @ray.remote(num_cpus=NUM_CPUS)
    def needs_another() -> int:
        return int(ray.get(one.remote(), timeout=GET_TIMEOUT_S))

    opened = open_later.remote()
    get(leaves_a_thread.remote([opened]))
    try:
        assert get(needs_another.remote()) == 1
    finally:
        Path(gate).touch()
        get(opened)


def test_a_child_that_a_task_forked_does_not_hide_its_workers_death() -> None:
    @ray.remote(max_retries=0)
    def forks_and_dies() -> None:
        if os.fork() == 0:
            time.sleep(GET_TIMEOUT_S)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        get(forks_and_dies.remote())


def test_calls_that_wait_for_a_killed_actor_all_end() -> None:
    class Slow:
        def sleep(self) -> None:
            time.sleep(GET_TIMEOUT_S)

        def ready(self) -> bool:
            return True

    actor = ray.remote(Slow).remote()
    assert get(actor.ready.remote())
    calls = [actor.sleep.remote() for _ in range(20)]
    ray.kill(actor)
    for call in [*calls, actor.ready.remote()]:
        with pytest.raises(RayActorError):
            get(call)


def test_an_actor_whose_connection_broke_is_reached_again() -> None:
    class Echo:
        def say(self, word: str) -> str:
            return word

    actor = ray.remote(Echo).remote()
    assert ray.get(actor.say.remote("one"), timeout=60) == "one"
    core: Any = current.require()
    with core.env.lock:
        core.peers.close("cut by the test")
    assert ray.get(actor.say.remote("two"), timeout=60) == "two"


def test_an_actor_class_of_a_module_that_workers_cannot_import_travels_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        import dataclasses
        import ray_mono as ray

        class Plain:
            pass

        @ray.remote
        @dataclasses.dataclass
        class Late:
            x: int = 1

            class Inner:
                value = 2

            def method(self):
                return self.x, self.inner().value, self.static(), self.named(), self.prop

            def inner(self):
                return self.Inner()

            @staticmethod
            def static():
                return 3

            @classmethod
            def named(cls):
                return cls.__name__

            @property
            def prop(self):
                return 4

        @ray.remote
        def makes():
            return ray.get(Late.remote().method.remote())
    """
    (tmp_path / "late_module.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module("late_module")
    actor = module.Late.remote()
    assert get([actor.method.remote(), module.makes.remote()]) == [(1, 2, 3, "Late", 4)] * 2
    assert isinstance(get(actor.inner.remote()), module.Late.Inner)
    # What is not the actor's own is found by its name, as elsewhere, and the worker has no such module.
    with pytest.raises(ActorDiedError, match="late_module"):
        get(ray.remote(module.Plain).remote().__ray_ready__.remote())
    monkeypatch.delitem(sys.modules, "late_module")


class Patched:
    def __init__(self) -> None:
        type(self).told = lambda self: "patched"  # type: ignore[method-assign]

    def told(self) -> str:
        return "the class's"


class PatchedAsync(Patched):
    async def later(self) -> None: ...


@pytest.mark.parametrize("kind", [Patched, PatchedAsync])
def test_calls_run_the_methods_that_the_class_had_before_the_constructor(kind: Any) -> None:
    assert get(ray.remote(num_cpus=0)(kind).remote().told.remote()) == "the class's"
