"""`cancel` of calls to actors: dropped where they wait; told, or cancelled as coroutines, where they run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import RayTaskError, TaskCancelledError
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def check_cancelled(ref: Any) -> None:
    with pytest.raises(TaskCancelledError) as caught:
        get(ref)
    assert not isinstance(caught.value, RayTaskError)


@ray.remote(num_cpus=0)
class Plain:
    """Its calls make the file of their name, and wait for "go" unless they are cancelled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ran: list[str] = []

    def wait(self, name: str, looks: bool = False) -> str:
        (self._folder / name).touch()

        def may_go() -> bool:
            return (self._folder / "go").exists() or (looks and ray.get_runtime_context().is_canceled())

        wait_until(may_go, "the test lets it go")
        self._ran.append(name)
        return name

    def call(self, actor: Any, name: str) -> Any:
        (self._folder / "calls").touch()
        return ray.get(actor.wait.remote(name, True))

    def fail(self, name: str) -> None:
        self.wait(name, True)
        raise ValueError("of its own")

    def note(self, name: str) -> None:
        self._ran.append(name)

    def ran(self) -> list[str]:
        return self._ran


@ray.remote(num_cpus=0)
class Async:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def wait(self, name: str, catches: bool = False) -> str:
        (self._folder / name).touch()
        try:
            await asyncio.sleep(GET_TIMEOUT_S)
        except asyncio.CancelledError:
            (self._folder / f"{name}.cancelled").touch()
            if not catches:
                raise
        return name

    async def call(self, actor: Any, name: str) -> Any:
        return await actor.wait.remote(name)

    async def ask(self) -> bool:
        return ray.get_runtime_context().is_canceled()


def test_a_call_that_waits_is_not_made_and_the_others_are(tmp_path: Path) -> None:
    actor = Plain.remote(tmp_path)
    running = actor.wait.remote("first")
    wait_until((tmp_path / "first").exists, "the first call runs")
    waiting = [actor.note.remote(str(number)) for number in range(5)]
    ray.cancel(waiting[1])
    ray.cancel(waiting[3])
    check_cancelled(waiting[1])
    check_cancelled(waiting[3])
    (tmp_path / "go").touch()
    assert get(running) == "first"
    assert get(actor.ran.remote()) == ["first", "0", "2", "4"]


def test_a_call_that_waits_for_its_arguments_holds_nothing_back_once_cancelled(tmp_path: Path) -> None:
    other = Plain.remote(tmp_path)
    argument = other.wait.remote("argument")
    actor = Plain.remote(tmp_path)
    waiting = actor.note.remote(argument)
    behind = actor.note.remote("behind")
    ray.cancel(waiting)
    check_cancelled(waiting)
    get(behind)
    (tmp_path / "go").touch()
    get(argument)
    assert get(actor.ran.remote()) == ["behind"]


def test_a_call_to_an_actor_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    actor = Plain.options(resources={"nowhere": 1}).remote(tmp_path)
    ref = actor.ran.remote()
    ray.cancel(ref)
    check_cancelled(ref)


@pytest.mark.parametrize("max_concurrency", [1, 3])
def test_a_call_that_runs_can_see_it_and_its_value_is_the_error(tmp_path: Path, max_concurrency: int) -> None:
    actor = Plain.options(max_concurrency=max_concurrency).remote(tmp_path)
    ref = actor.wait.remote("looks", True)
    wait_until((tmp_path / "looks").exists, "the call runs")
    ray.cancel(ref)
    check_cancelled(ref)
    assert get(actor.ran.remote()) == ["looks"]


def test_a_call_that_fails_in_its_own_way_has_its_own_error(tmp_path: Path) -> None:
    actor = Plain.remote(tmp_path)
    ref = actor.fail.remote("fails")
    wait_until((tmp_path / "fails").exists, "the call runs")
    ray.cancel(ref)
    with pytest.raises(ValueError, match="of its own"):
        get(ref)


def test_what_a_call_submitted_is_cancelled_with_it(tmp_path: Path) -> None:
    callee, caller = Plain.remote(tmp_path), Plain.remote(tmp_path)
    ref = caller.call.remote(callee, "inner")
    wait_until((tmp_path / "inner").exists, "the inner call runs")
    ray.cancel(ref)
    check_cancelled(ref)
    assert get(callee.ran.remote()) == ["inner"]


def test_a_coroutine_is_cancelled(tmp_path: Path) -> None:
    actor = Async.remote(tmp_path)
    ref = actor.wait.remote("runs")
    wait_until((tmp_path / "runs").exists, "the call runs")
    ray.cancel(ref)
    with pytest.raises(RayTaskError, match="in wait") as caught:
        get(ref)
    assert isinstance(caught.value, TaskCancelledError)
    assert (tmp_path / "runs.cancelled").exists()


def test_a_coroutine_that_catches_it_is_cancelled_all_the_same(tmp_path: Path) -> None:
    actor = Async.remote(tmp_path)
    ref = actor.wait.remote("catches", True)
    wait_until((tmp_path / "catches").exists, "the call runs")
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_a_coroutine_whose_turn_has_not_come_never_runs(tmp_path: Path) -> None:
    actor = Async.options(max_concurrency=1).remote(tmp_path)
    running = actor.wait.remote("runs")
    wait_until((tmp_path / "runs").exists, "the first call runs")
    waiting = actor.wait.remote("waits")
    ray.cancel(waiting)
    check_cancelled(waiting)
    ray.cancel(running)
    with pytest.raises(TaskCancelledError):
        get(running)
    assert not (tmp_path / "waits").exists()


def test_what_a_coroutine_called_is_cancelled_with_it(tmp_path: Path) -> None:
    callee, caller = Async.remote(tmp_path), Async.remote(tmp_path)
    ref = caller.call.remote(callee, "inner")
    wait_until((tmp_path / "inner").exists, "the inner call runs")
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    wait_until((tmp_path / "inner.cancelled").exists, "the inner call is cancelled")


def test_force_is_refused(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def cancel_for(box: list[Any]) -> None:
        ray.cancel(box[0], force=True)

    actor = Async.remote(tmp_path)
    ref = actor.wait.remote("runs")
    with pytest.raises(ValueError, match="force=True"):
        ray.cancel(ref, force=True)
    with pytest.raises(ValueError, match="force=True"):
        get(cancel_for.remote([ref]))
    ray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_an_async_actor_cannot_ask(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not for async actors"):
        get(Async.remote(tmp_path).ask.remote())
