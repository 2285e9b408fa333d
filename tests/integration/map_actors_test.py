"""`actor.method.map(items)`: each item is a call by itself, in the order of all calls of its caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, PendingCallsLimitExceeded, TaskCancelledError
from tests.integration.bounded import get
from tests.integration.map_programs import CHUNKS, Log, note_run, square
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster", "by_value", "leaves_nothing")


@pytest.mark.parametrize("chunk", CHUNKS)
def test_calls_of_an_actor_run_in_order_with_those_around_them(chunk: Any) -> None:
    log = Log.remote()
    first = log.add.remote("first")
    refs = log.add.map(range(500), chunk=chunk)
    between = log.add.remote(square.remote(3))
    more = log.add.map([square.remote(2), "x", ray.put("y"), "z"], chunk=chunk)
    assert get([first, *refs, between, *more]) == list(range(1, 507))
    assert get(log.read.remote()) == ["first", *range(500), 9, 4, "x", "y", "z"]


def test_an_error_of_an_actors_call_is_its_own() -> None:
    log = Log.remote()
    refs = log.add.map([1, "bad", 2, "bad", 3], chunk=5)
    assert get([refs[0], refs[2], refs[4]]) == [1, 2, 3]
    for ref in (refs[1], refs[3]):
        with pytest.raises(ValueError, match="bad"):
            get(ref)


def test_actors_that_run_several_calls_at_once(shared_cluster: Any) -> None:
    @ray.remote(max_concurrency=4)
    class Threads:
        def add(self, x: int) -> int:
            return x + 1

    @ray.remote
    class Coroutines:
        async def add(self, x: int) -> int:
            await asyncio.sleep(0)
            if x == 5:
                raise KeyError(x)
            return x + 1

    assert get(Threads.remote().add.map(range(300), chunk=100)) == list(range(1, 301))
    refs = Coroutines.remote().add.map(range(300), chunk=100)
    with pytest.raises(KeyError):
        get(refs[5])
    assert get(refs[:5] + refs[6:]) == [x + 1 for x in range(300) if x != 5]


def test_an_actor_that_dies_fails_what_it_ran_and_what_follows(shared_cluster: Any) -> None:
    @ray.remote
    class Mortal:
        def run(self, x: int) -> int:
            if x == 20:
                os._exit(1)
            return x

    mortal = Mortal.remote()
    get(mortal.run.remote(0))
    refs = mortal.run.map(range(50), chunk=50)
    for ref in refs[20:]:
        with pytest.raises(ActorDiedError):
            get(ref)


def test_an_actor_that_restarts_runs_its_calls_again(tmp_path: Path) -> None:
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Phoenix:
        def run(self, x: int) -> int:
            if x == 20 and note_run(tmp_path, x) == 1:
                os._exit(1)
            return x

    phoenix = Phoenix.remote()
    get(phoenix.run.remote(0))
    assert get(phoenix.run.map(range(50), chunk=50)) == list(range(50))


def test_max_pending_calls_holds_and_the_error_names_what_was_submitted(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote(max_pending_calls=5)
    class Slow:
        def wait(self, x: int) -> int:
            touch_and_wait(None, str(tmp_path / "go"))
            return x

    slow = Slow.remote()
    with pytest.raises(PendingCallsLimitExceeded) as raised:
        slow.wait.map(range(20))
    (tmp_path / "go").touch()
    assert get(raised.value.submitted) == list(range(5))


def test_cancel_of_one_call_of_an_actor(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote
    class Slow:
        def wait(self, x: int) -> int:
            note_run(tmp_path, x)
            if x == 0:
                touch_and_wait(str(tmp_path / "began"), str(tmp_path / "go"))
            return x

    slow = Slow.remote()
    refs = slow.wait.map(range(30), chunk=30)
    wait_until(lambda: (tmp_path / "began").exists(), "it runs")
    ray.cancel(refs[10])
    with pytest.raises(TaskCancelledError):
        get(refs[10])
    (tmp_path / "go").touch()
    assert get(refs[:10] + refs[11:]) == [x for x in range(30) if x != 10]
    assert not (tmp_path / "10").exists()


def test_values_come_while_a_later_item_runs(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote
    class Plain:
        def wait(self, x: int) -> int:
            if x == 9:
                touch_and_wait(None, str(tmp_path / "go"))
            return x

    plain = Plain.remote()
    get([plain.wait.remote(0) for _ in range(3)])
    refs = plain.wait.map(range(20), chunk=20)
    assert get(refs[:9]) == list(range(9))
    (tmp_path / "go").touch()
    assert get(refs) == list(range(20))
