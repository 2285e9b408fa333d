"""The questions that the API asks a GCS, answered for local mode, where the cluster is this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_mono._private.local_mode.local_actor import LocalActor
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.version import VERSION
from ray_mono.protobuf import common_pb2, gcs_pb2


class LocalGcs:
    """Has the methods of GcsServiceStub that the API calls."""

    def __init__(
        self,
        node: common_pb2.NodeInfo,
        job_id: bytes,
        actors: Mapping[bytes, LocalActor],
        resources: Mapping[str, float],
    ) -> None:
        """
        Args:
            actors: every actor that there is or was, by id. It is read at each question.
            resources: of the node, in units.
        """
        self._node = node
        self._job_id = job_id
        self._actors = actors
        self._resources = ResourceSet.from_units(resources).to_proto()

    def GetClusterInfo(self, request: common_pb2.Empty, timeout_s: float) -> gcs_pb2.ClusterInfo:
        return gcs_pb2.ClusterInfo(version=VERSION, host="local")

    def GetAllNodes(self, request: common_pb2.Empty, timeout_s: float) -> gcs_pb2.GetAllNodesReply:
        node = common_pb2.NodeInfo(total=self._resources)
        node.MergeFrom(self._node)
        return gcs_pb2.GetAllNodesReply(nodes=[node])

    def GetAllResources(
        self, request: gcs_pb2.GetAllResourcesRequest, timeout_s: float
    ) -> gcs_pb2.GetAllResourcesReply:
        """Everything is free always: tasks end before anybody can ask."""
        row = common_pb2.NodeResources(
            node_id=self._node.node_id, total=self._resources, available=self._resources
        )
        return gcs_pb2.GetAllResourcesReply(nodes=[row])

    def GetTaskEvents(
        self, request: gcs_pb2.GetTaskEventsRequest, timeout_s: float
    ) -> gcs_pb2.GetTaskEventsReply:
        """None: tasks are calls of the program's own."""
        return gcs_pb2.GetTaskEventsReply()

    def WatchActor(self, request: gcs_pb2.WatchActorRequest, timeout_s: float) -> common_pb2.ActorInfo:
        return self._actors[request.actor_id].info(self._job_id)

    def ListNamedActors(
        self, request: gcs_pb2.ListNamedActorsRequest, timeout_s: float
    ) -> gcs_pb2.ListNamedActorsReply:
        named: list[Any] = [
            gcs_pb2.NamedActor(name=actor.options.name, namespace=actor.options.namespace)
            for actor in self._actors.values()
            if actor.options.name
            and actor.death is None
            and (request.all_namespaces or actor.options.namespace == request.namespace)
        ]
        return gcs_pb2.ListNamedActorsReply(actors=named)
