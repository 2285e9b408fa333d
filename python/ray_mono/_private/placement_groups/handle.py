"""The handle of a placement group, which programs know as `ray_mono.util.placement_group.PlacementGroup`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_mono._private.argument_checks import seconds
from ray_mono._private.placement_groups.table import bundles_of
from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.core_worker.object_ref import ObjectRef


class PlacementGroup:
    """A handle, which may be sent on. It does not keep the group."""

    def __init__(
        self, id: PlacementGroupID, bundle_cache: Sequence[Mapping[str, float]] | None = None
    ) -> None:
        """bundle_cache: the resources of each bundle; None has the cluster asked when they are needed."""
        self.id = id
        self.bundle_cache = None if bundle_cache is None else [dict(bundle) for bundle in bundle_cache]
        self._resources: tuple[ResourceSet, ...] = ()

    @staticmethod
    def empty() -> PlacementGroup:
        """It stands for no group."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The resources of each bundle. Empty for a group that the cluster does not know."""
        if self.bundle_cache is None:
            row = current.require().placement_groups.row(self.id.binary())
            if row is None:
                return []
            self.bundle_cache = bundles_of(row)
        return [dict(bundle) for bundle in self.bundle_cache]

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def bundle_resources(self) -> tuple[ResourceSet, ...]:
        """As bundle_specs, for the core. Kept, since each call with options of its own asks."""
        if not self._resources:
            self._resources = tuple(map(ResourceSet.from_units, self.bundle_specs))
        return self._resources

    def ready(self) -> ObjectRef[PlacementGroup]:
        """An object that becomes this group when all of its bundles are taken. `get` raises
        TaskPlacementGroupRemoved where it is removed instead, and RaySystemError where the cluster did not
        take it. The empty group is there at once."""
        if self.is_empty:
            return current.require().put(self)
        return current.require().placement_groups.ready(self.id.binary(), self)

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Whether all bundles are taken within that time. None waits as long as it takes, and 0 asks how it
        is.

        Raises ValueError for a group that was removed, RaySystemError for one that the cluster did not take,
        and TypeError or ValueError for what is no time.
        """
        timeout_s = seconds(timeout_seconds, "timeout_seconds")
        return current.require().placement_groups.wait(self.id.binary(), timeout_s)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self.bundle_cache)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


# Exported pickles name it as programs do.
PlacementGroup.__module__ = "ray_mono.util.placement_group"
