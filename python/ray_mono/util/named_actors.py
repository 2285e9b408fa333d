"""Which named actors there are."""

from __future__ import annotations

from typing import Any

from ray_mono._private.argument_checks import flag
from ray_mono._private.driver.auto_init import connected_core
from ray_mono.core_worker.process.config import GCS_TIMEOUT_S
from ray_mono.protobuf import gcs_pb2


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living named actors of this namespace; for all, dicts with "name" and "namespace"."""
    all_namespaces = flag("all_namespaces", all_namespaces)
    core = connected_core()
    request = gcs_pb2.ListNamedActorsRequest(all_namespaces=all_namespaces, namespace=core.namespace)
    actors = core.gcs.ListNamedActors(request, timeout_s=GCS_TIMEOUT_S).actors
    if all_namespaces:
        return [{"name": actor.name, "namespace": actor.namespace} for actor in actors]
    return [actor.name for actor in actors]
