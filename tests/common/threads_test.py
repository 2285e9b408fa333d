"""Where no thread may be made work waits for one, and is done once."""

from __future__ import annotations

import asyncio
import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_mono.common.threads import NO_THREAD, no_thread, run_in_pool


class Machine:
    """Makes threads, or says as Python does that there can be none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.refused = asyncio.Event()
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            if self.is_full:
                self.refused.set()
                raise RuntimeError(NO_THREAD)
            start(thread)

        patch.setattr(threading.Thread, "start", started)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_work_waits_for_a_thread_and_is_done_once(machine: Machine) -> None:
    done: list[int] = []

    async def scene() -> None:
        with ThreadPoolExecutor(2) as pool:
            machine.is_full = True
            work = asyncio.create_task(run_in_pool(pool, lambda: done.append(1)))
            await machine.refused.wait()
            assert not work.done() and done == []
            machine.is_full = False
            await work

    asyncio.run(scene())
    assert done == [1]


def test_a_pool_with_one_thread_does_all_where_there_can_be_no_second(machine: Machine) -> None:
    async def scene() -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            await run_in_pool(pool, lambda: 0)
            machine.is_full = True
            return await asyncio.gather(*(run_in_pool(pool, lambda each=each: each) for each in range(9)))

    assert asyncio.run(scene()) == list(range(9))


def test_what_the_work_raises_and_what_a_pool_says_that_has_ended_are_told() -> None:
    async def scene() -> None:
        pool = ThreadPoolExecutor(1)
        with pytest.raises(KeyError, match="no such"):
            await run_in_pool(pool, lambda: {}["no such"])
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            await run_in_pool(pool, lambda: 0)

    asyncio.run(scene())


def test_only_what_says_that_there_is_no_thread_is_one_more_thing_that_ran_out() -> None:
    assert no_thread(RuntimeError(NO_THREAD)).errno == errno.EAGAIN
    with pytest.raises(RuntimeError, match="another"):
        no_thread(RuntimeError("another"))
