"""`register_actor` and `get_actor` of Ray 0.8: names that were given to handles, beside the names of actors.

The cluster's key-value store holds what a handle is made of. A name by itself keeps no actor alive. The
process that gave the name keeps its handle as long as it is connected to that cluster.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from ray_mono._private.driver.auto_init import connected_core

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle

NAMESPACE = b"named_handles"
_kept: list[Any] = []


def register_actor(name: str, actor_handle: ActorHandle[Any]) -> None:
    """Gives the handle a name for the whole cluster.

    Raises TypeError, and ValueError if the name is taken.
    """
    from ray_mono.actor import ActorHandle

    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not isinstance(actor_handle, ActorHandle):
        raise TypeError(f"actor_handle must be an actor's handle, got {actor_handle!r}")
    core = connected_core()
    value = pickle.dumps((actor_handle._ray_state.actor_id, actor_handle._ray_metadata.dumps()))
    if not core.global_state.kv_put(NAMESPACE, name.encode(), value, overwrite=False):
        raise ValueError(f"an actor is registered under the name {name!r} already")
    _kept[:] = [handle for handle in _kept if handle._ray_core is core]
    _kept.append(actor_handle)


def get_actor(name: str) -> ActorHandle[Any]:
    """The actor that was registered under the name, or that was made with it.

    Raises ValueError if there is none.
    """
    from ray_mono._private.remote.actor_metadata import ActorMetadata
    from ray_mono._private.worker import get_actor as get_named_actor
    from ray_mono.actor import weak_handle

    core = connected_core()
    value = core.global_state.kv_get(NAMESPACE, str(name).encode())
    if value is None:
        return get_named_actor(name)
    actor_id, metadata = pickle.loads(value)
    return weak_handle(core, actor_id, ActorMetadata.loads(metadata))
