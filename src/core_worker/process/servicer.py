"""The calls that a core worker answers, of its peers, its raylet and the GCS. Each call goes to the part that
answers it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray_mono.common.explanation import WaitCode
from ray_mono.common.our_bug import known
from ray_mono.common.wait_messages import reason_of
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.peers import PUSH_TASK
from ray_mono.core_worker.task_execution.execution import Execution
from ray_mono.core_worker.task_wire import PushReader
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceServicer, core_worker_service_handlers
from ray_mono.rpc.reactor_server import ServerCall
from ray_mono.rpc.surface import Handler, RpcError, StatusCode


def handlers_of(servicer: CoreWorkerServicer) -> dict[str, Handler[Any, Any]]:
    """What a server of it takes: pushes are read by hand (task_wire.py), all others as their messages."""
    handlers: dict[str, Handler[Any, Any]] = core_worker_service_handlers(servicer)
    handlers[PUSH_TASK] = replace(handlers[PUSH_TASK], request_type=PushReader)
    return handlers


class CoreWorkerServicer(CoreWorkerServiceServicer):
    """Its methods are plain functions, called under the lock (rpc/reactor_server.py)."""

    def __init__(self, is_worker: bool) -> None:
        self._core: CoreWorker | None = None
        self._execution: Execution | None = None
        # Calls that came before this worker could run tasks, in order. None in a driver, which runs none.
        self._early: list[Callable[[], None]] | None = [] if is_worker else None

    def serve(self, core: CoreWorker) -> None:
        """This core worker answers from now on. Lock held."""
        self._core = core

    def execute(self, execution: Execution) -> None:
        """This worker runs tasks from now on. Lock held."""
        self._execution = execution
        early, self._early = self._early, None
        for handle in early or ():
            handle()

    def PushTask(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self._execution is not None:
            self._execution.receiver.PushTask(request, call)
        elif self._early is not None:
            self._early.append(lambda: self.PushTask(request, call))
        else:
            call.reply(core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.WRONG_WORKER))

    def PushTasks(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        # Behind a PushTask that named the template.
        if self._early is not None:
            self._early.append(lambda: self.PushTasks(request, call))
        else:
            known(self._execution, "what runs tasks here").receiver.PushTasks(request, call)

    def GiveBackTasks(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self._execution is not None:
            self._execution.receiver.GiveBackTasks(request, call)
        elif self._early is not None:
            self._early.append(lambda: self.GiveBackTasks(request, call))

    def ForgetTemplates(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        for number in request.template_ids:
            call.connection.state.pop(number, None)

    def CancelTask(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if request.to_owner:
            found = self.core.canceller.cancel_own(request.task_id, request.force, request.recursive)
        elif self._early is not None:
            self._early.append(lambda: self.CancelTask(request, call))
            return
        else:
            found = self._execution is not None and self._execution.interrupter.cancel(request)
        call.reply(core_worker_pb2.CancelTaskReply(found=found))

    def AcknowledgeItems(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self._execution is not None:
            self._execution.generators.AcknowledgeItems(request)

    def GetObjectStatus(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.resolver.GetObjectStatus(request, call)

    def AddBorrower(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.borrowing.AddBorrower(request, call)

    def WaitForRefRemoved(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.borrowing.WaitForRefRemoved(request, call)

    def AddObjectLocation(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.resolver.AddObjectLocation(request, call)

    def GetExportedCode(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.job_code.GetExportedCode(request, call)

    def GetJobSetup(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self.core.job_code.GetJobSetup(request, call)

    def TakeBackCalls(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self._execution is None:
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this process runs no calls")
        caller = request.caller_worker_id
        first = self._execution.receiver.take_back(caller, call.connection)
        reply = core_worker_pb2.TakeBackCallsReply(first_task_id=first)
        self.core.borrowing.when_named_again(caller, lambda: call.reply(reply))

    def CheckAlive(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        call.reply(common_pb2.Empty())

    def Exit(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        execution = self._execution
        if execution is None:
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this process is not, or not yet, a worker")
        if not request.force and execution.running.actor is None and not self.core.is_disposable():
            # An idle worker may own objects that others still need. They would be lost with it.
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this worker owns objects or has tasks under way")
        if request.moves:
            execution.receiver.move(call)
            return
        call.reply(common_pb2.Empty())
        if request.force:
            self.core.send_events()
            execution.replies.flush()
            os._exit(1)
        execution.receiver.exit_after_queue()

    def Explain(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self._core is None:
            name = request.subject.name or "what is wanted"
            call.reply(reason_of(WaitCode.STARTING, f"{name} is in a process that is about to be ready"))
        else:
            call.reply(self._core.reasons.of(request.subject))

    def ListWaiting(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        silent = frozenset(request.silent_worker_ids)
        call.reply(common_pb2.WaitingReply() if self._core is None else self._core.reasons.waiting(silent))

    def DumpState(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        call.reply(common_pb2.DumpStateReply(json=json.dumps(self.core.describe())))

    @property
    def core(self) -> CoreWorker:
        return known(self._core, "the core worker")
