"""Bad input of every kind: the message names the argument, what was given and what is accepted. In local
mode, where nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.experimental import tqdm_ray
from ray_mono.util import ActorPool
from ray_mono.util.queue import Queue


@pytest.fixture(autouse=True)
def local_cluster() -> Iterator[None]:
    ray.init(local_mode=True, num_cpus=1)
    yield
    ray.shutdown()


class Junk:
    def __repr__(self) -> str:
        return "<junk>"


JUNK: Any = Junk()


@ray.remote
def function() -> None: ...


@ray.remote
class Actor:
    def method(self) -> None: ...


TASK_OPTIONS = (
    "num_cpus num_gpus memory resources num_returns max_retries retry_exceptions max_calls name runtime_env"
    " scheduling_strategy accelerator_type _generator_backpressure_num_objects"
).split()
ACTOR_OPTIONS = (
    "num_cpus num_gpus memory resources name namespace lifetime get_if_exists max_restarts max_task_retries"
    " max_concurrency max_pending_calls concurrency_groups allow_out_of_order_execution runtime_env"
    " scheduling_strategy"
).split()
METHOD_OPTIONS = "num_returns max_task_retries retry_exceptions concurrency_group name".split()


@pytest.mark.parametrize("name", TASK_OPTIONS)
def test_an_option_of_a_function_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<junk>"):
        function.options(**{name: JUNK})
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<junk>"):
        ray.remote(**{name: JUNK})(lambda: 1)


@pytest.mark.parametrize("name", ACTOR_OPTIONS)
def test_an_option_of_an_actor_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<junk>"):
        Actor.options(**{name: JUNK})


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_an_option_of_a_method_that_cannot_be_is_named(name: str) -> None:
    actor = Actor.remote()
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<junk>"):
        actor.method.options(**{name: JUNK})
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<junk>"):
        ray.method(**{name: JUNK})(lambda self: 1)


CALLS: dict[str, Callable[[], Any]] = {
    r"get\(\) takes an ObjectRef": lambda: ray.get(JUNK),
    r"get\(\) takes ObjectRefs": lambda: ray.get([ray.put(1), JUNK]),
    "timeout must be a number of seconds or None": lambda: ray.get(ray.put(1), timeout=JUNK),
    r"wait\(\) takes a list of ObjectRefs": lambda: ray.wait(JUNK),
    "num_returns must be": lambda: ray.wait([ray.put(1)], num_returns=JUNK),
    r"kill\(\) takes an actor's handle": lambda: ray.kill(JUNK),
    r"cancel\(\) takes an ObjectRef or an ObjectRefGenerator": lambda: ray.cancel(JUNK),
    "name must be a string": lambda: ray.get_actor(JUNK),
    "namespace must be a string": lambda: ray.get_actor("a", namespace=JUNK),
    "remote takes a function or a class": lambda: ray.remote(JUNK),
    "filename must be a path or None": lambda: ray.timeline(JUNK),
    "function must be callable": lambda: ray.run_function_on_all_workers(JUNK),
    "all_namespaces must be True or False": lambda: ray.util.list_named_actors(all_namespaces=JUNK),
    "actors must be a list of actors' handles": lambda: ActorPool(JUNK),
    "maxsize must be a whole number": lambda: Queue(JUNK),
    "total must be a number or None": lambda: tqdm_ray.tqdm([], total=JUNK),
    "encoding must be 'TEXT' or 'JSON'": lambda: ray.LoggingConfig(encoding=JUNK),
    "log_level must be the name of a level": lambda: ray.LoggingConfig(log_level=JUNK),
    "additional_log_standard_attrs": lambda: ray.LoggingConfig(additional_log_standard_attrs=[JUNK]),
}


@pytest.mark.parametrize("message", CALLS)
def test_an_argument_that_cannot_be_is_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{message}.*(?s:.)*<junk>|<junk>(?s:.)*{message}"):
        CALLS[message]()
