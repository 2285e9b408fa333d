"""What a pool promises: the same scenes with the standard library's pool and with ours.

The standard library's scenes come first, while this process is not connected: its pool forks.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.pool
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

TIMEOUT_S = 60
PROCESSES = 2


def square(number: int) -> int:
    if number == 13:
        raise ValueError("thirteen")
    return number * number


def add(first: int, second: int = 0) -> int:
    return first + second


def process_id(_: Any = None) -> int:
    return os.getpid()


def wait_for_file(path: str) -> str:
    wait_until(Path(path).exists, path)
    return path


def meet(place: str) -> int:
    """Returns in two processes, when both are here."""
    Path(place, str(os.getpid())).touch()
    wait_until(lambda: len(os.listdir(place)) == 2, "both processes at work at once")
    return os.getpid()


_told: list[Any] = []


def be_told(*words: Any) -> None:
    _told.append(words)


def what_was_told(_: Any = None) -> list[Any]:
    return _told


@pytest.fixture(scope="module", params=["standard", "cluster"])
def make_pool(request: pytest.FixtureRequest) -> Callable[..., Any]:
    if request.param == "standard":
        return multiprocessing.get_context("fork").Pool
    request.getfixturevalue("shared_cluster")
    from ray_mono.util.multiprocessing import Pool

    return Pool


@pytest.fixture
def pool(make_pool: Callable[..., Any]) -> Iterator[Any]:
    with make_pool(PROCESSES) as pool:
        yield pool


# ---------------------------------------------------------------- one call


def test_apply_returns_the_value(pool: Any) -> None:
    assert pool.apply(add, (1,), {"second": 2}) == 3
    assert pool.apply(add, [1, 2]) == 3
    assert pool.apply(process_id) != os.getpid()


def test_apply_raises_the_error_with_the_remote_traceback_as_its_cause(pool: Any) -> None:
    with pytest.raises(ValueError, match="thirteen") as caught:
        pool.apply(square, (13,))
    assert type(caught.value) is ValueError
    assert "in square" in str(caught.value.__cause__)


def test_an_asynchronous_result_tells_how_it_stands(pool: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = pool.apply_async(wait_for_file, (str(gate),))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    assert not result.ready()
    gate.touch()
    result.wait(TIMEOUT_S)
    assert result.ready() and result.successful() and result.get() == result.get() == str(gate)


def test_a_failed_result_raises_whenever_it_is_asked(pool: Any) -> None:
    result = pool.apply_async(square, (13,))
    result.wait(TIMEOUT_S)
    assert result.ready() and not result.successful()
    for _ in range(2):
        with pytest.raises(ValueError, match="thirteen"):
            result.get()


def test_callbacks_get_the_value_or_the_error_before_the_result_is_ready(pool: Any) -> None:
    calls: list[Any] = []

    def ok(value: Any) -> None:
        calls.append(("ok", value, threading.current_thread() is threading.main_thread()))

    def bad(error: BaseException) -> None:
        calls.append(("bad", repr(error), False))

    pool.apply_async(square, (3,), callback=ok, error_callback=bad).wait(TIMEOUT_S)
    pool.apply_async(square, (13,), callback=ok, error_callback=bad).wait(TIMEOUT_S)
    pool.map_async(square, [1, 2], callback=ok, error_callback=bad).wait(TIMEOUT_S)
    pool.map_async(square, [1, 13, 3], callback=ok, error_callback=bad).wait(TIMEOUT_S)
    pool.starmap_async(add, [(1, 2)], callback=ok, error_callback=bad).wait(TIMEOUT_S)
    failed = ("bad", "ValueError('thirteen')", False)
    assert calls == [("ok", 9, False), failed, ("ok", [1, 4], False), failed, ("ok", [3], False)]


# ---------------------------------------------------------------- many calls


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_map_keeps_the_order(pool: Any, chunksize: int | None) -> None:
    expected = [number**2 for number in range(10)]
    assert pool.map(square, range(10), chunksize) == expected
    assert pool.map(square, (number for number in range(10)), chunksize) == expected
    assert pool.map_async(square, range(10), chunksize).get(TIMEOUT_S) == expected


def test_map_of_nothing_is_nothing(pool: Any) -> None:
    assert pool.map(square, []) == [] and pool.starmap(add, []) == []
    assert pool.map_async(square, []).get(TIMEOUT_S) == []


def test_map_raises_the_first_error_and_refuses_what_is_not_iterable(pool: Any) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        pool.map(square, range(20))
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(square, 3)


def test_an_iterable_that_fails_fails_the_map(pool: Any) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    for method in (pool.map, pool.map_async):
        with pytest.raises(KeyError, match="broken"):
            method(square, broken())


def test_starmap_unpacks_its_items(pool: Any) -> None:
    assert pool.starmap(add, [(1, 2), (3,), [4, 5]], chunksize=2) == [3, 3, 9]
    assert pool.starmap_async(add, [(1, 2)]).get(TIMEOUT_S) == [3]
    with pytest.raises(TypeError):
        pool.starmap(add, [1])


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap_gives_results_in_order_and_imap_unordered_all_of_them(pool: Any, chunksize: int) -> None:
    numbers = range(20, 120)
    expected = [number**2 for number in numbers]
    assert list(pool.imap(square, (number for number in numbers), chunksize)) == expected
    assert sorted(pool.imap_unordered(square, numbers, chunksize)) == expected
    assert list(pool.imap(square, [])) == []


def test_imap_raises_in_the_place_of_the_result_and_goes_on(pool: Any) -> None:
    results = pool.imap(square, [1, 13, 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="thirteen"):
        next(results)
    assert next(results) == 9
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(results)


def test_imap_raises_what_its_iterable_raises_after_the_results_before_it(pool: Any) -> None:
    def broken() -> Iterator[int]:
        yield 2
        raise KeyError("broken")

    results = pool.imap(square, broken())
    assert next(results) == 4
    with pytest.raises(KeyError, match="broken"):
        next(results)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_the_next_of_an_imap_can_be_waited_for_with_a_bound(pool: Any, method: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = getattr(pool, method)(wait_for_file, [str(gate)])
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.01)
    gate.touch()
    assert results.next(timeout=TIMEOUT_S) == str(gate)
    assert iter(results) is results


def test_imap_refuses_a_chunksize_below_1(pool: Any) -> None:
    for method in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="[Cc]hunksize"):
            list(method(square, [1], 0))


def test_what_an_imap_gives_may_feed_it(pool: Any) -> None:
    import queue

    line: queue.Queue[int | None] = queue.Queue()
    line.put(1)
    seen = []
    for value in pool.imap_unordered(functools.partial(add, 1), iter(line.get, None)):
        seen.append(value)
        line.put(value if value < 5 else None)
    assert seen == [2, 3, 4, 5]


# ---------------------------------------------------------------- processes


def test_all_processes_work_at_once(pool: Any, tmp_path: Path) -> None:
    assert len(set(pool.map(meet, [str(tmp_path)] * 2, chunksize=1))) == PROCESSES


def test_no_task_waits_behind_another_while_a_process_is_idle(pool: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    blocked = pool.apply_async(wait_for_file, (str(gate),))
    # Were they dealt out in turn, half of these would wait for the one that waits for them.
    assert pool.map(square, range(8), chunksize=1) == [number**2 for number in range(8)]
    gate.touch()
    assert blocked.get(TIMEOUT_S) == str(gate)


def test_the_initializer_has_run_in_every_process(make_pool: Callable[..., Any]) -> None:
    with make_pool(PROCESSES, initializer=be_told, initargs=("a", 1)) as pool:
        assert pool.map(what_was_told, range(4), chunksize=1) == [[("a", 1)]] * 4


def test_a_process_is_replaced_after_maxtasksperchild_tasks(make_pool: Callable[..., Any]) -> None:
    with make_pool(1, maxtasksperchild=2) as pool:
        told = pool.map(process_id, range(6), chunksize=1)
        assert told[0] == told[1] and len(set(told)) == 3
        assert len(set(pool.map(process_id, range(4), chunksize=4))) == 1  # a batch is one task
    with make_pool(1) as pool:
        assert len(set(pool.map(process_id, range(6), chunksize=1))) == 1


def test_wrong_arguments_of_a_pool_are_refused(make_pool: Callable[..., Any]) -> None:
    with pytest.raises(ValueError):
        make_pool(0)
    with pytest.raises(TypeError, match="callable"):
        make_pool(1, initializer=3)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        make_pool(1, maxtasksperchild=0)


# ---------------------------------------------------------------- the end


def test_a_closed_pool_takes_no_more_and_finishes_what_it_has(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(PROCESSES)
    results = [pool.apply_async(square, (number,)) for number in range(6)]
    numbers = pool.imap(square, (number for number in range(20, 70)))
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    for method in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
        with pytest.raises(ValueError, match="not running"):
            method(square, [1])
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    with pytest.raises(ValueError, match="not running"):
        pool.__enter__()
    pool.close()
    pool.join()
    pool.join()
    assert [result.get(0) for result in results] == [number**2 for number in range(6)]
    assert list(numbers) == [number**2 for number in range(20, 70)]
    pool.terminate()


def test_a_terminated_pool_ends_without_finishing(make_pool: Callable[..., Any], tmp_path: Path) -> None:
    pool = make_pool(PROCESSES)
    for _ in range(4):
        pool.apply_async(wait_for_file, (str(tmp_path / "never"),))
    pool.terminate()
    pool.join()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))


def test_the_end_of_a_with_terminates(make_pool: Callable[..., Any]) -> None:
    with make_pool(1) as pool:
        assert pool.map(square, [2]) == [4]
    with pytest.raises(ValueError, match="not running"):
        pool.map(square, [2])


def test_a_pool_cannot_be_pickled(pool: Any) -> None:
    import pickle

    with pytest.raises(NotImplementedError, match="pickled"):
        pickle.dumps(pool)
