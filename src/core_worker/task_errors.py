"""What a caller gets for an exception of user code: the remote traceback, without our frames, in a
RayTaskError that carries the cause."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from ray_mono.common import raw_error
from ray_mono.common.exceptions import RayError, RaySystemError, RayTaskError, TaskCancelledError
from ray_mono.common.task_error import load_packed, packed_cause_of
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.context import ActorNames, TaskContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

TITLE = "ray_mono::"
ARGUMENT_FAILED = "One of its arguments could not be computed"
HOPS_MAX = 20
"""So many calls an error tells that it came through: each holds the texts of those before it."""
_OURS = tuple(
    os.path.abspath(directory) + os.sep for directory in sys.modules[__name__.partition(".")[0]].__path__
)


class ActorExit(BaseException):
    """Raised by exit_actor(): ends the actor after this call, without an error and without a restart."""


class TaskFailed(Exception):
    """The call has an error for a value; carries it to the reply."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def describe_error(
    spec: Any, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """For an exception that left the user's function."""
    if raw_error.is_a(error, MemoryError):
        raw_error.let_frames_go(error)  # or what took the memory would take the answer's too
    return _task_error(spec, users_traceback(error), _root(error), actor, env)


def unreadable(error: BaseException) -> RaySystemError:
    """For what unpickling a value raised: as in Ray, not the error itself, which would pass for one of the
    function that is called."""
    return RaySystemError(f"a value cannot be unpickled: {raw_error.repr_of(error)}", users_traceback(error))


def users_traceback(error: BaseException) -> str:
    """The traceback with the user's frames only; also those of what it was raised from. Where their classes
    do not let these be found, the error's own frames."""
    try:
        shown = traceback.TracebackException(type(error), error, raw_error.traceback_of(error))
        todo = [shown]
        while todo:
            one = todo.pop()
            # No heading over nothing.
            one.stack = _users_frames(one.stack) or None  # type: ignore[assignment]
            causes = (one.__cause__, one.__context__, *(one.exceptions or ()))
            todo += [other for other in causes if other is not None]
        return "".join(shown.format())
    except BaseException:
        frames = _users_frames(traceback.extract_tb(raw_error.traceback_of(error)))
        heading = "Traceback (most recent call last):\n" if frames else ""
        return f"{heading}{''.join(frames.format())}{raw_error.text_of(error)}\n"


def _users_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    # Not abspath: the current directory may be gone, and a name that is relative to it is none of ours.
    return traceback.StackSummary.from_list(
        frame for frame in stack if not os.path.normpath(frame.filename).startswith(_OURS)
    )


def cancelled_error(
    spec: Any, task: TaskContext, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """For user code that was stopped by `error`, an interrupt: where it was, and what it is to its caller."""
    cancelled = TaskCancelledError(task.task_id.hex())
    return describe_error(spec, cancelled.with_traceback(raw_error.traceback_of(error)), actor, env)


def argument_error(
    spec: Any, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """For an argument that is an error itself, or cannot be read: both hops are shown."""
    if raw_error.is_a(error, Exception) and not raw_error.is_a(error, RayError):
        error = unreadable(error)
    if raw_error.is_a(error, RayError):
        return _task_error(spec, f"{ARGUMENT_FAILED}:\n{raw_error.str_of(error)}", _root(error), actor, env)
    return describe_error(spec, error, actor, env)


def handed_on(template: CallTemplate, data: bytes, env: Environment) -> bytes | None:
    """What a call is worth of which this serialized error is an argument: as argument_error, made by the
    call's owner, and without running user code. None where that cannot be. Beyond HOPS_MAX calls one behind
    the other all have the same error.
    """
    error = load_packed(data)
    if error is None:
        return None
    if isinstance(error, RayTaskError) and error.traceback_str.count(ARGUMENT_FAILED) >= HOPS_MAX:
        return data
    spec = template.spec
    made = RayTaskError(
        template.title,
        f"{ARGUMENT_FAILED}:\n{error}",
        packed_cause_of(error),
        proctitle=f"{TITLE}{template.title}",
        pid=env.pid,
        ip=env.node.host,
        actor_id=(spec.actor_task.actor_id or spec.actor_creation.actor_id).hex() or None,
    )
    return serialization.serialize_error(made).to_bytes()


def _root(error: BaseException) -> BaseException:
    """The user's own exception, through the hops it came."""
    cause = raw_error.attributes_of(error).get("cause") if raw_error.is_a(error, RayTaskError) else None
    return cause if raw_error.is_a(cause, BaseException) else error  # type: ignore[return-value]


def _task_error(
    spec: Any, text: str, cause: BaseException, actor: ActorNames | None, env: Environment
) -> RayTaskError:
    name = spec.name
    if actor is not None and spec.type == common_pb2.ACTOR_TASK:
        name = spec.actor_task.task_name or f"{actor.class_name}.{name}"
    return RayTaskError(
        name,
        text,
        cause,
        proctitle=f"{TITLE}{name}",
        pid=env.pid,
        ip=env.node.host,
        actor_repr=actor.repr_name() if actor is not None else None,
        actor_id=(spec.actor_task.actor_id or spec.actor_creation.actor_id).hex() or None,
    )
