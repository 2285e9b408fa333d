"""Actors with coroutine methods: which loop or thread their code runs on, and how many calls are under way at
once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("leaves_nothing", "by_value")

Place = tuple[int, bool]


def here() -> Place:
    """The thread, and whether a loop runs on it."""
    return threading.get_ident(), asyncio._get_running_loop() is not None


class Places:
    def __init__(self) -> None:
        self.at_birth = here()
        self.future = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self.tick())

    async def tick(self) -> Place:
        await asyncio.sleep(0)
        return here()

    async def birth(self) -> tuple[Place, Place, int]:
        self.future.get_loop().call_soon(self.future.set_result, 5)
        return self.at_birth, await self.task, await self.future

    async def coroutine(self) -> Place:
        return here()

    def method(self) -> Place:
        return here()

    @staticmethod
    def static() -> Place:
        return here()

    async def async_generator(self) -> AsyncIterator[Place]:
        yield here()

    def generator(self) -> Iterator[Place]:
        yield here()


def test_an_async_actors_code_runs_on_its_loop_and_what_may_take_long_beside_it() -> None:
    actor = ray.remote(Places).options(num_cpus=0).remote()
    born, ticked, value = get(actor.birth.remote())
    assert born == ticked and born[1] and value == 5
    on_the_loop = [
        actor.coroutine.remote(),
        actor.method.remote(),
        actor.static.remote(),
        *actor.async_generator.remote(),
    ]
    assert set(get(on_the_loop)) == {born}
    (yielded,) = actor.generator.remote()
    for thread, has_loop in get([yielded, actor.__ray_call__.remote(lambda self: here())]):
        assert thread != born[0] and not has_loop


def test_a_constructor_may_be_a_coroutine_and_what_it_raises_is_the_cause_of_the_death() -> None:
    class Connects:
        async def __init__(self, host: str) -> None:
            await asyncio.sleep(0)
            self.connection = {"up": 1}[host]

        def connected(self) -> tuple[int, bool]:
            return self.connection, here()[1]

    connects = ray.remote(Connects).options(num_cpus=0)
    assert get(connects.remote("up").connected.remote()) == (1, True)
    with pytest.raises(ActorDiedError, match="KeyError: 'down'") as caught:
        get(connects.remote("down").connected.remote())
    assert "asyncio" not in str(caught.value), "frames that are not the user's"


def test_a_coroutine_that_blocks_its_thread_holds_up_its_own_group_alone() -> None:
    class Grouped:
        def __init__(self) -> None:
            self.woken = threading.Event()
            self.thread = here()

        @ray.method(concurrency_group="compute")
        async def block(self) -> tuple[bool, Place]:
            return self.woken.wait(GET_TIMEOUT_S), here()

        @ray.method(concurrency_group="io")
        async def wake(self) -> Place:
            self.woken.set()
            return here()

        async def default(self) -> bool:
            return here() == self.thread

    actor = ray.remote(concurrency_groups={"io": 1, "compute": 1})(Grouped).options(num_cpus=0).remote()
    blocked, woke, default = get([actor.block.remote(), actor.wake.remote(), actor.default.remote()])
    assert blocked[0] and default
    assert blocked[1] != woke
    # And a call may choose another.
    assert not get(actor.default.options(concurrency_group="io").remote())


def test_a_generator_that_takes_long_does_not_hold_up_the_coroutines_and_can_be_cancelled() -> None:
    class Mixed:
        def __init__(self) -> None:
            self.go = threading.Event()

        def slow(self) -> Iterator[int]:
            yield int(self.go.wait(GET_TIMEOUT_S))

        def endless(self) -> Iterator[float]:
            while True:
                yield time.monotonic()

        async def let(self) -> None:
            self.go.set()

    actor = ray.remote(Mixed).options(num_cpus=0).remote()
    items = actor.slow.remote()
    get(actor.let.remote())
    assert [get(item) for item in items] == [1]
    endless = actor.endless.remote()
    get(next(endless))
    ray.cancel(endless)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        for item in endless:
            get(item)


def test_terminate_waits_for_the_earlier_calls_of_all_groups() -> None:
    class Grouped:
        @ray.method(concurrency_group="io")
        async def slow(self) -> Any:
            await asyncio.sleep(0.1)
            return 1

        async def slow_too(self) -> Any:
            await asyncio.sleep(0.1)
            return 2

    actor = ray.remote(concurrency_groups={"io": 1})(Grouped).options(num_cpus=0).remote()
    calls = [actor.slow.remote(), actor.slow_too.remote(), actor.slow.remote()]
    ended = actor.__ray_terminate__.remote()
    assert get(calls) == [1, 2, 1]
    with pytest.raises(ActorDiedError):
        get(ended)


def test_more_calls_than_a_caller_would_send_to_a_plain_actor_wait_for_each_other() -> None:
    count = 1100

    class Barrier:
        def __init__(self) -> None:
            self.seen, self.full = 0, asyncio.Event()

        async def arrive(self) -> None:
            self.seen += 1
            if self.seen == count:
                self.full.set()
            await self.full.wait()

    actor = ray.remote(Barrier).options(num_cpus=0, max_concurrency=2000).remote()
    get([actor.arrive.remote() for _ in range(count)])


def test_a_reference_that_a_method_returns_is_its_value_and_a_coroutine_is_not() -> None:
    class Refers:
        async def coroutine(self) -> int:
            return 5

        def refers(self) -> Any:
            return ray.put(5)

        def hands_on(self) -> Any:
            return self.coroutine()

    actor = ray.remote(Refers).options(num_cpus=0).remote()
    refs = [actor.refers.remote(), actor.__ray_call__.remote(lambda self: self.refers())]
    assert get(get(refs)) == [5, 5]
    assert get(actor.hands_on.remote()) == 5
