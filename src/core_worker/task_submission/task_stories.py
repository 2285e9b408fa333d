"""Tells people which calls values come from, and why these calls are not over; and the same of placement
groups."""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common import ids
from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.placement_groups import GcsPlacementGroups
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import common_pb2


class TaskStories:
    """The stories of one process's calls, and of the groups that it waits for."""

    def __init__(
        self,
        env: Environment,
        tasks: TaskManager,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        groups: GcsPlacementGroups,
    ) -> None:
        self._env = env
        self._groups = groups
        self._tasks = tasks
        self._normal_tasks = normal_tasks
        self._actor_tasks = actor_tasks

    def of(self, object_ids: Sequence[bytes], most: int) -> list[str]:
        """The calls that make these objects, as far as this process made them. Each text is told once. Of
        more than `most` calls the rest is "…". Of groups one, of which the head is asked. The lock must not
        be held."""
        names: dict[str, None] = {}
        with self._env.lock:
            for object_id in object_ids:
                task = self._tasks.get(object_id[: -ids.INDEX_BYTES])
                if task is None:
                    continue
                if len(names) == most:
                    return [*names, "…"]
                names[self._story_of(task)] = None
        group = next(filter(None, map(self._groups.story_of, object_ids)), "")
        return [*names, group] if group and len(names) < most else list(names)

    def _story_of(self, task: PendingTask) -> str:
        spec = task.template.spec
        told = f"{task.name}()"
        if spec.type == common_pb2.ACTOR_TASK:
            actor = self._actor_tasks.actor(spec.actor_task.actor_id)
            told += f" of actor {actor.actor_id.hex()[:8]}"
            why = actor.pending_reason or (actor.peer.channel.trouble if actor.peer is not None else "")
        elif task.place > 0:
            why = self._normal_tasks.trouble_with(task)
        else:
            resources = bundle_resources.plain(ResourceSet.from_proto(spec.resources))
            why = f"it waits for a worker, and needs {resources}" if resources else "it waits for a worker"
        if task.waits_for_arguments:
            why = "its arguments are not there"
        return f"{told} ({why})" if why else told
