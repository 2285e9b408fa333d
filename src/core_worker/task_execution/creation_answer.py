"""The answer to the creation of this worker's actor. The GCS that asked for it may be gone before it is
there, and the next GCS asks once more. The constructor runs once all the same, and all who asked are
answered: what a GCS asked that is gone may come after what the next one asks.

A GCS that has lost the actor with its store is told what it was: this process has the whole request.
"""

from __future__ import annotations

from typing import Any

from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.rpc.reactor_server import ServerCall


class CreationAnswer:
    """A ServerCall of all who asked and whose connections live. Lock held."""

    def __init__(self, task_id: bytes, request: core_worker_pb2.PushTaskRequest, call: ServerCall) -> None:
        self.task_id = task_id
        self._request = request
        self._calls = [call]
        self._payload: bytes | None = None

    def asked_again(self, call: ServerCall) -> None:
        self._calls = [*(each for each in self._calls if not each.connection.is_closed), call]
        if self._payload is not None:
            call.reply_bytes(self._payload)

    def told_again(self, address: common_pb2.Address, pid: int) -> common_pb2.ActorInfo | None:
        """As in AdoptRequest; None where there is no actor, since the constructor failed.

        address, pid: this process's.
        """
        spec = self._request.spec
        told = common_pb2.ActorInfo(
            creation_spec=spec,
            class_name=spec.name.removesuffix(".__init__"),
            num_restarts=spec.attempt,
            num_restarts_due_to_node_preemption=spec.actor_creation.num_restarts_due_to_node_preemption,
            address=address,
            pid=pid,
        )
        if self._payload is None:
            grant = raylet_pb2.Grant(
                lease_id=self._request.lease_id,
                worker=address,
                worker_pid=pid,
                resource_ids=self._request.resource_ids,
            )
            state = common_pb2.RESTARTING if spec.attempt else common_pb2.PENDING_CREATION
            told.MergeFrom(common_pb2.ActorInfo(state=state, creation_grant=grant.SerializeToString()))
            return told
        reply = core_worker_pb2.PushTaskReply.FromString(self._payload)
        if reply.status != core_worker_pb2.PushTaskReply.DONE or reply.is_application_error:
            return None
        if reply.worker_exiting:
            return None
        told.MergeFrom(common_pb2.ActorInfo(state=common_pb2.ALIVE, repr_name=reply.repr_name))
        return told

    @property
    def connection(self) -> Any:
        living = (call for call in self._calls if not call.connection.is_closed)
        return next(living, self._calls[-1]).connection

    def reply(self, message: Any, rings: bool = True) -> None:
        self.reply_bytes(message.SerializeToString(), rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        self._payload = payload
        for call in self._calls:
            call.reply_bytes(payload, rings)

    def send_bytes(self, payload: bytes) -> None:
        self._payload = payload
        for call in self._calls:
            call.send_bytes(payload)
