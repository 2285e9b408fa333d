"""An exception as the interpreter has it, read without code of its class.

Exceptions are the users', and so is what their classes make of `__getattribute__`, `__class__`, `__cause__`,
`args`: code that may raise, or end the process. Whoever has a call to answer with one reads it here. The
texts (`text_of`, `repr_of`) do run the class's `__str__` and `__repr__`, and have words of their own where
these fail.
"""

from __future__ import annotations

import traceback
import types
from collections.abc import Iterator
from typing import Any

# Descriptors that a class cannot hide: it hides their names.
_base: dict[str, Any] = dict(vars(BaseException))
_NAME_OF_CLASS: Any = vars(type)["__name__"]


def is_a(error: object, kinds: type | types.UnionType | tuple[type, ...]) -> bool:
    """isinstance, which also believes what `__class__` says of itself."""
    return issubclass(type(error), kinds)


def traceback_of(error: BaseException) -> types.TracebackType | None:
    found: types.TracebackType | None = _base["__traceback__"].__get__(error)
    return found


def context_of(error: BaseException) -> BaseException | None:
    """What was handled when it was raised."""
    found: BaseException | None = _base["__context__"].__get__(error)
    return found


def set_traceback(error: BaseException, found: types.TracebackType | None) -> None:
    _base["__traceback__"].__set__(error, found)


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """It, what was handled when it was raised, and so on. A program may have made a ring of them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = context_of(error)


def let_frames_go(error: BaseException) -> None:
    """Of it and of what it was raised from: what their variables hold is free."""
    for one in with_contexts(error):
        traceback.clear_frames(traceback_of(one))


def attributes_of(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = _base["__dict__"].__get__(error)
    return found


def arguments_of(error: BaseException) -> tuple[Any, ...]:
    found: tuple[Any, ...] = _base["args"].__get__(error)
    return found


def set_arguments(error: BaseException, arguments: tuple[Any, ...]) -> None:
    _base["args"].__set__(error, arguments)


def exit_code_of(error: BaseException) -> Any:
    """Of a SystemExit."""
    return vars(SystemExit)["code"].__get__(error)


def name_of(thing: object) -> str:
    """Its class's."""
    name: str = _NAME_OF_CLASS.__get__(type(thing))
    return name


def text_of(error: BaseException) -> str:
    """Class and text, as a traceback ends with them."""
    try:
        return "".join(traceback.format_exception_only(error)).rstrip()
    except BaseException:  # it asks for more than the text
        return f"{name_of(error)}: {str_of(error)}".rstrip(": ")


def str_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return f"<str() of this {name_of(error)} fails>"


def repr_of(thing: object) -> str:
    """Also of what an exception holds."""
    try:
        return repr(thing)
    except BaseException:
        return f"<repr() of this {name_of(thing)} fails>"
