"""The process's connected core worker: the one global there is, so that user code deep inside a task finds its way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_mono.common.exceptions import RaySystemError

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

_core: CoreWorker | None = None


def get() -> CoreWorker | None:
    return _core


def require() -> CoreWorker:
    """The connected core worker. Raises RaySystemError where there is none."""
    if _core is None:
        raise RaySystemError("ray_mono is not connected to a cluster in this process: call ray_mono.init() first")
    return _core


def set(core: CoreWorker | None) -> None:
    global _core
    _core = core
