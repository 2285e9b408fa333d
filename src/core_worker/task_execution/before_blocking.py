"""What a worker does before its user code blocks in `get` or `wait`. It gives back the tasks that wait behind
the one that blocks. If a coroutine blocks its event loop, it warns, once, that everything on the loop stands
still meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver

VARIABLE = "RAY_MONO_WARN_BLOCKING_GET_INSIDE_ASYNC"
"""Set to 0, it hides the warning."""

logger = logging.getLogger("ray_mono")


def before_blocking(env: Environment, running: Running, receiver: TaskReceiver) -> Callable[[], None]:
    """The function to call on the thread that is about to block."""
    is_told = os.environ.get(VARIABLE, "1").lower() in ("0", "false")

    def call() -> None:
        nonlocal is_told
        with env.lock:
            # The running task waits for others, perhaps for one that is queued here.
            receiver.give_back()
        actor = running.actor
        if is_told or actor is None or not running.actor_is_asyncio or not _runs_loop():
            return
        is_told = True
        logger.warning(
            "A coroutine of actor %s blocks its event loop in get() or wait(), and every other call on the"
            " loop with it: await the reference instead (%s=0 hides this).",
            actor.class_name,
            VARIABLE,
        )

    return call


def _runs_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
