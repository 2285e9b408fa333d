"""GcsService on the wire, put together: each servicer of this folder answers for one service of Ray.

A servicer checks what callers say, hands it to the cluster, and answers when the store has it. Reads wait for
the store as well, so that nobody sees what a crash could take back. They wait only where a write is under
way.

What waits for no write, and every refusal, is held back by `_confirmed_first` until the store has confirmed
this head: one that was stopped while another took over answers nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ray_mono.common.our_bug import check
from ray_mono.common.world import Clock
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.servicers.actor_info import ActorInfoServicer
from ray_mono.gcs.servicers.internal_kv import InternalKVServicer
from ray_mono.gcs.servicers.internal_pubsub import InternalPubSubServicer
from ray_mono.gcs.servicers.job_info import JobInfoServicer
from ray_mono.gcs.servicers.node_info import NodeInfoServicer
from ray_mono.gcs.servicers.node_resource_info import NodeResourceInfoServicer
from ray_mono.gcs.servicers.placement_group_info import PlacementGroupInfoServicer
from ray_mono.gcs.servicers.task_info import TaskInfoServicer
from ray_mono.gcs.servicers.worker_info import WorkerInfoServicer
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.gcs.wait_reasons import WaitReasons
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, gcs_service_handlers
from ray_mono.rpc.surface import CallContext, Handler, RpcError, StatusCode

Handlers = dict[str, Handler[Any, Any]]


class DumpStateServicer(GcsServiceServicer):
    """Tells people the state of the process, and why something waits."""

    def __init__(self, dump_state: Callable[[], dict[str, Any]], reasons: WaitReasons) -> None:
        self._dump_state = dump_state
        self._reasons = reasons

    async def Explain(
        self, request: common_pb2.ExplainRequest, context: CallContext
    ) -> common_pb2.WaitReason:
        try:
            return self._reasons.of(request.subject)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error

    async def ListWaiting(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.WaitingReply:
        return self._reasons.waiting()

    async def DumpState(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return common_pb2.DumpStateReply(json=json.dumps(self._dump_state()))


def gcs_handlers(
    cluster: Cluster,
    adoption: Adoption,
    writes: WriteThrough,
    clock: Clock,
    cluster_info: Callable[[], gcs_pb2.ClusterInfo],
    dump_state: Callable[[], dict[str, Any]],
    is_ready: asyncio.Event,
) -> Handlers:
    """What the GCS answers, by path, once it has taken over what is in its store (is_ready)."""
    handlers = handlers_of(
        [
            NodeInfoServicer(
                cluster,
                cluster.nodes,
                cluster.health,
                cluster.drains,
                cluster.groups,
                adoption,
                writes,
                cluster_info,
            ),
            NodeResourceInfoServicer(cluster, cluster.nodes, cluster.collections),
            JobInfoServicer(cluster, cluster.jobs, adoption, writes),
            ActorInfoServicer(
                cluster,
                cluster.registrar,
                cluster.actors,
                cluster.actor_table,
                cluster.answers,
                adoption,
                writes,
            ),
            PlacementGroupInfoServicer(cluster.groups, adoption, writes),
            WorkerInfoServicer(cluster, cluster.workers, adoption, writes),
            InternalKVServicer(cluster.kv, cluster.jobs, cluster.answers, adoption, writes),
            InternalPubSubServicer(cluster.subscriptions, cluster.nodes, writes),
            TaskInfoServicer(cluster.task_events, cluster.collections, clock),
            DumpStateServicer(
                dump_state,
                WaitReasons(
                    cluster.actors,
                    cluster.actor_table,
                    cluster.scheduler,
                    cluster.groups.manager,
                    cluster.leases,
                    cluster.nodes,
                ),
            ),
        ]
    )
    return {path: _confirmed_first(handler, writes, is_ready) for path, handler in handlers.items()}


def _confirmed_first(
    handler: Handler[Any, Any], writes: WriteThrough, is_ready: asyncio.Event
) -> Handler[Any, Any]:
    """The same handler, which begins when the tables are there, and whose answers leave when this head is
    known to be the latest."""
    answer = handler.function

    async def answer_one(request: Any, context: CallContext) -> Any:
        await is_ready.wait()
        try:
            reply = await answer(request, context)
        except RpcError:
            await writes.confirmed()
            raise
        await writes.confirmed()
        return reply

    async def answer_many(request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        await is_ready.wait()
        async with contextlib.aclosing(answer(request, context)) as messages:
            async for message in messages:
                await writes.confirmed()
                yield message

    return dataclasses.replace(handler, function=answer_many if handler.streaming else answer_one)


def handlers_of(servicers: Sequence[GcsServiceServicer]) -> Handlers:
    """Each method's handler, from the servicer that overrides it. Raises InternalError unless that is one."""
    handlers: Handlers = {}
    for servicer in servicers:
        for path, handler in gcs_service_handlers(servicer).items():
            if path.rpartition("/")[2] in vars(type(servicer)):
                check(path not in handlers, f"{path} is answered by two servicers")
                handlers[path] = handler
    missing = gcs_service_handlers(GcsServiceServicer()).keys() - handlers.keys()
    check(not missing, f"no servicer answers {', '.join(sorted(missing))}")
    return handlers
