"""Placement groups, which ray_mono does not have yet: what makes or asks for one says so.

What holds without any works: nothing runs in one, so `get_current_placement_group` is None, and the empty
group stands for none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from ray_mono._private.later import refusing
from ray_mono.common.ids import PlacementGroupID

__all__ = [
    "VALID_PLACEMENT_GROUP_STRATEGIES",
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}
_PART = "placement groups are"


class PlacementGroup:
    """A handle.

    There is only the empty one, which stands for no group, and those that programs make themselves.
    """

    def __init__(
        self, id: PlacementGroupID, bundle_cache: Sequence[Mapping[str, float]] | None = None
    ) -> None:
        self.id = id
        self.bundle_cache = None if bundle_cache is None else [dict(bundle) for bundle in bundle_cache]

    @staticmethod
    def empty() -> PlacementGroup:
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The resources of each bundle."""
        return list(self.bundle_cache or [])

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    ready = refusing("PlacementGroup.ready", _PART)
    wait = refusing("PlacementGroup.wait", _PART)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def get_current_placement_group() -> PlacementGroup | None:
    """None: nothing runs in one."""
    return None


placement_group = refusing("ray_mono.util.placement_group", _PART)
get_placement_group = refusing("ray_mono.util.get_placement_group", _PART)
placement_group_table = refusing("ray_mono.util.placement_group_table", _PART)
remove_placement_group = refusing("ray_mono.util.remove_placement_group", _PART)


class _CallableModule(ModuleType):
    """`ray.util.placement_group` is the function also where somebody has imported the module of that name,
    as in Ray."""

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        placement_group(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
