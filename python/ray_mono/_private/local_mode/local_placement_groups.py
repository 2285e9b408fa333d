"""Placement groups in local mode: a group is created at once if the node could hold all of its bundles, and
never otherwise. Nothing is counted: tasks run in turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_mono.common.exceptions import PlacementGroupNameTaken, RaySystemError, TaskPlacementGroupRemoved
from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

Info = common_pb2.PlacementGroupInfo
_NEVER = "this node could never hold all bundles of the placement group"


class LocalPlacementGroups:
    """A core_worker.interface.PlacementGroups."""

    def __init__(
        self,
        context: WorkerContext,
        node_id: bytes,
        resources: Mapping[str, float],
        rng: random.Random,
        put: Callable[[serialization.Serialized], ObjectRef[Any]],
    ) -> None:
        """resources: of the node, in units. put(value) makes an object."""
        self._context = context
        self._node_id = node_id
        self._total = ResourceSet.from_units(resources)
        self._rng = rng
        self._put = put
        self._rows: dict[bytes, Info] = {}

    def create(self, wanted: Info) -> bytes:
        job = self._context.job
        if wanted.name:
            other = self.named(wanted.name, job.namespace)
            if other is not None:
                raise PlacementGroupNameTaken(
                    f"the name {wanted.name!r} is taken in namespace {job.namespace!r}, by placement group"
                    f" {other.placement_group_id.hex()}"
                )
        group_id = PlacementGroupID.for_job(job.job_id, self._rng).binary()
        row = self._rows[group_id] = Info()
        row.CopyFrom(wanted)
        row.placement_group_id, row.job_id, row.namespace = group_id, job.job_id, job.namespace
        row.num_attempts = 1
        if not self._could_hold(row):
            row.pending_reason = _NEVER
            return group_id
        row.MergeFrom(Info(state=common_pb2.PLACEMENT_GROUP_CREATED))
        for bundle in row.bundles:
            bundle.MergeFrom(common_pb2.Bundle(node_id=self._node_id))
        return group_id

    def _could_hold(self, row: Info) -> bool:
        needed = ResourceSet.sum_of(ResourceSet.from_proto(bundle.resources) for bundle in row.bundles)
        is_apart = row.strategy == Info.STRICT_SPREAD and len(row.bundles) > 1
        return needed.fits_in(self._total) and not is_apart

    def remove(self, group_id: bytes) -> None:
        row = self._rows.get(group_id)
        if row is not None:
            because = "remove_placement_group() was called"
            row.MergeFrom(Info(state=common_pb2.PLACEMENT_GROUP_REMOVED, removed_because=because))

    def is_removed(self, group_id: bytes) -> bool:
        row = self._rows.get(group_id)
        return row is not None and row.state == common_pb2.PLACEMENT_GROUP_REMOVED

    def wait(self, group_id: bytes, timeout_s: float | None) -> bool:
        """It answers at once: what is not created never will be."""
        if self.is_removed(group_id):
            raise ValueError(f"placement group {group_id.hex()} does not exist any more: it was removed")
        row = self._rows.get(group_id)
        return row is not None and row.state == common_pb2.PLACEMENT_GROUP_CREATED

    def ready(self, group_id: bytes, handle: Any) -> ObjectRef[Any]:
        """Also of a group that is never created there is a value at once: an error."""
        if self.is_removed(group_id):
            return self._put(serialization.serialize_error(TaskPlacementGroupRemoved.of(group_id)))
        if not self.wait(group_id, 0):
            return self._put(serialization.serialize_error(RaySystemError(_NEVER)))
        return self._put(serialization.serialize(handle, "a placement group's handle"))

    def row(self, group_id: bytes) -> Info | None:
        return self._rows.get(group_id)

    def named(self, name: str, namespace: str) -> Info | None:
        for row in self._rows.values():
            if (row.name, row.namespace) == (name, namespace) and not self.is_removed(row.placement_group_id):
                return row
        return None

    def rows(self) -> Sequence[Info]:
        return list(self._rows.values())

    def bundles_of(self, group_id: bytes) -> tuple[ResourceSet, ...]:
        row = self._rows.get(group_id)
        bundles = row.bundles if row is not None else ()
        return tuple(ResourceSet.from_proto(bundle.resources) for bundle in bundles)
