"""The pickler of everything that may carry code: cloudpickle's, but code keeps the name of the file that it
stands in.

cloudpickle from 3.1.3 on calls the file of every function that it pickles `<dynamic-code>`. Then a traceback
out of a worker names no file and no source line, and no breakpoint is ever met. So code objects, also those
inside of others (nested functions, lambdas, methods), are reduced here: to the arguments of CodeType, which
are Python's own and the same from 3.11 on.
"""

from __future__ import annotations

import io
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import cloudpickle


def _reduce_code(code: types.CodeType) -> tuple[type[types.CodeType], tuple[Any, ...]]:
    # Copies, as cloudpickle makes them: what the interpreter shares among code objects would otherwise be
    # pickled once in the process that compiled them and several times in one that unpickled them, and one
    # function would have two pickles, and so two keys.
    return types.CodeType, (
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_nlocals,
        code.co_stacksize,
        code.co_flags,
        code.co_code,
        code.co_consts,
        _copy(code.co_names),
        _copy(code.co_varnames),
        code.co_filename,
        "".join(code.co_name),
        code.co_qualname,
        code.co_firstlineno,
        code.co_linetable,
        code.co_exceptiontable,
        _copy(code.co_freevars),
        _copy(code.co_cellvars),
    )


def _copy(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(list(names))


class _DispatchTable(ChainMap[type, Callable[[Any], Any]]):
    """Of some classes also their subclasses', whose reducers are found by `of_subclass`."""

    def __init__(self, *maps: Any) -> None:
        super().__init__(*maps)
        self.of_subclass: list[Callable[[type], Callable[[Any], Any] | None]] = []

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        for find in self.of_subclass:
            if (reduce := find(cls)) is not None:
                return reduce
        raise KeyError(cls)


class CodePickler(cloudpickle.CloudPickler):
    """What pickles functions, classes and values here. Its dispatch_table is its own: what is registered in
    it changes no other user of cloudpickle in this process.
    """

    dispatch_table = _DispatchTable(
        {types.CodeType: _reduce_code}, *cloudpickle.CloudPickler.dispatch_table.maps
    )


def dump(
    value: Any, file: Any, protocol: int | None = None, buffer_callback: Callable[[Any], Any] | None = None
) -> None:
    """As cloudpickle.dump."""
    CodePickler(file, protocol=protocol, buffer_callback=buffer_callback).dump(value)


def dumps(
    value: Any, protocol: int | None = None, buffer_callback: Callable[[Any], Any] | None = None
) -> bytes:
    """As cloudpickle.dumps."""
    with io.BytesIO() as file:
        dump(value, file, protocol, buffer_callback)
        return file.getvalue()
