"""What a caller gets for an exception of user code: the remote traceback, without our frames, in a RayTaskError that carries the cause."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import RayError, RaySystemError, RayTaskError, TaskCancelledError
from ray_mono.protobuf import common_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.actor_runtime import ActorRuntime
    from ray_mono.core_worker.context import TaskContext
    from ray_mono.core_worker.core_worker import CoreWorker

TITLE = "ray_mono::"
ARGUMENT_FAILED = "One of its arguments could not be computed"
_OURS = tuple(
    os.path.abspath(directory) + os.sep for directory in sys.modules[__name__.partition(".")[0]].__path__
)


def describe_error(
    spec: Any, error: BaseException, actor: ActorRuntime | None, core: CoreWorker
) -> BaseException:
    """For an exception that left the user's function."""
    return _task_error(spec, users_traceback(error), _root(error), actor, core)


def unreadable(error: Exception) -> RaySystemError:
    """For what unpickling a value raised: as in Ray, not the error itself, which would pass for one of the function that is called."""
    return RaySystemError(f"a value cannot be unpickled: {error!r}", users_traceback(error))


def users_traceback(error: BaseException) -> str:
    """The traceback with the user's frames only; also those of what it was raised from."""
    shown = traceback.TracebackException(type(error), error, error.__traceback__)
    todo = [shown]
    while todo:
        one = todo.pop()
        one.stack[:] = [frame for frame in one.stack if not os.path.abspath(frame.filename).startswith(_OURS)]
        if not one.stack:
            # No heading over nothing.
            one.stack = None  # type: ignore[assignment]
        todo += [
            other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None
        ]
    return "".join(shown.format())


def cancelled_error(
    spec: Any, task: TaskContext, error: BaseException, actor: ActorRuntime | None, core: CoreWorker
) -> BaseException:
    """For user code that was stopped by `error`, an interrupt: where it was, and what it is to its caller."""
    cancelled = TaskCancelledError(task.task_id.hex())
    return describe_error(spec, cancelled.with_traceback(error.__traceback__), actor, core)


def argument_error(
    spec: Any, error: BaseException, actor: ActorRuntime | None, core: CoreWorker
) -> BaseException:
    """For an argument that is an error itself, or cannot be read: both hops are shown."""
    if isinstance(error, Exception) and not isinstance(error, RayError):
        error = unreadable(error)
    if not isinstance(error, RayError):
        return describe_error(spec, error, actor, core)
    return _task_error(spec, f"{ARGUMENT_FAILED}:\n{error}", _root(error), actor, core)


def _root(error: BaseException) -> BaseException:
    """The user's own exception, through the hops it came."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def _task_error(
    spec: Any, text: str, cause: BaseException, actor: ActorRuntime | None, core: CoreWorker
) -> RayTaskError:
    name = spec.name
    if actor is not None and spec.type == common_pb2.ACTOR_TASK:
        name = spec.actor_task.task_name or f"{actor.class_name}.{name}"
    return RayTaskError(
        name,
        text,
        cause,
        proctitle=f"{TITLE}{name}",
        pid=core.pid,
        ip=core.node.host,
        actor_repr=actor.repr_name() if actor is not None else None,
        actor_id=(spec.actor_task.actor_id or spec.actor_creation.actor_id).hex() or None,
    )
