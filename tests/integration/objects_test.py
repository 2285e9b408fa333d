"""`get`, `put` and `wait` in the corners, futures, and how long a reference inside user data keeps its
object: on a real cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.exceptions import GetTimeoutError, RayTaskError, ReferenceCountingAssertionError
from ray_mono.util import deregister_serializer, register_serializer
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def large(number: int) -> np.ndarray:
    return np.full(50_000, number)


def num_objects() -> int:
    internal_state.num_references()  # what was dropped is counted
    return internal_state.store_stats().num_objects


@ray.remote(num_cpus=0)
def after(gate: str, value: Any) -> Any:
    deadline_s = time.monotonic() + GET_TIMEOUT_S
    while not Path(gate).exists():
        assert time.monotonic() < deadline_s, f"{gate} did not appear"
        time.sleep(0.01)
    return value


# ---------------------------------------------------------------- put, get, wait


def test_put_of_a_reference_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="is a reference already"):
        ray.put(ray.put(1))
    assert get(get(ray.put([ray.put(1)]))) == [1]
    with pytest.raises(ValueError, match="_owner must be None"):
        ray.put(1, _owner=object())


def test_get_takes_repeats_and_nothing() -> None:
    small, array = ray.put([1]), ray.put(large(2))
    first, second, third, fourth = get([small, array, small, array])
    first.append(2)
    assert third == [1]
    assert np.shares_memory(second, fourth)
    assert ray.get([]) == [] and ray.get([], timeout=0) == []


def test_get_without_any_time_takes_what_is_there(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pending = after.remote(str(gate), 3)
    there = [ray.put(1), ray.put(large(2))]
    assert ray.get(there[0], timeout=0) == 1
    assert ray.get(there[1], timeout=0)[0] == 2
    for wanted in (pending, [*there, pending]):
        with pytest.raises(GetTimeoutError):
            ray.get(wanted, timeout=0)
    gate.touch()
    assert get(pending) == 3


def test_wait_keeps_the_order_of_what_it_was_given(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    late, early = [after.remote(str(gate), number) for number in range(2)], [ray.put(2), ray.put(large(3))]
    mixed = [late[0], early[0], late[1], early[1]]
    assert ray.wait(mixed, num_returns=4, timeout=0) == (early, late)
    assert ray.wait(mixed, num_returns=2) == (early, late)
    assert ray.wait(mixed) == ([early[0]], [late[0], late[1], early[1]])
    gate.touch()
    assert ray.wait(mixed, num_returns=4, timeout=GET_TIMEOUT_S) == (mixed, [])
    assert ray.wait(mixed, num_returns=3) == (mixed[:3], mixed[3:])


def test_wait_refuses_repeats_and_numbers_that_cannot_be() -> None:
    references = [ray.put(1), ray.put(2)]
    with pytest.raises(ValueError, match="has repeats"):
        ray.wait([references[0], references[0]])
    for number in (0, -1, 3, 1.5):
        with pytest.raises(ValueError, match="num_returns must be a whole number from 1 to"):
            ray.wait(references, num_returns=number)  # type: ignore[arg-type]
    for wrong in (None, "1"):
        with pytest.raises(TypeError, match="num_returns must be a whole number"):
            ray.wait(references, num_returns=wrong)  # type: ignore[arg-type]
    # len(references) / 2 is a float.
    halves = ray.wait(references, num_returns=2 / 2)  # type: ignore[arg-type]
    assert halves == ([references[0]], [references[1]])
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        ray.wait(references, timeout=-1)
    with pytest.raises(TypeError, match="takes a list"):
        ray.wait(references[0])  # type: ignore[arg-type]
    assert ray.wait([]) == ([], [])


def test_looking_again_and_again_without_waiting_sees_what_another_process_owns() -> None:
    @ray.remote
    def look(boxed: Any) -> Any:
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while not ray.wait(boxed, timeout=0)[0]:
            assert time.monotonic() < deadline_s, "it never became ready"
        return ray.get(boxed[0], timeout=GET_TIMEOUT_S)

    assert get(look.remote([ray.put(5)])) == 5


# ---------------------------------------------------------------- references inside user data


@dataclass
class Box:
    inner: Any


def closure_over(reference: Any) -> Callable[[], Any]:
    return lambda: reference


WRAPPED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "list": (lambda reference: [reference], lambda data: data[0]),
    "dict": (lambda reference: {"key": reference}, lambda data: data["key"]),
    "dataclass": (Box, lambda data: data.inner),
    "closure": (closure_over, lambda data: data()),
    "nest": (lambda reference: {"a": (Box([reference]),)}, lambda data: data["a"][0].inner[0]),
    "object": (lambda reference: [ray.put([reference])], lambda data: ray.get(data[0])[0]),
}


class Holder:
    """Its state holds what it was given."""

    def __init__(self, data: Any = None) -> None:
        self.data = data

    def keep(self, data: Any) -> None:
        self.data = data

    def pass_on(self, other: Any) -> None:
        ray.get(other.keep.remote(self.data), timeout=GET_TIMEOUT_S)
        self.data = None

    def read(self, kind: str) -> int:
        return int(ray.get(WRAPPED[kind][1](self.data), timeout=GET_TIMEOUT_S)[0])


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_reference_inside_user_data_lives_exactly_as_long_as_the_data(kind: str) -> None:
    wrap, find = WRAPPED[kind]
    first, second = [ray.remote(num_cpus=0)(Holder).remote() for _ in range(2)]
    data = wrap(ray.put(large(7)))
    assert get(find(data))[0] == 7
    get(first.keep.remote(data))
    del data
    # The lender goes; the borrower it lent to stays.
    get(first.pass_on.remote(second))
    ray.kill(first)
    assert get(second.read.remote(kind)) == 7
    assert num_objects() == 1
    get(second.keep.remote(None))
    wait_until(lambda: num_objects() == 0, "nobody can reach the object")


def test_data_that_was_given_to_a_constructor_lives_as_long_as_the_actor() -> None:
    holder = ray.remote(num_cpus=0)(Holder).remote(Box([ray.put(large(4))]))
    get(holder.__ray_ready__.remote())
    assert num_objects() == 1
    ray.kill(holder)
    wait_until(lambda: num_objects() == 0, "nobody can reach the object")


def test_a_reference_pickled_by_hand_keeps_its_object_while_the_process_that_did_it_lives() -> None:
    class Pickler:
        def dump(self, boxed: Any) -> bytes:
            return cloudpickle.dumps(boxed[0])

    pickler = ray.remote(num_cpus=0)(Pickler).remote()
    text = get(pickler.dump.remote([ray.put(large(8))]))
    for _ in range(2):
        assert num_objects() == 1
        assert get(cloudpickle.loads(text))[0] == 8
    ray.kill(pickler)
    wait_until(lambda: num_objects() == 0, "the object goes with the process")
    with pytest.raises(ReferenceCountingAssertionError):
        get(cloudpickle.loads(text))


def test_a_worker_that_made_all_its_calls_stays_while_others_need_what_it_owns(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @ray.remote(max_calls=1)
    def make(number: int) -> Any:
        return os.getpid(), [ray.put(large(number)), after.remote(str(gate), number)]

    made = get([make.remote(number) for number in range(3)])
    pids = {pid for pid, _ in made}
    assert len(pids) == 3
    # They hold no CPU: as many tasks as ever run.
    assert len(get([make.options(max_calls=0).remote(9) for _ in range(2)])) == 2
    gate.touch()
    for number, (_, (array, value)) in enumerate(made):
        assert get(array)[0] == number and get(value) == number
    del made, array, value
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers that nobody needs are gone"
    )


# ---------------------------------------------------------------- futures


def test_standard_futures_are_made_of_references() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("on purpose")

    @ray.remote
    def twice(number: int) -> int:
        return 2 * number

    futures = [twice.remote(number).future() for number in range(4)]
    done, pending = concurrent.futures.wait(futures, GET_TIMEOUT_S)
    assert not pending and {future.result() for future in done} == {0, 2, 4, 6}
    assert {future.result() for future in concurrent.futures.as_completed(futures)} == {0, 2, 4, 6}
    with pytest.raises(KeyError):
        fail.remote().future().result(GET_TIMEOUT_S)


def test_references_are_awaited_in_every_way_of_asyncio(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def run() -> None:
        assert await ray.put(1) == 1
        reference = ray.put(2)
        assert [await reference, await reference] == [2, 2]
        assert await asyncio.gather(*[ray.put(number) for number in range(3)]) == [0, 1, 2]
        found = [await each for each in asyncio.as_completed([ray.put(number) for number in range(3)])]
        assert sorted(found) == [0, 1, 2]
        late = after.remote(str(gate), "late")
        waited = [asyncio.wrap_future(each.future()) for each in (ray.put("early"), late)]
        done, pending = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        assert ([each.result() for each in done], len(pending)) == (["early"], 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late, 0.01)
        gate.touch()
        assert await late == "late"

    asyncio.run(asyncio.wait_for(run(), GET_TIMEOUT_S))


def test_an_async_actor_awaits_what_others_own(tmp_path: Path) -> None:
    class Waiting:
        async def read(self, gate: str, boxed: list[Any]) -> tuple[int, list[int], list[int]]:
            done, pending = await asyncio.wait(
                [each.as_future() for each in boxed], return_when=asyncio.FIRST_COMPLETED
            )
            Path(gate).touch()
            found = [await each for each in asyncio.as_completed(boxed)]
            return len(done), sorted(found), await asyncio.gather(*boxed)

    gate = tmp_path / "gate"
    boxed = [after.remote(str(gate), 2), ray.put(1)]
    assert get(ray.remote(num_cpus=0)(Waiting).remote().read.remote(str(gate), boxed)) == (1, [1, 2], [2, 1])


# ---------------------------------------------------------------- what pickles, and how


class Handle:
    """Of something that cannot be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()


def test_a_custom_serializer_is_used_on_the_way_to_tasks_and_back() -> None:
    @ray.remote
    def echo(boxed: list[Handle]) -> list[Handle]:
        register_serializer(
            Handle, serializer=lambda handle: handle.name, deserializer=lambda name: Handle(name + "!")
        )
        return boxed

    register_serializer(
        Handle, serializer=lambda handle: handle.name, deserializer=lambda name: Handle(name + "?")
    )
    try:
        (handle,) = get(echo.remote([Handle("a")]))
        assert handle.name == "a?!" and get(ray.put(handle)).name == "a?!?"
    finally:
        deregister_serializer(Handle)
    with pytest.raises(TypeError, match=r"the value of put\(\) \(a Handle\) does not pickle"):
        ray.put(Handle("a"))


def test_a_result_that_does_not_pickle_is_named() -> None:
    @ray.remote
    def make(*arguments: Any) -> Any:
        return {"lock": threading.Lock()}

    @ray.remote
    def make_several() -> Any:
        yield [threading.Lock()]

    with pytest.raises(
        TypeError, match=r"what .*make\(\) returned \(a dict\) does not pickle.*its \['lock'\] \(a lock\)"
    ):
        get(make.remote())
    with pytest.raises(
        TypeError, match=r"what .*make_several\(\) yielded \(a list\) does not pickle.*its \[0\]"
    ):
        get(next(make_several.remote()))
    with pytest.raises(
        TypeError, match=r"argument number 0 of .*make\(\) \(a list\) does not pickle.*its \[0\]"
    ):
        make.remote([threading.Lock()])


def test_an_exception_that_does_not_pickle_arrives_as_text() -> None:
    class Stubborn(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.lock = threading.Lock()

        def __reduce__(self) -> Any:
            raise TypeError("it does not want to")

    @ray.remote(max_retries=0)
    def fail() -> None:
        raise Stubborn("what happened")

    with pytest.raises(RayTaskError, match="what happened"):
        get(fail.remote())


def test_buffers_of_any_kind_are_read_where_they_lie_and_cannot_be_written() -> None:
    array = np.arange(200_000, dtype=np.uint8)
    columns = {"a": array, "b": memoryview(array).cast("B"), "c": bytearray(array)}
    for value in (columns["a"], [columns["a"], {"again": columns["a"]}]):
        read = get(ray.put(value))
        found = read if isinstance(read, np.ndarray) else read[1]["again"]
        assert not found.flags.owndata and not found.flags.writeable
        assert (found == array).all()
    # What bytes hold is their own, so these two are copies.
    assert get(ray.put(bytes(array))) == bytes(array)
    assert get(ray.put(columns["c"])) == columns["c"]


def addresses(table: pa.Table) -> list[int]:
    return [
        buffer.address
        for column in table.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer
    ]


def test_arrow_tables_are_read_where_they_lie_and_stay_without_their_reference() -> None:
    table = pa.table({"number": np.arange(100_000), "text": [f"row {number}" for number in range(100_000)]})
    reference = ray.put(table)
    first, second = get([reference, reference])
    assert addresses(first) == addresses(second)
    assert not any(
        buffer.is_mutable for chunk in first["text"].chunks for buffer in chunk.buffers() if buffer
    )
    del reference, second
    for _ in range(3):
        get(ray.put(large(1)))
    assert first.equals(table)


def test_data_frames_are_read_where_they_lie_and_stay_without_their_reference() -> None:
    frame = pd.DataFrame({"number": np.arange(100_000), "part": np.arange(100_000) / 7, "text": "some text"})
    reference = ray.put(frame)
    first, second = get([reference, reference])
    assert np.shares_memory(first["part"].to_numpy(), second["part"].to_numpy())
    assert not first["number"].to_numpy().flags.writeable
    del reference, second
    for _ in range(3):
        get(ray.put(large(1)))
    pd.testing.assert_frame_equal(first, frame)
    # A frame of one's own can be changed.
    own = first.copy()
    own.loc[0, "number"] = -1
    assert first["number"][0] == 0
