"""RayletService on the wire: checks what callers say, and hands it to the raylet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ray_mono.common.ids import JobID, WorkerID
from ray_mono.protobuf import common_pb2, raylet_pb2, raylet_rpc
from ray_mono.raylet.clients import ClientProcess, open_board
from ray_mono.raylet.effects import Rejected, RejectionKind
from ray_mono.raylet.wire import UnsupportedStrategy, lease_request_from, refusal_reply
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.raylet.raylet import Raylet

LEASE_ID_BYTES_MAX = 64


class RayletServicer(raylet_rpc.RayletServiceServicer):
    """Answers RayletService, on the Unix socket and on TCP alike."""

    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet

    async def RegisterClient(
        self, request: raylet_pb2.RegisterClientRequest, context: CallContext
    ) -> raylet_pb2.RegisterClientReply:
        if len(request.worker_id) != WorkerID.SIZE:
            raise _invalid(f"worker_id takes {WorkerID.SIZE} bytes, got {request.worker_id!r}")
        if request.type == common_pb2.DRIVER and len(request.job_id) != JobID.SIZE:
            raise _invalid(f"a driver registers with its job_id, {JobID.SIZE} bytes, got {request.job_id!r}")
        raylet = self._raylet
        process = ClientProcess(
            worker_id=request.worker_id,
            type=request.type,
            language=request.language,
            pid=request.pid,
            job_id=request.job_id,
            address=request.address,
            connection=context.connection,
            startup_token=request.startup_token,
            start_time_s=raylet.clock.wall_s(),
            board=open_board(request.worker_id, request.pid, request.board_fd),
        )
        process.address.node_id = raylet.config.node_id
        process.address.worker_id = request.worker_id
        try:
            raylet.register(process)
        except ValueError as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        return raylet_pb2.RegisterClientReply(node=raylet.node, available=raylet.shown_available().to_proto())

    async def NotifyBlocked(
        self, request: raylet_pb2.NotifyBlockedRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._raylet.worker_blocked(request.worker_id, request.lease_id, True)
        return common_pb2.Empty()

    async def NotifyUnblocked(
        self, request: raylet_pb2.NotifyBlockedRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._raylet.worker_blocked(request.worker_id, request.lease_id, False)
        return common_pb2.Empty()

    async def NotifyLeaving(
        self, request: raylet_pb2.NotifyLeavingRequest, context: CallContext
    ) -> common_pb2.Empty:
        client = self._raylet.clients.get(request.worker_id)
        if client is not None:
            client.left_because = request.because
            if not request.because and not client.ordered_cause.kind:
                client.ordered_cause.kind = common_pb2.DeathCause.EXITED
        return common_pb2.Empty()

    async def RequestWorkerLease(
        self, request: raylet_pb2.RequestWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        if not 0 < len(request.lease_id) <= LEASE_ID_BYTES_MAX:
            raise _invalid(f"lease_id takes 1 to {LEASE_ID_BYTES_MAX} bytes, got {request.lease_id!r}")
        if any(amount < 0 for amount in request.resources.amounts.values()):
            raise _invalid(f"resources cannot be negative, got {dict(request.resources.amounts)}")
        try:
            lease = lease_request_from(request, self._raylet.requester_of(context.connection))
        except UnsupportedStrategy as error:
            name = request.task_name or "A task"
            return refusal_reply(Rejected(request.lease_id, RejectionKind.INFEASIBLE, f"{name}: {error}"))
        return await self._raylet.lease(lease)

    async def CancelWorkerLease(
        self, request: raylet_pb2.CancelWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.CancelWorkerLeaseReply:
        return raylet_pb2.CancelWorkerLeaseReply(cancelled=self._raylet.cancel_lease(request.lease_id))

    async def ReturnWorker(
        self, request: raylet_pb2.ReturnWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._raylet.return_lease(request.lease_id, request.dispose, request.leaving)
        return common_pb2.Empty()

    async def LostWorker(
        self, request: raylet_pb2.LostWorkerRequest, context: CallContext
    ) -> common_pb2.DeathCause:
        return await self._raylet.deaths.of_lost(request.lease_id, request.worker_id)

    async def WithdrawTasks(
        self, request: raylet_pb2.WithdrawTasksRequest, context: CallContext
    ) -> raylet_pb2.WithdrawTasksReply:
        return await self._raylet.withdrawals.withdraw(request.lease_id, request.last)

    async def WatchReclaims(
        self, request: common_pb2.Empty, context: CallContext
    ) -> AsyncIterator[raylet_pb2.ReclaimedLeases]:
        requester = self._raylet.requester_of(context.connection)
        async with contextlib.aclosing(self._raylet.reclaims.stream(requester)) as stream:
            async for named in stream:
                yield named

    async def KillWorker(
        self, request: raylet_pb2.KillWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._raylet.kill_worker(request.worker_id, request.force, request.cause)
        return common_pb2.Empty()

    async def CheckAlive(self, request: common_pb2.Empty, context: CallContext) -> raylet_pb2.CheckAliveReply:
        return raylet_pb2.CheckAliveReply(resources_version=self._raylet.gcs.resources_version)

    async def Shutdown(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.Empty:
        self._raylet.end("")
        return common_pb2.Empty()

    async def DumpState(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return common_pb2.DumpStateReply(json=json.dumps(self._raylet.dump()))


def _invalid(message: str) -> RpcError:
    return RpcError(StatusCode.INVALID_ARGUMENT, message)
