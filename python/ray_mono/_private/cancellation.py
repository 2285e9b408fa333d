"""`cancel`: from the reference of a task's return to the end of the task."""

from __future__ import annotations

from typing import Any

from ray_mono._private.argument_checks import flag
from ray_mono._private.driver.auto_init import connected_core
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator


def cancel(
    ray_waitable: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Cancels the task, or the actor's call, that makes an object. Nothing happens to one that has finished,
    and none is retried.

    What has not begun never runs, and `get` raises TaskCancelledError. In a running task KeyboardInterrupt is
    raised; where it leaves the task, `get` raises an error that is also a TaskCancelledError. An async
    actor's coroutine gets an asyncio.CancelledError. Another actor's running call is not stopped. It is told
    by `get_runtime_context().is_canceled()`, and `get` raises TaskCancelledError.

    Args:
        ray_waitable: what the call returned: one of its references, or its generator.
        force: end the worker's process instead of raising in it. Not for calls of actors.
        recursive: also cancel what the task has submitted, as far as it is not finished.

    Raises TypeError for what is no reference, ValueError for force and an actor's call, and RaySystemError
    for a reference of a session that is over.
    """
    core = connected_core()
    ref = ray_waitable._generator_ref if isinstance(ray_waitable, ObjectRefGenerator) else ray_waitable
    if not isinstance(ref, ObjectRef):
        raise TypeError(
            f"cancel() takes an ObjectRef or an ObjectRefGenerator, got {ray_waitable!r} of type"
            f" {type(ray_waitable).__name__};"
            " kill() ends an actor"
        )
    core.cancel(ref, flag("force", force), flag("recursive", recursive))
