"""GcsService on the wire: checks what callers say, hands it to the cluster, and answers when the store has it.

Reads wait for the store as well, so that nobody sees what a crash could take back; they wait only where a write is under way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from ray_mono.common.ids import ActorID, BaseID, JobID, NodeID, WorkerID
from ray_mono.gcs.actor.actor_effects import ActorNameTaken
from ray_mono.gcs.actor.actor_table import unknown_actor
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.node_manager import NodeIsDead, UnknownNode
from ray_mono.gcs.pubsub.publisher import Message
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.gcs.task_event_log import TaskEventLog
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

AnyID = TypeVar("AnyID", bound=BaseID)

# What others may publish; the rows of the other channels are the GCS's own to tell.
OPEN_CHANNELS = (
    gcs_pb2.ERROR,
    gcs_pb2.LOG,
    gcs_pb2.RUN_ON_WORKERS,
    gcs_pb2.LOG_FLUSH,
    gcs_pb2.COLLECT_GARBAGE,
)


def parse_id(kind: type[AnyID], field: str, value: bytes) -> AnyID:
    """The id in a request. Raises RpcError INVALID_ARGUMENT naming the field."""
    if len(value) != kind.SIZE:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"{field} takes {kind.SIZE} bytes, got {value!r}")
    return kind(value)


class GcsServicer(gcs_rpc.GcsServiceServicer):
    """Answers GcsService."""

    def __init__(
        self,
        cluster: Cluster,
        writes: WriteThrough,
        cluster_info: Callable[[], gcs_pb2.ClusterInfo],
        dump_state: Callable[[], dict[str, Any]],
    ) -> None:
        self._cluster = cluster
        self._writes = writes
        self._cluster_info = cluster_info
        self._dump_state = dump_state
        self._task_events = TaskEventLog()

    async def GetClusterInfo(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.ClusterInfo:
        await self._writes.flushed()
        return self._cluster_info()

    # ---- nodes

    async def RegisterNode(
        self, request: gcs_pb2.RegisterNodeRequest, context: CallContext
    ) -> gcs_pb2.RegisterNodeReply:
        node_id = parse_id(NodeID, "node.node_id", request.node.node_id)
        for lease in request.actor_leases:
            parse_id(WorkerID, "actor_leases.worker_id", lease.worker_id)
        try:
            unwanted = self._cluster.register_node(request.node, request.actor_leases)
        except NodeIsDead as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        # Once for each connection: a raylet may register several times on one.
        if "node_id" not in context.connection.state:
            context.connection.state["node_id"] = node_id
            context.connection.on_close(lambda reason: self._cluster.health.hint(node_id))
        await self._writes.flushed()
        return gcs_pb2.RegisterNodeReply(unwanted_lease_ids=unwanted)

    async def UnregisterNode(
        self, request: gcs_pb2.UnregisterNodeRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._cluster.node_died(parse_id(NodeID, "node_id", request.node_id), request.cause)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def GetAllNodes(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllNodesReply:
        await self._writes.flushed()
        return gcs_pb2.GetAllNodesReply(nodes=self._cluster.nodes.rows())

    async def ReportResources(
        self, request: common_pb2.NodeResources, context: CallContext
    ) -> common_pb2.Empty:
        parse_id(NodeID, "node_id", request.node_id)
        collections = list(request.collections)
        request.ClearField("collections")
        try:
            self._cluster.report_resources(request)
        except UnknownNode as error:
            raise RpcError(StatusCode.NOT_FOUND, str(error)) from error
        except NodeIsDead as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        for number in collections:
            self._cluster.collections.answered(number, context.connection)
        return common_pb2.Empty()

    async def GetAllResources(
        self, request: gcs_pb2.GetAllResourcesRequest, context: CallContext
    ) -> gcs_pb2.GetAllResourcesReply:
        if request.collect:
            await self._cluster.collections.collect(gcs_pb2.COLLECT_RESOURCES)
        return gcs_pb2.GetAllResourcesReply(nodes=self._cluster.nodes.resources())

    # ---- jobs

    async def AddJob(self, request: gcs_pb2.AddJobRequest, context: CallContext) -> gcs_pb2.AddJobReply:
        if request.job.job_id:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                f"job.job_id is counted by the GCS: leave it empty, got {request.job.job_id!r}",
            )
        job_id = self._cluster.add_job(request.job)
        await self._writes.flushed()
        return gcs_pb2.AddJobReply(job_id=job_id.binary())

    async def MarkJobFinished(
        self, request: gcs_pb2.MarkJobFinishedRequest, context: CallContext
    ) -> common_pb2.Empty:
        job_id = parse_id(JobID, "job_id", request.job_id)
        if not self._cluster.jobs.is_known(job_id):
            raise RpcError(StatusCode.NOT_FOUND, f"job {job_id.hex()} is not known")
        self._cluster.finish_job(job_id)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def GetAllJobs(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllJobsReply:
        await self._writes.flushed()
        return gcs_pb2.GetAllJobsReply(jobs=self._cluster.jobs.rows())

    async def GetJob(self, request: gcs_pb2.GetJobRequest, context: CallContext) -> common_pb2.JobInfo:
        job_id = parse_id(JobID, "job_id", request.job_id)
        row = self._cluster.jobs.row(job_id)
        if row is None:
            raise RpcError(StatusCode.NOT_FOUND, f"job {job_id.hex()} is not known")
        await self._writes.flushed()
        return row

    # ---- actors

    async def RegisterActor(
        self, request: gcs_pb2.RegisterActorRequest, context: CallContext
    ) -> gcs_pb2.RegisterActorReply:
        spec = request.creation_spec
        if spec.type != common_pb2.ACTOR_CREATION_TASK:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                f"creation_spec.type must be ACTOR_CREATION_TASK, got {common_pb2.TaskType.Name(spec.type)}",
            )
        created = True
        try:
            actor_id = self._cluster.register_actor(spec, request.class_name)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, f"creation_spec: {error}") from error
        except ActorNameTaken as taken:
            if not request.get_if_exists:
                raise RpcError(StatusCode.ALREADY_EXISTS, str(taken)) from taken
            actor_id, created = taken.existing.actor_id, False
        await self._writes.flushed()
        return gcs_pb2.RegisterActorReply(actor=self._cluster.actor_table.shown(actor_id), created=created)

    async def WatchActor(
        self, request: gcs_pb2.WatchActorRequest, context: CallContext
    ) -> common_pb2.ActorInfo:
        actor_id = parse_id(ActorID, "actor_id", request.actor_id)
        return await self._cluster.actor_table.watch(actor_id, request.after_version)

    async def GetNamedActor(
        self, request: gcs_pb2.GetNamedActorRequest, context: CallContext
    ) -> common_pb2.ActorInfo:
        await self._writes.flushed()
        actor = self._cluster.actors.named(request.namespace, request.name)
        if actor is None:
            raise RpcError(
                StatusCode.NOT_FOUND,
                f"no actor named {request.name!r} is alive in namespace {request.namespace!r}",
            )
        return self._cluster.actor_table.shown(actor.actor_id)

    async def ListNamedActors(
        self, request: gcs_pb2.ListNamedActorsRequest, context: CallContext
    ) -> gcs_pb2.ListNamedActorsReply:
        await self._writes.flushed()
        return gcs_pb2.ListNamedActorsReply(
            actors=[
                gcs_pb2.NamedActor(name=name, namespace=namespace)
                for namespace, name in self._cluster.actors.names()
                if request.all_namespaces or namespace == request.namespace
            ]
        )

    async def GetAllActors(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllActorsReply:
        await self._writes.flushed()
        return gcs_pb2.GetAllActorsReply(actors=self._cluster.actor_table.all_shown())

    async def KillActor(self, request: gcs_pb2.KillActorRequest, context: CallContext) -> common_pb2.Empty:
        actor_id = self._known_actor(request.actor_id)
        self._cluster.kill_actor(actor_id, request.force, request.no_restart)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def ActorOutOfScope(
        self, request: gcs_pb2.ActorOutOfScopeRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._cluster.actor_out_of_scope(self._known_actor(request.actor_id))
        await self._writes.flushed()
        return common_pb2.Empty()

    def _known_actor(self, value: bytes) -> ActorID:
        actor_id = parse_id(ActorID, "actor_id", value)
        if self._cluster.actors.get(actor_id) is None:
            raise unknown_actor(actor_id)
        return actor_id

    # ---- workers

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

    async def GetAllWorkers(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllWorkersReply:
        await self._writes.flushed()
        return gcs_pb2.GetAllWorkersReply(workers=self._cluster.workers.rows())

    # ---- key-value store

    async def KvPut(self, request: gcs_pb2.KvPutRequest, context: CallContext) -> gcs_pb2.KvPutReply:
        if self._cluster.is_code_of_ended_job(request.namespace, request.key):
            job_id = request.key[: JobID.SIZE].hex()
            raise RpcError(StatusCode.FAILED_PRECONDITION, f"job {job_id} has finished")
        added = self._cluster.kv.put(request.namespace, request.key, request.value, request.overwrite)
        await self._writes.flushed()
        return gcs_pb2.KvPutReply(added=added)

    async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
        await self._writes.flushed()
        value = self._cluster.kv.get(request.namespace, request.key)
        return gcs_pb2.KvGetReply(found=value is not None, value=value or b"")

    async def KvMultiGet(
        self, request: gcs_pb2.KvMultiGetRequest, context: CallContext
    ) -> gcs_pb2.KvMultiGetReply:
        await self._writes.flushed()
        found = [(key, self._cluster.kv.get(request.namespace, key)) for key in request.keys]
        return gcs_pb2.KvMultiGetReply(
            pairs=[gcs_pb2.KvPair(key=key, value=value) for key, value in found if value is not None]
        )

    async def KvDel(self, request: gcs_pb2.KvDelRequest, context: CallContext) -> gcs_pb2.KvDelReply:
        deleted = self._cluster.kv.delete(request.namespace, request.key, request.by_prefix)
        await self._writes.flushed()
        return gcs_pb2.KvDelReply(deleted=deleted)

    async def KvExists(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvExistsReply:
        await self._writes.flushed()
        return gcs_pb2.KvExistsReply(exists=self._cluster.kv.get(request.namespace, request.key) is not None)

    async def KvKeys(self, request: gcs_pb2.KvKeysRequest, context: CallContext) -> gcs_pb2.KvKeysReply:
        await self._writes.flushed()
        return gcs_pb2.KvKeysReply(keys=self._cluster.kv.keys(request.namespace, request.prefix))

    # ---- pub/sub

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        await self._writes.flushed()
        filters = [(wanted.channel, list(wanted.keys)) for wanted in request.channels]
        async with contextlib.aclosing(
            self._cluster.subscriptions.stream(filters, lambda: self._rows(request), context.connection)
        ) as stream:
            async for message in stream:
                yield message

    def _rows(self, request: gcs_pb2.SubscribeRequest) -> list[Message]:
        """The present rows of the channels that have any."""
        messages = []
        for wanted in request.channels:
            rows: list[common_pb2.NodeInfo] | list[common_pb2.NodeResources] = []
            if wanted.channel == gcs_pb2.NODE:
                rows = self._cluster.nodes.rows()
            elif wanted.channel == gcs_pb2.NODE_RESOURCES:
                rows = self._cluster.nodes.resources()
            messages += [
                Message(wanted.channel, row.node_id, row.SerializeToString())
                for row in rows
                if not wanted.keys or row.node_id in wanted.keys
            ]
        return messages

    async def Publish(self, request: gcs_pb2.PublishRequest, context: CallContext) -> gcs_pb2.PublishReply:
        message = request.message
        if message.channel not in OPEN_CHANNELS:
            accepted = ", ".join(gcs_pb2.Channel.Name(channel) for channel in OPEN_CHANNELS)
            name = gcs_pb2.Channel.Name(message.channel)
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, f"message.channel must be one of {accepted}, got {name}"
            )
        subscriptions = self._cluster.subscriptions
        if message.payload:
            subscriptions.publish(message.channel, message.key, message.payload)
        reached, backlog = subscriptions.publisher.reach(message.channel, message.key)
        return gcs_pb2.PublishReply(reached=reached, backlog=backlog)

    # ---- task events

    async def AddTaskEvents(self, request: gcs_pb2.TaskEvents, context: CallContext) -> common_pb2.Empty:
        self._task_events.add(request)
        self._cluster.collections.answered(request.collection, context.connection)
        return common_pb2.Empty()

    async def GetTaskEvents(
        self, request: gcs_pb2.GetTaskEventsRequest, context: CallContext
    ) -> gcs_pb2.GetTaskEventsReply:
        if request.collect:
            await self._cluster.collections.collect(gcs_pb2.COLLECT_EVENTS)
        return gcs_pb2.GetTaskEventsReply(
            batches=self._task_events.of_job(request.job_id), dropped=self._task_events.dropped
        )

    async def DumpState(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return common_pb2.DumpStateReply(json=json.dumps(self._dump_state()))
