"""WorkerInfoGcsService: workers and drivers that started, and how they ended."""

from __future__ import annotations

from ray_mono.common.ids import WorkerID
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.gcs.worker_manager import WorkerManager
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext


class WorkerInfoServicer(gcs_rpc.GcsServiceServicer):
    """What raylets say of their workers, and who asks for them."""

    def __init__(
        self, cluster: Cluster, workers: WorkerManager, adoption: Adoption, writes: WriteThrough
    ) -> None:
        self._cluster = cluster
        self._workers = workers
        self._adoption = adoption
        self._writes = writes

    async def AddWorker(self, request: common_pb2.WorkerInfo, context: CallContext) -> common_pb2.Empty:
        parse_id(WorkerID, "worker_id", request.worker_id)
        self._cluster.add_worker(request)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def ReportWorkerDeath(
        self, request: common_pb2.WorkerInfo, context: CallContext
    ) -> common_pb2.Empty:
        parse_id(WorkerID, "worker_id", request.worker_id)
        self._cluster.worker_died(request)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def GetWorkerDeath(
        self, request: gcs_pb2.GetWorkerDeathRequest, context: CallContext
    ) -> gcs_pb2.GetWorkerDeathReply:
        await self._writes.flushed()
        cause = self._workers.death_of(parse_id(WorkerID, "worker_id", request.worker_id))
        return gcs_pb2.GetWorkerDeathReply(is_known=cause is not None, cause=cause)

    async def GetAllWorkers(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllWorkersReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.GetAllWorkersReply(
            workers=self._workers.rows(), missing_dead_after_s=self._cluster.missing_worker_s()
        )
