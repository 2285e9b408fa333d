"""Which named actors there are."""

from __future__ import annotations

from typing import Any

from ray_mono._private.argument_checks import flag
from ray_mono._private.driver.auto_init import connected_core


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living named actors of this namespace; for all, dicts with "name" and "namespace"."""
    all_namespaces = flag("all_namespaces", all_namespaces)
    core = connected_core()
    actors = core.global_state.named_actors(all_namespaces, core.namespace)
    if all_namespaces:
        return [{"name": actor.name, "namespace": actor.namespace} for actor in actors]
    return [actor.name for actor in actors]
