"""NodeResourceInfoGcsService: what each node has, and what of it is free."""

from __future__ import annotations

from ray_mono.common.ids import NodeID
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.node_manager import NodeIsDead, NodeManager, UnknownNode
from ray_mono.gcs.pubsub.collections import Collections
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class NodeResourceInfoServicer(gcs_rpc.GcsServiceServicer):
    """Raylets' reports, and who asks for them. Nothing of this is stored."""

    def __init__(self, cluster: Cluster, nodes: NodeManager, collections: Collections) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._collections = collections

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
            self._collections.answered(number, context.connection)
        return common_pb2.Empty()

    async def GetAllResources(
        self, request: gcs_pb2.GetAllResourcesRequest, context: CallContext
    ) -> gcs_pb2.GetAllResourcesReply:
        if request.collect:
            await self._collections.collect(gcs_pb2.COLLECT_RESOURCES)
        return gcs_pb2.GetAllResourcesReply(nodes=self._nodes.resources())
