"""InternalKVGcsService: the key-value store, and with it the function table."""

from __future__ import annotations

from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.answers import Answers
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.kv import KeyValueStore, StoreIsFull, job_of_code
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class InternalKVServicer(gcs_rpc.GcsServiceServicer):
    """Reads and writes of keys."""

    def __init__(
        self,
        kv: KeyValueStore,
        jobs: JobManager,
        answers: Answers,
        adoption: Adoption,
        writes: WriteThrough,
    ) -> None:
        self._kv = kv
        self._jobs = jobs
        self._answers = answers
        self._adoption = adoption
        self._writes = writes

    async def KvPut(self, request: gcs_pb2.KvPutRequest, context: CallContext) -> gcs_pb2.KvPutReply:
        job_id = job_of_code(request.namespace, request.key)
        if job_id is not None and self._jobs.is_over(job_id):
            # Nobody would ever delete it.
            raise RpcError(StatusCode.FAILED_PRECONDITION, f"job {job_id.hex()} has finished")

        def put() -> gcs_pb2.KvPutReply:
            added = self._kv.put(request.namespace, request.key, request.value, request.overwrite)
            return gcs_pb2.KvPutReply(added=added)

        try:
            reply = self._answers.once(request.request_id, put, gcs_pb2.KvPutReply)
        except StoreIsFull as error:
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        await self._writes.flushed()
        return reply

    async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
        value = await self._value(request)
        return gcs_pb2.KvGetReply(found=value is not None, value=value or b"")

    async def KvDel(self, request: gcs_pb2.KvDelRequest, context: CallContext) -> gcs_pb2.KvDelReply:
        def delete() -> gcs_pb2.KvDelReply:
            deleted = self._kv.delete(request.namespace, request.key, request.by_prefix)
            return gcs_pb2.KvDelReply(deleted=deleted)

        reply = self._answers.once(request.request_id, delete, gcs_pb2.KvDelReply)
        await self._writes.flushed()
        return reply

    async def KvExists(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvExistsReply:
        return gcs_pb2.KvExistsReply(exists=await self._value(request) is not None)

    async def _value(self, request: gcs_pb2.KvGetRequest) -> bytes | None:
        """Code that is not here may be on its way."""
        if self._kv.get(request.namespace, request.key) is None:
            await self._adoption.heard()
        await self._writes.flushed()
        return self._kv.get(request.namespace, request.key)

    async def KvKeys(self, request: gcs_pb2.KvKeysRequest, context: CallContext) -> gcs_pb2.KvKeysReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.KvKeysReply(keys=self._kv.keys(request.namespace, request.prefix))
