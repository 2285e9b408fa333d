"""`get_runtime_context()`: in which task, actor, job and node the code runs that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono._private.driver.auto_init import connected_core
from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, TaskID
from ray_mono.common.scheduling.resources import GPU
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle
    from ray_mono.core_worker.interface import CoreInterface
    from ray_mono.runtime_env import RuntimeEnv


class RuntimeContext:
    """Answers for the task, actor or driver that asks, at the moment when it asks.

    The methods return ids in hex, the properties return them as objects (JobID and so on). All of them raise
    RaySystemError where this process is not connected.
    """

    @property
    def _core(self) -> CoreInterface:
        return current.require()

    def get(self) -> dict[str, Any]:
        """A dict of "job_id", "node_id", "namespace" and, if there are any, "task_id" and "actor_id". The ids
        are objects."""
        found: dict[str, Any] = {
            "job_id": self.job_id,
            "node_id": self.node_id,
            "namespace": self.namespace,
        }
        if self.task_id is not None:
            found["task_id"] = self.task_id
        if self.actor_id is not None:
            found["actor_id"] = self.actor_id
        return found

    def get_job_id(self) -> str:
        return self._core.job_id.hex()

    def get_node_id(self) -> str:
        return self._core.node_id.hex()

    def get_worker_id(self) -> str:
        return self._core.worker_id.hex()

    def get_task_id(self) -> str | None:
        """None on a driver outside of tasks."""
        core = self._core
        return core.context.task_id().hex() if self._runs_task(core) else None

    def get_task_name(self) -> str | None:
        """As "f" or "Actor.method", or the name from options(name=...). None on a driver outside of tasks."""
        core = self._core
        return core.context.task_name() if self._runs_task(core) else None

    def get_task_function_name(self) -> str | None:
        """As "module.f" or "module.Actor.method". None on a driver outside of tasks."""
        core = self._core
        return core.context.function_name() if self._runs_task(core) else None

    def get_actor_id(self) -> str | None:
        """None outside of actors."""
        return self._core.context.actor_id().hex() or None

    def get_actor_name(self) -> str | None:
        """The name; "" for an actor without one, None outside of actors. Asks the GCS."""
        info = self._actor_info()
        return None if info is None else info.name

    def get_session_name(self) -> str:
        """The name of the session's directory; "" in local mode."""
        return self._core.session_dir.rstrip("/").rpartition("/")[2]

    def get_temp_dir(self) -> str:
        """The directory that the session's directory is in; "" in local mode."""
        return self._core.session_dir.rstrip("/").rpartition("/")[0]

    def get_node_labels(self) -> dict[str, str]:
        """The labels of this node, with its id in hex under "ray.io/node-id"."""
        return dict(self._core.node_labels)

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task, or the actor, holds, by name: CPUs, GPUs, bytes of memory. Empty on a
        driver."""
        core = self._core
        return core.context.assigned_resources() if self._runs_task(core) else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """By the name of a resource, the indices of the accelerators that the task or actor may use, as
        strings. It always has "GPU"."""
        ids = {
            name: [str(index) for index in indices]
            for name, indices in self._core.context.resource_ids().items()
        }
        return {GPU: [], **ids}

    get_resource_ids = get_accelerator_ids

    def is_canceled(self) -> bool:
        """Whether the task or the actor's call that asks was cancelled. A call of an actor is not
        interrupted, so it has to ask by itself.

        Raises RuntimeError on a driver, and in an async actor, where a coroutine that is cancelled gets an
        asyncio.CancelledError.
        """
        return self._core.is_task_cancelled()

    def get_runtime_env_string(self) -> str:
        """The runtime environment that the process runs in, as JSON; "{}" for none."""
        return self._core.runtime_env or "{}"

    def get_placement_group_id(self) -> str | None:
        """In hex: the placement group that the task or actor runs in. None outside of groups."""
        return self._core.context.placement_group().group_id.hex() or None

    @property
    def current_placement_group_id(self) -> PlacementGroupID:
        """The nil id outside of groups."""
        group_id = self._core.context.placement_group().group_id
        return PlacementGroupID(group_id) if group_id else PlacementGroupID.nil()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what the task or actor submits runs in its group, unless that says otherwise."""
        return self._core.context.placement_group().captures

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The runtime environment that the process runs in, a dict of its fields."""
        from ray_mono.runtime_env import RuntimeEnv

        return RuntimeEnv.deserialize(self.get_runtime_env_string())

    @property
    def namespace(self) -> str:
        """Of the driver, or of the job that runs here."""
        return self._core.namespace

    @property
    def job_id(self) -> JobID:
        return JobID(self._core.job_id)

    @property
    def node_id(self) -> NodeID:
        return NodeID(self._core.node_id)

    @property
    def task_id(self) -> TaskID | None:
        """None on a driver outside of tasks."""
        core = self._core
        return TaskID(core.context.task_id()) if self._runs_task(core) else None

    @property
    def actor_id(self) -> ActorID | None:
        """None outside of actors."""
        actor_id = self._core.context.actor_id()
        return ActorID(actor_id) if actor_id else None

    @property
    def gcs_address(self) -> str:
        """host:port of the GCS, which is asked for it."""
        info = self._core.global_state.cluster_info()
        return f"{info.host}:{info.port}"

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor was restarted. False outside of actors. Asks the GCS."""
        info = self._actor_info()
        return info is not None and info.num_restarts > 0

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor that asks. It does not keep the actor alive. Raises RuntimeError outside of
        actors."""
        from ray_mono._private.remote.actor_metadata import ActorMetadata
        from ray_mono.actor import weak_handle

        info = self._actor_info()
        if info is None:
            raise RuntimeError("current_actor was asked for outside of an actor")
        return weak_handle(self._core, info.actor_id, ActorMetadata.loads(info.serialized_handle))

    def _actor_info(self) -> Any:
        core = self._core
        actor_id = core.context.actor_id()
        return core.global_state.actor(actor_id) if actor_id else None

    @staticmethod
    def _runs_task(core: CoreInterface) -> bool:
        return not core.is_driver or not core.context.is_main


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The context of the code that calls: one object, which answers for whoever asks.

    A program that never called `init` gets a cluster, as at every first use. Raises what `init` raises.
    """
    connected_core()
    return _context
