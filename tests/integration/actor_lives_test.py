"""How actors begin, restart and end, and what their callers hear of it."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from tests.integration.bounded import get, process_ends

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Counter:
    """Counts in memory; crashes and raises when told."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def crash(self) -> None:
        os._exit(3)

    def is_again(self) -> bool:
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def fail(self) -> None:
        self.count += 1
        raise ValueError(self.count)

    @ray.method(retry_exceptions=[ValueError])
    def fail_again(self) -> None:
        self.fail()


def new(**options: Any) -> Any:
    return ray.remote(Counter).options(num_cpus=0, **options).remote()


# ---------------------------------------------------------------- begin


def test_a_constructor_that_raises_is_named_by_every_call_and_not_run_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    class Broken:
        def __init__(self) -> None:
            with runs.open("a") as file:
                file.write("x")
            raise RuntimeError("no luck")

        def method(self) -> None: ...

    actor = ray.remote(Broken).options(max_restarts=3).remote()
    for call in (actor.method.remote(), actor.__ray_ready__.remote()):
        with pytest.raises(ActorDiedError, match="no luck") as caught:
            get(call)
        assert caught.value.actor_init_failed and caught.value.actor_id == actor._actor_id.hex()
    assert runs.read_text() == "x"


def test_a_constructor_that_ends_its_process_makes_a_dead_actor() -> None:
    class Broken:
        def __init__(self) -> None:
            os._exit(1)

        def method(self) -> None: ...

    with pytest.raises(ActorDiedError, match="code 1") as caught:
        get(ray.remote(Broken).options(max_restarts=1).remote().method.remote())
    assert not caught.value.actor_init_failed


# ---------------------------------------------------------------- death and restart


def test_the_cause_of_a_death_is_told() -> None:
    crashed = new()
    for call in (crashed.crash.remote(), crashed.add.remote()):
        with pytest.raises(ActorDiedError, match="exited with code 3"):
            get(call)
    killed = new()
    get(killed.add.remote())
    ray.kill(killed)
    with pytest.raises(ActorDiedError, match="kill"):
        get(killed.add.remote())
    # Of one that is dead already it is no error.
    ray.kill(killed)
    ray.kill(killed, no_restart=False)


def test_a_restarted_actor_begins_anew_and_dies_when_its_restarts_are_used_up() -> None:
    actor = new(max_restarts=1)
    assert get([actor.add.remote(), actor.add.remote(), actor.is_again.remote()]) == [1, 2, False]
    with pytest.raises(ActorUnavailableError):
        get(actor.crash.remote())
    # As in Ray, only a call that may run again waits for the restart.
    assert get(actor.pid.options(max_task_retries=1).remote())
    assert get([actor.add.remote(), actor.is_again.remote()]) == [1, True]
    for call in (actor.crash.remote(), actor.add.remote()):
        with pytest.raises(ActorDiedError):
            get(call)


def test_restarts_without_a_bound() -> None:
    actor = new(max_restarts=-1, max_task_retries=-1)
    processes = set()
    for _ in range(4):
        processes.add(get(actor.pid.remote()))
        ray.kill(actor, no_restart=False)
    assert len(processes) == 4 and get(actor.add.remote()) == 1


def test_kill_for_good_leaves_no_restart() -> None:
    actor = new(max_restarts=-1)
    process = get(actor.pid.remote())
    ray.kill(actor, no_restart=True)
    with pytest.raises(ActorDiedError):
        get(actor.add.remote())
    process_ends(process)


def test_an_actor_that_waits_for_a_place_can_be_killed() -> None:
    actor = ray.remote(Counter).options(resources={"nowhere": 1}).remote()
    call = actor.add.remote()
    ray.kill(actor)
    with pytest.raises(RayActorError):
        get(call)


def kill_here(actor: Any, no_restart: bool) -> None:
    ray.kill(actor, no_restart=no_restart)


def kill_in_a_task(actor: Any, no_restart: bool) -> None:
    @ray.remote(num_cpus=0)
    def kill(actor: Any) -> None:
        ray.kill(actor, no_restart=no_restart)

    get(kill.remote(actor))


@pytest.mark.parametrize("kill", [kill_here, kill_in_a_task])
def test_an_actor_that_waits_for_an_argument_can_be_killed_and_never_begins(
    tmp_path: Path, kill: Callable[[Any, bool], None]
) -> None:
    @ray.remote(num_cpus=0)
    def once_there(path: Path) -> int:
        while not path.exists():
            time.sleep(0.01)
        return 1

    @ray.remote(num_cpus=0)
    class Begins:
        def __init__(self, number: int) -> None:
            (tmp_path / "begun").touch()

        def answer(self) -> int:
            return 1

    @ray.remote(num_cpus=0)
    def ask(actor: Any) -> Any:
        return ray.get(actor.answer.remote())

    argument = once_there.remote(tmp_path / "go")
    actor = Begins.remote(argument)
    calls = [actor.answer.remote(), ask.remote(actor)]
    kill(actor, False)  # it has no process, and goes on waiting
    assert ray.wait(calls, timeout=0)[0] == []
    for _ in range(2):
        kill(actor, True)
    for call in calls:
        with pytest.raises(ActorDiedError, match=r"killed by kill\(\)"):
            get(call)
    (tmp_path / "go").touch()
    get(argument)
    get(ray.remote(Counter).remote().add.remote())
    assert not (tmp_path / "begun").exists()


def test_an_actor_that_never_lived_can_be_killed() -> None:
    @ray.remote(num_cpus=0)
    def fails() -> int:
        raise ValueError("no number")

    @ray.remote(num_cpus=0)
    class Given:
        def __init__(self, number: int) -> None:
            self.number = number

        def answer(self) -> int:
            return self.number

    actor = Given.remote(fails.remote())
    with pytest.raises(RayActorError, match="no number"):
        get(actor.answer.remote())
    ray.kill(actor)


def test_what_kill_takes() -> None:
    for wrong in ("name", ray.put(1), None):
        with pytest.raises(ValueError, match="actor's handle"):
            ray.kill(wrong)  # type: ignore[arg-type]


def runs_of(actor: Any, method: Any) -> int:
    """How often a failing method runs."""
    before = get(actor.add.remote())
    with pytest.raises(ValueError):
        get(method.remote())
    return int(get(actor.add.remote())) - before - 1


def test_errors_are_retried_as_often_as_the_options_say() -> None:
    actor = new(max_task_retries=2)
    assert runs_of(actor, actor.fail) == 1
    assert runs_of(actor, actor.fail_again) == 3
    assert runs_of(actor, actor.fail.options(retry_exceptions=True)) == 3
    assert runs_of(actor, actor.fail.options(retry_exceptions=[KeyError])) == 1
    assert runs_of(actor, actor.fail_again.options(max_task_retries=0)) == 1
    assert runs_of(actor, actor.fail_again.options(max_task_retries=4)) == 5


# ---------------------------------------------------------------- end


def test_an_actor_without_handles_ends_after_its_queued_calls(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = str(tmp_path / "gate")

    class Slow(Counter):
        def wait(self) -> None:
            touch_and_wait(None, gate)

    actor = ray.remote(Slow).remote()
    process = get(actor.pid.remote())
    actor.wait.remote()
    calls = [actor.add.remote() for _ in range(8)]
    del actor
    Path(gate).touch()
    assert get(calls) == list(range(1, 9))
    process_ends(process)


class Leaver(Counter):
    def leave(self) -> None:
        ray.actor.exit_actor()

    def leave_quietly(self) -> str:
        try:
            ray.actor.exit_actor()
        except Exception:
            return "caught"
        return "stayed"

    def leave_from_a_thread(self) -> None:
        thread = threading.Thread(target=ray.actor.exit_actor)
        thread.start()
        thread.join()

    def leave_from_a_pool(self) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(ray.actor.exit_actor).result()

    def leave_from_a_thread_later(self, gate: str, touch_and_wait: Callable[..., None]) -> int:
        def leave() -> None:
            touch_and_wait(None, gate)
            ray.actor.exit_actor()

        threading.Thread(target=leave, daemon=True).start()
        return os.getpid()


@pytest.mark.parametrize("method", ["leave", "leave_quietly", "leave_from_a_pool"])
def test_an_actor_that_leaves_is_never_restarted(method: str) -> None:
    actor: Any = ray.remote(Leaver).options(max_restarts=3, max_task_retries=3).remote()
    calls = [actor.pid.remote(), getattr(actor, method).remote(), actor.add.remote()]
    process = get(calls[0])
    for call in [*calls[1:], actor.add.remote()]:
        with pytest.raises(ActorDiedError, match="exit_actor"):
            get(call)
    process_ends(process)


def test_a_thread_ends_an_actor_that_has_no_call(tmp_path: Path, touch_and_wait: Callable[..., None]) -> None:
    gate = tmp_path / "gate"
    actor: Any = ray.remote(Leaver).remote()
    process = get(actor.leave_from_a_thread_later.remote(str(gate), touch_and_wait))
    gate.touch()
    process_ends(process)
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(actor.add.remote())


def test_an_actor_may_leave_in_its_constructor() -> None:
    class Gone:
        def __init__(self) -> None:
            ray.actor.exit_actor()

        def method(self) -> None: ...

    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(ray.remote(Gone).remote().method.remote())


def test_a_task_cannot_leave_as_an_actor() -> None:
    @ray.remote
    def task() -> None:
        ray.actor.exit_actor()

    with pytest.raises(TypeError, match="outside of an actor"):
        get(task.remote())


class Answering(Counter):
    def slow(self) -> int:
        time.sleep(0.01)
        return self.add()

    def crash(self) -> None:
        os._exit(1)


def test_answers_of_calls_that_took_their_time_are_not_lost_with_the_process() -> None:
    actor: Any = ray.remote(Answering).remote()
    calls = [actor.slow.remote() for _ in range(5)]
    crash = actor.crash.remote()
    with pytest.raises(ActorDiedError):
        get(crash)
    assert get(calls) == [1, 2, 3, 4, 5]


def test_a_call_from_whose_thread_the_actor_leaves_is_answered() -> None:
    class Leaving(Counter):
        def leave(self) -> int:
            thread = threading.Thread(target=ray.actor.exit_actor)
            thread.start()
            thread.join()
            return 7

    actor: Any = ray.remote(Leaving).options(max_restarts=3).remote()
    answered, later = actor.leave.remote(), actor.add.remote()
    assert get(answered) == 7
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(later)


@pytest.mark.parametrize("how", ["__ray_terminate__", "leave", "scope"])
def test_an_actor_that_ends_in_order_runs_its_shutdown_first(how: str, tmp_path: Path) -> None:
    class Closing(Leaver):
        def __ray_shutdown__(self) -> None:
            (tmp_path / "log").write_text("closed")

    actor: Any = ray.remote(Closing).remote()
    process = get(actor.pid.remote())
    if how != "scope":
        getattr(actor, how).remote()
    del actor
    process_ends(process)
    assert (tmp_path / "log").read_text() == "closed"


def test_an_actor_class_has_what_its_class_has() -> None:
    @ray.remote
    class Rich:
        LIMIT = 5

        @staticmethod
        def twice(number: int) -> int:
            return 2 * number

        @classmethod
        def limit(cls) -> int:
            return cls.LIMIT

        def method(self) -> int:
            return 1

    rich: Any = Rich
    assert (rich.LIMIT, rich.twice(2), rich.limit(), rich.method(None)) == (5, 4, 5, 1)
    assert get(rich.remote().twice.remote(3)) == 6
    with pytest.raises(AttributeError, match="nothing"):
        rich.nothing  # noqa: B018
