"""How values of some libraries are pickled where their own way costs too much or does not work.

    pyarrow     a slice of an array goes with all that it was cut from: it is copied out first, if it is less than half of that
    starlette   State, which every FastAPI application has, asks itself for an attribute before it has any, without end

Registered when the library is there: nothing is imported for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from ray_mono.common.code_pickler import CodePickler

# Below this a copy is not worth its time.
_ARROW_SPARED_MIN_BYTES = 64 << 10

_num_modules = 0
_done: set[str] = set()


def register() -> None:
    """Cheap where nothing was imported since the last call."""
    global _num_modules
    if len(sys.modules) == _num_modules:
        return
    _num_modules = len(sys.modules)
    for name, register_library in _LIBRARIES.items():
        module = sys.modules.get(name)
        # Not one that is being imported.
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
    if held_bytes - array.nbytes >= max(array.nbytes, _ARROW_SPARED_MIN_BYTES):
        array = _copied_out(array)
    return array.__reduce__()


def _copied_out(array: Any) -> Any:
    """Arrow's stream format holds what is seen of an array, and is read without another copy."""
    import pyarrow

    batch = pyarrow.record_batch([array], names=[""])
    stream = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return pyarrow.ipc.open_stream(stream.getvalue()).read_next_batch().column(0)


def _register_starlette(datastructures: Any) -> bool:
    state_type = getattr(datastructures, "State", None)
    if state_type is None:
        return False
    CodePickler.dispatch_table[state_type] = lambda state: (state_type, (state._state,))
    return True


_LIBRARIES: dict[str, Callable[[Any], bool]] = {
    "pyarrow": _register_arrow,
    "starlette.datastructures": _register_starlette,
}
