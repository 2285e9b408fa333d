"""Queue on a real cluster: the standard library's promises, between processes."""

from __future__ import annotations

import asyncio
import pickle
import queue
import threading
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import cloudpickle
from ray_mono.exceptions import RayActorError
from ray_mono.util.queue import Empty, Full, Queue
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SHORT_S = 0.01
LONG_S = 60


def test_first_in_first_out() -> None:
    line = Queue()
    for item in range(5):
        line.put(item)
    assert [line.get() for _ in range(5)] == list(range(5))


def test_its_size_is_known() -> None:
    line = Queue(maxsize=2)
    assert (line.size(), line.qsize(), len(line), line.empty(), line.full()) == (0, 0, 0, True, False)
    line.put_nowait_batch([1, 2])
    assert (line.size(), line.qsize(), len(line), line.empty(), line.full()) == (2, 2, 2, False, True)


@pytest.mark.parametrize("maxsize", [0, -1])
def test_without_a_maximum_it_is_never_full(maxsize: int) -> None:
    line = Queue(maxsize)
    line.put_nowait_batch(range(100))
    assert not line.full() and line.get_nowait_batch(100) == list(range(100))


def test_a_full_queue_says_so_in_every_form() -> None:
    line = Queue(maxsize=1)
    line.put("only")
    for put in (
        lambda: line.put(1, block=False),
        lambda: line.put(1, timeout=0),
        lambda: line.put(1, timeout=SHORT_S),
        lambda: line.put_nowait(1),
        lambda: line.put_nowait_batch([1]),
        lambda: asyncio.run(line.put_async(1, block=False)),
        lambda: asyncio.run(line.put_async(1, timeout=SHORT_S)),
    ):
        with pytest.raises(Full):
            put()
        with pytest.raises(queue.Full):
            put()
    assert line.get() == "only"


def test_an_empty_queue_says_so_in_every_form() -> None:
    line = Queue()
    for take in (
        lambda: line.get(block=False),
        lambda: line.get(timeout=0),
        lambda: line.get(timeout=SHORT_S),
        line.get_nowait,
        lambda: line.get_nowait_batch(1),
        lambda: asyncio.run(line.get_async(block=False)),
        lambda: asyncio.run(line.get_async(timeout=SHORT_S)),
    ):
        with pytest.raises(Empty):
            take()
        with pytest.raises(queue.Empty):
            take()


def test_without_waiting_full_and_empty_come_as_such() -> None:
    line = Queue(maxsize=1)
    for take in (lambda: line.get(block=False), lambda: asyncio.run(line.get_async(block=False))):
        with pytest.raises(Empty, match="1 asked for") as empty:
            take()
        assert type(empty.value) is Empty
    line.put(1)
    for put in (lambda: line.put_nowait(2), lambda: asyncio.run(line.put_async(2, block=False))):
        with pytest.raises(Full, match="no room for 1 more") as full:
            put()
        assert type(full.value) is Full


def test_a_timeout_of_0_takes_and_puts_what_it_can() -> None:
    line = Queue(maxsize=1)
    line.put(1, timeout=0)
    assert line.get(timeout=0) == 1


def test_a_batch_goes_in_and_out_as_a_whole_or_not_at_all() -> None:
    line = Queue(maxsize=3)
    line.put_nowait_batch([1, 2])
    with pytest.raises(Full, match="2 more.*2 items of at most 3"):
        line.put_nowait_batch([3, 4])
    with pytest.raises(Empty, match="3 asked for.*2 items"):
        line.get_nowait_batch(3)
    assert line.get_nowait_batch(0) == [] and line.get_nowait_batch(2) == [1, 2]


def test_wrong_arguments_are_named() -> None:
    line = Queue()
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds.*-1"):
        line.get(timeout=-1)
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds.*-1"):
        asyncio.run(line.put_async(1, timeout=-1))
    with pytest.raises(TypeError, match="items must be iterable"):
        line.put_nowait_batch(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_items must be a whole number"):
        line.get_nowait_batch("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_items must be at least 0"):
        line.get_nowait_batch(-1)
    with pytest.raises(TypeError, match="maxsize must be a whole number"):
        Queue("3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="does not pickle"):
        line.put(threading.Lock())


def test_whoever_waits_to_get_gets_what_another_process_puts() -> None:
    line = Queue()

    @ray.remote(num_cpus=0)
    def produce(line: Queue) -> None:
        line.put("from afar")

    waiting = threading.Thread(target=lambda: received.append(line.get(timeout=LONG_S)))
    received: list[Any] = []
    waiting.start()
    ray.get(produce.remote(line))
    waiting.join(LONG_S)
    assert received == ["from afar"]


def test_whoever_waits_to_put_goes_on_when_there_is_room() -> None:
    line = Queue(maxsize=1)
    line.put(1)

    @ray.remote(num_cpus=0)
    def produce(line: Queue) -> None:
        line.put(2, timeout=LONG_S)

    done = produce.remote(line)
    assert [line.get(timeout=LONG_S), line.get(timeout=LONG_S)] == [1, 2]
    ray.get(done)


def test_many_wait_at_once_in_one_event_loop() -> None:
    line = Queue()

    async def scene() -> list[int]:
        takers = [asyncio.ensure_future(line.get_async(timeout=LONG_S)) for _ in range(20)]
        await asyncio.gather(*(line.put_async(item) for item in range(20)))
        return await asyncio.gather(*takers)

    assert sorted(asyncio.run(scene())) == list(range(20))


def test_copies_are_the_same_queue() -> None:
    line = Queue(maxsize=3)
    line.put(1)
    copy = pickle.loads(cloudpickle.dumps(line))
    assert copy.maxsize == 3 and copy.get() == 1 and line.empty()


def test_references_travel_through_it() -> None:
    line = Queue()
    line.put([ray.put("value")])
    assert ray.get(line.get()[0]) == "value"


def test_its_actor_takes_options(shared_cluster: Any) -> None:
    line = Queue(actor_options={"name": "the line", "num_cpus": 0})
    line.put(1)
    assert ray.get(ray.get_actor("the line").qsize.remote()) == 1


def test_after_shutdown_it_is_gone_for_everybody() -> None:
    line = Queue(actor_options={"num_cpus": 0})
    copy = pickle.loads(cloudpickle.dumps(line))
    line.put(1)
    line.shutdown()
    assert line.actor is None
    with pytest.raises(RuntimeError, match="shut down"):
        line.get()
    with pytest.raises(RayActorError):
        copy.get(timeout=1)
    line.shutdown()


@pytest.mark.parametrize("how", [{"force": True}, {"grace_period_s": 0.01}], ids=["force", "grace"])
def test_shutdown_ends_those_that_wait(how: dict[str, Any]) -> None:
    line = Queue()
    errors: list[BaseException] = []
    actor = line.actor

    def wait() -> None:
        try:
            ray.get(actor.get.remote())
        except RayActorError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    line.size()
    line.shutdown(**how)
    waiting.join(LONG_S)
    assert len(errors) == 1


def test_a_graceful_shutdown_lets_a_waiting_call_end() -> None:
    line = Queue()
    answer = line.actor.get.remote(0.5)
    line.shutdown(grace_period_s=LONG_S)
    with pytest.raises(Empty):
        ray.get(answer, timeout=LONG_S)


def test_its_process_ends_with_the_last_handle() -> None:
    line = Queue(actor_options={"name": "short life", "num_cpus": 0})
    line.put(1)
    del line
    wait_until(lambda: "short life" not in ray.util.list_named_actors(), "the queue's actor has ended")
