"""Mistakes that can be told without a cluster are told without one, with the line that would be right."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import cloudpickle
from ray_mono.remote_function import RemoteFunction


@ray.remote
def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


class Plain:
    def __init__(self, start: int) -> None: ...

    def method(self, a: int) -> None: ...


Actor: Any = ray.remote(Plain)


@pytest.fixture(autouse=True)
def no_cluster() -> None:
    assert not ray.is_initialized()


def test_a_remote_function_called_directly_says_how() -> None:
    with pytest.raises(TypeError, match=r"instead of add\(\) use add\.remote\(\)"):
        add(1)


def test_an_actor_class_called_directly_says_how() -> None:
    with pytest.raises(TypeError, match=r"instead of Plain\(\) use Plain\.remote\(\)"):
        Actor(1)


def test_a_wrong_call_fails_before_a_cluster_is_made() -> None:
    with pytest.raises(TypeError, match=r"add\(\) missing a required argument: 'a'"):
        add.remote()
    with pytest.raises(TypeError, match=r"Plain\(\) takes "):
        Actor.remote(1, 2)
    assert not ray.is_initialized()


def test_an_actor_class_cannot_be_inherited_from() -> None:
    with pytest.raises(TypeError, match="inherit from the plain class"):

        class Child(Actor): ...


def test_an_async_function_is_refused_and_an_async_method_is_not() -> None:
    async def coroutine() -> None: ...

    with pytest.raises(ValueError, match="coroutine is an 'async def'"):
        ray.remote(coroutine)

    class Async:
        async def method(self) -> None: ...

    ray.remote(Async)


@pytest.mark.parametrize("wrong", [(1,), ("a",), (add,), (Actor,), (len, len)])
def test_remote_takes_a_function_or_a_class_or_options(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="remote"):
        ray.remote(*wrong)


def test_remote_without_anything_is_refused() -> None:
    with pytest.raises(TypeError, match=r"as in @remote\(num_cpus=2\)"):
        ray.remote()


def test_names_and_docstrings_are_the_functions_own() -> None:
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Adds.", __name__)
    assert Actor.__name__ == "Plain" and Actor.__ray_actor_class__ is Plain


def test_options_leave_the_original_as_it_is() -> None:
    other = add.options(num_cpus=3, num_returns=2)
    assert isinstance(other, RemoteFunction)
    assert other._default_options == {"num_cpus": 3, "num_returns": 2} and not add._default_options


def test_remote_functions_and_actor_classes_travel() -> None:
    assert cloudpickle.loads(cloudpickle.dumps(add.options(num_cpus=3)))._default_options == {"num_cpus": 3}
    assert pickle.loads(pickle.dumps(Actor.options(name="n")))._default_options == {"name": "n"}


def test_a_remote_function_that_calls_itself_travels() -> None:
    @ray.remote
    def down(n: int) -> Any:
        return n and down.remote(n - 1)

    loaded = cloudpickle.loads(cloudpickle.dumps(down))
    assert loaded._function.__closure__[0].cell_contents._function.__name__ == "down"


@pytest.mark.parametrize("call", [ray.nodes, ray.cluster_resources, ray.available_resources])
def test_questions_about_the_cluster_need_one(call: Any) -> None:
    with pytest.raises(ray.exceptions.RaySystemError, match="init"):
        call()


def test_exit_actor_outside_of_an_actor_is_refused() -> None:
    with pytest.raises(ray.exceptions.RaySystemError, match="init"):
        ray.exit_actor()


def test_shutdown_without_init_does_nothing() -> None:
    ray.shutdown()


def test_copies_of_a_remote_function_work() -> None:
    assert copy.copy(add)._function is add._function
