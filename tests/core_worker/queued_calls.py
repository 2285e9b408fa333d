"""An executor without a process around it, and calls that are pushed to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.task_execution.executor import Executor
from ray_mono.protobuf import common_pb2, core_worker_pb2


class FakeCall:
    """A ServerCall."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.replies: list[Any] = []

    def reply(self, message: Any, rings: bool = True) -> None:
        self.replies.append(message.status)


def executor_of() -> Executor:
    core: Any = SimpleNamespace(
        worker_id=b"worker",
        getter=SimpleNamespace(lease_id=b"", arrivals=None),
        reactor=SimpleNamespace(wake=lambda: None),
        worker_runs=SimpleNamespace(learn=lambda keys: None),
    )
    return Executor(core, lambda spec: None, StartBoard(b"w" * 28))


def push(
    executor: Executor, connection: Any, task_id: bytes, lease_id: bytes = b"", lease_number: int = 0
) -> FakeCall:
    call = FakeCall(connection)
    spec = common_pb2.TaskSpec(type=common_pb2.NORMAL_TASK)
    request = core_worker_pb2.PushTaskRequest(
        spec=spec, template_id=1, task_id=task_id, lease_id=lease_id, lease_number=lease_number
    )
    executor.PushTask(request, call)  # type: ignore[arg-type]
    return call
