"""Programs as users write them, on one cluster that they share. After each of them nothing may be left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.conftest import NUM_CPUS
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


# ---------------------------------------------------------------- tasks


def test_a_task() -> None:
    @ray.remote
    def add_one(x: int) -> int:
        return x + 1

    assert get(add_one.remote(1)) == 2
    assert get([add_one.remote(i) for i in range(20)]) == list(range(1, 21))


def test_a_task_runs_in_another_process_than_its_submitter() -> None:
    @ray.remote
    def own_pid() -> int:
        return os.getpid()

    @ray.remote
    def pids() -> tuple[int, int]:
        return os.getpid(), ray.get(own_pid.remote())

    outer, inner = get(pids.remote())
    assert os.getpid() not in (outer, inner) and outer != inner


def test_a_chained_task_runs_after_the_one_it_depends_on(tmp_path: Path, touch_and_wait: Any) -> None:
    @ray.remote
    def step(x: int, started: str, gate: str | None) -> int:
        touch_and_wait(started, gate)
        return x + 1

    first = step.remote(1, f"{tmp_path}/first", f"{tmp_path}/gate")
    second = step.remote(first, f"{tmp_path}/second", None)
    wait_until((tmp_path / "first").exists, "the first task started")
    assert not (tmp_path / "second").exists()
    (tmp_path / "gate").touch()
    assert get(second) == 3 and get(first) == 2


def test_tasks_submit_tasks_and_return_their_references() -> None:
    @ray.remote
    def square(x: int) -> int:
        return x * x

    @ray.remote
    def squares(n: int) -> list[Any]:
        return [square.remote(i) for i in range(n)]

    references = get(squares.remote(5))
    assert get(references) == [0, 1, 4, 9, 16]

    @ray.remote
    def total(parts: list[Any]) -> int:
        return sum(ray.get(parts))

    assert get(total.remote(references)) == 30


def test_tasks_that_wait_for_tasks_do_not_starve_them() -> None:
    @ray.remote
    def deep(n: int) -> int:
        return 0 if n == 0 else 1 + int(ray.get(deep.remote(n - 1)))

    assert get([deep.remote(5) for _ in range(NUM_CPUS)]) == [5] * NUM_CPUS

    @ray.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert get(fib.remote(5)) == 5


def test_exactly_as_many_tasks_run_at_a_time_as_there_are_cpus(tmp_path: Path) -> None:
    running, full = tmp_path / "running", tmp_path / "full"
    running.mkdir()

    @ray.remote
    def work(name: str) -> int:
        import time

        mine = running / name
        mine.touch()
        most = 0
        deadline_s = time.monotonic() + 60
        rounds_left = 20
        while rounds_left:
            most = max(most, len(list(running.iterdir())))
            if most >= NUM_CPUS:
                full.touch()
            # Until all CPUs were busy at once, then a little longer, in case one more starts.
            rounds_left -= full.exists()
            assert time.monotonic() < deadline_s, f"never more than {most} at a time"
            time.sleep(0.01)
        mine.unlink()
        return most

    assert max(get([work.remote(str(i)) for i in range(6)])) == NUM_CPUS


def test_results_are_handled_as_they_finish(tmp_path: Path, touch_and_wait: Any) -> None:
    @ray.remote(num_cpus=0)
    def gated(i: int) -> int:
        touch_and_wait(None, f"{tmp_path}/{i}")
        return i

    pending = [gated.remote(i) for i in range(3)]
    assert ray.wait(pending, timeout=0) == ([], pending)
    order = []
    for i in (2, 0, 1):
        (tmp_path / str(i)).touch()
        (ready,), pending = ray.wait(pending, timeout=GET_TIMEOUT_S)
        order.append(get(ready))
    assert order == [2, 0, 1] and pending == []


def test_get_with_a_timeout_gives_up_and_may_be_repeated(tmp_path: Path, touch_and_wait: Any) -> None:
    @ray.remote
    def gated() -> str:
        touch_and_wait(None, f"{tmp_path}/gate")
        return "done"

    reference = gated.remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(reference, timeout=0)
    with pytest.raises(TimeoutError):
        ray.get([reference], timeout=0.01)
    (tmp_path / "gate").touch()
    assert get(reference) == "done"


# ---------------------------------------------------------------- objects


def test_what_is_put_once_is_read_by_ten_tasks_from_one_copy() -> None:
    array = np.arange(500_000)
    reference = ray.put(array)

    @ray.remote
    def read(shared: Any) -> tuple[int, bool, bool]:
        return int(shared.sum()), bool(shared.flags.writeable), bool(shared.flags.owndata)

    assert get([read.remote(reference) for _ in range(10)]) == [(int(array.sum()), False, False)] * 10
    assert internal_state.store_stats().num_objects == 1
    assert np.array_equal(get(reference), array)


# ---------------------------------------------------------------- actors


def test_an_actor_keeps_what_it_is_told_and_runs_calls_in_order() -> None:
    class Cell:
        def __init__(self) -> None:
            self.value = 0
            self.seen: list[int] = []

        def set(self, value: int) -> None:
            self.value = value
            self.seen.append(value)

        def get(self) -> int:
            return self.value

        def history(self) -> list[int]:
            return self.seen

    cell = ray.remote(Cell).remote()
    for i in range(50):
        cell.set.remote(i)
        assert i % 10 or get(cell.get.remote()) == i
    assert get(cell.history.remote()) == list(range(50))


def test_two_actors_work_in_parallel(tmp_path: Path, touch_and_wait: Any) -> None:
    class Partner:
        def meet(self, own: str, other: str) -> int:
            touch_and_wait(own, other)
            return os.getpid()

    partner: Any = ray.remote(Partner)
    left, right = partner.remote(), partner.remote()
    here, there = f"{tmp_path}/here", f"{tmp_path}/there"
    pids = get([left.meet.remote(here, there), right.meet.remote(there, here)])
    assert len({*pids, os.getpid()}) == 3


def test_many_tasks_share_a_logging_actor() -> None:
    class Log:
        def __init__(self) -> None:
            self.lines: list[tuple[int, int]] = []

        def add(self, task: int, line: int) -> None:
            self.lines.append((task, line))

        def all(self) -> list[tuple[int, int]]:
            return self.lines

    log = ray.remote(Log).remote()

    @ray.remote
    def work(task: int, shared: Any) -> None:
        ray.get([shared.add.remote(task, line) for line in range(5)])

    get([work.remote(task, log) for task in range(20)])
    lines = get(log.all.remote())
    assert len(lines) == 100
    for task in range(20):
        assert [line for own, line in lines if own == task] == list(range(5))


def test_named_actors_are_found_and_killed() -> None:
    class Service:
        def answer(self) -> int:
            return 42

    service = ray.remote(Service).options(name="service").remote()
    assert get(ray.get_actor("service").answer.remote()) == 42
    ray.kill(service)
    with pytest.raises(ray.exceptions.RayActorError):
        get(service.answer.remote())


# ---------------------------------------------------------------- code that travels


def test_nested_functions_classes_and_closures_are_shipped_by_value() -> None:
    factor = 3

    class Point:
        scale = 10

        def __init__(self, x: int) -> None:
            self.x = x

        class Label:
            text = "nested"

    def scaled(point: Any) -> int:
        return int(point.x * factor * Point.scale)

    @ray.remote
    def compute(x: int) -> Any:
        def inner(point: Any) -> int:
            return scaled(point) + 1

        point = Point(x)
        return inner(point), point, Point.Label.text

    value, point, text = get(compute.remote(2))
    assert value == 61 and text == "nested"
    assert isinstance(point, Point) and point.x == 2


def test_a_function_that_captures_references_and_handles_is_passed_as_a_value() -> None:
    class Adder:
        def add(self, x: int) -> int:
            return x + 1

    reference = ray.put(list(range(1000)))
    adder = ray.remote(Adder).remote()

    def total() -> int:
        return int(ray.get(adder.add.remote(sum(ray.get(reference)))))

    @ray.remote
    def apply(function: Any) -> Any:
        return function()

    assert get(apply.remote(total)) == 499501


def test_references_captured_by_a_remote_function_travel_with_its_code() -> None:
    reference = ray.put(list(range(1000)))

    @ray.remote
    def total() -> int:
        return sum(ray.get(reference))

    assert get([total.remote() for _ in range(3)]) == [499500] * 3
