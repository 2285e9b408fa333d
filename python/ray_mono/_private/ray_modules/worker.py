"""Names of `ray._private.worker` that say what a process is, and what it is connected to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_mono._private import worker
from ray_mono._private.ray_context import RayContext as BaseContext

if TYPE_CHECKING:
    from ray_mono.node import Node

__all__ = ["BaseContext", "RESTORE_WORKER_MODE", "SPILL_WORKER_MODE", "_global_node", "_post_init_hooks"]

# Ray's processes that move objects to disk and back; none of ours is one.
SPILL_WORKER_MODE = 3
RESTORE_WORKER_MODE = 4
_post_init_hooks: list[Callable[[], object]] = []
"""Called after each `init`."""
_global_node: Node | None


def __getattr__(name: str) -> object:
    if name == "_global_node":
        session = worker._session
        return None if session is None else session.node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
