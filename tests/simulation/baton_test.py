"""Threads that hand a baton over: one runs at a time, in an order that repeats, in virtual time, and none
outlives its process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.actor_loop import actor_asyncio
from tests.simulation.baton import Baton
from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.loop import SimulationError, VirtualLoop, new_loop
from tests.simulation.machine import SimEvent, SimQueue
from tests.simulation.process import SimProcess

LIMIT_S = 100.0


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = new_loop()
    yield loop
    loop.end()


@pytest.fixture
def baton(loop: VirtualLoop) -> Iterator[Baton]:
    baton = Baton(loop)
    yield baton
    baton.end()


def process_of(baton: Baton, name: str = "p") -> SimProcess:
    process = SimProcess(baton.loop, "host", name, 1)
    process.on_death(lambda _reason: baton.process_died(process))
    return process


def test_threads_run_one_at_a_time_in_the_order_of_virtual_time(loop: VirtualLoop, baton: Baton) -> None:
    process = process_of(baton)
    seen: list[tuple[float, str]] = []

    def sleeper(name: str, seconds: float) -> None:
        for _ in range(3):
            baton.running().sleep(seconds)
            seen.append((loop.time(), name))

    baton.start(process, lambda: sleeper("slow", 2.0), "slow")
    baton.start(process, lambda: sleeper("quick", 0.5), "quick")
    loop.run_until_idle(LIMIT_S)
    assert seen == [
        (0.5, "quick"),
        (1.0, "quick"),
        (1.5, "quick"),
        (2.0, "slow"),
        (4.0, "slow"),
        (6.0, "slow"),
    ]
    assert baton.current is None


def test_a_thread_runs_in_the_context_of_its_process(loop: VirtualLoop, baton: Baton) -> None:
    process = process_of(baton)
    seen: list[object] = []
    baton.start(process, lambda: seen.append(CURRENT_PROCESS.get()), "t")
    loop.run_until_idle(LIMIT_S)
    assert seen == [process]


def test_what_leaves_a_thread_ends_the_run(loop: VirtualLoop, baton: Baton) -> None:
    def fail() -> None:
        raise SimulationError("a thread failed")

    baton.start(process_of(baton), fail, "t")
    with pytest.raises(SimulationError, match="a thread failed"):
        loop.run_until_idle(LIMIT_S)


def test_the_loop_itself_must_not_wait(baton: Baton) -> None:
    with pytest.raises(SimulationError, match="would block"):
        baton.running()


def test_threads_of_a_killed_process_unwind_and_do_nothing_else(loop: VirtualLoop, baton: Baton) -> None:
    process = process_of(baton)
    seen: list[str] = []

    def stubborn() -> None:
        while True:
            try:
                baton.running().sleep(1.0)
                seen.append("slept")
            except BaseException:
                seen.append("unwound")
                if len(seen) == 4:
                    raise

    baton.start(process, stubborn, "t")
    loop.call_later(1.5, process.kill, "a fault")
    loop.run_until_idle(LIMIT_S)
    # It swallows its end twice, and gets no further by that.
    assert seen == ["slept", "unwound", "unwound", "unwound"]
    assert loop.time() == 1.5


def test_a_thread_that_never_unwinds_is_told(loop: VirtualLoop, baton: Baton) -> None:
    process = process_of(baton)

    def immortal() -> None:
        while True:
            try:
                baton.running().sleep(1.0)
            except BaseException:
                pass

    baton.start(process, immortal, "the immortal one")
    loop.call_later(1.5, process.kill, "a fault")
    with pytest.raises(SimulationError, match="the immortal one of p is dead and does not end"):
        loop.run_until_idle(LIMIT_S)


def test_a_thread_of_a_dead_process_never_starts(loop: VirtualLoop, baton: Baton) -> None:
    process = process_of(baton)
    seen: list[str] = []
    baton.start(process, lambda: seen.append("ran"), "t")
    process.kill("a fault")
    loop.run_until_idle(LIMIT_S)
    assert seen == []


def test_the_end_of_a_simulation_leaves_no_thread(loop: VirtualLoop, baton: Baton) -> None:
    before = threading.active_count()
    for number in range(3):
        baton.start(process_of(baton, f"p{number}"), lambda: baton.running().sleep(1000.0), "t")
    with pytest.raises(SimulationError):
        loop.run_until_complete(loop.create_future(), 1.0)
    assert threading.active_count() == before + 3
    baton.end()
    for thread in threading.enumerate():
        if thread.name == "t":
            thread.join(LIMIT_S)
    assert threading.active_count() == before


def test_a_signal_runs_where_the_thread_waits(loop: VirtualLoop, baton: Baton) -> None:
    seen: list[object] = []

    def handler(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        try:
            baton.running().sleep(10.0)
        except KeyboardInterrupt:
            seen.append(loop.time())

    thread = baton.start(process_of(baton), wait, "t")
    loop.call_later(2.0, thread.strike, handler)
    loop.run_until_idle(LIMIT_S)
    assert seen == [2.0]


def test_a_queue_serves_whoever_asked_first(loop: VirtualLoop, baton: Baton) -> None:
    process, queue = process_of(baton), SimQueue(baton)
    seen: list[tuple[str, int]] = []
    for name in ("first", "second"):
        baton.start(process, lambda name=name: seen.append((name, queue.get())), name)  # type: ignore[misc]

    def put() -> None:
        baton.running().sleep(1.0)
        queue.put(1)
        queue.put(2)
        assert not queue.empty()

    baton.start(process, put, "putter")
    loop.run_until_idle(LIMIT_S)
    assert seen == [("first", 1), ("second", 2)]
    assert queue.empty()


def test_an_item_goes_to_who_waits_also_if_another_was_woken_for_nothing(
    loop: VirtualLoop, baton: Baton
) -> None:
    process, queue = process_of(baton), SimQueue(baton)
    seen: list[int] = []
    threads = [baton.start(process, lambda: seen.append(queue.get()), f"t{number}") for number in range(2)]
    for delay_s in (1.0, 2.0, 3.0):
        loop.call_later(delay_s, threads[0].wake)
    loop.call_later(4.0, queue.put, 1)
    loop.call_later(4.0, queue.put, 2)
    loop.run_until_idle(LIMIT_S)
    assert seen == [1, 2]


def test_an_event_wakes_all_that_wait_and_holds_up_none_after(loop: VirtualLoop, baton: Baton) -> None:
    process, event = process_of(baton), SimEvent(baton)
    seen: list[float] = []

    def wait() -> None:
        event.wait()
        seen.append(loop.time())

    for _ in range(2):
        baton.start(process, wait, "t")
    loop.call_later(3.0, event.set)
    loop.call_later(5.0, lambda: baton.start(process, wait, "late") and None)
    loop.run_until_idle(LIMIT_S)
    assert seen == [3.0, 3.0, 5.0]


def test_it_is_told_who_waits_where(loop: VirtualLoop, baton: Baton) -> None:
    def naps() -> None:
        baton.running().sleep(10.0)

    baton.start(process_of(baton), naps, "the sleeper")
    with pytest.raises(SimulationError):
        loop.run_until_complete(loop.create_future(), 1.0)
    assert "  p: the sleeper < " in baton.describe()
    assert "naps (baton_test.py:" in baton.describe()


def test_coroutines_of_a_killed_process_end_with_it(loop: VirtualLoop, baton: Baton) -> None:
    process, seen = process_of(baton), []
    actor_loop: Any = actor_asyncio(baton).new_event_loop()

    async def work() -> None:
        try:
            await asyncio.sleep(10.0)
        finally:
            seen.append((loop.time(), process.is_alive, CURRENT_PROCESS.get()))

    def main() -> None:
        tasks.append(actor_loop.create_task(work()))
        actor_loop.run_forever()

    tasks: list[Any] = []
    baton.start(process, main, "actor-loop")
    loop.call_later(2.0, process.kill, "a fault")
    loop.run_until_idle(LIMIT_S)
    assert seen == [(2.0, False, process)]
