"""Marks of how stable a name of an API is.

They change nothing but the name's documentation, and `Deprecated` warns.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


class RayDeprecationWarning(DeprecationWarning):
    """Something will go."""


def _note(target: Any, text: str) -> Any:
    target.__doc__ = f"{target.__doc__}\n\n{text}" if target.__doc__ else text
    return target


def PublicAPI(*args: Any, **options: Any) -> Any:
    """A decorator, with or without arguments (stability="stable", "beta" or "alpha", api_group=...)."""
    stability = options.get("stability", "stable")
    if stability not in ("stable", "beta", "alpha"):
        raise ValueError(f"stability must be 'stable', 'beta' or 'alpha', got {stability!r}")

    def mark(target: Any) -> Any:
        return _note(target, f"**PublicAPI ({stability})**")

    return mark(args[0]) if len(args) == 1 and callable(args[0]) else mark


def DeveloperAPI(*args: Any, **options: Any) -> Any:
    """A decorator, with or without arguments."""

    def mark(target: Any) -> Any:
        return _note(target, "**DeveloperAPI**")

    return mark(args[0]) if len(args) == 1 and callable(args[0]) else mark


def Deprecated(*args: Any, message: str = "", warning: bool = False) -> Any:
    """A decorator, with or without arguments. warning: whether each call warns, too."""

    def mark(target: Any) -> Any:
        text = f"**DEPRECATED** {message}".rstrip()
        if not warning:
            return _note(target, text)
        if isinstance(target, type):
            target.__init__ = _warning(target.__init__, target.__name__, message)  # type: ignore[misc]
            return _note(target, text)
        return _note(_warning(target, target.__name__, message), text)

    return mark(args[0]) if len(args) == 1 and callable(args[0]) else mark


def _warning(function: Callable[..., Any], name: str, message: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{name} is deprecated. {message}".rstrip(), RayDeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return call
