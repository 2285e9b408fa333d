"""Tools around the core.

A name is loaded from its module when it is first used, as those of `ray_mono` are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_mono.util import accelerators as accelerators
    from ray_mono.util import metrics as metrics
    from ray_mono.util.actor_pool import ActorPool as ActorPool
    from ray_mono.util.check_serialize import inspect_serializability as inspect_serializability
    from ray_mono.util.client_connect import connect as connect
    from ray_mono.util.client_connect import disconnect as disconnect
    from ray_mono.util.explaining import explain as explain
    from ray_mono.util.iteration import as_completed as as_completed
    from ray_mono.util.iteration import map_unordered as map_unordered
    from ray_mono.util.named_actors import list_named_actors as list_named_actors
    from ray_mono.util.node_addresses import get_node_instance_id as get_node_instance_id
    from ray_mono.util.node_addresses import get_node_ip_address as get_node_ip_address
    from ray_mono.util.placement_group import get_current_placement_group as get_current_placement_group
    from ray_mono.util.placement_group import get_placement_group as get_placement_group
    from ray_mono.util.placement_group import placement_group as placement_group
    from ray_mono.util.placement_group import placement_group_table as placement_group_table
    from ray_mono.util.placement_group import remove_placement_group as remove_placement_group
    from ray_mono.util.rare_logging import disable_log_once_globally as disable_log_once_globally
    from ray_mono.util.rare_logging import enable_periodic_logging as enable_periodic_logging
    from ray_mono.util.rare_logging import log_once as log_once
    from ray_mono.util.serialization import deregister_serializer as deregister_serializer
    from ray_mono.util.serialization import register_serializer as register_serializer

# name -> the module of this package that has it; "" for a module itself
_EXPORTS = {
    "ActorPool": "actor_pool",
    "accelerators": "",
    "as_completed": "iteration",
    "connect": "client_connect",
    "deregister_serializer": "serialization",
    "disable_log_once_globally": "rare_logging",
    "disconnect": "client_connect",
    "enable_periodic_logging": "rare_logging",
    "explain": "explaining",
    "get_current_placement_group": "placement_group",
    "get_node_instance_id": "node_addresses",
    "get_node_ip_address": "node_addresses",
    "get_placement_group": "placement_group",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "named_actors",
    "log_once": "rare_logging",
    "map_unordered": "iteration",
    "metrics": "",
    "placement_group": "placement_group",
    "placement_group_table": "placement_group",
    "register_serializer": "serialization",
    "remove_placement_group": "placement_group",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Loads an exported name on its first use."""
    place = _EXPORTS.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"{__name__}.{place or name}")
    value = getattr(module, name) if place else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
