"""The virtual loop: time that jumps, order that repeats, processes that die, and runs that cannot hang."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.simulation.loop import Deadlock, Livelock, SimulationError, TimeLimitReached, VirtualLoop, new_loop
from tests.simulation.process import SimProcess


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = new_loop()
    yield loop
    loop.end()


def test_an_hour_of_sleep_is_an_hour_of_virtual_time(loop: VirtualLoop) -> None:
    async def main() -> str:
        await asyncio.sleep(3600)
        return "done"

    assert loop.run_until_complete(main()) == "done"
    assert loop.time() == 3600


def test_callbacks_run_by_time_and_then_in_the_order_in_which_they_were_set(loop: VirtualLoop) -> None:
    seen: list[str] = []
    for name, delay_s in [("b1", 2.0), ("a1", 1.0), ("b2", 2.0), ("a2", 1.0), ("b3", 2.0)]:
        loop.call_later(delay_s, seen.append, name)
    loop.call_soon(seen.append, "now")
    loop.run_until_complete(asyncio.sleep(5))
    assert seen == ["now", "a1", "a2", "b1", "b2", "b3"]


def test_callbacks_that_take_time_end_before_or_after_what_is_due_soon(loop: VirtualLoop) -> None:
    """A chain of ten, and what is due in its time, and what is not."""
    places = set()
    for seed in range(40):
        loop.let_slip(0.001, random.Random(seed))
        seen: list[str] = []

        def link(number: int, seen: list[str] = seen) -> None:
            seen.append(str(number))
            if number < 9:
                loop.call_soon(link, number + 1)

        loop.call_soon(link, 0)
        loop.call_later(0.0005, seen.append, "soon")
        loop.call_later(0.005, seen.append, "later")
        loop.run_until_complete(asyncio.sleep(1))
        assert seen[-1] == "later" and [each for each in seen[:-1] if each != "soon"] == list("0123456789")
        places.add(seen.index("soon"))
    assert len(places) > 5


def test_timeouts_and_queues_of_asyncio_work(loop: VirtualLoop) -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def produce() -> None:
            for number in range(3):
                await asyncio.sleep(1)
                queue.put_nowait(number)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            received = [await queue.get() for _ in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await queue.get()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.get(), 5)
        return received

    assert loop.run_until_complete(main()) == [0, 1, 2]
    assert loop.time() == 18


def test_a_set_of_tasks_iterates_in_order_of_creation(loop: VirtualLoop) -> None:
    async def main() -> list[str]:
        tasks = {asyncio.ensure_future(asyncio.sleep(number)) for number in range(20)}
        done, _ = await asyncio.wait(tasks)
        return [task.get_name() for task in done if isinstance(task, asyncio.Task)]

    names = loop.run_until_complete(main())
    assert names == sorted(names, key=lambda name: int(name.partition("-")[2]))


def test_a_wait_that_nothing_can_end_is_a_deadlock_that_names_it(loop: VirtualLoop) -> None:
    async def forgotten_wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"(?s)forgotten_wait \(loop_test.py:\d+\)"):
        loop.run_until_complete(forgotten_wait())


def test_periodic_timers_do_not_hide_a_wait_from_the_time_limit(loop: VirtualLoop) -> None:
    async def tick() -> None:
        while True:
            await asyncio.sleep(1)

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        await asyncio.Event().wait()
        ticking.cancel()

    with pytest.raises(TimeLimitReached, match=r"30.0+ virtual seconds(?s:.*)Event.wait"):
        loop.run_until_complete(main(), limit_s=30)


def test_callbacks_that_never_let_time_pass_are_a_livelock(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.simulation.loop.LIVELOCK_TURNS", 1000)

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        loop.run_until_complete(spin())


def test_an_error_that_asyncio_would_only_log_fails_the_run(loop: VirtualLoop) -> None:
    def callback() -> None:
        raise ValueError("lost")

    loop.call_later(1, callback)
    with pytest.raises(SimulationError, match="lost"):
        loop.run_until_complete(asyncio.sleep(2))


def test_threads_are_refused(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(SimulationError, match="threads"):
        loop.run_until_complete(main())


def test_a_killed_process_runs_nothing_any_more_not_even_its_clean_up(loop: VirtualLoop) -> None:
    process = SimProcess(loop, "host", "victim", pid=1)
    seen: list[str] = []

    async def child() -> None:
        await asyncio.sleep(2)
        seen.append("child")

    async def work() -> None:
        asyncio.get_running_loop().call_later(2, seen.append, "timer")
        kept = asyncio.ensure_future(child())
        try:
            await kept
        finally:
            seen.append("finally")

    async def main() -> list[str]:
        process.spawn(work())
        await asyncio.sleep(1)
        process.kill("the test")
        await asyncio.sleep(5)
        return list(seen)

    assert loop.run_until_complete(main()) == []
    assert loop.pending_tasks() == []


def test_the_end_of_a_run_cleans_up_what_still_waits(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    async def main() -> None:
        keep.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(1)

    keep: list[asyncio.Future[None]] = []
    loop.run_until_complete(main())
    loop.end()
    assert seen == ["cleaned up"]
    assert loop.is_closed()
