"""Programs of which only a part waits, and those where it depends on somebody who lives: what `explain` says
of them, and whether it says that they are stuck."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util.queue import Queue
from tests.integration.bounded import get
from tests.integration.explained import (
    KEPT,
    MOVES,
    OPEN,
    STUCK,
    Outlook,
    expect_program_explained,
    one_node,
)
from tests.waiting import wait_until

LONG_S = 600.0


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node(num_cpus=4, resources={"A": 1, "B": 1}):
        yield


@ray.remote(num_cpus=0)
def never(*args: Any) -> int:
    signal.pause()
    return 1


def of_gpus() -> Any:
    return never.options(num_gpus=1).remote()


# ---- actors that hold what others need


@ray.remote(num_cpus=0, resources={"A": 1})
class Holder:
    def rest(self) -> None:
        pass

    def work(self) -> None:
        signal.pause()


def wants_a() -> Any:
    return never.options(resources={"A": 1}).remote()


def without_a_handle() -> Any:
    holder = Holder.remote()
    get(holder.rest.remote())
    KEPT.append(holder.work.remote())
    del holder
    return wants_a()


def with_a_handle_here() -> Any:
    holder = Holder.remote()
    KEPT.append(holder)
    get(holder.rest.remote())
    return wants_a()


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self._came = asyncio.Event()

    async def come(self) -> None:
        self._came.set()

    async def wait(self) -> None:
        await self._came.wait()


@ray.remote(num_cpus=0)
def hold(gate: Any, refs: list[Any] | None = None) -> None:
    """Until what it waits for is over."""
    holder = Holder.remote()
    ray.get(holder.rest.remote())
    ray.get(gate.come.remote())
    if refs is None:
        signal.pause()
    ray.get(refs)


def of_a_task_that(*refs: Any) -> Any:
    gate = Gate.remote()
    KEPT.extend([gate, hold.remote(gate, *refs)])
    get(gate.wait.remote())
    return wants_a()


@ray.remote(num_cpus=0)
def hold_and_want() -> None:
    holder = Holder.remote()
    ray.get(holder.rest.remote())
    ray.get(never.options(resources={"A": 1}).remote())


@ray.remote(num_cpus=0)
class Keeper:
    def make(self) -> None:
        self.holder = Holder.remote()
        ray.get(self.holder.rest.remote())

    def keep(self, holder: Any) -> None:
        signal.pause()

    def make_and_work(self) -> None:
        self.make()
        signal.pause()

    def make_and_want(self) -> None:
        self.make()
        ray.get(never.options(resources={"A": 1}).remote())


def of_another_actor() -> Any:
    keeper = Keeper.remote()
    KEPT.append(keeper)
    get(keeper.make.remote())
    return wants_a()


def of_another_actor_that_makes_it_and_wants_it() -> Any:
    keeper = Keeper.remote()
    KEPT.append(keeper)
    return keeper.make_and_want.remote()


def of_several_actors() -> Any:
    holders = [Holder.options(resources={"A": 0.25}).remote() for _ in range(4)]
    KEPT.append(holders)
    get([holder.rest.remote() for holder in holders])
    return never.options(resources={"A": 0.75}).remote()


# ---- threads


@ray.remote(num_cpus=0)
def ask_aside(refs: list[Any]) -> None:
    threading.Thread(target=ray.get, args=(refs,), daemon=True).start()
    threading.Event().wait()


# ---- coroutines


@ray.remote(num_cpus=0)
class Async:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def first_of(self, refs: list[Any]) -> None:
        await asyncio.wait([ref.as_future() for ref in refs], return_when=asyncio.FIRST_COMPLETED)

    async def all_of(self, refs: list[Any]) -> None:
        await asyncio.gather(*refs)

    async def task_of(self, refs: list[Any]) -> None:
        async def ask() -> None:
            await refs[0]

        await asyncio.create_task(ask())

    async def for_a_while(self, refs: list[Any]) -> None:
        await asyncio.wait_for(refs[0].as_future(), LONG_S)

    async def aside(self, refs: list[Any]) -> None:
        self.kept = refs[0].as_future()
        await asyncio.Event().wait()

    async def aside_and_sleep(self, refs: list[Any]) -> None:
        self.kept = refs[0].as_future()
        await asyncio.sleep(LONG_S)

    async def blocks(self, refs: list[Any]) -> None:
        ray.get(refs)

    async def rest(self) -> None:
        pass

    async def sleep(self) -> None:
        await asyncio.sleep(LONG_S)

    async def acquire(self) -> None:
        await self._lock.acquire()

    def know(self, other: Any) -> None:
        self.other = other

    async def locked(self, number: int) -> None:
        async with self._lock:
            if number:
                await self.other.locked.remote(number - 1)
            else:
                await asyncio.Event().wait()

    async def take(self) -> None:
        async with self._lock:
            pass

    async def hold(self, refs: list[Any]) -> None:
        async with self._lock:
            await refs[0]

    async def take_for_a_while(self) -> None:
        async with asyncio.timeout(LONG_S), self._lock:
            pass


def call(method: str, *args: Any) -> Any:
    actor = Async.remote()
    KEPT.append(actor)
    return getattr(actor, method).remote(*args)


def with_locks_in_a_circle(length: int) -> Any:
    actors = [Async.remote() for _ in range(2)]
    KEPT.append(actors)
    get([actor.know.remote(other) for actor, other in zip(actors, reversed(actors), strict=True)])
    return actors[0].locked.remote(length)


def an_actor_of_a_circle() -> Any:
    KEPT.append(with_locks_in_a_circle(2))
    (actor, _) = KEPT[-2]
    return actor


def with_calls(actor: Any, *calls: tuple[Any, ...]) -> Any:
    KEPT.extend(getattr(actor, method).remote(*args) for method, *args in calls)
    return actor


def behind_one_that_blocks_the_loop() -> Any:
    actor = Async.remote()
    begun = actor.locked.remote(0)
    KEPT.extend([actor, actor.blocks.remote([of_gpus()])])
    return begun


def of_a_lock_for_a_while() -> Any:
    actor = Async.remote()
    KEPT.extend([actor, actor.hold.remote([of_gpus()])])
    return actor.take_for_a_while.remote()


def of_an_empty_queue() -> Any:
    queue = Queue()
    KEPT.append(queue)
    return queue.actor.get.remote()


@ray.remote(num_cpus=0, resources={"A": 0.5})
def recursive(depth: int) -> None:
    if depth:
        ray.get(recursive.remote(depth - 1))


def given_to_a_call() -> Any:
    holder, keeper = Holder.remote(), Keeper.remote()
    get(holder.rest.remote())
    KEPT.extend([keeper, keeper.keep.remote(holder)])
    del holder
    return wants_a()


def of_a_lock_that_a_later_call_may_release() -> Any:
    actor = Async.remote()
    KEPT.append(actor)
    get(actor.acquire.remote())
    KEPT.append(actor.acquire.remote())
    return actor.acquire.remote()


TOLD: dict[str, tuple[Callable[[], Any], str, Outlook, tuple[str, ...]]] = {
    "an actor without a handle, whose call runs": (
        without_a_handle,
        "RESOURCES",
        MOVES,
        ("actor Holder, of which nobody has a handle, ends after 1 call", "Holder.work()"),
    ),
    "an actor with a handle in the driver": (
        with_a_handle_here,
        "RESOURCES",
        OPEN,
        ("actor Holder is held until the driver (pid ", "drops its handles or kills it", "end that actor"),
    ),
    "an actor of a task that runs": (
        of_a_task_that,
        "RESOURCES",
        OPEN,
        ("actor Holder is held until hold(), which made it, drops its handles", "hold() runs on"),
    ),
    "an actor of a task that is stuck": (
        lambda: of_a_task_that([of_gpus()]),
        "RESOURCES",
        STUCK,
        ("actor Holder is held until hold(), which made it,", "needs {GPU: 1}"),
    ),
    "an actor of a task that waits for what it holds": (
        hold_and_want.remote,
        "DEADLOCK",
        STUCK,
        ("actor Holder is held until hold_and_want(), which made it, drops its handles: a deadlock",),
    ),
    "an actor of another actor": (
        of_another_actor,
        "RESOURCES",
        OPEN,
        ("actor Holder is held until process ", "which made it, drops its handles or kills it"),
    ),
    "an actor of another actor that waits for what it holds": (
        of_another_actor_that_makes_it_and_wants_it,
        "DEADLOCK",
        STUCK,
        ("actor Holder is held until Keeper.make_and_want() of actor ", ": a deadlock"),
    ),
    "several actors, of which two have to end": (
        of_several_actors,
        "RESOURCES",
        OPEN,
        ("To unblock it: end 3 of those that hold it, of which that actor is one, or add a node with",),
    ),
    "a task one of whose threads waits": (
        lambda: ask_aside.remote([of_gpus()]),
        "INFEASIBLE",
        OPEN,
        ("ask_aside() on worker", "may wait in its code for its threads, and these for 1 object"),
    ),
    "the first of two, of which one runs": (
        lambda: call("first_of", [of_gpus(), never.remote()]),
        "RUNNING",
        MOVES,
        ("Async.first_of() of actor ", "waits in its code for 1 of 2 objects"),
    ),
    "the first of two that cannot run": (
        lambda: call("first_of", [of_gpus(), of_gpus()]),
        "INFEASIBLE",
        STUCK,
        ("waits in its code for 1 of 2 objects",),
    ),
    "all of two, of which one runs": (
        lambda: call("all_of", [never.remote(), of_gpus()]),
        "INFEASIBLE",
        STUCK,
        ("waits in its code for 2 objects",),
    ),
    "a task of asyncio that waits": (
        lambda: call("task_of", [of_gpus()]),
        "INFEASIBLE",
        STUCK,
        ("waits in its code for 1 object",),
    ),
    "a while": (
        lambda: call("for_a_while", [of_gpus()]),
        "INFEASIBLE",
        MOVES,
        ("waits in its code for 1 object, or until a time is over",),
    ),
    "an event, beside an object": (
        lambda: call("aside", [of_gpus()]),
        "INFEASIBLE",
        OPEN,
        ("has asked for, and may wait in its code for 1 object",),
    ),
    "a time, beside an object": (
        lambda: call("aside_and_sleep", [of_gpus()]),
        "INFEASIBLE",
        MOVES,
        ("has asked for, and may wait in its code for 1 object, or until a time is over",),
    ),
    "a lock whose holder runs": (
        lambda: with_locks_in_a_circle(0),
        "RUNNING",
        MOVES,
        ("Async.locked() of actor ",),
    ),
    "a lock that a later call may release": (
        of_a_lock_that_a_later_call_may_release,
        "LOCK",
        OPEN,
        ("Async.acquire() of actor ", "waits in its code for a lock that another call of its actor has"),
    ),
    "a coroutine behind one that blocks the event loop": (
        behind_one_that_blocks_the_loop,
        "INFEASIBLE",
        STUCK,
        ("Async.locked() of actor ", "is behind Async.blocks() of actor ", "which blocks its event loop"),
    ),
    "an actor that has no calls": (Async.remote, "READY", MOVES, ("is alive; it has no calls on worker ",)),
    "an actor that works": (
        lambda: with_calls(Keeper.remote(), ("make_and_work",)),
        "READY",
        MOVES,
        ("is alive; it has 1 call under way; Keeper.make_and_work() of actor ", "runs on worker"),
    ),
    "an actor one of whose calls is stuck": (
        lambda: with_calls(Async.remote(), ("sleep",), ("all_of", [of_gpus()])),
        "INFEASIBLE",
        STUCK,
        ("is alive; it has 2 calls under way; Async.all_of() of actor ", "waits in its code for 1 object"),
    ),
    "an actor that waits for another, which waits for it": (
        an_actor_of_a_circle,
        "DEADLOCK",
        STUCK,
        ("actor Async (", "is alive; it has ", " for each other"),
    ),
    "a lock for a while": (
        of_a_lock_for_a_while,
        "INFEASIBLE",
        MOVES,
        ("a lock that another call of its actor has, or until a time is over",),
    ),
    "an item of a queue": (
        of_an_empty_queue,
        "SIGNAL",
        OPEN,
        ("waits in its code in asyncio.Queue.get()", "cancel the call"),
    ),
    "an actor that was given to a call": (
        given_to_a_call,
        "RESOURCES",
        OPEN,
        ("actor Holder is held by 1 call that it was given to", "Keeper.keep() of actor "),
    ),
    "calls of one name that wait for each other": (
        lambda: recursive.remote(2),
        "DEADLOCK",
        STUCK,
        ("a deadlock, in which calls of recursive() wait for each other",),
    ),
    "locks in a circle": (
        lambda: with_locks_in_a_circle(2),
        "DEADLOCK",
        STUCK,
        ("waits in its code for a lock that another call of its actor has", "for each other"),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_it_is_called_stuck_where_nothing_that_runs_helps(name: str) -> None:
    expect_program_explained(*TOLD[name])


def test_many_coroutines_are_looked_at_in_no_time() -> None:
    """A worker that looks longer than two seconds would be called silent."""
    actor = Async.options(max_concurrency=2000).remote()
    KEPT.extend([actor, *(actor.sleep.remote() for _ in range(500)), actor.locked.remote(0)])
    KEPT.extend(actor.take.remote() for _ in range(500))

    def are_told() -> bool:
        told = ray.explain()
        assert not told.silent
        return any(
            group.count == 500 and "a lock that another call" in str(group.example) for group in told.groups
        )

    wait_until(are_told, "500 wait for a lock")
