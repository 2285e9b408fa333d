"""local_mode: the same programs, one call after another in this process, with the same values and errors."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono._private.driver import init as driver_init
from tests.hostile_errors import FailsToLoad, throw


@pytest.fixture(autouse=True)
def local_cluster() -> Iterator[Any]:
    context = ray.init(local_mode=True, num_cpus=3, resources={"A": 2}, namespace="here")
    yield context
    gc.collect()
    assert internal_state.num_references() == 0
    ray.shutdown()


@ray.remote
def add(a: int, b: int = 1) -> int:
    return a + b


@ray.remote
def fail(error: Exception) -> None:
    raise error


class Plain:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise KeyError("k")

    async def later(self) -> int:
        await asyncio.sleep(0)
        return self.value

    @ray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, -self.value

    def leave(self) -> None:
        ray.exit_actor()

    def who(self) -> Any:
        context = ray.get_runtime_context()
        return (
            context.get_actor_id(),
            context.get_task_name(),
            context.current_actor,
            context.get_actor_name(),
        )

    @staticmethod
    def static(x: int) -> int:
        return x


Counter: Any = ray.remote(Plain)


def test_tasks_take_references_and_give_them() -> None:
    assert ray.get(add.remote(add.remote(1), b=2)) == 4
    assert ray.get([add.remote(i) for i in range(3)]) == [1, 2, 3]


def test_tasks_run_in_this_process_when_they_are_submitted() -> None:
    seen: list[int] = []

    @ray.remote
    def note() -> None:
        seen.append(os.getpid())

    reference = note.remote()
    assert seen == [os.getpid()]
    del reference


def test_tasks_submit_tasks_and_pass_references_inside_values() -> None:
    @ray.remote
    def fan_out(n: int) -> list[Any]:
        return [add.remote(i) for i in range(n)]

    @ray.remote
    def total(parts: list[Any]) -> int:
        return sum(ray.get(parts))

    parts = ray.get(fan_out.remote(3))
    assert ray.get(parts) == [1, 2, 3] and ray.get(total.remote(parts)) == 6


def test_values_are_frozen_when_they_are_put_or_passed() -> None:
    value = [1]
    reference = ray.put(value)
    assert ray.experimental.get_object_locations([reference])[reference]["node_ids"] == []
    value.append(2)
    assert ray.get(reference) == [1] and ray.get(reference) is not ray.get(reference)

    @ray.remote
    def change(items: list[int]) -> None:
        items.append(3)

    ray.get(change.remote(value))
    assert value == [1, 2]


def test_several_returns() -> None:
    @ray.remote(num_returns=2)
    def two() -> tuple[int, int]:
        return 1, 2

    first, second = two.remote()
    assert ray.get([second, first]) == [2, 1]
    assert two.options(num_returns=0).remote() is None
    with pytest.raises(ValueError, match="returned 2 values, but num_returns is 3"):
        ray.get(two.options(num_returns=3).remote()[0])


def test_errors_are_of_the_original_type_and_travel_through_arguments() -> None:
    failed = fail.remote(ValueError("boom"))
    for reference in (failed, add.remote(failed)):
        with pytest.raises(ValueError, match="boom") as caught:
            ray.get(reference)
        assert isinstance(caught.value, ray.exceptions.RayTaskError)
        assert "local_core.py" not in str(caught.value.traceback_str.splitlines()[1])
        del caught


@pytest.mark.parametrize(
    "name", ["GetattributeRaises", "StrAndReprExit", "ReduceExits", "LoadExits", "hash", "after"]
)
def test_errors_whose_own_code_fails_are_errors_like_others(name: str) -> None:
    task, take = ray.remote(throw), ray.remote(id)
    for call in (task.remote(name), take.remote(FailsToLoad(name))):
        with pytest.raises(ray.exceptions.RayTaskError, match="in throw") as caught:
            ray.get(call)
        assert repr(caught.value)


def test_an_argument_that_does_not_pickle_is_named() -> None:
    with pytest.raises(TypeError, match=r"argument b of add\(\) \(a lock\)"):
        add.remote(1, b=threading.Lock())
    with pytest.raises(TypeError, match=r"argument number 0 of add\(\)"):
        add.remote(threading.Lock())


def test_covered_errors_are_retried() -> None:
    attempts: list[int] = []

    @ray.remote(max_retries=2, retry_exceptions=[OSError])
    def flaky(error: type[Exception]) -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise error
        return len(attempts)

    assert ray.get(flaky.remote(OSError)) == 3
    attempts.clear()
    with pytest.raises(KeyError):
        ray.get(flaky.remote(KeyError))


def test_actors_keep_their_state() -> None:
    counter = Counter.remote(3)
    assert ray.get([counter.add.remote(), counter.add.remote(5)]) == [4, 9]
    assert ray.get(counter.later.remote()) == 9
    assert ray.get(counter.pair.remote()) == [9, -9]
    assert ray.get(counter.pair.options(num_returns=1).remote()) == (9, -9)
    assert ray.get(counter.static.remote(2)) == 2
    with pytest.raises(KeyError):
        ray.get(counter.fail.remote())


def test_what_every_actor_can_do() -> None:
    counter = Counter.remote(3)
    assert ray.get(counter.__ray_ready__.remote())
    assert ray.get(counter.__ray_call__.remote(lambda self, x: self.value + x, 2)) == 5
    counter.__ray_terminate__.remote()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(counter.add.remote())


def test_handles_travel_and_are_equal() -> None:
    counter = Counter.remote()

    @ray.remote
    def use(handle: Any) -> Any:
        ray.get(handle.add.remote(10))
        return handle

    again = ray.get(use.remote(counter))
    assert again == counter and hash(again) == hash(counter)
    assert ray.get(counter.add.remote(0)) == 10


def test_an_actor_ends_with_its_last_handle() -> None:
    counter = Counter.remote()
    core = counter._ray_core
    actor = core.actors[counter._actor_id.binary()]
    del counter
    core.reference_counts()
    assert actor.death is not None


def test_mistakes_with_handles_say_what_is_right() -> None:
    counter = Counter.remote()
    with pytest.raises(AttributeError, match="'Plain' actors have no method 'nothing'.*add"):
        counter.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="attributes are not visible"):
        counter.value  # noqa: B018
    with pytest.raises(TypeError, match=r"instead of object\.add\(\) use object\.add\.remote\(\)"):
        counter.add()
    with pytest.raises(TypeError, match=r"Plain\.add\(\) takes 1 positional argument, got 2"):
        counter.add.remote(1, 2)
    assert "add" in dir(counter) and "Plain" in repr(counter)


def test_named_actors_are_found_by_name_and_namespace() -> None:
    counter = Counter.options(name="c").remote(1)
    assert ray.get_actor("c") == counter and ray.get(ray.get_actor("c").add.remote()) == 2
    assert ray.get_actor("c", namespace="here") == counter
    assert ray.util.list_named_actors() == ["c"]
    with pytest.raises(ValueError, match="no actor named 'c' in namespace 'other'"):
        ray.get_actor("c", namespace="other")
    with pytest.raises(ValueError, match="taken"):
        Counter.options(name="c").remote()
    same = Counter.options(name="c", get_if_exists=True).remote()
    assert same == counter
    ray.kill(counter)
    with pytest.raises(ValueError, match="no actor named"):
        ray.get_actor("c")


def test_detached_actors_outlive_their_handles() -> None:
    Counter.options(name="d", lifetime="detached").remote(7)
    assert ray.get(ray.get_actor("d").add.remote()) == 8


def test_a_killed_actor_fails_its_calls_or_starts_again() -> None:
    counter = Counter.options(max_restarts=1).remote(5)
    ray.get(counter.add.remote())
    ray.kill(counter, no_restart=False)
    assert ray.get(counter.add.remote()) == 6
    ray.kill(counter)
    with pytest.raises(ray.exceptions.ActorDiedError, match="kill"):
        ray.get(counter.add.remote())


def test_an_actor_whose_constructor_raises_says_so_at_its_calls() -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no luck")

        def method(self) -> None: ...

    broken = ray.remote(Broken).remote()
    with pytest.raises(ray.exceptions.ActorDiedError, match="no luck"):
        ray.get(broken.method.remote())


def test_exit_actor_ends_the_actor() -> None:
    counter = Counter.remote()
    for call in (counter.leave.remote(), counter.add.remote()):
        with pytest.raises(ray.exceptions.ActorDiedError, match=r"class_name: Plain\n(.|\n)*exit_actor"):
            ray.get(call)
    with pytest.raises(TypeError, match="outside of an actor"):
        ray.exit_actor()


def test_code_knows_where_it_runs() -> None:
    context = ray.get_runtime_context()
    assert context.get_task_id() is None and context.get_actor_id() is None and context.namespace == "here"

    @ray.remote
    def named() -> Any:
        return ray.get_runtime_context().get_task_name(), ray.get_runtime_context().get_task_id()

    name, task_id = ray.get(named.remote())
    assert name == "named" and len(task_id) == 48
    counter = Counter.options(name="n").remote()
    actor_id, task_name, handle, actor_name = ray.get(counter.who.remote())
    assert (actor_id, task_name, handle, actor_name) == (counter._actor_id.hex(), "Plain.who", counter, "n")


def test_wait_gives_what_was_asked_for() -> None:
    references = [add.remote(i) for i in range(3)]
    assert ray.wait(references, num_returns=2) == (references[:2], references[2:])
    assert ray.wait([]) == ([], [])


def test_wrong_arguments_of_get_put_and_wait_are_named() -> None:
    reference = ray.put(1)
    for wrong, error in ((1, ValueError), ((reference,), ValueError), ([1], TypeError), ({}, ValueError)):
        with pytest.raises(error, match="get.. takes"):
            ray.get(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is a reference already"):
        ray.put(reference)
    for waited, error in (
        (reference, TypeError),
        (1, TypeError),
        ([1], TypeError),
        ([reference] * 2, ValueError),
    ):
        with pytest.raises(error, match="wait.. takes"):
            ray.wait(waited)  # type: ignore[arg-type]
    for count in (0, 2):
        with pytest.raises(ValueError, match="num_returns must be a whole number from 1 to"):
            ray.wait([reference], num_returns=count)
    with pytest.raises(TypeError, match="num_returns must be a whole number"):
        ray.wait([reference], num_returns="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        ray.get(reference, timeout=-2)
    with pytest.raises(TypeError, match="timeout must be a number"):
        ray.wait([reference], timeout="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kill.. takes an actor's handle"):
        ray.kill(reference)  # type: ignore[arg-type]
    for name in ("", 3):
        with pytest.raises(ValueError, match="name must be"):
            ray.get_actor(name)  # type: ignore[arg-type]


def test_references_work_in_futures_and_await() -> None:
    assert add.remote(1).future().result() == 2

    async def ask() -> int:
        return await add.remote(2)

    assert asyncio.run(ask()) == 3
    assert isinstance(fail.remote(KeyError()).future().exception(), KeyError)


def test_init_twice_is_an_error_unless_it_is_allowed(local_cluster: Any) -> None:
    with pytest.raises(RuntimeError, match="connected already"):
        ray.init(local_mode=True)
    assert ray.init(ignore_reinit_error=True) is local_cluster


def test_the_context_tells_about_the_cluster(local_cluster: Any) -> None:
    (node,) = ray.nodes()
    assert node["NodeID"] == local_cluster["node_id"] == local_cluster.address_info["node_id"]
    assert node["Alive"] and ray.cluster_resources() == ray.available_resources() == {"A": 2, "CPU": 3}
    assert dict(local_cluster)["address"] == "local"


def test_handles_of_an_ended_session_say_so_and_functions_work_again() -> None:
    counter = Counter.remote()
    assert ray.get(add.remote(1)) == 2
    ray.shutdown()
    assert not ray.is_initialized()
    ray.init(local_mode=True)
    with pytest.raises(ray.exceptions.ActorHandleNotFoundError, match="session that is over"):
        counter.add.remote()
    assert ray.get(add.remote(1)) == 2


def test_a_program_that_never_says_init_gets_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    real = driver_init.init
    monkeypatch.setattr(driver_init, "init", lambda **options: real(local_mode=True, **options))
    assert ray.get(add.remote(1)) == 2


def test_the_context_shuts_down_at_the_end_of_a_with_statement() -> None:
    ray.shutdown()
    with ray.init(local_mode=True):
        assert ray.is_initialized()
    assert not ray.is_initialized()
    ray.init(local_mode=True)


def test_functions_for_all_workers_run_here_and_in_every_later_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver_init, "_functions_for_workers", [])
    seen: list[Any] = []
    ray.run_function_on_all_workers(lambda info: seen.append(info["worker"]))
    ray.shutdown()
    ray.run_function_on_all_workers(lambda info: seen.append("before init"))
    assert len(seen) == 1
    ray.init(local_mode=True)
    assert len(seen) == 3 and seen[2] == "before init"
