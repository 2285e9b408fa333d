"""`get_runtime_context()`: who and where the code that asks is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ray_mono.common.resources import GPU
from ray_mono.core_worker import current

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle
    from ray_mono.core_worker.core_worker import CoreWorker


class RuntimeContext:
    """Answers for the task, actor or driver that asks, at the moment it asks. Ids are in hex."""

    @property
    def _core(self) -> CoreWorker:
        return current.require()

    def get(self) -> dict[str, Any]:
        """The ids that there are, by name."""
        found: dict[str, Any] = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
        }
        if self.get_task_id():
            found["task_id"] = self.get_task_id()
        if self.get_actor_id():
            found["actor_id"] = self.get_actor_id()
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
        core = self._core
        return core.context.task_name() if self._runs_task(core) else None

    def get_task_function_name(self) -> str | None:
        """As get_task_name: the name of a task is its function's unless it was given another."""
        return self.get_task_name()

    def get_actor_id(self) -> str | None:
        """None outside of actors."""
        return self._core.context.actor_id().hex() or None

    def get_actor_name(self) -> str | None:
        """ "" for an actor without a name, None outside of actors."""
        info = self._actor_info()
        return None if info is None else info.name

    def get_session_name(self) -> str:
        return self._core.session_dir.rstrip("/").rpartition("/")[2]

    def get_temp_dir(self) -> str:
        """The directory that session directories are in."""
        return self._core.session_dir.rstrip("/").rpartition("/")[0]

    def get_node_labels(self) -> dict[str, str]:
        return dict(self._core.node.labels)

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task, or the actor, holds; nothing on a driver."""
        core = self._core
        return core.context.assigned_resources() if self._runs_task(core) else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Indices of the accelerators that the task or actor may use, as texts; always has "GPU"."""
        ids = {
            name: [str(index) for index in indices]
            for name, indices in self._core.context.resource_ids().items()
        }
        return {GPU: [], **ids}

    get_resource_ids = get_accelerator_ids

    def get_runtime_env_string(self) -> str:
        """JSON; "{}" where the job has none."""
        return json.dumps(self.runtime_env)

    def get_placement_group_id(self) -> str | None:
        """None: there are no placement groups yet."""
        return None

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The fields of the runtime environment that the process runs in."""
        given = getattr(self._core, "runtime_env", "") or "{}"
        fields: dict[str, Any] = json.loads(given)
        return fields

    @property
    def namespace(self) -> str:
        return self._core.namespace

    @property
    def job_id(self) -> str:
        return self.get_job_id()

    @property
    def node_id(self) -> str:
        return self.get_node_id()

    @property
    def task_id(self) -> str | None:
        return self.get_task_id()

    @property
    def actor_id(self) -> str | None:
        return self.get_actor_id()

    @property
    def gcs_address(self) -> str:
        """host:port"""
        from ray_mono.protobuf import common_pb2

        info = self._core.gcs.GetClusterInfo(common_pb2.Empty(), timeout_s=30.0)
        return f"{info.host}:{info.port}"

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor's process is not its first. False outside of actors."""
        info = self._actor_info()
        return info is not None and info.num_restarts > 0

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """The handle of the actor that asks; it does not keep the actor alive. Raises RuntimeError outside of
        actors.
        """
        from ray_mono._private.actor_metadata import ActorMetadata
        from ray_mono.actor import weak_handle

        info = self._actor_info()
        if info is None:
            raise RuntimeError("current_actor was asked for outside of an actor")
        return weak_handle(self._core, info.actor_id, ActorMetadata.loads(info.serialized_handle))

    def _actor_info(self) -> Any:
        from ray_mono.protobuf import gcs_pb2

        core = self._core
        actor_id = core.context.actor_id()
        if not actor_id:
            return None
        # Answers at once: every row's version is above 0.
        return core.gcs.WatchActor(
            gcs_pb2.WatchActorRequest(actor_id=actor_id, after_version=0), timeout_s=30.0
        )

    @staticmethod
    def _runs_task(core: CoreWorker) -> bool:
        return not core.is_driver or core.context.get() is not core.context.main


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """The context of the code that calls. Its answers raise RaySystemError where the process is not
    connected.
    """
    return _context
