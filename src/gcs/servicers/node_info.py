"""NodeInfoGcsService: the cluster as such, and the nodes that join and leave it."""

from __future__ import annotations

from collections.abc import Callable

from ray_mono.common.ids import NodeID, PlacementGroupID, WorkerID
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.node_drains import NodeDrains
from ray_mono.gcs.node_health import NodeHealth
from ray_mono.gcs.node_manager import NodeIsDead, NodeManager
from ray_mono.gcs.placement_group.placement_groups import PlacementGroups
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class NodeInfoServicer(gcs_rpc.GcsServiceServicer):
    """What raylets say of their node, and who asks which nodes there are."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: NodeManager,
        health: NodeHealth,
        drains: NodeDrains,
        groups: PlacementGroups,
        adoption: Adoption,
        writes: WriteThrough,
        cluster_info: Callable[[], gcs_pb2.ClusterInfo],
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._health = health
        self._drains = drains
        self._groups = groups
        self._adoption = adoption
        self._writes = writes
        self._cluster_info = cluster_info

    async def GetClusterInfo(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.ClusterInfo:
        await self._writes.flushed()
        return self._cluster_info()

    async def RegisterNode(
        self, request: gcs_pb2.RegisterNodeRequest, context: CallContext
    ) -> gcs_pb2.RegisterNodeReply:
        node_id = parse_id(NodeID, "node.node_id", request.node.node_id)
        for lease in request.actor_leases:
            parse_id(WorkerID, "actor_leases.worker_id", lease.worker_id)
        for bundles in request.bundles:
            parse_id(PlacementGroupID, "bundles.group.placement_group_id", bundles.group.placement_group_id)
        try:
            unwanted = self._cluster.register_node(request.node, request.actor_leases)
        except NodeIsDead as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        try:
            if self._adoption.node_joins(request):
                unwanted = []
            unwanted_bundles, unwanted_number = self._groups.unwanted(node_id, request.bundles)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        # Once for each connection: a raylet may register several times on one.
        if "node_id" not in context.connection.state:
            context.connection.state["node_id"] = node_id
            context.connection.on_close(lambda reason: self._health.hint(node_id))
        await self._writes.flushed()
        info = self._cluster_info()
        return gcs_pb2.RegisterNodeReply(
            unwanted_lease_ids=unwanted,
            head_number=info.head_number,
            cluster_id=info.cluster_id,
            nodes=self._nodes.rows(),
            unwanted_bundles=unwanted_bundles,
            unwanted_number=unwanted_number,
        )

    async def Adopt(self, request: gcs_pb2.AdoptRequest, context: CallContext) -> common_pb2.Empty:
        try:
            self._adoption.told(request)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        await self._writes.flushed()
        return common_pb2.Empty()

    async def UnregisterNode(
        self, request: gcs_pb2.UnregisterNodeRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._cluster.node_died(parse_id(NodeID, "node_id", request.node_id), request.cause)
        await self._writes.flushed()
        return common_pb2.Empty()

    async def DrainNode(
        self, request: gcs_pb2.DrainNodeRequest, context: CallContext
    ) -> gcs_pb2.DrainNodeReply:
        node_id = parse_id(NodeID, "node_id", request.node_id)
        if request.deadline_timestamp_ms < 0:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                "deadline_timestamp_ms must be at least 0 (milliseconds since the epoch; 0: none), "
                f"got {request.deadline_timestamp_ms}",
            )
        if request.reason == common_pb2.DRAIN_NODE_REASON_UNSPECIFIED:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                "reason must be DRAIN_NODE_REASON_IDLE_TERMINATION or DRAIN_NODE_REASON_PREEMPTION, "
                "got DRAIN_NODE_REASON_UNSPECIFIED",
            )
        await self._adoption.heard()
        drain = common_pb2.NodeDrain(
            reason=request.reason,
            reason_message=request.reason_message,
            deadline_timestamp_ms=request.deadline_timestamp_ms,
        )
        reply = await self._drains.drain(node_id, drain)
        await self._writes.flushed()
        return reply

    async def CheckAlive(
        self, request: gcs_pb2.CheckAliveRequest, context: CallContext
    ) -> gcs_pb2.CheckAliveReply:
        """Refused for a dead node: whoever asks of itself has to hear why."""
        try:
            nodes = [parse_id(NodeID, "node_ids", node_id) for node_id in request.node_ids]
            alive = [self._cluster.confirm_node(node_id) for node_id in nodes]
        except NodeIsDead as error:
            raise RpcError(StatusCode.FAILED_PRECONDITION, str(error)) from error
        return gcs_pb2.CheckAliveReply(raylet_alive=alive)

    async def GetAllNodes(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllNodesReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.GetAllNodesReply(nodes=self._nodes.rows())
