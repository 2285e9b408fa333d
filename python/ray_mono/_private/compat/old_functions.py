"""Functions of Ray 0.8 to 1.x, for `ray_mono.compat` only. `old_names.py` says what replaced them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_mono._private.driver.auto_init import connected_core
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.protobuf import common_pb2


def get_resource_ids() -> dict[str, list[tuple[int, float]]]:
    """(index, amount) of each indexed resource that the running task or actor may use, by name."""
    context = connected_core().context
    amounts = context.assigned_resources()
    return {
        name: [(index, min(amounts.get(name, 1.0), 1.0)) for index in indices]
        for name, indices in context.resource_ids().items()
    }


def get_dashboard_url() -> str:
    """host:port of the dashboard; "" where there is none."""
    from ray_mono._private.worker import init

    return init(ignore_reinit_error=True).dashboard_url


def jobs() -> list[dict[str, Any]]:
    """Every job that the cluster has had."""
    return [
        {"JobID": job.job_id.hex(), "IsDead": job.is_finished, "Entrypoint": job.entrypoint}
        for job in connected_core().global_state.jobs()
    ]


def actors(actor_id: str | None = None) -> dict[str, Any]:
    """The actors that the cluster knows, by id in hex; or the one of that id, {} where there is none."""
    found = {
        actor.actor_id.hex(): {
            "ActorID": actor.actor_id.hex(),
            "ActorClassName": actor.class_name,
            "JobID": actor.job_id.hex(),
            "Name": actor.name,
            "NumRestarts": actor.num_restarts,
            "Pid": actor.pid,
            "State": common_pb2.ActorState.Name(actor.state),
        }
        for actor in connected_core().global_state.actors()
    }
    return found if actor_id is None else found.get(actor_id, {})


def free(object_refs: Any, local_only: bool = False, delete_creating_tasks: bool = False) -> None:
    """Has no effect: an object goes when nothing refers to it any more."""


async def as_future(object_ref: ObjectRef[Any]) -> Any:
    """The value. Today a reference can be awaited itself."""
    return await object_ref


def register_custom_serializer(
    cls: type,
    serializer: Callable[[Any], Any],
    deserializer: Callable[[Any], Any],
    use_pickle: bool = False,
    use_dict: bool = False,
) -> None:
    """As `ray.util.register_serializer`. Raises NotImplementedError for use_pickle and use_dict, of the
    serializer before pickle 5."""
    from ray_mono.util.serialization import register_serializer

    if use_pickle or use_dict:
        raise NotImplementedError(
            "register_custom_serializer: use_pickle and use_dict went with Ray's serializer of that time"
        )
    register_serializer(cls, serializer=serializer, deserializer=deserializer)
