"""Values of other libraries: slices cost what they hold, and what has no way to be pickled of its own is
given one."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ray_mono.core_worker.values import library_reducers
from ray_mono.core_worker.values.serialization import deserialize, serialize

NUMBERS = np.arange(20_000)
TEXTS = [f"a text of more than twelve letters: {number}" for number in NUMBERS]
ARRAY = pa.array(NUMBERS)
STRINGS = pa.array(TEXTS)
VIEWS = pa.array(TEXTS, pa.string_view())
KINDS = pa.array(NUMBERS % 2, pa.int8())
DENSE = pa.UnionArray.from_dense(KINDS, pa.array(NUMBERS // 2, pa.int32()), [ARRAY, STRINGS])
ROWS = np.zeros(20_000, dtype=[("a", "i8"), ("b", "S50")])


class Meters(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int64(), "ray_mono.tests.meters")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Meters:
        return cls()


pa.register_extension_type(Meters())


def lists(arrow_type: Any, item: Any = (1, 2, 3)) -> Any:
    return pa.array([item] * 20_000, arrow_type)


ARROW = {
    "numbers": ARRAY,
    "texts": STRINGS,
    "large texts": STRINGS.cast(pa.large_string()),
    "views of texts": VIEWS,
    "views of short texts": pa.array(["short"] * 20_000, pa.string_view()),
    "views of bytes": pa.array([text.encode() for text in TEXTS], pa.binary_view()),
    "views of texts and nulls": pa.array([None, *TEXTS], pa.string_view()),
    "bits": pa.array([True, None] * 10_000),
    "times": ARRAY.cast(pa.timestamp("ns", "UTC")),
    "nothing but nulls": pa.nulls(20_000),
    "lists": lists(pa.list_(pa.int64())),
    "large lists": lists(pa.large_list(pa.int64())),
    "lists of one length": lists(pa.list_(pa.int64(), 3)),
    "views of lists": lists(pa.list_view(pa.int64())),
    "views of large lists": lists(pa.large_list_view(pa.int64())),
    "lists of lists": lists(pa.list_(pa.list_(pa.int64())), [[1, 2], [3]]),
    "lists of views": pa.array([[text] for text in TEXTS], pa.list_(pa.string_view())),
    "large lists of views": pa.array([[text] for text in TEXTS], pa.large_list(pa.string_view())),
    "lists of one length of views": pa.array([[text] for text in TEXTS], pa.list_(pa.string_view(), 1)),
    "structs": pa.StructArray.from_arrays([ARRAY, STRINGS], ["x", "y"]),
    "structs of views": pa.StructArray.from_arrays([ARRAY, VIEWS], ["x", "y"]),
    "maps": lists(pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "maps of views": pa.array([[(text, 1)] for text in TEXTS], pa.map_(pa.string_view(), pa.int64())),
    "categories": pa.array(["a", "b"] * 10_000).dictionary_encode(),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array(NUMBERS + 1, pa.int32()), STRINGS),
    "dense union": DENSE,
    "dense union in lists": pa.ListArray.from_arrays(pa.array(range(0, 20_001, 2), pa.int32()), DENSE),
    "sparse union": pa.UnionArray.from_sparse(KINDS, [ARRAY, STRINGS]),
    "extension": pa.ExtensionArray.from_storage(Meters(), ARRAY),
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((200, 100))),
    "chunks": pa.chunked_array([ARRAY, ARRAY]),
    "batch": pa.record_batch({"a": ARRAY, "b": VIEWS}),
    "table": pa.table({"a": ARRAY, "b": STRINGS}).replace_schema_metadata({"made": "here"}),
    "table of many columns": pa.table({str(number): ARRAY[:500] for number in range(200)}),
}
PANDAS = {
    "columns": pd.DataFrame({"a": NUMBERS, "b": TEXTS, "c": pd.Categorical(NUMBERS % 3)}),
    "objects": pd.Series(TEXTS, dtype=object),
    "arrow": pd.Series(STRINGS.to_pandas(types_mapper=pd.ArrowDtype)),
    "two indexes": pd.DataFrame({"a": NUMBERS}, index=pd.MultiIndex.from_arrays([NUMBERS, TEXTS])),
    "index of two": pd.MultiIndex.from_product([NUMBERS[:5000], ["a", "b"]], names=["x", "y"]),
    "index of categories": pd.CategoricalIndex(NUMBERS % 3),
    "index of texts": pd.Index(TEXTS),
}
NUMPY = {
    "numbers": NUMBERS[10:30],
    "columns": NUMBERS.reshape(20, 1000)[:, :10],
    "rows": ROWS[10:30],
    "rows of records": ROWS.view(np.recarray)[10:30],
    "masked": np.ma.masked_array(NUMBERS, NUMBERS % 2 == 0)[10:30],
    "objects": np.array(TEXTS, dtype=object)[10:30],
    "one number": NUMBERS[5:6].reshape(()),
    "one number shown often": np.broadcast_to(NUMBERS[5], (100, 200)),
    "columns shown often": np.broadcast_to(NUMBERS.reshape(20, 1000)[:, 3:4], (20, 1000)),
    "windows": np.lib.stride_tricks.sliding_window_view(NUMBERS[:200], 100),
    "windows backwards": np.lib.stride_tricks.sliding_window_view(NUMBERS[:200], 100)[::-1, ::-1],
    "windows of a field": np.lib.stride_tricks.sliding_window_view(ROWS["b"][:50], 30),
    "texts shown often": np.broadcast_to(np.array("text"), (5000,)),
}


def stored(value: Any) -> tuple[int, Any]:
    """The size of what is written for a value, and what is read."""
    serialized = serialize({"inside": value})
    return serialized.size_bytes, deserialize(serialized.metadata, serialized.to_bytes())["inside"]


@pytest.mark.parametrize("length", [0, 30])
@pytest.mark.parametrize("name", ARROW)
def test_a_slice_of_arrow_costs_what_it_holds(name: str, length: int) -> None:
    value = ARROW[name].slice(len(ARROW[name]) // 2, length)
    size_bytes, back = stored(value)
    # As much as one with the same elements that was cut from nothing: none here has more than 100 bytes an
    # element in a column.
    columns = value.num_columns if hasattr(value, "num_columns") else 1
    element_bytes = 800 if name == "tensors" else 100
    assert size_bytes < columns * (400 + length * element_bytes) + 2000
    assert type(back) is type(value) and back.equals(value)


@pytest.mark.parametrize("name", PANDAS)
def test_a_slice_of_pandas_costs_what_it_holds(name: str) -> None:
    value = PANDAS[name][1000:1030]
    size_bytes, back = stored(value)
    assert size_bytes < 8000
    assert type(back) is type(value) and back.equals(value)
    assert getattr(back, "names", None) == getattr(value, "names", None)


@pytest.mark.parametrize("name", NUMPY)
def test_a_slice_of_numpy_costs_what_it_holds(name: str) -> None:
    size_bytes, back = stored(NUMPY[name])
    assert size_bytes < 4000
    assert type(back) is type(NUMPY[name]) and back.dtype == NUMPY[name].dtype
    assert back.tolist() == NUMPY[name].tolist()


def test_a_recarray_is_one_also_where_nothing_has_loaded_its_module() -> None:
    program = """
import numpy, pickletools
from ray_mono.core_worker.values.serialization import serialize
data = serialize(numpy.zeros(3, dtype=[("a", "i8")]).view(numpy.recarray)).to_bytes()
assert "_make_skeleton_class" not in [argument for _, argument, _ in pickletools.genops(data)]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_maps_a_file_costs_its_slice(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "numbers", dtype=np.int64, mode="w+", shape=(20_000,))
    mapped[:] = NUMBERS
    size_bytes, back = stored(mapped[10:30])
    assert size_bytes < 1000 and back.tolist() == list(range(10, 30))


def test_an_array_that_holds_all_it_was_made_of_is_not_copied() -> None:
    serialized = serialize(ARRAY)
    assert any(
        pa.py_buffer(part).address == ARRAY.buffers()[1].address
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
    monkeypatch.setattr(library_reducers, "_done", {"pandas", "pyarrow"})
    state = State()
    state.pool = [1, 2]
    serialized = serialize({"app": state})
    assert deserialize(serialized.metadata, serialized.to_bytes())["app"].pool == [1, 2]


@dataclasses.dataclass
class IncludedRouter:
    """As FastAPI's: what comes after what it was given it makes itself."""

    original_router: list[Any]
    include_context: str
    lock: Any = dataclasses.field(default_factory=threading.Lock, compare=False)
    seen: list[Any] = dataclasses.field(default_factory=list)


def test_a_web_application_that_includes_routers_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("fastapi.routing")
    library.APIRoute, library._IncludedRouter = object, IncludedRouter
    monkeypatch.setitem(sys.modules, "fastapi.routing", library)
    monkeypatch.setattr(library_reducers, "_done", {"pandas", "pyarrow"})
    monkeypatch.setattr(library_reducers, "_num_modules", 0)
    assert stored(IncludedRouter([1], "prefix"))[1] == IncludedRouter([1], "prefix")


class Frame:
    """As polars' DataFrame: rows that views of one large buffer are, or that are rows of their own."""

    def __init__(self, rows: list[str], buffer: str = "", schema: str = "texts") -> None:
        self.rows = rows
        self.buffer = buffer
        self.schema = schema

    def estimated_size(self) -> int:
        return sum(map(len, self.rows))

    def equals(self, other: Frame) -> bool:
        return self.rows == other.rows

    def to_frame(self) -> Frame:
        return Frame(self.rows, self.buffer, self.schema)

    def to_series(self) -> Series:
        return Series(self.rows, self.buffer, self.schema)

    def write_ipc_stream(self, stream: Any, compat_level: str) -> None:
        assert compat_level == "without views"
        stream.write(pickle.dumps(self.rows))

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = pickle.dumps((self.rows, self.buffer, self.schema))
        return unpickled, (type(self),), state, None, None, restored


class Series(Frame):
    pass


def unpickled(cls: type[Frame]) -> Frame:
    return cls([])


def restored(frame: Frame, state: bytes) -> None:
    frame.rows, frame.buffer, frame.schema = pickle.loads(state)


@pytest.mark.skipif(importlib.util.find_spec("polars") is not None, reason="the real one may be in use")
@pytest.mark.parametrize("kind", [Frame, Series])
@pytest.mark.parametrize(
    ("buffer_bytes", "read", "is_small"),
    [
        (100_000, lambda rows: Frame(rows), True),
        (10, lambda rows: Frame(rows), False),
        (100_000, lambda rows: Frame(rows, schema="others"), False),
        (100_000, lambda rows: Frame(rows[1:]), False),
    ],
)
def test_a_slice_of_polars_costs_what_it_holds_where_a_copy_is_the_same(
    monkeypatch: pytest.MonkeyPatch, kind: Any, buffer_bytes: int, read: Any, is_small: bool
) -> None:
    library: Any = ModuleType("polars")
    library.DataFrame, library.Series = Frame, Series
    library.CompatLevel = SimpleNamespace(oldest=lambda: "without views")
    library.read_ipc_stream = lambda written: read(pickle.loads(written))
    library_reducers.register()  # of all that was imported so far
    monkeypatch.setitem(sys.modules, "polars", library)
    value = kind(["one", "two"], "x" * buffer_bytes)
    size_bytes, back = stored(value)
    assert (type(back), back.rows, back.schema) == (kind, ["one", "two"], "texts")
    assert (back.buffer == "") is is_small and (size_bytes < 1000 or not is_small)


class Tensor:
    """As torch's: three numbers that it shows of what it holds."""

    __slots__ = ("__dict__", "held")
    layout, is_nested, shape, requires_grad, _backward_hooks = "strided", False, (3,), False, None
    __torch_dispatch__ = None

    def __init__(self, held: bytes) -> None:
        self.held = held

    def detach(self) -> Tensor:
        return self

    def as_subclass(self, cls: type) -> Tensor:
        return self

    def stride(self) -> tuple[int, ...]:
        return (1,)

    def numel(self) -> int:
        return 3

    def is_conj(self) -> bool:
        return False

    def is_neg(self) -> bool:
        return False

    def element_size(self) -> int:
        return 1

    def untyped_storage(self) -> Any:
        return SimpleNamespace(nbytes=lambda: len(self.held))

    def clone(self) -> Tensor:
        return Tensor(self.held[:3])

    def expand(self, shape: tuple[int, ...]) -> Tensor:
        return self

    def requires_grad_(self, is_so: bool) -> None: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Tensor, (self.held,)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the real one may be in use")
def test_a_view_of_torch_costs_what_it_shows_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("torch")
    library_reducers.register()  # of all that was imported so far
    monkeypatch.setitem(sys.modules, "torch", library)
    # It is still being imported: values of others are as ever.
    assert stored(Plain("value"))[1] == Plain("value")
    library.Tensor, library.strided = Tensor, "strided"
    monkeypatch.setitem(sys.modules, "another", ModuleType("another"))
    size_bytes, back = stored(Tensor(b"x" * 100_000))
    assert size_bytes < 1000 and back.held == b"xxx"


@dataclasses.dataclass
class Plain:
    of: str
