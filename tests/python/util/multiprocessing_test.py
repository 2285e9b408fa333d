"""Pool beyond the standard library's: functions by value, lazy iterables, dying processes, the cluster behind
it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, RayActorError
from ray_mono.util.multiprocessing import JoinableQueue, Pool, TimeoutError
from tests.integration.scripts import Script
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

TIMEOUT_S = 60


class Fussy(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


def raise_fussy(_: Any = None) -> None:
    raise Fussy(1, 2)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool
        pool.terminate()
        pool.join()


def test_lambdas_closures_and_partials_are_taken(pool: Pool) -> None:
    base = 10
    assert pool.map(lambda number: number + base, range(3)) == [10, 11, 12]
    assert pool.map(functools.partial(max, 1), range(3)) == [1, 1, 2]
    assert pool.apply("a-b".split, ("-",)) == ["a", "b"]


def test_references_may_be_items_and_results(pool: Pool) -> None:
    refs = [ray.put(number) for number in range(3)]
    assert pool.map(ray.get, [[ref] for ref in refs]) == [[0], [1], [2]]


def test_what_does_not_pickle_fails_its_result(pool: Pool) -> None:
    with pytest.raises(TypeError, match="does not pickle"):
        pool.apply_async(len, (threading.Lock(),)).get(TIMEOUT_S)
    with pytest.raises(TypeError, match="pickle"):
        pool.map_async(functools.partial(print, threading.Lock()), range(10)).get(TIMEOUT_S)
    with pytest.raises(TypeError, match="pickle"):
        pool.apply(threading.Lock)
    with pytest.raises(MaybeEncodingError, match="Fussy"):
        pool.apply(raise_fussy)
    assert pool.apply(len, ("abc",)) == 3


def test_imap_reads_only_a_little_ahead_of_its_reader(pool: Pool) -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield read[-1]

    results = pool.imap(abs, endless())
    assert [next(results) for _ in range(100)] == list(range(100))
    assert len(read) < 150


def test_a_terminated_pool_fails_what_it_has_not_done(tmp_path: Path) -> None:
    pool = Pool(1)

    def wait(_: Any) -> None:
        tmp_path.joinpath("begun").touch()
        threading.Event().wait(TIMEOUT_S)

    running, waiting = pool.apply_async(wait, (1,)), pool.apply_async(wait, (2,))
    results = pool.imap(wait, range(1000))
    wait_until(tmp_path.joinpath("begun").exists, "the first call runs")
    pool.terminate()
    for result in (running, waiting):
        with pytest.raises(ActorDiedError):
            result.get(TIMEOUT_S)
    with pytest.raises(ActorDiedError):
        next(results)
    pool.join()


def test_a_dead_process_fails_what_it_was_doing_and_is_replaced() -> None:
    def tell(word: str) -> None:
        os.environ["TOLD"] = word

    with Pool(1, initializer=tell, initargs=("yes",)) as pool:
        with pytest.raises(RayActorError):
            pool.apply_async(os._exit, (3,)).get(TIMEOUT_S)
        assert pool.apply_async(lambda: os.environ["TOLD"]).get(TIMEOUT_S) == "yes"


def test_an_initializer_that_raises_fails_the_pool() -> None:
    with pytest.raises(ActorDiedError, match="no number"):
        Pool(2, initializer=int, initargs=("no number",))


def test_a_callback_that_raises_harms_nobody(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("in a callback")

    assert pool.apply_async(abs, (-1,), callback=fail).get(TIMEOUT_S) == 1
    assert "in a callback" in caplog.text
    caplog.clear()  # its frames hold the result
    assert pool.apply(abs, (-2,)) == 2


def test_a_forgotten_pool_finishes_its_work_and_ends() -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "ray_mono-pool"}
    pool = Pool(1)
    result = pool.map_async(abs, [-1, -2])
    del pool
    assert result.get(TIMEOUT_S) == [1, 2]

    def is_over() -> bool:
        return not {thread for thread in threading.enumerate() if thread.name == "ray_mono-pool"} - before

    wait_until(is_over, "the pool's thread has ended")


def test_processes_take_options_and_count_against_the_cluster() -> None:
    with Pool(1, ray_remote_args={"num_cpus": 1}) as pool:
        assert pool.apply(lambda: ray.get_runtime_context().get_assigned_resources()) == {"CPU": 1}
    with Pool() as pool:
        assert pool._num_processes == ray.cluster_resources()["CPU"]
    with pytest.raises(ValueError, match="processes=1000.*CPUs"):
        Pool(1000)


def test_wrong_arguments_are_named(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="chunksize must be"):
            pool.map(abs, [1], chunksize=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="func must be callable, got 3"):
        pool.apply(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="error_callback must be callable or None, got 3"):
        pool.apply_async(abs, (1,), error_callback=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="processes must be a positive whole number.*'2'"):
        Pool("2")  # type: ignore[arg-type]
    with Pool(1, context="spawn"):
        assert "Pool(context='spawn') has no effect" in caplog.text


def test_the_standard_librarys_other_names_are_here() -> None:
    import multiprocessing

    assert TimeoutError is multiprocessing.TimeoutError and JoinableQueue is multiprocessing.JoinableQueue


PROGRAM = """
    import os
    import ray_mono as ray
    from ray_mono.util.multiprocessing import Pool

    WORD = None

    def learn(word):
        global WORD
        WORD = word

    def say(number):
        return f"{WORD}{number}"

    if __name__ == "__main__":
        pool = Pool(3, initializer=learn, initargs=("w",))
        print(int(ray.cluster_resources()["CPU"]), pool.map(say, range(3)), say(4))
        ray.shutdown()
        result = pool.apply_async(say, (1,))
        try:
            result.get(60)
        except ray.exceptions.RayError as error:
            print(error)
        pool.close()
        pool.join()
        print(ray.is_initialized())
"""


def test_a_program_without_a_cluster_gets_one_and_its_initializer_sets_its_globals(
    start: Any,
) -> None:
    script: Script = start(PROGRAM)
    out = script.check_ended_well()
    assert out.splitlines()[:1] == ["3 ['w0', 'w1', 'w2'] None4"]
    assert "make a new pool" in out and out.splitlines()[-1] == "False"
