"""Placement groups: resources on one node or several that are taken together, as bundles, for tasks and
actors that name the group.

    pg = placement_group([{"CPU": 1}, {"CPU": 1, "GPU": 1}], strategy="STRICT_PACK")
    ray_mono.get(pg.ready())
    f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(pg, 1)).remote()
    remove_placement_group(pg)

A group ends with the job that made it, unless it is detached.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from ray_mono._private.driver.auto_init import connected_core
from ray_mono._private.placement_groups.handle import PlacementGroup
from ray_mono._private.placement_groups.request import STRATEGIES, request_of
from ray_mono._private.placement_groups.table import bundles_of, table_of
from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.labels import NODE_ID_LABEL
from ray_mono.core_worker.process import current

__all__ = [
    "NODE_ID_LABEL_KEY",
    "VALID_PLACEMENT_GROUP_STRATEGIES",
    "PlacementGroup",
    "check_placement_group_index",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
    "validate_placement_group",
]

NODE_ID_LABEL_KEY = NODE_ID_LABEL

VALID_PLACEMENT_GROUP_STRATEGIES = set(STRATEGIES)


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Asks for a group of bundles. It waits only if the group has a name, for the answer whether that is
    free; not for the bundles.

    Args:
        bundles: the resources of each. A bundle is on one node.
        strategy: "PACK", on few nodes; "STRICT_PACK", on one; "SPREAD", on many; "STRICT_SPREAD", each on a
            node of its own. None: "PACK".
        name: by which get_placement_group finds it in its namespace.
        lifetime: "detached" for a group that outlives its job; None.
        _soft_target_node_id: of STRICT_PACK, the node that is preferred, in hex.
        bundle_label_selector: for each bundle the labels that its node must have.
        topology_strategy: in place of `strategy`, a dict of "ray.io/node-id", with one of these strategies,
            and at most one other label, with "STRICT_PACK": the nodes of all bundles have one value of it.

    Raises ValueError or TypeError for what is wrong in this, ValueError for a name that another group has,
    RaySystemError where the cluster does not take it.
    """
    wanted = request_of(
        bundles,
        strategy,
        name,
        lifetime,
        _soft_target_node_id,
        bundle_label_selector,
        topology_strategy,
    )
    group_id = connected_core().placement_groups.create(wanted)
    # As they were given, with what is 0.
    given = [{resource: float(amount) for resource, amount in bundle.items()} for bundle in bundles]
    return PlacementGroup(PlacementGroupID(group_id), given)


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives back what the group has, and ends what runs in it. It does not wait. Nothing happens where the
    group is removed already, or nobody knows it."""
    group_id = _id_of(placement_group)
    if not placement_group.is_empty:
        connected_core().placement_groups.remove(group_id)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of that name in this namespace. Raises ValueError where there is none, and TypeError for what
    is no name."""
    if not isinstance(placement_group_name, str) or not placement_group_name:
        # Whoever has no name has none of any kind: as in Ray, that is a ValueError.
        raise (TypeError if placement_group_name else ValueError)(
            f"placement_group_name must be a string that is not empty, got {placement_group_name!r}"
        )
    core = connected_core()
    row = core.placement_groups.named(placement_group_name, core.namespace)
    if row is None:
        raise ValueError(
            f"there is no placement group named {placement_group_name!r} in namespace {core.namespace!r}"
        )
    return PlacementGroup(PlacementGroupID(row.placement_group_id), bundles_of(row))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the cluster knows of a group; {} for one that it does not know. Without a group, of all of them,
    by their ids in hex."""
    groups = connected_core().placement_groups
    if placement_group is None:
        return {row.placement_group_id.hex(): table_of(row) for row in groups.rows()}
    row = groups.row(_id_of(placement_group))
    return {} if row is None else table_of(row)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the task or actor runs in which asks; None outside of groups, and on a driver."""
    core = current.core
    group_id = b"" if core is None else core.context.placement_group().group_id
    return PlacementGroup(PlacementGroupID(group_id)) if group_id else None


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raises ValueError unless the group has such a bundle, or the index is -1 for any; TypeError for what is
    no group, or no whole number."""
    group_id, count = _id_of(placement_group), placement_group.bundle_count
    if not isinstance(bundle_index, int) or isinstance(bundle_index, bool):
        raise TypeError(f"bundle_index must be a whole number, got {bundle_index!r}")
    if not -1 <= bundle_index < count:
        raise ValueError(
            f"bundle_index must be -1 or that of one of the {count} bundles of placement group"
            f" {group_id.hex()}, got {bundle_index!r}"
        )


def validate_placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> bool:
    """True for what placement_group() takes. Raises as that does for anything else."""
    request_of(
        bundles, strategy, "", lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy
    )
    return True


def _id_of(group: Any) -> bytes:
    if not isinstance(group, PlacementGroup):
        raise TypeError(f"placement_group must be a placement group, got {group!r}")
    return group.id.binary()


class _CallableModule(ModuleType):
    """`ray.util.placement_group` is the function also where somebody has imported the module of that name,
    as in Ray."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its name, as any module in the functions of programs."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule
