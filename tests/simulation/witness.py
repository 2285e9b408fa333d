"""What a simulated core worker says and hears on one of its connections, told to the judges.

They see messages, not the state of whoever sends them: a lease is held from the grant that is heard until the
word that sends it back.
"""

from __future__ import annotations

from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.task_wire import task_ids_of
from ray_mono.protobuf import core_worker_pb2
from tests.simulation.checkers import HeldLease, Journal
from tests.simulation.world import World


class Witness:
    """Of one connection."""

    def __init__(self, world: World, journal: Journal, worker_id: bytes, address: str) -> None:
        """worker_id: of the process; address: of the other end."""
        self._world = world
        self._journal = journal
        self._worker_id = worker_id
        self._address = address

    def __call__(self, path: str, request: Any, reply: Any) -> None:
        """reply: None as the request is sent; else what is heard in answer to it."""
        name = path.rpartition("/")[2]
        judge = (_HEARD if reply is not None else _SAID).get(name)
        if judge is not None:
            self._world.judge(judge, self, request, reply)

    # ---- what is heard

    def _lease_answered(self, request: Any, reply: Any) -> None:
        if reply.WhichOneof("outcome") == "grant":
            worker = reply.grant.worker
            resources = ResourceSet.from_proto(request.resources)
            lease = HeldLease(request.lease_id, worker.worker_id, worker.node_id, resources, self._worker_id)
            self._journal.lease_granted(lease)

    def _reclaims_heard(self, request: Any, reply: Any) -> None:
        for lease_id in reply.lease_ids:
            self._journal.lease_reclaimed(lease_id)

    def _task_answered(self, request: Any, reply: Any) -> None:
        answer = core_worker_pb2.PushTaskReply.FromString(reply)
        if answer.status == core_worker_pb2.PushTaskReply.DONE and not answer.is_application_error:
            self._journal.task_answered(request.task_id or request.spec.task_id)

    # ---- what is said

    def _returned(self, request: Any, reply: Any) -> None:
        self._journal.lease_returned(request.lease_id)

    def _lost(self, request: Any, reply: Any) -> None:
        self._journal.lease_lost(request.lease_id)
        self._journal.objects.lost(request.worker_id, self._world.clock.time_s())

    def _pushed(self, request: Any, reply: Any) -> None:
        task_id = request.task_id or request.spec.task_id
        attempt = request.attempt if request.template_id else request.spec.attempt
        self._journal.task_pushed(task_id, attempt, self._address)

    def _pushed_together(self, request: Any, reply: Any) -> None:
        for task_id in task_ids_of(request):
            self._journal.task_pushed(task_id, 0, self._address)

    def _acknowledged(self, request: Any, reply: Any) -> None:
        """Of a generator whose items are not taken as they come: it runs again for some that were lost."""
        if request.is_dropped or request.taken > request.received:
            self._journal.streams.dropped(request.task_id)

    def _blocked(self, request: Any, reply: Any) -> None:
        self._journal.worker_waits(request.worker_id)


_HEARD = {
    "RequestWorkerLease": Witness._lease_answered,
    "WatchReclaims": Witness._reclaims_heard,
    "PushTask": Witness._task_answered,
}
_SAID = {
    "ReturnWorker": Witness._returned,
    "LostWorker": Witness._lost,
    "PushTask": Witness._pushed,
    "PushTasks": Witness._pushed_together,
    "AcknowledgeItems": Witness._acknowledged,
    "NotifyBlocked": Witness._blocked,
}
