"""Finds the part of a value that keeps it from being pickled.

The value is taken apart as pickling does it. The first part that fails by itself is taken apart in turn. A
part that cannot be taken apart (a lock, a generator) is the culprit. The values above a part count as
picklable while it is tried; otherwise each part that leads back to one of them would fail, too.

This is for errors only, since it pickles the value again, several times.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import io
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mono.common import code_pickler

DEPTH_MAX = 10
# At most so many parts of one value are tried.
PARTS_MAX = 1000
# These are in a class's body, and not in its pickle.
_LEFT_OUT = ("__dict__", "__weakref__", "_abc_impl")
# (how a path goes on to the part, its name, the part)
_Part = tuple[str, str, Any]


def where(value: Any) -> str:
    """The end of a message, e.g. "; its .engine.lock (a lock) does not". Empty where no part of `value` is
    the culprit."""
    path, culprit = "", value
    above = [value]
    # This runs the value's own code, which may raise anything. What was found until then is said.
    with contextlib.suppress(Exception):
        for _ in range(DEPTH_MAX):
            step, culprit = _failing_part(culprit, above)
            path += step if step[0] in ".[" or not path else f", its {step}"
            above.append(culprit)
    return f"; its {path} (a {type(culprit).__name__}) does not" if path else ""


def _failing_part(value: Any, above: list[Any]) -> tuple[str, Any]:
    """(how a path goes on, the first part that fails by itself). Raises StopIteration where none fails."""
    tried = itertools.islice(parts(value), PARTS_MAX)
    return next((step, part) for step, _, part in tried if why_not(part, above) is not None)


class _Trial(code_pickler.CodePickler):
    def __init__(self, above: list[Any]) -> None:
        super().__init__(io.BytesIO(), protocol=5, buffer_callback=lambda buffer: False)
        self._above = above

    def persistent_id(self, value: Any) -> int | None:
        return next((number for number, known in enumerate(self._above) if known is value), None)


def why_not(value: Any, above: list[Any]) -> Exception | None:
    """What pickling `value` raises while everything in `above` counts as picklable; None if it pickles."""
    try:
        _Trial(above).dump(value)
    except Exception as error:  # whatever pickling raises
        return error
    return None


def parts(value: Any) -> Iterator[_Part]:
    """The parts that pickling the value would pickle: what a function uses, the body of a class, the elements
    of a container, the state of anything else."""
    if isinstance(value, types.FunctionType):
        yield from _used_by(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", "__self__", value.__self__
        yield ".__func__", "__func__", value.__func__
    elif isinstance(value, staticmethod | classmethod):
        yield ".__func__", "__func__", value.__func__
    elif isinstance(value, property):
        yield from ((f".{name}", name, getattr(value, name)) for name in ("fget", "fset", "fdel"))
    elif isinstance(value, functools.partial):
        yield from ((f".{name}", name, getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, type):
        yield from ((f".{name}", name, part) for name, part in vars(value).items() if name not in _LEFT_OUT)
        yield from (("base class", base.__name__, base) for base in value.__bases__)
    else:
        yield from _elements(value)
        yield from _state(value)


def _used_by(function: types.FunctionType) -> Iterator[_Part]:
    used = {
        name: function.__globals__[name]
        for name in _global_names(function.__code__)
        if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the cell is not filled yet
            used[name] = cell.cell_contents
    for name, part in used.items():
        yield f"variable {name}", name, part
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, part in (
        *zip(reversed(positional), reversed(defaults), strict=False),
        *(function.__kwdefaults__ or {}).items(),
    ):
        yield f"default of {name}", name, part
    for name, part in vars(function).items():
        yield f".{name}", name, part


def _global_names(code: types.CodeType) -> dict[str, None]:
    """The globals that the code loads; those of the functions inside it, too."""
    names = {step.argval: None for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names |= _global_names(inner)
    return names


def _elements(value: Any) -> Iterator[_Part]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", repr(key), part
        for key in value:
            yield f"key {key!r}", repr(key), key
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"[{index}]", f"[{index}]", part


def _state(value: Any) -> Iterator[_Part]:
    """The value's state, as it gives it out to be pickled; nothing where it gives out none."""
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:  # whatever its pickling raises
        return
    if not isinstance(reduced, tuple):
        return
    made_of, state, items = reduced[1], *(*reduced[2:4], None, None)[:2]
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = {**(state[0] or {}), **state[1]}  # its class has slots
    if isinstance(state, dict):
        for name, part in state.items():
            yield f".{name}", str(name), part
    elif state is not None:
        yield ".__getstate__()", "__getstate__()", state
    if not isinstance(value, list):
        for index, part in enumerate(items or ()):
            yield f"[{index}]", f"[{index}]", part
    for index, part in enumerate(made_of):
        yield f".__reduce__()[1][{index}]", f"__reduce__()[1][{index}]", part
