"""How instances of a class travel where pickle's own way does not do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ray_mono.common.code_pickler import CodePickler


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """From here on instances of exactly this class are pickled by this process as `serializer(instance)`.

    Args:
        serializer: gives something that can be pickled.
        deserializer: makes an instance of that. It travels with the value, so readers need not register
            anything; a worker that is to send instances does.

    Raises TypeError for what is no class, or cannot be called. A later registration replaces an earlier one.
    """
    if not isinstance(cls, type):
        raise TypeError(f"cls must be a class, got {cls!r}")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be a function of one argument, got {function!r}")
    CodePickler.dispatch_table[cls] = functools.partial(_reduce, serializer, deserializer)


def _reduce(
    serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any], value: Any
) -> tuple[Any, ...]:
    return deserializer, (serializer(value),)


def deregister_serializer(cls: type) -> None:
    """Back to pickle's own way. Does nothing where there is no registration."""
    CodePickler.dispatch_table.pop(cls, None)
