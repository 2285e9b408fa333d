"""Every error that users of ray_mono can catch: `ray_mono.exceptions` has this list. The names, and which is
a kind of which, are Ray's.

An error says whose fault it is: a RayTaskError is the user's code (task_error.py), a worker, node, owner or
object that is gone is the environment, and RaySystemError is ours. All of them can be pickled: what is
pickled is what the constructor was given.
"""

from __future__ import annotations

from ray_mono.common.object_errors import (
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    PlasmaObjectNotAvailable,
    ReferenceCountingAssertionError,
)
from ray_mono.common.ray_error import RayError, RpcError, UnserializableException
from ray_mono.common.task_error import RayTaskError

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]


class UserCodeException(RayError):
    """Code that a library was given raised; the library names where."""


class CrossLanguageError(RayError):
    """A task in another language failed.

    Args:
        message: the error as that language formats it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return f"A task in another language failed:\n{self.args[0]}"


class GetTimeoutError(RayError, TimeoutError):
    """`get` was given a timeout, and the value was not there in time."""


# ---------------------------------------------------------------- workers and nodes


class _FixedMessage(RayError):
    """An error with a sentence of its own. A message that is given replaces it."""

    sentence = ""

    def __str__(self) -> str:
        return super().__str__() or self.sentence


class WorkerCrashedError(_FixedMessage):
    """The process that ran the task ended before it answered, and the task has no retries left."""

    sentence = (
        "The worker died before it finished the task. Its log is worker-* in the session's logs directory."
    )


class LocalRayletDiedError(_FixedMessage):
    """The raylet of this process's own node is gone, so that nothing can be run any more."""

    sentence = "The raylet of the task's node died. Its log is in the session's logs directory, as raylet*."


class NodeDiedError(RayError):
    """The node is gone, or seems to be.

    Args:
        message: which node, and how that was noticed.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class OutOfMemoryError(RayError):
    """A worker was ended because its node ran out of memory.

    Args:
        message: how much memory was used, and how much is allowed.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class RaySystemError(RayError):
    """Something in ray_mono itself failed, or this process is not connected to a cluster (any more).

    Args:
        client_exc: the reason.
        traceback_str: the traceback of the place, or None.
    """

    def __init__(self, client_exc: object, traceback_str: str | None = None) -> None:
        super().__init__(client_exc, traceback_str)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        return f"System error: {self.client_exc}" + (f"\n{self.traceback_str}" if self.traceback_str else "")


class PlacementGroupNameTaken(RaySystemError, ValueError):
    """Another placement group has the name. In Ray that is a RaySystemError."""


class AuthenticationError(RayError):
    """The cluster did not accept the secret.

    Args:
        message: which secret was tried, and how to pass another one.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class RayChannelError(RaySystemError):
    """A channel of a compiled graph is broken or closed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel of a compiled graph was not ready in time."""


class RayCgraphCapacityExceeded(RaySystemError):
    """A compiled graph holds as many unread results as it may."""


class RayDirectTransportError(RaySystemError):
    """Values did not travel from device to device."""


# ---------------------------------------------------------------- tasks


class TaskCancelledError(RayError):
    """The task was cancelled before or while it ran.

    Args:
        task_id: an id, or its hex; None if it is not known.
        error_message: what else is known, or None.
    """

    def __init__(self, task_id: object = None, error_message: str | None = None) -> None:
        super().__init__(task_id, error_message)
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        text = "The task was cancelled." if self.task_id is None else f"Task {self.task_id} was cancelled."
        return f"{text} {self.error_message}" if self.error_message else text


class TaskUnschedulableError(RayError):
    """No node can ever run the task, or its job is over.

    Args:
        error_message: what it needs, and what there is.
    """

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The task cannot be scheduled: {self.error_message}"


class TaskPlacementGroupRemoved(_FixedMessage):
    """The placement group that the task was to run in is gone."""

    sentence = "The placement group of this task was removed."

    @classmethod
    def of(cls, group_id: bytes) -> TaskPlacementGroupRemoved:
        """Of the group with this id."""
        return cls(f"The placement group of this task was removed: {group_id.hex()}.")


class RuntimeEnvSetupError(RayError):
    """The runtime environment of a task or actor could not be made.

    Args:
        error_message: the reason.
    """

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return "The runtime environment could not be set up." + (
            f"\n{self.error_message}" if self.error_message else ""
        )


class PendingCallsLimitExceeded(RayError):
    """So many calls of this process to the actor are not answered as its `max_pending_calls` allows."""


class ObjectRefStreamEndOfStreamError(RayError):
    """A generator task has no more values."""


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator task that was run again gave other values than before."""


class OufOfBandObjectRefSerializationException(RayError):
    """A reference was pickled where nobody can count it, and that is forbidden here."""


# ---------------------------------------------------------------- actors


class RayActorError(RayError):
    """The actor could not do the call.

    Args:
        actor_id: in hex, if known.
        error_msg: what happened.
        actor_init_failed: whether its constructor raised.
        preempted: whether its node was taken away by the provider.
    """

    BASE_ERROR_MSG = "The actor failed before it finished this call."

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(actor_id, error_msg, actor_init_failed, preempted)
        self.actor_id = actor_id
        self.error_msg = error_msg
        self._preempted = preempted
        self._actor_init_failed = actor_init_failed

    @property
    def preempted(self) -> bool:
        return self._preempted

    @property
    def actor_init_failed(self) -> bool:
        return self._actor_init_failed

    def __str__(self) -> str:
        return self.error_msg


class ActorDiedError(RayActorError):
    """The actor is dead, and stays dead.

    Args:
        cause: the RayTaskError of its constructor; or text for people about its death; or None if nothing is
            known.
        actor_id: in hex; taken from a RayTaskError if not given.
        preempted: as in RayActorError.
    """

    BASE_ERROR_MSG = "The actor died before it finished this call."

    def __init__(
        self,
        cause: RayTaskError | str | None = None,
        actor_id: str | None = None,
        preempted: bool = False,
    ) -> None:
        if isinstance(cause, RayTaskError):
            text = f"The actor died because its constructor raised: {cause}"
            super().__init__(actor_id or cause.actor_id, text, actor_init_failed=True)
        else:
            text = f"{self.BASE_ERROR_MSG}\n{cause}" if cause else self.BASE_ERROR_MSG
            super().__init__(actor_id, text, preempted=preempted)
        self.cause = cause
        self.args = (cause, actor_id, preempted)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        """The error for an actor whose constructor raised this."""
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached now, and may be later. Nobody knows whether the call has run.

    Args:
        error_message: the reason.
        actor_id: as bytes, if known.
    """

    def __init__(self, error_message: str, actor_id: bytes | None = None) -> None:
        hex_id = actor_id.hex() if actor_id else None
        name = f"The actor {hex_id}" if hex_id else "The actor"
        text = f"{name} is unavailable: {error_message}. The call may or may not have been executed."
        super().__init__(hex_id, text)
        self.args = (error_message, actor_id)


class ActorUnschedulableError(RayError):
    """No node can ever run the actor.

    Args:
        error_message: what it needs, and what there is.
    """

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The actor cannot be scheduled: {self.error_message}"


class ActorPlacementGroupRemoved(_FixedMessage):
    """The placement group that the actor was to live in is gone."""

    sentence = "The placement group of this actor was removed."


class ActorAlreadyExistsError(ValueError, RayError):
    """The name is taken by another actor of the namespace."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle belongs to another session, or to another process."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class AsyncioActorExit(RayError):
    """Ends an async actor from within; users do not see it."""
