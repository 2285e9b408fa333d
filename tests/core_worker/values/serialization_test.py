"""Values to bytes and back: what travels by value, what is not copied, and what is said when it does not
work."""

from __future__ import annotations

import math
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.core_worker.values import serialization
from ray_mono.core_worker.values.serialization import ALIGNMENT, deserialize, serialize

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=3000),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


def round_trip(value: object) -> object:
    serialized = serialize(value)
    data = serialized.to_bytes()
    assert len(data) == serialized.size_bytes
    return deserialize(serialized.metadata, memoryview(data))


@given(VALUES)
def test_plain_values_come_back_equal(value: object) -> None:
    assert round_trip(value) == value


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["u1", "f8", "i4"])), max_size=5))
def test_arrays_come_back_equal_aligned_and_read_only(shapes: list[tuple[int, str]]) -> None:
    arrays = [np.arange(size).astype(kind) for size, kind in shapes]
    serialized = serialize(arrays)
    aligned = np.zeros(serialized.size_bytes + ALIGNMENT, np.uint8)
    start = -aligned.ctypes.data % ALIGNMENT
    target = memoryview(aligned)[start : start + serialized.size_bytes]  # type: ignore[arg-type]
    target[:] = serialized.to_bytes()
    back = deserialize(serialized.metadata, target)
    for before, after in zip(arrays, back, strict=True):
        assert (before == after).all() and before.dtype == after.dtype
        if after.size:
            assert not after.flags.writeable
            assert after.ctypes.data % ALIGNMENT == 0
            assert np.shares_memory(after, aligned)


@pytest.mark.parametrize(
    "value", [None, True, False, b"", b".", b"\x80\x05N.", b"x" * 255, b"x" * 256, b"x" * 1023, b"x" * 1024]
)
def test_what_most_short_calls_return_comes_back_as_it_was(value: object) -> None:
    back = round_trip(value)
    assert type(back) is type(value) and back == value
    pickled = serialization.plain_pickle(value)
    assert pickled is None or pickle.loads(pickled) == value  # as whoever reads pickles elsewhere has it


def test_functions_and_classes_of_main_travel_by_value() -> None:
    scale = 3

    def times(x: int) -> int:
        return x * scale

    class Point:
        def __init__(self, x: float) -> None:
            self.x = x

        def norm(self) -> float:
            return math.fabs(self.x)

    function, point = round_trip((times, Point(-2.0)))  # type: ignore[misc]
    assert function(4) == 12 and point.norm() == 2.0


def test_large_bytes_are_stored_as_they_are() -> None:
    value = bytes(range(256)) * 100
    serialized = serialize(value)
    assert serialized.metadata == serialization.RAW and serialized.size_bytes == len(value)
    assert round_trip(value) == value


def test_errors_come_back_as_errors() -> None:
    serialized = serialization.serialize_error(KeyError("gone"))
    assert serialized.metadata == serialization.ERROR
    error = deserialize(serialized.metadata, serialized.to_bytes())
    assert isinstance(error, KeyError) and error.args == ("gone",)


def test_an_error_that_carries_an_array_is_an_error_too() -> None:
    error = ValueError(np.arange(1000))
    serialized = serialization.serialize_error(error)
    back = deserialize(serialized.metadata, serialized.to_bytes())
    assert isinstance(back, ValueError) and (back.args[0] == np.arange(1000)).all()


def test_what_does_not_pickle_is_refused() -> None:
    with pytest.raises(TypeError):
        serialize(threading.Lock())


class Engine:
    def __init__(self) -> None:
        self.name = "engine"
        self.locks = {"inner": [1, threading.Lock()]}


def test_what_does_not_pickle_inside_of_a_value_is_named_with_its_path() -> None:
    with pytest.raises(TypeError) as failed:
        serialize([Engine()], "the value of put()")
    said = str(failed.value)
    assert said.startswith("the value of put() (a list) does not pickle: cannot pickle '_thread.lock' object")
    assert said.endswith("; its [0].locks['inner'][1] (a lock) does not")
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"\(a lock\) does not pickle: cannot pickle '_thread.lock' object$"):
        serialize(lock, "it")
    with pytest.raises(TypeError, match=r"its variable lock \(a lock\) does not$"):
        serialize(lambda: lock, "it")


def test_a_kind_of_value_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        deserialize(b"?", b"")


def test_arrays_of_values_that_came_inline_are_aligned_wherever_the_bytes_lie() -> None:
    values = [[np.arange(size), {"inner": np.ones(size, "f4")}] for size in range(100, 4000, 80)]
    messages = [(value.metadata, value.to_bytes()) for value in map(serialize, values)]
    for before, (metadata, data) in zip(values, messages, strict=True):
        first, second = deserialize(metadata, data)
        assert (first == before[0]).all() and not first.flags.writeable
        assert first.ctypes.data % ALIGNMENT == second["inner"].ctypes.data % ALIGNMENT == 0
