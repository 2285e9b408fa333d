"""Ctrl-C at any step of a call: the call is done or undone, and nothing of it stays behind in stores, tables
or waits."""

from __future__ import annotations

import _signal
import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.core_worker.process import current
from ray_mono.util import list_named_actors
from tests.integration.bounded import get
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

MIB = 1 << 20
LARGE = np.zeros(MIB, np.uint8)
RUNTIME = ("ray_mono.core_worker.", "ray_mono.rpc.")


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Any:
    # So that a put can be made to wait.
    settings = {"automatic_object_spilling_enabled": False}
    return ray.init(address="local", num_cpus=2, object_store_memory=64 * MIB, _system_config=settings)


@pytest.fixture(autouse=True)
def leaves_nothing(cluster: Any) -> Iterator[None]:
    yield
    wait_for_nothing_left()
    assert internal_state.store_stats().used_bytes == 0


def strike(call: Callable[[], Any], line: int, signum: int = signal.SIGINT) -> bool:
    """Runs call() with a signal at that line of the runtime's that this thread runs. False where it runs
    fewer."""
    left = line
    # What Python calls, not what signal.getsignal says that it does.
    handler: Any = _signal.getsignal(signum)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith(RUNTIME):
            return None
        if event == "line":
            left -= 1
            if not left:
                handler.decide(frame)(signum, frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        # Noted, and nothing waited: for this test that is the end of it.
        core: Any = current.require()
        core.env.reactor.note_interrupt(False)
    return left <= 0


def strike_each(call: Callable[[], Any], step: int) -> None:
    line = 1
    while strike(call, line):
        line += step
    assert line > 10 * step, "the call runs so little of the runtime that this shows nothing"


@ray.remote
def length_of(argument: Any) -> int:
    return len(argument)


@ray.remote
def items() -> Iterator[Any]:
    yield 1
    yield LARGE


@ray.remote(num_cpus=0)
class Named:
    def ping(self) -> int:
        return 1


def test_interrupted_puts_and_reads_of_what_the_store_has_leave_nothing(cluster: Any) -> None:
    strike_each(lambda: ray.get(ray.put(LARGE)), 2)
    strike_each(lambda: ray.wait([ray.put(LARGE)]), 3)


def test_interrupted_calls_and_waits_for_their_results_leave_nothing(cluster: Any) -> None:
    strike_each(lambda: ray.get(length_of.remote(LARGE)), 7)
    strike_each(lambda: [ray.get(item) for item in items.remote()], 17)


def test_an_interrupted_creation_of_a_named_actor_is_done_or_undone(cluster: Any) -> None:
    names = itertools.count()
    strike_each(lambda: Named.options(name=f"number {next(names)}").remote(), 29)
    core: Any = current.require()
    wait_until(lambda: not list_named_actors(), "no actor has its name any more")
    wait_until(lambda: not core.describe()["tasks_pending"], "no creation is pending")


def test_a_wait_that_was_interrupted_waits_for_nothing_any_more(cluster: Any, tmp_path: Path) -> None:
    @ray.remote
    def until_made(path: Path) -> None:
        wait_until(path.exists, "the file")

    never = until_made.remote(tmp_path / "made")

    def wait_in_vain() -> None:
        ray.wait([never], timeout=0.001)
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            ray.get(never, timeout=0.001)

    strike_each(wait_in_vain, 3)
    core: Any = current.require()
    assert core.describe()["waiters"] == 0
    (tmp_path / "made").touch()
    get(never)


def test_a_put_that_was_interrupted_while_it_waited_for_room_takes_none(cluster: Any) -> None:
    held = ray.put(np.zeros(10 * MIB, np.uint8))
    needs_all = np.ones(60 * MIB, np.uint8)

    def interrupt() -> None:
        wait_until(lambda: internal_state.store_stats().num_waiting_creates > 0, "the put waits")
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(3):
        striker = threading.Thread(target=interrupt)
        striker.start()
        with pytest.raises(KeyboardInterrupt):
            ray.put(needs_all)
        striker.join()
        wait_until(lambda: not internal_state.store_stats().num_waiting_creates, "nothing waits")
    del held
    assert get(ray.put(needs_all))[-1] == 1


class LateError(Exception):
    pass


@pytest.mark.parametrize("what", ["it raises", "it calls"])
def test_a_handler_of_the_users_may_raise_or_call_whatever_it_interrupts(cluster: Any, what: str) -> None:
    """At every n-th line of the runtime, by which another handler would have broken connections."""
    runs: list[Any] = []

    def on_signal(signum: int, frame: Any) -> None:
        runs.append(None)
        if what == "it raises":
            raise LateError
        runs[-1] = ray.get(length_of.remote([1, 2]), timeout=30)

    def strike_and_see(call: Callable[[], Any], line: int) -> bool:
        runs.clear()
        with contextlib.suppress(LateError):
            has_struck = strike(call, line, signal.SIGUSR1)
            wait_until(lambda: bool(runs) or not has_struck, "the handler has run")
            assert not runs or runs == [2]
        return bool(runs)

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        for call, step in (
            (lambda: ray.get(ray.put(LARGE)), 19),
            (lambda: ray.get(length_of.remote([1])), 11),
        ):
            line = 1
            while strike_and_see(call, line):
                line += step
            assert line > 5 * step
    finally:
        assert signal.signal(signal.SIGUSR1, before) is on_signal
    assert ray.get([length_of.remote([n]) for n in range(100)], timeout=60) == [1] * 100


def test_an_interrupt_ends_a_loop_of_calls_that_never_waits(cluster: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            ray.put(1)
