"""What a worker does before its user code blocks in `get` or `wait`: what waits behind the task is given back, and whoever blocks an event
loop is told once that everything on the loop stands still meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_mono.core_worker.task_execution.executor import Executor

VARIABLE = "RAY_MONO_WARN_BLOCKING_GET_INSIDE_ASYNC"
"""0: nobody is told."""

logger = logging.getLogger("ray_mono")


def before_blocking(executor: Executor) -> Callable[[], None]:
    """The function to call on the thread that is about to block."""
    is_told = os.environ.get(VARIABLE, "1").lower() in ("0", "false")

    def call() -> None:
        nonlocal is_told
        executor.give_back_all()
        if is_told or executor.actor is None or not executor.actor.is_asyncio or not _runs_loop():
            return
        is_told = True
        logger.warning(
            "A coroutine of actor %s blocks its event loop in get() or wait(), and every other call on the loop with it: await the"
            " reference instead (%s=0 hides this).",
            executor.actor.class_name,
            VARIABLE,
        )

    return call


def _runs_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
