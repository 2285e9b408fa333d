"""Core workers as the API uses them, without the API: for the tests of their interface
(core_interface_test.py)."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.local_mode.local_core import LocalCore
from ray_mono.core_worker.interface import CoreInterface
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import NOTHING, ActorOptions, TaskOptions
from ray_mono.core_worker.process import current
from ray_mono.core_worker.process.driver import DriverConfig, connect_driver
from tests.integration.clusters import CommandLineCluster

WAIT_S = 60.0


@contextlib.contextmanager
def as_this_process(core: CoreInterface) -> Iterator[CoreInterface]:
    before = current.core
    current.set(core)
    try:
        yield core
    finally:
        current.set(before)


def join(cluster: CommandLineCluster) -> CoreInterface:
    """A driver of its own."""
    return connect_driver(
        DriverConfig(
            raylet_socket=cluster.head.raylet_socket,
            gcs_address=cluster.address,
            session_dir=cluster.head.session_dir,
            secret=cluster.secret,
            namespace="space",
        )
    )


@contextlib.contextmanager
def a_core(request: pytest.FixtureRequest) -> Iterator[CoreInterface]:
    """One for the tests that leave it as it was, by the fixture's parameter: "cluster" or "local"."""
    if request.param == "local":
        with as_this_process(LocalCore("space", {"CPU": 2})) as made:
            yield made
            made.shutdown()
        return
    ray.init(address=request.getfixturevalue("cluster").address, namespace="space")
    yield current.require()
    ray.shutdown()


def submit(core: CoreInterface, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    flat = list(itertools.chain.from_iterable((None, value) for value in args))
    options = {"name": function.__name__, "max_retries": 0, **options}
    return core.submit_task(
        core.task_template(core.export(function, "function"), TaskOptions(**options)), flat
    )


def submit_all(
    core: CoreInterface, function: Callable[..., Any], items: Sequence[Any], chunk: int = 0, **options: Any
) -> list[Any]:
    """A task for each item."""
    refs: list[Any] = []
    options = {"name": function.__name__, "max_retries": 0, **options}
    template = core.task_template(core.export(function, "function"), TaskOptions(**options))
    core.submit_tasks(template, items, chunk, refs)
    return refs


def value_of(core: CoreInterface, ref: ObjectRef[Any]) -> Any:
    return core.get([ref], WAIT_S)[0]


class Actor:
    """Handles of it, as the API makes them."""

    def __init__(self, core: CoreInterface, plain_class: type, *args: Any, **options: Any) -> None:
        flat = list(itertools.chain.from_iterable((None, value) for value in args))
        options = {"class_name": plain_class.__name__, "namespace": core.namespace, **options}
        options = {"placement_resources": NOTHING, **options}
        self.core = core
        self.state = core.create_actor(core.export(plain_class, "actor class"), ActorOptions(**options), flat)
        self.class_name = plain_class.__name__

    def submit(self, method: str, *args: Any, **options: Any) -> list[Any]:
        flat = list(itertools.chain.from_iterable((None, value) for value in args))
        template = self.core.method_template(method, self.class_name, **options)
        return self.core.submit_actor_task(self.state, template, flat)

    def submit_all(self, method: str, items: Sequence[Any], chunk: int = 0) -> list[Any]:
        refs: list[Any] = []
        template = self.core.method_template(method, self.class_name)
        self.core.submit_actor_tasks(self.state, template, items, chunk, refs)
        return refs

    def call(self, method: str, *args: Any) -> Any:
        (ref,) = self.submit(method, *args)
        return value_of(self.core, ref)


# ---- what they run


def add(a: int, b: int) -> int:
    return a + b


def double(value: Any) -> Any:
    return value + value


def fail(what: str) -> None:
    raise KeyError(what)


def count(n: int, fails: bool = False) -> Iterator[int]:
    yield from range(n)
    if fails:
        raise KeyError("midway")


def interrupt() -> None:
    raise KeyboardInterrupt


class Counter:
    def __init__(self, begin: int = 0) -> None:
        self.value = begin

    def add(self, n: int) -> int:
        self.value += n
        return self.value

    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    def leave(self) -> None:
        current.require().exit_actor()

    def is_cancelled(self) -> bool:
        return current.require().is_task_cancelled()


class AsyncActor:
    async def is_cancelled(self) -> bool:
        return current.require().is_task_cancelled()


# ---- the interface


def members(of: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(of, name) for name in dir(of) if not name.startswith("_")}


def takes_the_same(method: Callable[..., Any], promised: Callable[..., Any]) -> None:
    """As many arguments by position, and as many of them needed."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

    def counts(function: Callable[..., Any], skipped: int) -> int:
        parameters = list(inspect.signature(function).parameters.values())[skipped:]
        return sum(each.kind in kinds for each in parameters if each.default is each.empty)

    assert counts(method, 0) == counts(promised, 1)
