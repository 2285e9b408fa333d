"""What may still change: the cluster's key-value store, progress bars, where objects are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_mono.experimental.locations import get_local_object_locations as get_local_object_locations
    from ray_mono.experimental.locations import get_object_locations as get_object_locations

__all__ = ["get_local_object_locations", "get_object_locations"]


def __getattr__(name: str) -> Any:
    """Loads an exported name on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray_mono.experimental import locations

    return getattr(locations, name)
