"""What a coroutine waits for, as it is seen from outside."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator
from ray_mono.core_worker.task_execution.await_chain import NOTHING_KNOWN, AwaitChain, Awaits

LONG_S = 600.0
TURNS = 50
"""Of the loop, until each waits for what it wants."""
A, B = b"object a", b"object b"


class Objects:
    """Two objects that are not there, and somebody else's future."""

    def __init__(self) -> None:
        self.futures: dict[concurrent.futures.Future[Any], bytes] = {
            concurrent.futures.Future(): A,
            concurrent.futures.Future(): B,
        }
        self.elses: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.lock = asyncio.Lock()

    def a(self) -> asyncio.Future[Any]:
        return asyncio.wrap_future([*self.futures][0])

    def b(self) -> asyncio.Future[Any]:
        return asyncio.wrap_future([*self.futures][1])


class Source:
    """Of a generator whose next item is not there."""

    num_taken = 0
    is_ready = is_finished = False

    def item_id(self, number: int) -> bytes:
        return A if number == 1 else B

    def next_id(self) -> bytes:
        return self.item_id(self.num_taken + 1)

    def take(self) -> ObjectRef[Any]:
        raise AssertionError("it is not there")

    def await_next(self, timeout_s: float | None) -> None: ...

    def when_next(self, callback: Callable[[], None]) -> bool:
        return False

    def forget_waiter(self, callback: Callable[[], None]) -> None: ...


async def wait_for_both(objects: Objects) -> None:
    await asyncio.wait([objects.a(), objects.b()])


async def wait_for_the_first(objects: Objects) -> None:
    await asyncio.wait([objects.a(), objects.b()], return_when=asyncio.FIRST_COMPLETED)


async def wait_for_the_first_of_one_and_a_time(objects: Objects) -> None:
    others = [objects.a(), asyncio.create_task(asyncio.sleep(LONG_S))]
    await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)


async def wait_in_a_coroutine(objects: Objects) -> None:
    async def inside() -> None:
        await objects.a()

    await inside()


async def wait_for_a_task(objects: Objects) -> None:
    await asyncio.create_task(wait_in_a_coroutine(objects))


async def gather(objects: Objects) -> None:
    await asyncio.gather(objects.a(), wait_for_a_task(objects), objects.b(), asyncio.sleep(LONG_S))


async def ask_and_sleep(objects: Objects) -> None:
    objects.a()
    await asyncio.sleep(LONG_S)


async def wait_for_a_while(objects: Objects) -> None:
    await asyncio.wait_for(objects.a(), LONG_S)


async def wait_without_a_bound(objects: Objects) -> None:
    await asyncio.wait_for(objects.a(), None)


async def want_the_lock(objects: Objects) -> None:
    await objects.lock.acquire()
    async with objects.lock:
        pass


async def acquire_the_lock(objects: Objects) -> None:
    await objects.lock.acquire()
    await objects.lock.acquire()


async def shield(objects: Objects) -> None:
    await asyncio.shield(asyncio.create_task(wait_in_a_coroutine(objects)))


async def wait_for_an_event(objects: Objects) -> None:
    await asyncio.Event().wait()


async def wait_for_an_item(objects: Objects) -> None:
    await asyncio.Queue().get()


async def wait_for_an_item_for_a_while(objects: Objects) -> None:
    await asyncio.wait_for(asyncio.Queue().get(), LONG_S)


async def wait_for_a_semaphore(objects: Objects) -> None:
    semaphore = asyncio.Semaphore(1)
    async with semaphore, semaphore:
        pass


async def wait_for_a_condition(objects: Objects) -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait_for(lambda: False)


async def gather_items(objects: Objects) -> None:
    await asyncio.gather(wait_for_an_item(objects), asyncio.sleep(LONG_S))


async def gather_what_others_end(objects: Objects) -> None:
    """Each of these has a callback that leads back to the others."""
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.create_future() for _ in range(20)))


async def wait_beside_what_depends_on_it(objects: Objects) -> None:
    mine, dependent = asyncio.get_running_loop().create_future(), objects.a()
    mine.add_done_callback(lambda future: dependent.cancel())
    await mine


async def wait_for_somebody_elses(objects: Objects) -> None:
    await asyncio.wrap_future(objects.elses)


async def next_item(objects: Objects) -> None:
    async for _ in ObjectRefGenerator(Source(), ObjectRef.nil(), None):
        pass


async def next_item_for_a_while(objects: Objects) -> None:
    await ObjectRefGenerator(Source(), ObjectRef.nil(), None)._next_async(LONG_S)


async def wait_for_a_group(objects: Objects) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_in_a_coroutine(objects))
        group.create_task(asyncio.sleep(LONG_S))


async def wait_within_a_time(objects: Objects) -> None:
    async with asyncio.timeout(LONG_S):
        await objects.a()


AWAITS: dict[str, tuple[Callable[[Objects], Awaitable[None]], Awaits]] = {
    "an object": (wait_in_a_coroutine, Awaits((A,))),
    "a task that awaits an object": (wait_for_a_task, Awaits((A,))),
    "all of some": (gather, Awaits((A, B))),
    "both in wait()": (wait_for_both, Awaits((A, B))),
    "the first in wait()": (wait_for_the_first, Awaits((A, B), num_enough=1)),
    "the first, of which one comes with time": (wait_for_the_first_of_one_and_a_time, NOTHING_KNOWN),
    "a time, and not the object that was asked for": (ask_and_sleep, Awaits(is_timed=True)),
    "an object for a while": (wait_for_a_while, Awaits((A,), is_timed=True)),
    "an object within a time": (wait_within_a_time, Awaits((A,), is_timed=True)),
    "a group of tasks, one of an object": (wait_for_a_group, Awaits((A,))),
    "an object, without a bound": (wait_without_a_bound, Awaits((A,))),
    "a lock": (want_the_lock, Awaits()),
    "a lock, by acquire()": (acquire_the_lock, Awaits(is_lexical=False)),
    "a task behind a shield": (shield, Awaits((A,))),
    "what others end": (gather_what_others_end, NOTHING_KNOWN),
    "what an object depends on": (wait_beside_what_depends_on_it, NOTHING_KNOWN),
    "an item of a queue": (wait_for_an_item, Awaits(signal="asyncio.Queue.get()")),
    "an item of a queue for a while": (
        wait_for_an_item_for_a_while,
        Awaits(signal="asyncio.Queue.get()", is_timed=True),
    ),
    "a semaphore": (wait_for_a_semaphore, Awaits(signal="asyncio.Semaphore.acquire()")),
    "a condition": (wait_for_a_condition, Awaits(signal="asyncio.Condition.wait()")),
    "all of some, of which one is an item": (gather_items, Awaits(signal="asyncio.Queue.get()")),
    "an event": (wait_for_an_event, NOTHING_KNOWN),
    "a future of somebody else": (wait_for_somebody_elses, NOTHING_KNOWN),
    "the next item of a generator": (next_item, Awaits((A,))),
    "the next item of a generator for a while": (next_item_for_a_while, Awaits((A,), is_timed=True)),
}


def seen(program: Callable[[Objects], Awaitable[None]]) -> Awaits:
    async def look() -> Awaits:
        objects = Objects()
        task = asyncio.ensure_future(program(objects))
        chain = AwaitChain(objects.futures.get)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not task.done(), task
        found = await asyncio.to_thread(chain.of, task)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        return found

    return asyncio.run(look())


@pytest.mark.parametrize("name", AWAITS)
def test_what_a_coroutine_waits_for_is_seen(name: str) -> None:
    program, expected = AWAITS[name]
    found = seen(program)
    # asyncio.wait keeps a set.
    assert replace(found, object_ids=tuple(sorted(found.object_ids)), lock=None) == expected
    assert (found.lock is not None) is name.startswith("a lock")
