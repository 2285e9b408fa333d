"""Values of other libraries: slices cost what they hold, and what has no way to be pickled of its own is given one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_mono.core_worker import library_reducers
from ray_mono.core_worker.serialization import deserialize, serialize

NUMBERS = np.arange(200_000)
TEXTS = pa.array([f"text {number}" for number in range(100_000)])
TABLE = pa.table({"a": NUMBERS, "b": NUMBERS * 0.5})
SLICED = {
    "table": TABLE.slice(1000, 2000),
    "batch": TABLE.to_batches()[0].slice(1000, 2000),
    "column": TABLE["a"].slice(1000, 2000),
    "array": pa.array(NUMBERS).slice(1000, 2000),
    "texts": TEXTS.slice(1000, 2000),
    "lists": pa.array([[1, 2, 3]] * 100_000).slice(1000, 2000),
    "nulls": pa.array([None, 1] * 100_000).slice(1001, 2000),
    "structs": pa.array([{"x": 1, "y": "two"}] * 100_000).slice(1000, 2000),
    "numpy": NUMBERS[1000:3000],
    "columns of numpy": NUMBERS.reshape(200, 1000)[:, :10],
}


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_costs_what_it_holds(name: str) -> None:
    value = SLICED[name]
    serialized = serialize({"inside": value})
    back = deserialize(serialized.metadata, serialized.to_bytes())["inside"]
    assert serialized.size_bytes < 2 * value.nbytes + 4000
    assert (back == value).all() if isinstance(value, np.ndarray) else back.equals(value)


def test_an_array_that_holds_all_it_was_made_of_is_not_copied() -> None:
    array = pa.array(NUMBERS)
    serialized = serialize(array)
    assert any(
        pa.py_buffer(part).address == array.buffers()[1].address
        for _, part in serialized.parts
        if len(part) > 1000
    )


class State:
    """As starlette's: its attributes are looked up in one that is not there yet while it is unpickled."""

    _state: dict[str, Any]

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        super().__setattr__("_state", {} if state is None else state)

    def __setattr__(self, name: str, value: Any) -> None:
        self._state[name] = value

    def __getattr__(self, name: str) -> Any:
        return self._state[name]


def test_the_state_of_a_web_application_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("starlette.datastructures")
    library.State = State
    monkeypatch.setitem(sys.modules, "starlette.datastructures", library)
    monkeypatch.setattr(library_reducers, "_done", {"pyarrow"})
    state = State()
    state.pool = [1, 2]
    serialized = serialize({"app": state})
    assert deserialize(serialized.metadata, serialized.to_bytes())["app"].pool == [1, 2]
