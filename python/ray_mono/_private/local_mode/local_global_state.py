"""The cluster's tables in local mode, where the cluster is this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private.local_mode.local_actor import LocalActor
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.version import VERSION
from ray_mono.protobuf import common_pb2, gcs_pb2


class LocalGlobalState:
    """A core_worker.global_state.GlobalState."""

    def __init__(
        self,
        node: common_pb2.NodeInfo,
        job_id: bytes,
        actors: Mapping[bytes, LocalActor],
        resources: Mapping[str, float],
    ) -> None:
        """actors: every actor that there is and was, by id; read at each question. resources: of the node, in
        units."""
        self._node = node
        self._job_id = job_id
        self._actors = actors
        self._resources = ResourceSet.from_units(resources).to_proto()
        self._values: dict[tuple[bytes, bytes], bytes] = {}

    # ---- the key-value store

    def kv_get(self, namespace: bytes, key: bytes) -> bytes | None:
        return self._values.get((namespace, key))

    def kv_put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        is_new = (namespace, key) not in self._values
        if is_new or overwrite:
            self._values[namespace, key] = value
        return is_new

    def kv_exists(self, namespace: bytes, key: bytes) -> bool:
        return (namespace, key) in self._values

    def kv_delete(self, namespace: bytes, key: bytes, by_prefix: bool) -> int:
        keys = self.kv_keys(namespace, key) if by_prefix else [key] if self.kv_exists(namespace, key) else []
        for each in keys:
            del self._values[namespace, each]
        return len(keys)

    def kv_keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        return sorted(key for within, key in self._values if within == namespace and key.startswith(prefix))

    # ---- rows

    def cluster_info(self) -> gcs_pb2.ClusterInfo:
        return gcs_pb2.ClusterInfo(version=VERSION, host="local")

    def nodes(self) -> Sequence[common_pb2.NodeInfo]:
        node = common_pb2.NodeInfo(total=self._resources)
        node.MergeFrom(self._node)
        return [node]

    def resources(self, collect: bool) -> Sequence[common_pb2.NodeResources]:
        """Everything is free always: tasks end before anybody can ask."""
        return [
            common_pb2.NodeResources(
                node_id=self._node.node_id, total=self._resources, available=self._resources
            )
        ]

    def jobs(self) -> Sequence[common_pb2.JobInfo]:
        return [common_pb2.JobInfo(job_id=self._job_id)]

    def actors(self) -> Sequence[common_pb2.ActorInfo]:
        return [actor.info(self._job_id) for actor in self._actors.values()]

    def actor(self, actor_id: bytes) -> common_pb2.ActorInfo:
        return self._actors[actor_id].info(self._job_id)

    def named_actors(self, all_namespaces: bool, namespace: str) -> Sequence[Any]:
        return [
            gcs_pb2.NamedActor(name=actor.options.name, namespace=actor.options.namespace)
            for actor in self._actors.values()
            if actor.options.name
            and actor.death is None
            and (all_namespaces or actor.options.namespace == namespace)
        ]

    def task_events(self) -> Sequence[gcs_pb2.TaskEvents]:
        """None: tasks are calls of the program's own."""
        return []
