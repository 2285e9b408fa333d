"""`f.map(items)` and `actor.method.map(items)`: each item is a call by itself, whatever travels together."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import ray_mono as ray
from ray_mono.exceptions import (
    TaskCancelledError,
    WorkerCrashedError,
)
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.map_programs import CHUNKS, Log, note_run, square
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("by_value", "leaves_nothing")


@ray.remote
def told(value: Any) -> Any:
    return value


@ray.remote
def fails_at_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd: {x}")
    return x


@pytest.fixture(autouse=True)
def warm(shared_cluster: Any) -> None:
    """Workers know the functions, and their owner how long those take: so that calls travel together."""
    get([square.remote(x) for x in range(4)])


def runs_of(directory: Path) -> dict[int, int]:
    """How often each item began."""
    return {int(path.name): path.stat().st_size for path in directory.iterdir() if path.name.isdigit()}


# ---- values


@pytest.mark.parametrize("chunk", CHUNKS)
def test_each_item_gives_its_value_in_order(chunk: Any) -> None:
    refs = square.map(range(300), chunk=chunk)
    assert [type(ref) for ref in refs] == [ray.ObjectRef] * 300
    assert len(set(refs)) == 300
    assert get(refs) == [x * x for x in range(300)]


def test_no_items_are_no_calls() -> None:
    assert square.map([]) == []
    assert square.map(iter(())) == []


def test_items_of_every_kind_arrive_as_they_are(shared_cluster: Any) -> None:
    items = [None, True, 1.5, 2j, "é" * 5000, b"x" * 5000, (1, [2]), {"a": {1}}, bytes(300_000), 10**40]
    assert get(told.map(items, chunk=100)) == items


@pytest.mark.parametrize("chunk", CHUNKS)
def test_large_numbers_all_arrive(shared_cluster: Any, chunk: Any) -> None:
    @ray.remote(max_retries=0)
    def bits(x: int) -> int:
        return x.bit_length()

    get([bits.remote(1) for _ in range(100)])
    items = [1 << 8 * num_bytes for num_bytes in (0, 4000, 5000, 100_000, 200_000)] * 60
    assert get(bits.map(items, chunk=chunk)) == [each.bit_length() for each in items]


def test_whatever_can_be_iterated_is_read_and_any_whole_number_is_a_chunk(shared_cluster: Any) -> None:
    class Old:
        """Iterable as of old: without __iter__."""

        def __getitem__(self, index: int) -> int:
            return [3, 4][index]

    assert get(square.map(Old(), chunk=numpy.int64(5))) == [9, 16]  # type: ignore[arg-type]


def test_references_among_items_are_resolved(shared_cluster: Any) -> None:
    late = square.remote(7)
    items = [1, late, ray.put("here"), [late], 5, square.remote(2)]
    *values, boxed_later = get(told.map(items, chunk=100))
    assert (values[:3], values[4], boxed_later) == ([1, 49, "here"], 5, 4)
    assert get(values[3][0]) == 49


def test_an_item_that_is_an_error_fails_its_own_call_only(shared_cluster: Any) -> None:
    refs = told.map([1, fails_at_odd.remote(1), 3], chunk=100)
    assert get([refs[0], refs[2]]) == [1, 3]
    with pytest.raises(ValueError, match="odd: 1"):
        get(refs[1])


def test_large_and_referring_values_come_back(shared_cluster: Any) -> None:
    @ray.remote
    def make(x: int) -> Any:
        return [bytes(200_000), ray.put(x), "small", None][x % 4]

    values = get(make.map(range(40), chunk=100))
    assert values[0] == bytes(200_000)
    assert [get(each) for each in values[1::4]] == list(range(1, 40, 4))
    assert values[2::4] == ["small"] * 10


# ---- num_returns


def test_num_returns_is_as_for_remote(shared_cluster: Any) -> None:
    pairs = told.options(num_returns=2).map([(1, 2), (3, 4)])
    assert [get(pair) for pair in pairs] == [[1, 2], [3, 4]]
    assert told.options(num_returns=0).map([1, 2, 3]) == [None, None, None]


def test_generators_are_a_list_of_them(shared_cluster: Any) -> None:
    @ray.remote
    def count(x: int) -> Iterator[int]:
        yield from range(x)

    assert [[get(ref) for ref in each] for each in count.map([0, 2, 3])] == [[], [0, 1], [0, 1, 2]]
    log = Log.remote()
    made = log.many.options(num_returns="streaming").map([2, 1])
    assert [[get(ref) for ref in each] for each in made] == [[0, 1], [0]]


# ---- errors, retries


def test_errors_are_each_items_own() -> None:
    refs = fails_at_odd.map(range(100), chunk=50)
    for x, ref in enumerate(refs):
        if x % 2:
            with pytest.raises(ValueError, match=f"odd: {x}"):
                get(ref)
        else:
            assert get(ref) == x


def test_retries_of_exceptions_count_for_each_item(tmp_path: Path) -> None:
    @ray.remote(max_retries=2, retry_exceptions=[KeyError])
    def flaky(x: int) -> int:
        time = note_run(tmp_path, x)
        if x == 3 and time < 3:
            raise KeyError(x)
        if x == 5:
            raise ValueError(x)
        if x == 7:
            raise KeyError(x)
        return time

    refs = flaky.map(range(20), chunk=20)
    assert get([ref for x, ref in enumerate(refs) if x not in (5, 7)]) == [
        3 if x == 3 else 1 for x in range(20) if x not in (5, 7)
    ]
    for x, kind in ((5, ValueError), (7, KeyError)):
        with pytest.raises(kind):
            get(refs[x])
    assert (runs_of(tmp_path)[5], runs_of(tmp_path)[7]) == (1, 3)


@pytest.mark.parametrize("end", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)])
@pytest.mark.parametrize("max_retries", [0, 1])
def test_a_worker_that_dies_costs_the_item_that_it_ran(
    tmp_path: Path, end: Callable[[], None], max_retries: int
) -> None:
    @ray.remote(max_retries=max_retries)
    def run(x: int) -> int:
        if note_run(tmp_path, x) == 1 and x in (0, 13, 50, 99):
            end()
        return x

    get([run.remote(-x) for x in range(1000, 1008)])
    refs = run.map(range(100), chunk=100)
    struck = {0, 13, 50, 99}
    assert get([ref for x, ref in enumerate(refs) if x not in struck]) == [
        x for x in range(100) if x not in struck
    ]
    for x in struck:
        if max_retries:
            assert get(refs[x]) == x
        else:
            with pytest.raises(WorkerCrashedError):
                get(refs[x])
    runs = {x: num for x, num in runs_of(tmp_path).items() if x >= 0}
    assert runs == {x: 1 + max_retries * (x in struck) for x in range(100)}


def test_an_item_that_exits_orderly_costs_itself_only(tmp_path: Path) -> None:
    @ray.remote(max_retries=1)
    def run(x: int) -> int:
        if note_run(tmp_path, x) == 1 and x == 7:
            raise SystemExit(1)
        return x

    get([run.remote(x) for x in range(1000, 1008)])
    assert get(run.map(range(30), chunk=30)) == list(range(30))
    assert {x: num for x, num in runs_of(tmp_path).items() if x < 30} == {x: 1 + (x == 7) for x in range(30)}


def test_max_calls_ends_workers_between_items(shared_cluster: Any) -> None:
    @ray.remote(max_calls=2)
    def pid(x: int) -> int:
        return os.getpid()

    pids = get(pid.map(range(6), chunk=6))
    assert max(pids.count(each) for each in pids) <= 2


# ---- cancel


def test_cancel_of_one_item_that_waits_or_runs(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote
    def wait(x: int) -> int:
        if x < 2:
            touch_and_wait(str(tmp_path / f"began {x}"), str(tmp_path / "go"))
        return x

    get([wait.remote(x) for x in range(100, 108)])
    refs = wait.map(range(40), chunk=40)
    wait_until(lambda: (tmp_path / "began 0").exists() and (tmp_path / "began 1").exists(), "both run")
    ray.cancel(refs[0])
    ray.cancel(refs[1])
    with pytest.raises(TaskCancelledError):
        get(refs[0])
    with pytest.raises(TaskCancelledError):
        get(refs[1])
    assert get(refs[2:]) == list(range(2, 40))


def test_cancel_of_items_that_have_not_begun(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote
    def wait(x: int) -> int:
        note_run(tmp_path, x)
        if x < 2:
            touch_and_wait(None, str(tmp_path / "go"))
        return x

    refs = wait.map(range(40), chunk=40)
    for ref in refs[10:20]:
        ray.cancel(ref)
    # Told before those in front of them are over.
    ready, _ = ray.wait(refs[10:20], num_returns=10, timeout=GET_TIMEOUT_S)
    assert len(ready) == 10
    (tmp_path / "go").touch()
    for ref in refs[10:20]:
        with pytest.raises(TaskCancelledError):
            get(ref)
    assert get(refs[:10] + refs[20:]) == [*range(10), *range(20, 40)]
    assert not runs_of(tmp_path).keys() & set(range(10, 20))


def test_cancel_by_force_costs_no_other_item(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote(max_retries=0)
    def wait(x: int) -> int:
        if x == 20:
            touch_and_wait(str(tmp_path / "began"), str(tmp_path / "go"))
        return x

    get([wait.remote(x) for x in range(100, 108)])
    refs = wait.map(range(40), chunk=40)
    wait_until(lambda: (tmp_path / "began").exists(), "it runs")
    ray.cancel(refs[20], force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        get(refs[20])
    assert get(refs[:20] + refs[21:]) == [x for x in range(40) if x != 20]


def test_cancel_by_force_of_an_item_that_holds_the_gil_costs_no_other_item(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def hold(x: int) -> int:
        if x == 20:
            (tmp_path / "began").touch()
            ctypes.PyDLL(None).pause()
        return x

    get([hold.remote(x) for x in range(100, 108)])
    refs = hold.map(range(40), chunk=40)
    wait_until(lambda: (tmp_path / "began").exists(), "it runs")
    ray.cancel(refs[20], force=True)
    with pytest.raises(TaskCancelledError):
        get(refs[20])
    assert get(refs[:20] + refs[21:]) == [x for x in range(40) if x != 20]


def test_cancel_by_force_of_an_item_that_is_over_costs_no_other_item(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def hold(x: int) -> int:
        if x == 20:
            (tmp_path / "began").touch()
            # With the GIL, for longer than a frozen worker has.
            ctypes.PyDLL(None).usleep(2_000_000)
        return x

    get([hold.remote(x) for x in range(100, 108)])
    refs = hold.map(range(40), chunk=40)
    wait_until(lambda: (tmp_path / "began").exists(), "it runs")
    for ref in refs[:20]:
        ray.cancel(ref, force=True)
    assert get(refs) == list(range(40))


# ---- who waits for whom


def test_an_item_that_waits_for_a_later_one_does_not_hold_it_up(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    @ray.remote
    def meet(x: int) -> int:
        if x == 0:
            touch_and_wait(None, str(tmp_path / "29"))
        if x == 29:
            (tmp_path / "29").touch()
        return x

    get([meet.remote(x) for x in range(100, 108)])
    assert get(meet.map(range(30), chunk=30)) == list(range(30))


def test_an_item_that_blocks_in_get_gives_back_those_behind_it(shared_cluster: Any) -> None:
    @ray.remote
    class Board:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def wait(self) -> None:
            await self.event.wait()

        async def set(self) -> None:
            self.event.set()

    board = Board.options(num_cpus=0).remote()

    @ray.remote
    def meet(x: int) -> int:
        if x < 2:
            ray.get(board.wait.remote())
        if x == 29:
            ray.get(board.set.remote())
        return x

    assert get(meet.map(range(30), chunk=30)) == list(range(30))


def test_an_answer_does_not_wait_for_a_later_item_that_holds_the_gil(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def hold(x: int) -> int:
        if x == 20:
            ctypes.PyDLL(None).pause()
        return x

    get([hold.remote(x) for x in range(100, 108)])
    refs = hold.map(range(40), chunk=40)
    # The last of all, it does not end.
    assert get(refs[:20] + refs[21:]) == [x for x in range(40) if x != 20]
    ray.cancel(refs[20], force=True)
    with pytest.raises(TaskCancelledError):
        get(refs[20])


# ---- what each item sees


def test_each_item_is_a_task_of_its_own(shared_cluster: Any) -> None:
    @ray.remote
    def who(x: int) -> Any:
        context = ray.get_runtime_context()
        return context.get_task_id(), context.get_task_name(), ray.put(x)

    refs = who.options(name="mine").map(range(50), chunk=50)
    found = get(refs)
    assert [task_id for task_id, _, _ in found] == [ref.task_id().hex() for ref in refs]
    assert {name for _, name, _ in found} == {"mine"}
    assert get([put for _, _, put in found]) == list(range(50))


# ---- from where


def test_map_from_tasks_actors_and_threads(shared_cluster: Any) -> None:
    @ray.remote
    def outer(x: int) -> int:
        return sum(ray.get(square.map(range(x), chunk=10)))

    @ray.remote
    class Caller:
        async def call(self, x: int) -> int:
            return sum(await asyncio.gather(*square.map(range(x))))

    assert get(outer.map([10, 20])) == [285, 2470]
    assert get(Caller.options(num_cpus=0).remote().call.remote(10)) == 285
    sums: list[int] = []
    threads = [
        threading.Thread(target=lambda: sums.append(sum(ray.get(square.map(range(500)))))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_TIMEOUT_S)
    assert sums == [sum(x * x for x in range(500))] * 4


# ---- what is not accepted


@pytest.mark.parametrize("chunk", [0, -1, 1.5, None, True, "all", "AUTO", [3]])
def test_a_bad_chunk_is_named(chunk: Any) -> None:
    log = Log.remote()
    for method in (square, log.add):
        with pytest.raises((TypeError, ValueError)) as raised:
            method.map([1], chunk=chunk)
        assert f"chunk={chunk!r}" in str(raised.value) and "'auto'" in str(raised.value)


def test_an_iterator_that_raises_leaves_nothing_submitted(tmp_path: Path) -> None:
    @ray.remote
    def run(x: int) -> None:
        note_run(tmp_path, x)

    def items() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        run.map(items())
    log = Log.remote()
    with pytest.raises(RuntimeError, match="no more"):
        log.add.map(items())
    assert get(log.read.remote()) == []
    assert not runs_of(tmp_path)


def test_what_cannot_be_called_is_refused_before_anything_is_submitted(shared_cluster: Any) -> None:
    @ray.remote
    def nothing() -> None: ...

    @ray.remote
    def two(a: int, b: int) -> None: ...

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise TypeError("its own")

    with pytest.raises(TypeError, match="iterable"):
        square.map(3)
    with pytest.raises(TypeError, match="its own"):
        square.map(Broken())
    log = Log.remote()
    for method in (log.__ray_ready__, log.__ray_terminate__):
        with pytest.raises(TypeError, match=r"Log\.__ray_.*takes no positional"):
            method.map([1])
    assert get(log.__ray_ready__.remote())
    for function in (nothing, two):
        with pytest.raises(TypeError):
            function.map([1, 2])
    with pytest.raises(TypeError, match="map"):
        square.map([1], 5)


def test_an_item_that_does_not_pickle_names_those_before_it(shared_cluster: Any) -> None:
    with pytest.raises(TypeError, match="does not pickle") as raised:
        told.map([*range(6000), threading.Lock()])
    assert get(raised.value.submitted) == list(range(6000))
