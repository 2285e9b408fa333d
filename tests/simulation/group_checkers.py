"""The judge of placement groups. He is told what those say and hear who make them and run work in them:

- leases in a group's bundles hold no more, on one node, than its bundles have, and each has what it holds in
  one of them;
- a group that is created has its bundles where its strategy allows;
- where no node ends, a task in a bundle runs on the node that the table tells for it;
- somebody reads that a group was removed which nobody removed, and whose job is not over;
- a task that was submitted into a group after its removal has a value;
- where no node ends, a task has a value a while after the removal of its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ray_mono.common.scheduling.bundle_resources import given_by, named, seats
from ray_mono.common.scheduling.resources import CPU, ResourceSet
from tests.simulation.loop import SimulationError

REMOVAL_S_MAX = 5.0
"""Until what runs in a removed group is killed, where nothing but disks and messages is slow."""


class GroupCheckFailed(SimulationError):
    """An invariant of placement groups does not hold."""


@dataclass
class GroupStory:
    """What was said of a group."""

    strategy: str
    bundles: tuple[ResourceSet, ...]
    removed_at_s: float = math.inf
    places: tuple[bytes, ...] = ()
    """As the head told last."""

    @property
    def is_removed(self) -> bool:
        return self.removed_at_s < math.inf

    def gives(self, group_id: bytes) -> ResourceSet:
        """Under the names of the group."""
        return ResourceSet.sum_of(given_by(each, group_id, index) for index, each in enumerate(self.bundles))


@dataclass
class GroupJournal:
    """The groups of one run."""

    groups: dict[bytes, GroupStory] = field(default_factory=dict)
    heads_forget: bool = False
    """A head may begin on an empty store."""
    is_over: Callable[[bytes], bool] = lambda job_id: False
    """Whether a job may be over: its driver is dead, or held to be."""
    # By task, also by those that it submits and that its group captures.
    _group_of: dict[bytes, bytes] = field(default_factory=dict)
    # Submitted when their group was removed.
    _too_late: dict[bytes, None] = field(default_factory=dict)
    num_created: int = 0
    num_removals_read: int = 0

    def made(self, group_id: bytes, strategy: str, bundles: Sequence[ResourceSet]) -> None:
        self.groups[group_id] = GroupStory(strategy, tuple(bundles))

    def removed(self, group_id: bytes, now_s: float) -> None:
        """Somebody asks for that."""
        story = self.groups[group_id]
        story.removed_at_s = min(story.removed_at_s, now_s)

    def told(self, group_id: bytes, places: Sequence[bytes]) -> None:
        """By the head: it is created, with its bundles there."""
        story = self.groups[group_id]
        self.num_created += 1
        num_nodes = len(set(places))
        is_wrong = not all(places) or len(places) != len(story.bundles)
        is_wrong = is_wrong or (story.strategy == "STRICT_PACK" and num_nodes != 1)
        is_wrong = is_wrong or (story.strategy == "STRICT_SPREAD" and num_nodes != len(places))
        if is_wrong:
            where = [place.hex()[:8] for place in places]
            raise GroupCheckFailed(f"group {_short(group_id)}, {story}, is said to be created at {where}")
        story.places = tuple(places)

    # ---- tasks

    def submitted(self, task_id: bytes, group_id: bytes) -> None:
        self._group_of[task_id] = group_id
        if self.groups[group_id].is_removed:
            self._too_late[task_id] = None

    def done(self, task_id: bytes, index: int, node_id: bytes, now_s: float, stays: bool) -> None:
        """It has a value, and ran there. index: of its bundle; -1 for any. stays: no node has ended."""
        group_id = self._group_of[task_id]
        story = self.groups[group_id]
        if task_id in self._too_late:
            raise GroupCheckFailed(f"a task of group {_short(group_id)} ran after the group was removed")
        if stays and now_s > story.removed_at_s + REMOVAL_S_MAX:
            raise GroupCheckFailed(f"a task of group {_short(group_id)} ran on after the group was removed")
        places = story.places if index < 0 else story.places[index : index + 1]
        if stays and places and node_id not in places:
            where = f"bundle {index} of group {_short(group_id)}"
            raise GroupCheckFailed(f"a task in {where} ran on node {node_id.hex()[:8]}: {story}")

    def removal_read(self, task_id: bytes, job_id: bytes) -> None:
        """Somebody reads that the group of this task was removed."""
        group_id = self._group_of.get(task_id)
        if group_id is None:
            raise GroupCheckFailed(f"task {_short(task_id)} is in no group, and told of its removal")
        self.removed_is_told(group_id, job_id)

    def is_removed_of(self, task_id: bytes) -> bool:
        group_id = self._group_of.get(task_id)
        return group_id is not None and self.groups[group_id].is_removed

    def removed_is_told(self, group_id: bytes, job_id: bytes) -> None:
        self.num_removals_read += 1
        if not (self.groups[group_id].is_removed or self.is_over(job_id) or self.heads_forget):
            raise GroupCheckFailed(f"group {_short(group_id)} is said to be removed, and nobody did that")

    # ---- what leases hold

    def check_node(self, node_id: bytes, held: Iterable[tuple[ResourceSet, bool]]) -> None:
        """held: by leases there, and of each whether its CPUs are not counted."""
        of_group: dict[bytes, list[ResourceSet]] = {}
        for resources, has_waited in held:
            names = [name for name, _ in resources.items() if "_group_" in name]
            if not names:
                continue
            part = resources.only(*names)
            group_id = bytes.fromhex(names[0].rpartition("_")[2])
            part = part - named(part, CPU) if has_waited else part
            of_group.setdefault(group_id, []).append(part)
        for group_id, parts in of_group.items():
            given = self.groups[group_id].gives(group_id)
            if not _can_sit(parts, given, given):
                where = f"group {_short(group_id)} on node {_short(node_id)}"
                raise GroupCheckFailed(f"{where} has {given}, and its leases hold {parts}")


def _can_sit(parts: Sequence[ResourceSet], free: ResourceSet, given: ResourceSet) -> bool:
    """Whether there is a bundle for each."""
    if not parts:
        return True
    places = [seat for seat in seats(parts[0], given) if seat.fits_in(free)]
    return any(_can_sit(parts[1:], free - seat, given) for seat in places)


def _short(id_bytes: bytes) -> str:
    return id_bytes.hex()[:12]
