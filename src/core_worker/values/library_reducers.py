"""How values of some libraries are pickled whose own way costs too much or does not work.

    library     what its own pickle does                          what is done here
    pyarrow     takes along all that a slice was cut from         a copy of the slice goes
    torch       takes along all that a view was cut from          a copy of the view goes
    polars      takes along all that texts inside of lists and    a copy of the value goes
                structs were cut from
    pandas      takes along values of a MultiIndex that none of   these are left out
                its rows has any more
    fastapi     fails at the lock of a router that another        it goes as what its constructor was given
                includes
    starlette   fails at State, which every FastAPI application   it goes as its constructor and what is in it
                has: it reads an attribute before it has any
    numpy       repeats memory that an array shows many times     that memory goes once, and how it is shown
                (broadcast_to, sliding windows)

A value *shows* a part of the memory that it refers to. It is copied where at least half of that memory is not
shown. So its pickle is less than twice as large as what it shows. numpy and scipy leave out by themselves
what is not shown. Categories of an index or array always go: they are part of its type, used or not.

A library's reducers are registered once the program has imported the library. Nothing is imported for them.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ray_mono.common.code_pickler import CodePickler

# A copy that spares less than this is not worth its time. It is low, since a table has as many arrays as
# columns.
_SPARED_MIN_BYTES = 1024

# numpy loads this module when somebody asks for it. A class whose module is not loaded is pickled by value,
# so a recarray would come back as one of another class.
_ = np.rec

_num_modules = 0
_done: set[str] = set()


def _reduce_ndarray(array: Any) -> Any:
    if not array.flags.forc and not array.dtype.hasobject:
        once = array[tuple(slice(None) if stride else slice(1) for stride in array.strides)]
        reaches = [(length - 1) * stride for length, stride in zip(once.shape, once.strides, strict=True)]
        reach_bytes = array.itemsize + sum(map(abs, reaches))
        if _is_worth_a_copy(array.nbytes, min(once.nbytes, reach_bytes)):
            strides, before_first = array.strides, 0
            if once.nbytes < reach_bytes:
                once = np.ascontiguousarray(once)
                strides = tuple(new if old else 0 for new, old in zip(once.strides, strides, strict=True))
                held = once.reshape(-1).view(np.uint8)
            else:
                lowest = once[tuple(slice(-1, None) if reach < 0 else slice(1) for reach in reaches)]
                before_first = -sum(reach for reach in reaches if reach < 0)
                held = np.lib.stride_tricks.as_strided(lowest.reshape(1).view(np.uint8), (reach_bytes,), (1,))
            held.flags.writeable = False
            return np.ndarray, (array.shape, array.dtype, held, before_first, strides)
    return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


CodePickler.dispatch_table[np.ndarray] = _reduce_ndarray


def register() -> None:
    """Registers reducers for libraries that were imported meanwhile. Cheap where nothing was imported since
    the last call."""
    global _num_modules
    if len(sys.modules) == _num_modules:
        return
    _num_modules = len(sys.modules)
    for name, register_library in _LIBRARIES.items():
        module = sys.modules.get(name)
        # A module that is still being imported lacks what register_library looks for: it comes next time.
        if name not in _done and module is not None and register_library(module):
            _done.add(name)


def _register_arrow(arrow: Any) -> bool:
    if not hasattr(arrow, "ipc"):
        return False
    for array_type in _with_subclasses(arrow.Array):
        CodePickler.dispatch_table[array_type] = _reduce_array
    return True


def _with_subclasses(cls: Any) -> Iterator[Any]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)


def _reduce_array(array: Any) -> Any:
    held_bytes = array.get_total_buffer_size()
    if _is_worth_a_copy(held_bytes, _seen_bytes(array)):
        copied = _copied_out(array)
        # Of some types only the copy tells how large it is.
        if _is_worth_a_copy(held_bytes, copied.get_total_buffer_size()):
            array = copied
    return array.__reduce__()


def _is_worth_a_copy(held_bytes: int, seen_bytes: int) -> bool:
    return held_bytes - seen_bytes >= max(seen_bytes, _SPARED_MIN_BYTES)


# Arrow's names of these types, which it also writes inside of the names of others. Not every version has
# classes for them.
_VIEWS_OF_BYTES = ("string_view", "binary_view")


def _seen_bytes(array: Any) -> int:
    """How many bytes the array shows; 0 if only a copy can tell. Where a part of it is views, Arrow's own
    number is the size of all its buffers."""
    name = str(array.type)
    if name in _VIEWS_OF_BYTES:
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
        lengths = views[array.offset : array.offset + len(array), 0]
        # A text of up to 12 bytes lies in the view itself.
        return 16 * len(array) + int(lengths[lengths > 12].sum(dtype=np.int64))
    return 0 if "_view" in name else int(array.nbytes)


def _copied_out(array: Any) -> Any:
    """A copy of what the array shows. Arrays also hold what they do not show; of some types Arrow's copies
    leave out only a part of that."""
    import pyarrow

    name = str(array.type)
    if "dense_union" in name:
        # No other way leaves out what is not shown of a union's children.
        return array.take(pyarrow.array(range(len(array)), pyarrow.int64()))
    copied = pyarrow.concat_arrays([array])
    if any(view in name for view in _VIEWS_OF_BYTES):
        try:
            compact = copied.cast(_without_views(array.type)).cast(array.type)
        except pyarrow.ArrowException:
            return copied  # Arrow does not cast inside of every type, nor above 2 GiB
        if compact.type == array.type:
            return compact
    return copied


def _without_views(arrow_type: Any) -> Any:
    import pyarrow as pa

    def inside(field: Any) -> Any:
        return field.with_type(_without_views(field.type))

    if str(arrow_type) in _VIEWS_OF_BYTES:
        return pa.large_string() if str(arrow_type) == "string_view" else pa.large_binary()
    if pa.types.is_struct(arrow_type):
        return pa.struct([inside(field) for field in arrow_type])
    if pa.types.is_list(arrow_type):
        return pa.list_(inside(arrow_type.value_field))
    if pa.types.is_large_list(arrow_type):
        return pa.large_list(inside(arrow_type.value_field))
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.list_(inside(arrow_type.value_field), arrow_type.list_size)
    if pa.types.is_map(arrow_type):
        return pa.map_(inside(arrow_type.key_field), inside(arrow_type.item_field))
    return arrow_type


def _register_torch(torch: Any) -> bool:
    tensor_type = getattr(torch, "Tensor", None)
    if tensor_type is None:
        return False
    CodePickler.dispatch_table[tensor_type] = _reduce_tensor

    def of_subclass(cls: type) -> Callable[[Any], Any] | None:
        # A subclass that has a storage or a pickle of its own keeps it.
        is_plain = (
            issubclass(cls, tensor_type)
            and cls.__reduce_ex__ is tensor_type.__reduce_ex__
            and cls.__torch_dispatch__ is tensor_type.__torch_dispatch__  # type: ignore[attr-defined]
        )
        return _reduce_tensor if is_plain else None

    CodePickler.dispatch_table.of_subclass.append(of_subclass)
    return True


def _reduce_tensor(tensor: Any) -> Any:
    """Parameters and the parts of sparse tensors come here too. Two tensors that share a storage no longer
    share it where one of them was copied; one tensor that is met twice stays one.
    """
    import torch

    if tensor.layout is torch.strided and not tensor.is_nested:
        seen = tensor.detach().as_subclass(torch.Tensor)
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:
                seen = seen.narrow(dim, 0, 1)  # one for all of them; expanded again below
        reach = 1 + sum(
            (length - 1) * stride for length, stride in zip(seen.shape, seen.stride(), strict=True)
        )
        is_of_windows = 0 < reach < seen.numel() and not (seen.is_conj() or seen.is_neg())
        num_kept = reach if is_of_windows else seen.numel()
        if _is_worth_a_copy(tensor.untyped_storage().nbytes(), num_kept * seen.element_size()):
            if is_of_windows:
                copied = seen.as_strided((reach,), (1,)).clone().as_strided(seen.shape, seen.stride())
            else:
                copied = seen.clone()
            copied = copied.expand(tensor.shape)
            if type(tensor) is not torch.Tensor:
                copied = copied.as_subclass(type(tensor))
            copied.requires_grad_(tensor.requires_grad)
            copied._backward_hooks = tensor._backward_hooks
            copied.__dict__.update(tensor.__dict__)
            tensor = copied
    return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _register_polars(polars: Any) -> bool:
    if not hasattr(polars, "CompatLevel"):
        return False
    CodePickler.dispatch_table[polars.DataFrame] = lambda frame: _reduce_polars(frame, _rebuilt)
    CodePickler.dispatch_table[polars.Series] = lambda series: _reduce_polars(
        series, lambda series: _rebuilt(series.to_frame()).to_series()
    )
    return True


def _reduce_polars(value: Any, rebuilt: Callable[[Any], Any]) -> Any:
    reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if _is_worth_a_copy(len(reduced[2]), value.estimated_size()):
        smaller = rebuilt(value)
        if smaller.equals(value):
            return smaller.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    return reduced


def _rebuilt(frame: Any) -> Any:
    """The frame, written and read through a format that has no views of texts."""
    import polars

    stream = io.BytesIO()
    frame.write_ipc_stream(stream, compat_level=polars.CompatLevel.oldest())
    rebuilt = polars.read_ipc_stream(stream.getvalue())
    return rebuilt if rebuilt.schema == frame.schema else frame


def _register_pandas(pandas: Any) -> bool:
    if not hasattr(pandas, "MultiIndex"):
        return False
    CodePickler.dispatch_table[pandas.MultiIndex] = _reduce_multi_index
    return True


def _reduce_multi_index(index: Any) -> Any:
    # A level has each of its values once, and each row uses one of them.
    if any(
        _is_worth_a_copy(level.nbytes, level.nbytes * len(index) // max(len(level), 1))
        for level in index.levels
    ):
        index = index.remove_unused_levels()
    return index.__reduce__()


def _register_fastapi(routing: Any) -> bool:
    if not hasattr(routing, "APIRoute"):
        return False
    if (included := getattr(routing, "_IncludedRouter", None)) is not None:  # older ones include by copies
        CodePickler.dispatch_table[included] = _reduce_to_given
    return True


def _reduce_to_given(value: Any) -> Any:
    given = [
        field.name
        for field in dataclasses.fields(value)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return type(value), tuple(getattr(value, name) for name in given)


def _register_starlette(datastructures: Any) -> bool:
    state_type = getattr(datastructures, "State", None)
    if state_type is None:
        return False
    CodePickler.dispatch_table[state_type] = lambda state: (state_type, (state._state,))
    return True


_LIBRARIES: dict[str, Callable[[Any], bool]] = {
    "fastapi.routing": _register_fastapi,
    "pandas": _register_pandas,
    "polars": _register_polars,
    "pyarrow": _register_arrow,
    "starlette.datastructures": _register_starlette,
    "torch": _register_torch,
}
