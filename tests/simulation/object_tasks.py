"""Between the objects of a process and its submitter: tasks of object programs, submitted, run and answered;
and what a process serves to other owners and borrowers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.ids import child_task_id, nil_actor_of, object_id_bytes, task_seed
from ray_mono.core_worker.task_submission.task_manager import PendingTask
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc
from ray_mono.rpc.surface import CallContext
from tests.simulation import submission
from tests.simulation.object_programs import ObjectProgram, ObjectScript
from tests.simulation.objects import Arrived, ReplyTo, SimObjects, answer_of
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES
from tests.simulation.submitter import Submitter

Waiting = Callable[[], contextlib.AbstractContextManager[None]]


class ObjectServicer(core_worker_rpc.CoreWorkerServiceServicer):
    """Serves the protocol of ownership."""

    objects: SimObjects

    async def GetObjectStatus(
        self, request: core_worker_pb2.GetObjectStatusRequest, context: CallContext
    ) -> core_worker_pb2.GetObjectStatusReply:
        reply: core_worker_pb2.GetObjectStatusReply = await answer_of(
            self.objects.resolver.GetObjectStatus, request
        )
        return reply

    async def AddBorrower(
        self, request: core_worker_pb2.AddBorrowerRequest, context: CallContext
    ) -> common_pb2.Empty:
        reply: common_pb2.Empty = await answer_of(self.objects.borrowing.AddBorrower, request)
        return reply

    async def WaitForRefRemoved(
        self, request: core_worker_pb2.WaitForRefRemovedRequest, context: CallContext
    ) -> common_pb2.Empty:
        reply: common_pb2.Empty = await answer_of(self.objects.borrowing.WaitForRefRemoved, request)
        return reply


class ObjectTasks:
    """Of one process."""

    def __init__(self, objects: SimObjects, submitter: Submitter) -> None:
        self._objects = objects
        self._submitter = submitter

    def submit(
        self,
        parent: bytes,
        counter: int,
        script: ObjectScript,
        by_value: list[bytes],
        by_reference: list[bytes],
    ) -> bytes:
        """The counter-th task of `parent` gets these; see SimObjects.submit."""
        task_id = child_task_id(task_seed(parent), counter, nil_actor_of(self._objects.job_id))

        def push(pending: PendingTask) -> None:
            task = submission.PendingTask(
                task_id,
                script,
                CHILD_RESOURCES,
                CHILD_RETRIES,
                args=list(pending.request.args),
                on_end=lambda reply, executor: self._objects.ended(pending, reply, executor),
            )
            self._submitter.start(task)

        return self._objects.submit(task_id, by_value, by_reference, push)

    def program(self, script: ObjectScript, parent: bytes, waiting: Waiting) -> ObjectProgram:
        return ObjectProgram(self._objects, script, parent, self.submit, waiting)

    def answer(
        self,
        spec: common_pb2.TaskSpec,
        arrived: Arrived,
        program: ObjectProgram,
        is_cancelled: bool,
        to: ReplyTo,
    ) -> None:
        """The end of a task, however its program ended: what it gives back, or an error; `to` hears when
        owners know."""
        reply = core_worker_pb2.PushTaskReply(is_application_error=is_cancelled)
        returned = reply.returns.add(object_id=object_id_bytes(spec.task_id, 1))
        inside: list[bytes] = []
        if is_cancelled:
            program.let_go()
            error = serialization.serialize_error(TaskCancelledError(spec.task_id.hex()))
            returned.value.metadata, returned.value.data = error.metadata, error.to_bytes()
        else:
            inside = program.returned()
            returned.value.CopyFrom(self._objects.value_of(inside))
        self._objects.answer(spec, arrived, reply, inside, to)
