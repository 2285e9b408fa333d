"""When a driver is told that its placement group has no place: once per job and kind of group, and only after
that has waited a while. Pure.

As of tasks (raylet/scheduling/pending_warnings.py): a driver is told of a group that no node could ever hold
after `infeasible_s`, and of one that has no room beside living actors and other groups after `pending_s`.
Nothing is said of groups for which tasks give way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ray_mono.common.ids import JobID, PlacementGroupID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces, what_helps
from ray_mono.protobuf import common_pb2


class GroupWarnings:
    """Remembers since when groups wait, and what was said to whom."""

    def __init__(self, infeasible_s: float, pending_s: float) -> None:
        self._infeasible_s = infeasible_s
        self._pending_s = pending_s
        # Of those that wait: since when, or since it was last found that tasks give way to them; for ever of
        # those that were told of.
        self._since_s: dict[PlacementGroupID, float] = {}
        self._said: set[tuple[JobID, WantedPlaces]] = set()

    def job_finished(self, job_id: JobID) -> None:
        self._said = {each for each in self._said if each[0] != job_id}

    def sweep(
        self,
        waiting: Iterable[PlacementGroup],
        nodes: Sequence[NodeSnapshot],
        could_be_free: Callable[[], Sequence[NodeSnapshot]],
        now_s: float,
    ) -> tuple[list[common_pb2.ErrorInfo], float]:
        """What is due now, and when more may be. could_be_free(): the nodes, if only actors and groups were
        there."""
        groups = list(waiting)
        self._since_s = {each.group_id: self._since_s.get(each.group_id, now_s) for each in groups}
        free: Sequence[NodeSnapshot] | None = None
        # Whether there is room if tasks give way: of all groups that want the same.
        gives_way: dict[WantedPlaces, bool] = {}
        due: list[common_pb2.ErrorInfo] = []
        next_s = math.inf
        for group in groups:
            due_s = self._since_s[group.group_id]
            due_s += self._infeasible_s if group.is_infeasible else self._pending_s
            if due_s > now_s or not group.pending_reason:
                # One without a reason has not been looked at yet.
                next_s = min(next_s, due_s if due_s > now_s else now_s + self._infeasible_s)
                continue
            wanted, job_id = WantedPlaces.of(group, ()), group.registration.job_id
            if group.is_infeasible:
                message = _infeasible(group, wanted, nodes)
            else:
                free = could_be_free() if free is None else free
                if wanted not in gives_way:
                    gives_way[wanted] = wanted.place(free) is not None
                if gives_way[wanted]:
                    self._since_s[group.group_id] = now_s
                    next_s = min(next_s, now_s + self._pending_s)
                    continue
                message = _kept_out(group, wanted, nodes, free)
            self._since_s[group.group_id] = math.inf
            if (job_id, wanted) not in self._said:
                self._said.add((job_id, wanted))
                due.append(common_pb2.ErrorInfo(job_id=job_id.binary(), type="scheduling", message=message))
        return due, next_s


def _named(group: PlacementGroup) -> str:
    name = group.registration.name
    return f"Placement group {group.group_id.hex()[:8]}" + (f" ({name})" if name else "")


def _infeasible(group: PlacementGroup, wanted: WantedPlaces, nodes: Sequence[NodeSnapshot]) -> str:
    helps = what_helps(group, wanted.lacking(nodes, ever=True), nodes)
    return f"{_named(group)} waits: {group.pending_reason}. To unblock it: {helps}."


def _kept_out(
    group: PlacementGroup,
    wanted: WantedPlaces,
    nodes: Sequence[NodeSnapshot],
    free: Sequence[NodeSnapshot],
) -> str:
    needs = ResourceSet.sum_of(bundle.resources for bundle in wanted.bundles)
    names = [name for name, _ in needs.items()]
    total = ResourceSet.sum_of(node.total.only(*names) for node in nodes)
    held = total - ResourceSet.sum_of(node.available.only(*names) for node in free)
    return (
        f"{_named(group)} waits: {group.pending_reason}. Living actors and placement groups hold {held} of"
        f" {total} until they end or are removed. To unblock it: end or remove some of them, add nodes, or"
        " remove it."
    )
