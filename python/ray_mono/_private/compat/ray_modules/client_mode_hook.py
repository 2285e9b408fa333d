"""`ray._private.client_mode_hook`: by it functions turn to Ray Client. There is none yet, so they stay as
they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext as disable_client_hook
from typing import Any

__all__ = ["client_mode_hook", "client_mode_should_convert", "client_mode_wrap", "disable_client_hook"]

is_client_mode_enabled = False


def client_mode_hook(
    func: Callable[..., Any] | None = None, *, local_only_kwargs: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """A decorator, with or without arguments."""
    return client_mode_wrap if func is None else func


def client_mode_wrap(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


def client_mode_should_convert() -> bool:
    return False
