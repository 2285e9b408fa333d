"""RayletService on the wire: checks what callers say, and hands it to the part that it is for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ray_mono.common.ids import JobID, WorkerID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, raylet_pb2, raylet_rpc
from ray_mono.raylet.bundle_requests import BundleRequests, order_of
from ray_mono.raylet.clients import ClientProcess, open_board
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.dead_nodes import DeadNodes
from ray_mono.raylet.drain import Drain
from ray_mono.raylet.gcs_client import GcsClient
from ray_mono.raylet.lease_requests import LeaseRequests
from ray_mono.raylet.lent_cpus import LentCpus
from ray_mono.raylet.local_processes import LocalProcesses
from ray_mono.raylet.reclaim_streams import ReclaimStreams
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.taken_objects import TakenObjects
from ray_mono.raylet.wait_reasons import StoreReasons, WaitReasons
from ray_mono.raylet.wire import lease_request_from, shown_available
from ray_mono.raylet.withdrawals import Withdrawals
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

LEASE_ID_BYTES_MAX = 64


class RayletServicer(raylet_rpc.RayletServiceServicer):
    """Answers RayletService, on the Unix socket and on TCP alike."""

    def __init__(
        self,
        clock: Clock,
        node: common_pb2.NodeInfo,
        ledger: ResourceLedger,
        processes: LocalProcesses,
        requests: LeaseRequests,
        reclaims: ReclaimStreams,
        dead_nodes: DeadNodes,
        withdrawals: Withdrawals,
        lent_cpus: LentCpus,
        drain: Drain,
        bundles: BundleRequests,
        taken_objects: TakenObjects,
        gcs: GcsClient,
        config: RayletConfig,
        reasons: WaitReasons,
        store_reasons: StoreReasons,
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        """node: this node's row at the GCS. describe(): its state for people."""
        self._clock = clock
        self._node = node
        self._ledger = ledger
        self._processes = processes
        self._requests = requests
        self._reclaims = reclaims
        self._dead_nodes = dead_nodes
        self._withdrawals = withdrawals
        self._lent_cpus = lent_cpus
        self._drain = drain
        self._bundles = bundles
        self._taken_objects = taken_objects
        self._gcs = gcs
        self._config = config
        self._reasons = reasons
        self._store_reasons = store_reasons
        self._describe = describe

    # ---- its own workers and drivers

    async def RegisterClient(
        self, request: raylet_pb2.RegisterClientRequest, context: CallContext
    ) -> raylet_pb2.RegisterClientReply:
        worker_id = request.worker_id
        if len(worker_id) != WorkerID.SIZE:
            raise _invalid(f"worker_id takes {WorkerID.SIZE} bytes, got {worker_id!r}")
        if request.type == common_pb2.DRIVER and len(request.job_id) != JobID.SIZE:
            raise _invalid(f"a driver registers with its job_id, {JobID.SIZE} bytes, got {request.job_id!r}")
        address = common_pb2.Address()
        address.MergeFrom(request.address)
        address.MergeFrom(common_pb2.Address(node_id=self._node.node_id, worker_id=worker_id))
        process = ClientProcess(
            worker_id=worker_id,
            type=request.type,
            language=request.language,
            pid=request.pid,
            job_id=request.job_id,
            address=address,
            connection=context.connection,
            startup_token=request.startup_token,
            start_time_s=self._clock.wall_s(),
            board=open_board(worker_id, request.pid, request.board_fd),
        )
        try:
            self._processes.register(process)
        except ValueError as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        available = shown_available(self._ledger.available).to_proto()
        return raylet_pb2.RegisterClientReply(
            node=self._node,
            available=available,
            gcs_reconnect_timeout_s=self._config.gcs_reconnect_timeout_s,
            max_lineage_bytes=self._config.max_lineage_bytes,
            cluster_id=self._gcs.cluster_id,
        )

    async def AwaitHead(
        self, request: raylet_pb2.AwaitHeadRequest, context: CallContext
    ) -> common_pb2.HeadPlace:
        return await self._gcs.until_registered(request.after_head_number)

    async def NotifyBlocked(
        self, request: raylet_pb2.NotifyBlockedRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._processes.blocked(request.worker_id, request.lease_id, True)
        return common_pb2.Empty()

    async def NotifyUnblocked(
        self, request: raylet_pb2.NotifyBlockedRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._processes.blocked(request.worker_id, request.lease_id, False)
        return common_pb2.Empty()

    async def NotifyLeaving(
        self, request: raylet_pb2.NotifyLeavingRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._processes.leaves(request.worker_id, request.because)
        return common_pb2.Empty()

    # ---- whoever leases

    async def RequestWorkerLease(
        self, request: raylet_pb2.RequestWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        if not 0 < len(request.lease_id) <= LEASE_ID_BYTES_MAX:
            raise _invalid(f"lease_id takes 1 to {LEASE_ID_BYTES_MAX} bytes, got {request.lease_id!r}")
        amounts = request.resources.amounts
        if min([amounts[name] for name in amounts], default=0) < 0:
            raise _invalid(f"resources cannot be negative, got {dict(amounts)}")
        requester = self._requests.requester_of(context.connection)
        with _invalid_where_it_says_so():
            lease = lease_request_from(request, requester)
        return await self._requests.request(lease)

    async def CancelWorkerLease(
        self, request: raylet_pb2.CancelWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.CancelWorkerLeaseReply:
        return raylet_pb2.CancelWorkerLeaseReply(cancelled=self._requests.cancel(request.lease_id))

    async def ReturnWorker(
        self, request: raylet_pb2.ReturnWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._requests.give_back(request.lease_id, request.dispose, request.leaving)
        return common_pb2.Empty()

    async def ReturnedElsewhere(
        self, request: raylet_pb2.ReturnedElsewhereRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._requests.returned_elsewhere(request.node_id, ResourceSet.from_proto(request.resources))
        return common_pb2.Empty()

    async def LostWorker(
        self, request: raylet_pb2.LostWorkerRequest, context: CallContext
    ) -> common_pb2.DeathCause:
        return await self._requests.cause_of_loss(request.lease_id, request.worker_id)

    async def LastWords(
        self, request: raylet_pb2.LastWordsRequest, context: CallContext
    ) -> raylet_pb2.LastWordsReply:
        return self._processes.last_words(request.worker_id, request.lease_number)

    async def HeldAnswers(
        self, request: raylet_pb2.LastWordsRequest, context: CallContext
    ) -> raylet_pb2.LastWordsReply:
        return self._processes.held_answers(request.worker_id, request.lease_number)

    async def LastAnswers(
        self, request: raylet_pb2.LastAnswersRequest, context: CallContext
    ) -> raylet_pb2.LastAnswersReply:
        return self._processes.last_answers(request.worker_id)

    async def WithdrawTasks(
        self, request: raylet_pb2.WithdrawTasksRequest, context: CallContext
    ) -> raylet_pb2.WithdrawTasksReply:
        return await self._withdrawals.withdraw(request.lease_id, request.last)

    async def LendCpus(
        self, request: raylet_pb2.LendCpusRequest, context: CallContext
    ) -> raylet_pb2.LendCpusReply:
        return raylet_pb2.LendCpusReply(lent=self._lent_cpus.lend(request.lease_ids, request.most))

    async def WatchReclaims(
        self, request: common_pb2.Empty, context: CallContext
    ) -> AsyncIterator[raylet_pb2.ReclaimedLeases]:
        requester = self._requests.requester_of(context.connection)
        async with contextlib.aclosing(self._reclaims.stream(requester)) as stream:
            async for named in stream:
                yield named

    async def WatchDeadNodes(
        self, request: common_pb2.Empty, context: CallContext
    ) -> AsyncIterator[raylet_pb2.DeadNode]:
        async with contextlib.aclosing(self._dead_nodes.stream()) as stream:
            async for dead in stream:
                yield dead

    async def KillWorker(
        self, request: raylet_pb2.KillWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        if not request.place or self._processes.may_run(
            request.worker_id, request.lease_number, request.place
        ):
            self._processes.kill(request.worker_id, request.force, request.cause)
        return common_pb2.Empty()

    # ---- the GCS, and people

    async def FollowHead(self, request: common_pb2.HeadPlace, context: CallContext) -> common_pb2.Empty:
        self._gcs.follow(request)
        return common_pb2.Empty()

    async def DrainRaylet(
        self, request: raylet_pb2.DrainRayletRequest, context: CallContext
    ) -> raylet_pb2.DrainRayletReply:
        return await self._drain.request(request.drain)

    async def PrepareBundles(
        self, request: raylet_pb2.PrepareBundlesRequest, context: CallContext
    ) -> raylet_pb2.PrepareBundlesReply:
        with _invalid_where_it_says_so():
            if not request.may_wait:
                return raylet_pb2.PrepareBundlesReply(
                    refusals=self._bundles.prepare(request.groups, order_of(request.number))
                )
            requester = self._requests.requester_of(context.connection)
            refusals = await self._bundles.prepare_in_turn(
                request.groups, order_of(request.number), requester, request.waited_s
            )
            return raylet_pb2.PrepareBundlesReply(refusals=refusals)

    async def CommitBundles(
        self, request: raylet_pb2.CommitBundlesRequest, context: CallContext
    ) -> common_pb2.Empty:
        with _invalid_where_it_says_so():
            self._bundles.commit(request.groups, order_of(request.number))
        return common_pb2.Empty()

    async def ReturnBundles(
        self, request: raylet_pb2.ReturnBundlesRequest, context: CallContext
    ) -> common_pb2.Empty:
        with _invalid_where_it_says_so():
            self._bundles.give_back(request.groups, order_of(request.number), request.is_removed)
        return common_pb2.Empty()

    async def TakeObjects(
        self, request: raylet_pb2.TakeObjectsRequest, context: CallContext
    ) -> raylet_pb2.TakeObjectsReply:
        taken = await self._taken_objects.take(request.from_node_id, request.objects)
        return raylet_pb2.TakeObjectsReply(object_ids=taken)

    async def CheckAlive(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.Empty:
        return common_pb2.Empty()

    async def Explain(
        self, request: common_pb2.ExplainRequest, context: CallContext
    ) -> common_pb2.WaitReason:
        if request.subject.kind == common_pb2.WaitSubject.STORE:
            return await self._store_reasons.of(request.subject)
        with _invalid_where_it_says_so():
            return self._reasons.of(request.subject)

    async def DumpState(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return common_pb2.DumpStateReply(json=json.dumps(self._describe()))


@contextlib.contextmanager
def _invalid_where_it_says_so() -> Iterator[None]:
    """A ValueError inside says what is wrong with what the caller sent."""
    try:
        yield
    except ValueError as error:
        raise _invalid(str(error)) from error


def _invalid(message: str) -> RpcError:
    return RpcError(StatusCode.INVALID_ARGUMENT, message)
