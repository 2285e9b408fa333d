"""JobInfoGcsService: jobs begin, end, and are looked up."""

from __future__ import annotations

from ray_mono.common.ids import JobID
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class JobInfoServicer(gcs_rpc.GcsServiceServicer):
    """What drivers say of their job, and who asks which jobs there are."""

    def __init__(self, cluster: Cluster, jobs: JobManager, adoption: Adoption, writes: WriteThrough) -> None:
        self._cluster = cluster
        self._jobs = jobs
        self._adoption = adoption
        self._writes = writes

    async def AddJob(self, request: gcs_pb2.AddJobRequest, context: CallContext) -> gcs_pb2.AddJobReply:
        if request.job.job_id:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                f"job.job_id is counted by the GCS: leave it empty, got {request.job.job_id!r}",
            )
        await self._adoption.heard()
        self._adoption.job_begins()
        job_id = self._cluster.add_job(request.job)
        await self._writes.flushed()
        return gcs_pb2.AddJobReply(job_id=job_id.binary())

    async def MarkJobFinished(
        self, request: gcs_pb2.MarkJobFinishedRequest, context: CallContext
    ) -> common_pb2.Empty:
        job_id = await self._heard_of(request.job_id)
        if not self._jobs.is_known(job_id):
            raise RpcError(StatusCode.NOT_FOUND, f"job {job_id.hex()} is not known")
        self._cluster.finish_job(job_id)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def GetAllJobs(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllJobsReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.GetAllJobsReply(jobs=self._jobs.rows())

    async def GetJob(self, request: gcs_pb2.GetJobRequest, context: CallContext) -> common_pb2.JobInfo:
        job_id = await self._heard_of(request.job_id)
        row = self._jobs.row(job_id)
        if row is None:
            raise RpcError(StatusCode.NOT_FOUND, f"job {job_id.hex()} is not known")
        await self._writes.flushed()
        return row

    async def _heard_of(self, value: bytes) -> JobID:
        """The id. If it is not known yet, whoever knows the job has told by now."""
        job_id = parse_id(JobID, "job_id", value)
        if not self._jobs.is_known(job_id):
            await self._adoption.heard()
        return job_id
