"""What a caller gets for an exception of user code: a RayTaskError with the remote traceback, without our
frames, and with the exception as its cause."""

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
"""An error tells at most so many calls that it came through: each one's text has those before it inside."""
_OURS = tuple(
    os.path.abspath(directory) + os.sep for directory in sys.modules[__name__.partition(".")[0]].__path__
)


class ActorExit(BaseException):
    """exit_actor() raises it. It ends the actor after this call, without an error and without a restart."""


class TaskFailed(Exception):
    """Carries the error that is the value of a call to the reply."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def describe_error(
    spec: Any, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """The error of a call whose function raised this exception."""
    if raw_error.is_a(error, MemoryError):
        raw_error.let_frames_go(error)  # they hold what took the memory, which the answer needs
    return _task_error(spec, users_traceback(error), _root(error), actor, env)


def unreadable(error: BaseException) -> RaySystemError:
    """The error of a value that cannot be unpickled. As in Ray it is not what unpickling raised, since that
    would pass for an error of the called function."""
    return RaySystemError(f"a value cannot be unpickled: {raw_error.repr_of(error)}", users_traceback(error))


def users_traceback(error: BaseException) -> str:
    """The traceback with the user's frames only, with those of the errors that it was raised from. Where an
    error's class keeps this from working, it has the error's own frames only."""
    try:
        shown = traceback.TracebackException(type(error), error, raw_error.traceback_of(error))
        todo = [shown]
        while todo:
            one = todo.pop()
            # Without frames there is no heading over them.
            one.stack = _users_frames(one.stack) or None  # type: ignore[assignment]
            causes = (one.__cause__, one.__context__, *(one.exceptions or ()))
            todo += [other for other in causes if other is not None]
        return "".join(shown.format())
    except BaseException:
        frames = _users_frames(traceback.extract_tb(raw_error.traceback_of(error)))
        heading = "Traceback (most recent call last):\n" if frames else ""
        return f"{heading}{''.join(frames.format())}{raw_error.text_of(error)}\n"


def _users_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    # abspath would fail where the current directory is gone. A name relative to it is none of ours.
    return traceback.StackSummary.from_list(
        frame for frame in stack if not os.path.normpath(frame.filename).startswith(_OURS)
    )


def cancelled_error(
    spec: Any, task: TaskContext, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """The error of a call whose user code was stopped by the interrupt `error`; it says where."""
    cancelled = TaskCancelledError(task.task_id.hex())
    return describe_error(spec, cancelled.with_traceback(raw_error.traceback_of(error)), actor, env)


def argument_error(
    spec: Any, error: BaseException, actor: ActorNames | None, env: Environment
) -> BaseException:
    """The error of a call one of whose arguments is an error, or cannot be read. It shows both hops."""
    if raw_error.is_a(error, Exception) and not raw_error.is_a(error, RayError):
        error = unreadable(error)
    if raw_error.is_a(error, RayError):
        return _task_error(spec, f"{ARGUMENT_FAILED}:\n{raw_error.str_of(error)}", _root(error), actor, env)
    return describe_error(spec, error, actor, env)


def handed_on(template: CallTemplate, data: bytes, env: Environment) -> bytes | None:
    """As argument_error, but the call's owner makes it, out of the serialized error that is an argument,
    without running user code. None where that is not possible. In a chain of more than HOPS_MAX calls, the
    calls beyond all have the same error.
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
    """The user's own exception, behind the hops that it came through."""
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
