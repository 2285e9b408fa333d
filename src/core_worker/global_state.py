"""The cluster's tables, as programs ask for them: its key-value store, nodes, jobs, actors, resources and
task events.

GlobalState is the interface that the API sees. GcsGlobalState asks the GCS; its methods raise RpcError where
the GCS does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import common_pb2, gcs_pb2


class GlobalState(Protocol):
    """Rows are messages of protobuf/common.proto and gcs.proto."""

    def kv_get(self, namespace: bytes, key: bytes) -> bytes | None:
        """The value of the key, or None."""
        ...

    def kv_put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        """Returns whether the key is new. An old value is replaced if `overwrite`, else left as it is."""
        ...

    def kv_exists(self, namespace: bytes, key: bytes) -> bool: ...

    def kv_delete(self, namespace: bytes, key: bytes, by_prefix: bool) -> int:
        """Deletes the key or, by_prefix, every key that begins with it. Returns how many there were."""
        ...

    def kv_keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        """The keys that begin with `prefix`, sorted."""
        ...

    def nodes(self) -> Sequence[common_pb2.NodeInfo]: ...

    def resources(self, collect: bool) -> Sequence[common_pb2.NodeResources]:
        """The resources of each node that is alive. collect: each node is asked for them, as they are now."""
        ...

    def jobs(self) -> Sequence[common_pb2.JobInfo]: ...

    def actors(self) -> Sequence[common_pb2.ActorInfo]: ...

    def actor(self, actor_id: bytes) -> common_pb2.ActorInfo: ...

    def named_actors(self, all_namespaces: bool, namespace: str) -> Sequence[Any]:
        """Rows of living actors, with `name` and `namespace`."""
        ...

    def cluster_info(self) -> Any:
        """The GetClusterInfoReply, which says where the head is, among other things."""
        ...

    def task_events(self) -> Sequence[gcs_pb2.TaskEvents]:
        """What workers and drivers ran. Workers that are alive are asked first for what they have not sent
        yet."""
        ...


class GcsGlobalState:
    """The GCS's answers."""

    def __init__(self, env: Environment) -> None:
        self._gcs = env.gcs
        self._timeout_s = env.config.gcs_timeout_s

    def kv_get(self, namespace: bytes, key: bytes) -> bytes | None:
        request = gcs_pb2.KvGetRequest(namespace=namespace, key=key)
        reply = self._gcs.KvGet(request, timeout_s=self._timeout_s)
        return bytes(reply.value) if reply.found else None

    def kv_put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        request = gcs_pb2.KvPutRequest(namespace=namespace, key=key, value=value, overwrite=overwrite)
        return bool(self._gcs.KvPut(request, timeout_s=self._timeout_s).added)

    def kv_exists(self, namespace: bytes, key: bytes) -> bool:
        request = gcs_pb2.KvGetRequest(namespace=namespace, key=key)
        return bool(self._gcs.KvExists(request, timeout_s=self._timeout_s).exists)

    def kv_delete(self, namespace: bytes, key: bytes, by_prefix: bool) -> int:
        request = gcs_pb2.KvDelRequest(namespace=namespace, key=key, by_prefix=by_prefix)
        return int(self._gcs.KvDel(request, timeout_s=self._timeout_s).deleted)

    def kv_keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        request = gcs_pb2.KvKeysRequest(namespace=namespace, prefix=prefix)
        return list(self._gcs.KvKeys(request, timeout_s=self._timeout_s).keys)

    def nodes(self) -> Sequence[common_pb2.NodeInfo]:
        return self._gcs.GetAllNodes(common_pb2.Empty(), timeout_s=self._timeout_s).nodes

    def resources(self, collect: bool) -> Sequence[common_pb2.NodeResources]:
        request = gcs_pb2.GetAllResourcesRequest(collect=collect)
        return self._gcs.GetAllResources(request, timeout_s=self._timeout_s).nodes

    def jobs(self) -> Sequence[common_pb2.JobInfo]:
        return self._gcs.GetAllJobs(common_pb2.Empty(), timeout_s=self._timeout_s).jobs

    def actors(self) -> Sequence[common_pb2.ActorInfo]:
        return self._gcs.GetAllActors(common_pb2.Empty(), timeout_s=self._timeout_s).actors

    def actor(self, actor_id: bytes) -> common_pb2.ActorInfo:
        # Answers at once: every row's version is above 0.
        request = gcs_pb2.WatchActorRequest(actor_id=actor_id, after_version=0)
        return self._gcs.WatchActor(request, timeout_s=self._timeout_s)

    def named_actors(self, all_namespaces: bool, namespace: str) -> Sequence[Any]:
        request = gcs_pb2.ListNamedActorsRequest(all_namespaces=all_namespaces, namespace=namespace)
        return self._gcs.ListNamedActors(request, timeout_s=self._timeout_s).actors

    def cluster_info(self) -> Any:
        return self._gcs.GetClusterInfo(common_pb2.Empty(), timeout_s=self._timeout_s)

    def task_events(self) -> Sequence[gcs_pb2.TaskEvents]:
        request = gcs_pb2.GetTaskEventsRequest(collect=True)
        return self._gcs.GetTaskEvents(request, timeout_s=self._timeout_s).batches
