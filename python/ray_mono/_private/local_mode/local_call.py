"""One call in local mode, of a task or a method: what is to be run, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import WorkerCrashedError
from ray_mono.common.raw_error import is_a
from ray_mono.common.ray_error import RayError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.task_error import RayTaskError
from ray_mono.core_worker.context import IN_NONE, InGroup
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED, TaskFailed, unreadable, users_traceback
from ray_mono.core_worker.task_execution.running import cause_of_exit
from ray_mono.core_worker.task_submission.function_manager import module_name, script_name
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2


@dataclass(frozen=True)
class LocalCall:
    """One call."""

    function: Callable[[list[Any], dict[str, Any]], Any]
    name: str
    num_returns: int
    """A count, STREAMING_RETURNS or DYNAMIC_RETURNS."""
    retries: int
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    actor_id: bytes = b""
    function_descriptor: common_pb2.FunctionDescriptor | None = None
    resources: ResourceSet | None = None
    backpressure: int = 0
    """Items of a generator that may wait to be taken; 0: any number."""
    group: InGroup = IN_NONE

    def error_of(self, error: BaseException) -> BaseException:
        """What the caller gets for what left the function.

        Raises KeyboardInterrupt again: here it is the terminal's Ctrl-C.
        """
        if is_a(error, KeyboardInterrupt):
            raise error
        if is_a(error, TaskFailed):
            return error.error  # type: ignore[attr-defined]
        if is_a(error, SystemExit):
            return WorkerCrashedError(f"{cause_of_exit(error)}, which ends a worker")
        return RayTaskError(
            self.name, users_traceback(error), error, actor_id=self.actor_id.hex() if self.actor_id else None
        )

    def argument_error(self, error: RayError) -> RayTaskError:
        """What the caller gets where an argument is an error."""
        text = f"{ARGUMENT_FAILED}:\n{error}"
        return RayTaskError(self.name, text, error, actor_id=self.actor_id.hex() if self.actor_id else None)

    def covers(self, error: BaseException) -> bool:
        """Whether its options say that it runs again after `error`, if retries are left."""
        retried = self.retry_exceptions
        if not isinstance(error, RayTaskError):
            return False
        return retried is True or bool(retried and is_a(error.cause, retried))


def pack(name: str, flat_args: list[Any]) -> list[serialization.Serialized]:
    """Raises TypeError saying which argument does not pickle."""
    packed = []
    for position, value in enumerate(flat_args):
        try:
            packed.append(serialization.serialize(value))
        except Exception as error:
            which = f"argument {flat_args[position - 1] or f'number {position // 2}'} of {name}()"
            raise serialization.unpicklable(which, value, error) from error
    return packed


def read(serialized: serialization.Serialized) -> Any:
    """The value. Raises RaySystemError if it cannot be unpickled."""
    try:
        return serialization.deserialize(serialized.metadata, serialized.to_bytes())
    except Exception as error:
        raise unreadable(error) from None


def describe(target: Any, class_name: str = "", function_name: str = "") -> common_pb2.FunctionDescriptor:
    """The descriptor by which the runtime context names a function, or a method of a class."""
    python = common_pb2.PythonFunctionDescriptor(
        module_name=module_name(target, script_name()), class_name=class_name, function_name=function_name
    )
    return common_pb2.FunctionDescriptor(python=python)
