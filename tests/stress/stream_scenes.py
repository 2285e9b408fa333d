"""The scenes with streams: items, credits and cancels beside calls, from threads and event loops at once. See
scenes.py."""

from __future__ import annotations

import asyncio
from typing import Any

import ray_mono as ray
from tests.stress import user_code
from tests.stress.program import WAIT_S, Caller, Failure, check, get, state_of_process
from tests.stress.scenes import scene


async def soon(awaitable: Any, what: str) -> Any:
    """Its value. Raises Failure with the state of this process after WAIT_S."""
    try:
        return await asyncio.wait_for(awaitable, WAIT_S)
    except TimeoutError:
        raise Failure(f"waited {WAIT_S:g} s for {what}: {state_of_process()}") from None


@scene
def a_subscriber_beside_calls(caller: Caller) -> None:
    """One loop awaits calls of an actor and takes what the same actor streams."""
    count = caller.rng.randrange(10, 400)
    size = caller.rng.choice([0, 0, 0, 150_000])

    async def play() -> list[int]:
        bus = ray.remote(user_code.Bus).options(num_cpus=0).remote()
        seen: list[int] = []

        async def listen() -> None:
            async for ref in bus.subscribe.remote(size if count < 50 else 0):
                seen.append((await ref)[0])

        listener = asyncio.create_task(listen())
        while not await soon(bus.count.remote(), "the subscription"):
            await asyncio.sleep(0.01)
        for number in range(count):
            await soon(bus.publish.remote(number), f"call {number} beside a stream")
        await soon(bus.publish.remote(None), "the last call beside a stream")
        await soon(listener, f"the end of a stream of {count} items, after {len(seen)}")
        return seen

    check(
        asyncio.run(play()) == list(range(count)), "a subscriber did not get what was published, in its order"
    )
    caller.program.count(count)


@scene
def streams_of_tasks_and_actors(caller: Caller) -> None:
    """Several at once, taken by turns; with limits, so that generators rest and are told to go on."""
    rng = caller.rng
    actor = ray.remote(user_code.Bus).options(num_cpus=0).remote()
    streams = []
    for _ in range(rng.randrange(1, 4)):
        count, limit = rng.randrange(1, 60), rng.choice([-1, -1, 1, 5])
        size = rng.choice([0, 10, 150_000])
        source: Any = rng.choice([user_code.items, actor.items])
        options = source.options(num_returns="streaming", _generator_backpressure_num_objects=limit)
        streams.append((options.remote(count, size), iter(range(count))))
    while streams:
        index = rng.randrange(len(streams))
        stream, numbers = streams[index]
        number = next(numbers, None)
        ref = stream._next_sync(WAIT_S) if number is not None else None
        if ref is None:
            get(stream.completed(), "the end of a stream")
            del streams[index]
            continue
        check(not ref.is_nil(), f"an item did not come in {WAIT_S:g} s: {state_of_process()}")
        caller.get_all([ref], [(number, get(ref, "an item")[1])], "an item of a stream")
        if rng.random() < 0.02:
            del streams[index]  # nobody takes the rest
            del stream


@scene
def streams_that_are_cancelled(caller: Caller) -> None:
    actor = ray.remote(user_code.Bus).options(num_cpus=0).remote()
    streams = [
        actor.items.options(num_returns="streaming").remote(10**6, 0)
        for _ in range(caller.rng.randrange(1, 4))
    ]
    for stream in streams:
        caller.get_all([next(stream)], [(0, b"")], "the first item of a stream")
        ray.cancel(stream)
    for stream in streams:
        try:
            for ref in stream:
                get(ref, "an item of a stream that is cancelled")
            check(False, "a stream that was cancelled came to its end")
        except ray.exceptions.TaskCancelledError:
            pass
    caller.get_all([actor.count.remote()], [0], "a call after streams were cancelled")


@scene
def short_answers_before_a_long_call(caller: Caller) -> None:
    """They do not wait for its end."""
    actor = (
        ray.remote(user_code.Gate).options(num_cpus=0, max_concurrency=caller.rng.choice([1, 1, 3])).remote()
    )
    path = caller.marker()
    count = caller.rng.randrange(1, 40)
    early = actor.nap.remote(0.02)
    short = [actor.nap.remote(0) for _ in range(count)]
    long = actor.until.remote(path)
    caller.get_all([early, *short], [0.02] + [0] * count, "calls before one that waits for us")
    open(path, "w").close()
    caller.get_all([long], [path], "a call that waited for us")
