"""What a caller gets for an exception of user code: the remote traceback, without our frames, in a RayTaskError that carries the cause."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import RayError, RayTaskError
from ray_mono.protobuf import common_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.actor_runtime import ActorRuntime
    from ray_mono.core_worker.core_worker import CoreWorker

TITLE = "ray_mono::"
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def describe_error(spec: Any, error: BaseException, actor: ActorRuntime | None, core: CoreWorker) -> BaseException:
    """For an exception that left the user's function."""
    frame = error.__traceback__
    while frame is not None and os.path.abspath(frame.tb_frame.f_code.co_filename).startswith(_HERE):
        frame = frame.tb_next
    text = "".join(traceback.format_exception(type(error), error, frame))
    return _task_error(spec, text, _root(error), actor, core)


def argument_error(spec: Any, error: BaseException, actor: ActorRuntime | None, core: CoreWorker) -> BaseException:
    """For an argument that is an error itself, or cannot be read: both hops are shown."""
    if isinstance(error, RayTaskError):
        return _task_error(spec, f"One of its arguments could not be computed:\n{error}", _root(error), actor, core)
    if isinstance(error, RayError):
        return error
    return describe_error(spec, error, actor, core)


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
        name = f"{actor.class_name}.{name}"
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
