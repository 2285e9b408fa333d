"""Exceptions of users whose own code fails, in every place where somebody who answers a call with one, or
shows it, may run that code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class GetattrRecurses(Exception):
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "_")


class GetattributeRaises(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


class GetattributeExits(BaseException):
    def __getattribute__(self, name: str) -> Any:
        sys.exit(3)


class StrAndReprRaise(Exception):
    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


class StrAndReprAreNone(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]

    __repr__ = __str__


class StrAndReprExit(Exception):
    def __str__(self) -> str:
        sys.exit(3)

    __repr__ = __str__


class StrInterrupts(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise ValueError


class ReduceExits(Exception):
    def __reduce__(self) -> Any:
        sys.exit(3)


class LoadExits(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class LoadInterrupts(Exception):
    def __reduce__(self) -> Any:
        return interrupt, ()


class BoolRaises(Exception):
    def __bool__(self) -> bool:
        raise ValueError


class IsEmpty(Exception):
    def __len__(self) -> int:
        return 0


class WithTracebackRaises(Exception):
    def with_traceback(self, tb: Any) -> Any:
        raise ValueError


class SetattrRaises(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError


def interrupt() -> None:
    raise KeyboardInterrupt


def with_property(name: str, raised: BaseException) -> type[BaseException]:
    def fail(self: Any) -> Any:
        raise raised

    kind = type(
        f"Own{name.strip('_')}{type(raised).__name__}",
        (Exception,),
        {name: property(fail), "__module__": __name__},
    )
    globals()[kind.__name__] = kind
    return kind


_READ = (
    "__cause__",
    "__context__",
    "__suppress_context__",
    "__notes__",
    "__traceback__",
    "__class__",
    "__dict__",
    "args",
)
KINDS: dict[str, Callable[[], BaseException]] = {
    kind.__name__: kind
    for kind in (
        *(GetattrRecurses, GetattributeRaises, GetattributeExits),
        *(StrAndReprRaise, StrAndReprAreNone, StrAndReprExit, StrInterrupts),
        *(ReduceRaises, ReduceExits, LoadExits, LoadInterrupts, BoolRaises, IsEmpty),
        *(WithTracebackRaises, SetattrRaises, MemoryError, RecursionError, GeneratorExit),
        *(with_property(name, ValueError("no")) for name in _READ),
        with_property("__class__", SystemExit(3)),
        with_property("__cause__", KeyboardInterrupt()),
    )
}
KINDS["a group"] = lambda: ExceptionGroup("many", [GetattributeRaises()])


def throw(name: str) -> Any:
    """Raises one of KINDS; or "hash", whose class cannot even be compared; or "after", a harmless one raised
    where such one was handled."""
    if name == "hash":
        kind = type("Meta", (type,), {"__hash__": lambda cls: 1 / 0, "__eq__": lambda cls, other: 1 / 0})
        raise kind("Unhashable", (Exception,), {})
    if name == "after":
        try:
            raise GetattributeRaises
        except GetattributeRaises:
            raise LookupError("harmless")  # noqa: B904 - its context is the point
    raise KINDS[name]()


NAMES = [*KINDS, "hash", "after"]


class FailsToLoad:
    """Unpickling it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return throw, (self._name,)


class FailsToPickle:
    """Pickling it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return throw(self._name)
