"""Calls to actors: beside each other or in order, within limits, and with options."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

import ray_mono as ray
from ray_mono.exceptions import PendingCallsLimitExceeded
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("leaves_nothing")

T = TypeVar("T")


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, number: int) -> list[int]:
        self.seen.append(number)
        return self.seen


class AsyncLog:
    def __init__(self) -> None:
        self.seen: list[int] = []

    async def note(self, number: int) -> list[int]:
        self.seen.append(number)
        return self.seen


# ---------------------------------------------------------------- beside each other


def test_a_thousand_coroutines_run_beside_each_other() -> None:
    class Meeting:
        def __init__(self) -> None:
            self.count = 0
            self.all_here = asyncio.Event()

        async def join(self) -> int:
            self.count += 1
            if self.count == 1000:
                self.all_here.set()
            await self.all_here.wait()
            return 1

    actor = ray.remote(Meeting).remote()
    assert sum(get([actor.join.remote() for _ in range(1000)])) == 1000


@pytest.mark.parametrize("options", [{"max_concurrency": 3}, {"concurrency_groups": {"few": 3}}])
def test_no_more_coroutines_run_than_the_limit_allows(options: dict[str, Any]) -> None:
    class Crowd:
        def __init__(self) -> None:
            self.here = self.most = 0

        async def pass_through(self) -> None:
            self.here += 1
            self.most = max(self.most, self.here)
            await asyncio.sleep(0.01)
            self.here -= 1

        async def most_at_once(self) -> int:
            return self.most

    actor = ray.remote(Crowd).options(**options).remote()
    group = {"concurrency_group": "few"} if "concurrency_groups" in options else {}
    get([actor.pass_through.options(**group).remote() for _ in range(12)])
    assert get(actor.most_at_once.remote()) == 3


def test_coroutines_await_references_and_their_own_actor() -> None:
    @ray.remote
    def plus_one(x: int) -> int:
        return x + 1

    class Asker:
        def __init__(self) -> None:
            self.handle = ray.get_runtime_context().current_actor

        async def one(self) -> int:
            return await plus_one.remote(1)

        async def many(self) -> list[int]:
            return await asyncio.gather(*[plus_one.remote(i) for i in range(5)])

        async def itself(self) -> int:
            return int(await self.handle.one.remote())

        def is_on_the_loop(self) -> bool:
            return asyncio.get_running_loop().is_running()

    actor = ray.remote(Asker).remote()
    calls = [actor.one.remote(), actor.many.remote(), actor.itself.remote(), actor.is_on_the_loop.remote()]
    assert get(calls) == [2, [1, 2, 3, 4, 5], 2, True]


def test_threads_run_as_many_calls_as_there_are() -> None:
    class Threaded:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)

        def meet(self) -> bool:
            self.barrier.wait(GET_TIMEOUT_S)
            return True

    actor = ray.remote(Threaded).options(max_concurrency=4).remote()
    assert all(get([actor.meet.remote() for _ in range(4)]))


class Grouped:
    def __init__(self) -> None:
        self.event = threading.Event()

    def wait(self) -> bool:
        return self.event.wait(GET_TIMEOUT_S)

    @ray.method(concurrency_group="control")
    def wake(self) -> None:
        self.event.set()

    def wake_too(self) -> None:
        self.event.set()


def test_a_concurrency_group_is_chosen_by_the_decorator_or_by_the_call() -> None:
    grouped: Any = ray.remote(concurrency_groups={"control": 1})(Grouped)
    actor = grouped.remote()
    waiting = actor.wait.remote()
    actor.wake.remote()
    assert get(waiting)
    actor = grouped.remote()
    waiting = actor.wait.remote()
    actor.wake_too.options(concurrency_group="control").remote()
    assert get(waiting)
    with pytest.raises(ValueError, match=r"no concurrency group 'other'.*control"):
        actor.wait.options(concurrency_group="other")
    with pytest.raises(ValueError, match=r"no concurrency group 'other'; it has: none"):
        ray.remote(Log).remote().note.options(concurrency_group="other")
    with pytest.raises(ValueError, match="'control', which the actor does not have"):
        ray.remote(Grouped).remote()


def test_a_method_is_the_classs_whatever_the_instance_has_under_its_name() -> None:
    class Flag:
        def __init__(self) -> None:
            self.lit: Any = False
            self.static: Any = 1

        def lit(self) -> str:  # type: ignore[no-redef]
            return f"lit of {self.lit}"

        @staticmethod
        def static() -> str:  # type: ignore[no-redef]
            return "static"

        @classmethod
        def of_class(cls) -> str:
            return cls.__name__

    flag = ray.remote(Flag).remote()
    assert get([flag.lit.remote(), flag.static.remote(), flag.of_class.remote()]) == [
        "lit of False",
        "static",
        "Flag",
    ]


# ---------------------------------------------------------------- order and limits


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Log, {"allow_out_of_order_execution": True}), (Log, {"max_concurrency": 2}), (AsyncLog, {})],
)
def test_where_order_does_not_matter_a_call_overtakes_one_that_waits_for_its_argument(
    kind: type, options: dict[str, Any], tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = tmp_path / "gate"

    @ray.remote
    def later() -> int:
        touch_and_wait(None, str(gate))
        return 0

    actor = ray.remote(kind).options(**options).remote()
    first = actor.note.remote(later.remote())
    get([actor.note.remote(number) for number in range(1, 10)])
    gate.touch()
    assert sorted(get(first)[:-1]) == list(range(1, 10)) and get(first)[-1] == 0


@pytest.mark.parametrize(("kind", "options"), [(Log, {"max_concurrency": 2}), (AsyncLog, {})])
def test_an_order_that_cannot_be_kept_is_not_promised(kind: type, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allow_out_of_order_execution"):
        ray.remote(kind).options(allow_out_of_order_execution=False, **options).remote()


def test_a_caller_has_no_more_calls_pending_than_allowed_whatever_its_handle(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = tmp_path / "gate"

    class Slow:
        def wait(self) -> int:
            touch_and_wait(None, str(gate))
            return 1

    @ray.remote
    def call_often(handle: Any) -> int:
        for number in range(4):
            try:
                handle.wait.remote()
            except PendingCallsLimitExceeded:
                return number
        return 4

    actor = ray.remote(Slow).options(max_pending_calls=2, name="slow").remote()
    get(actor.__ray_ready__.remote())
    calls = [actor.wait.remote(), ray.get_actor("slow").wait.remote()]
    with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls=2"):
        actor.wait.remote()
    assert get(call_often.remote(actor)) == 2
    gate.touch()
    assert get(calls) == [1, 1]
    assert get(actor.wait.remote()) == 1


# ---------------------------------------------------------------- methods


def test_options_of_methods() -> None:
    class Kinds:
        @ray.method(num_returns=2)
        def two(self) -> tuple[int, int]:
            return 1, 2

        @ray.method(num_returns=0)
        def none(self) -> None: ...

        def pair(self) -> tuple[int, int]:
            return 3, 4

        def items(self) -> Any:
            yield 5

    actor = ray.remote(Kinds).remote()
    assert get(actor.two.remote()) == [1, 2] and actor.none.remote() is None
    assert get(actor.pair.options(num_returns=2).remote()) == [3, 4]
    assert get(list(actor.items.remote())) == [5]
    for wrong in ({"num_cpus": 1}, {"num_returns": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            actor.pair.options(**wrong)


def test_a_call_goes_by_the_name_that_it_is_given() -> None:
    class Named:
        def who(self) -> str:
            return str(ray.get_runtime_context().get_task_name())

        def fail(self) -> None:
            raise ValueError("x")

    actor = ray.remote(Named).remote()
    assert get(actor.who.remote()) == "Named.who"
    # Also where it is another method's.
    assert get(actor.who.options(name="fail").remote()) == "fail"
    with pytest.raises(ValueError, match="ray_mono::shown"):
        get(actor.fail.options(name="shown").remote())


class Base:
    scale = 2

    def __init__(self, x: int = 1) -> None:
        self.x = x

    def value(self) -> int:
        return self.x


class Derived(Base, Generic[T]):
    def value(self) -> int:
        return super().value() * self.scale

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @staticmethod
    def double(x: int) -> int:
        return 2 * x

    @property
    def broken(self) -> int:
        raise RuntimeError("not readable")

    def read(self) -> int:
        return self.broken


class Special(Derived[int]): ...


def test_inheritance_generics_and_kinds_of_methods() -> None:
    actor: Any = ray.remote(Special).remote(5)
    assert get([actor.value.remote(), actor.name.remote(), actor.double.remote(4)]) == [10, "Special", 8]
    with pytest.raises(AttributeError, match="'broken'"):
        actor.broken  # noqa: B018
    with pytest.raises(RuntimeError, match="not readable"):
        get(actor.read.remote())
    remote_base: Any = ray.remote(Base)
    with pytest.raises(TypeError, match="inherit from the plain class"):

        class Sub(remote_base): ...


def test_methods_that_every_actor_has() -> None:
    actor: Any = ray.remote(Base).remote(3)
    assert get(actor.__ray_ready__.remote())
    assert get(actor.__ray_call__.remote(lambda self, y, z=0: self.x + y + z, 4, z=1)) == 8
    with pytest.raises(ZeroDivisionError):
        get(actor.__ray_call__.remote(lambda self: 1 / 0))


def passing_on(function: Any) -> Any:
    @functools.wraps(function)
    def passed_on(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return passed_on


def tracing(submit: Any) -> Any:
    """Around a call, where it is made: what it got goes beside the reference."""
    return lambda args, kwargs: (args, kwargs, submit(args, kwargs))


class Decorated:
    @ray.method(num_returns=2)
    @passing_on
    def pair(self) -> tuple[int, int]:
        return 1, 2

    @passing_on
    def count(self, end: int) -> Iterator[int]:
        yield from range(end)

    @passing_on
    async def count_async(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    async def is_asynchronous(self) -> None: ...

    def traced(self, number: int) -> int:
        return number + 1

    traced.__ray_invocation_decorator__ = tracing  # type: ignore[attr-defined]


class CallsTraced:
    def call(self, actor: Any) -> Any:
        args, _, ref = actor.traced.remote(7)
        return args, get(ref)


def test_what_decorators_are_put_on_stays_what_it_is() -> None:
    actor: Any = ray.remote(Decorated).remote()
    assert get(actor.pair.remote()) == [1, 2]
    for counting in (actor.count, actor.count_async):
        assert [get(ref) for ref in counting.remote(2)] == [0, 1]
    with pytest.raises(TypeError, match=r"goes on a method, got <property"):
        ray.method(num_returns=2)(property(len))


def test_an_invocation_decorator_is_around_each_call_of_a_method_wherever_it_is_made() -> None:
    actor: Any = ray.remote(Decorated).options(name="traced").remote()
    for handle in (actor, ray.get_actor("traced")):
        args, kwargs, ref = handle.traced.remote(1)
        assert (list(args), kwargs, get(ref)) == ([1], {}, 2)
        args, kwargs, ref = handle.traced.options(num_returns=1).remote(number=2)
        assert (list(args), kwargs, get(ref)) == ([], {"number": 2}, 3)
    assert get(ray.remote(CallsTraced).remote().call.remote(actor)) == ((7,), 8)
