"""Children of tasks and actors that capture: what these submit runs in their placement group, in any of its
bundles, unless it says where it runs. It captures in its turn. What says that it captures, and names no
group, runs in its caller's in any case.

A worker may run tasks of several groups, one after another, and those of none. So whether and where a call
is captured is decided at the call. A worker that never had a task which captures, or made one, has nothing of
this on the way of its calls: the core worker puts it there with the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.task_submission.bundle_options import Options, handed_down, is_handed_down
from ray_mono.core_worker.task_submission.map_builder import MapBuilder
from ray_mono.core_worker.task_submission.placement_groups import GcsPlacementGroups
from ray_mono.core_worker.task_submission.task_builder import TaskBuilder, TaskTemplate

GROUPS_MAX = 16
"""So many groups a remote function keeps its templates of."""


class InheritedGroups:
    """Of one process."""

    def __init__(
        self, context: WorkerContext, groups: GcsPlacementGroups, builder: TaskBuilder, maps: MapBuilder
    ) -> None:
        self._context = context
        self._groups = groups
        self._builder = builder
        self._maps = maps

    def submit_task(self, template: TaskTemplate, flat_args: list[Any]) -> list[Any]:
        """As TaskBuilder's. Raises ValueError for what does not fit into the group, too, and RpcError where
        the GCS does not answer."""
        return self._builder.submit_task(self.template_of(template), flat_args)

    def submit_tasks(
        self, template: TaskTemplate, items: Sequence[Any], chunk: int, refs: list[ObjectRef[Any]]
    ) -> None:
        """As MapBuilder's. Raises as submit_task, too."""
        self._maps.submit_tasks(self.template_of(template), items, chunk, refs)

    def template_of(self, template: TaskTemplate) -> TaskTemplate:
        """Of the task's group, if the call is captured. Raises ValueError, RpcError."""
        group = self._context.placement_group()
        if not is_handed_down(template.given, group):
            return template
        group_id = group.group_id
        made = template.in_groups.get(group_id)
        if made is None:
            made = self._builder.task_template(template.code, self.options_of(template.given))
            if len(template.in_groups) >= GROUPS_MAX:
                template.in_groups.clear()
            template.in_groups[group_id] = made
        return made

    def options_of(self, options: Options) -> Options:
        """As the task or actor that asks hands them down. Raises ValueError, RpcError."""
        return handed_down(options, self._context.placement_group(), self._groups.bundles_of)
