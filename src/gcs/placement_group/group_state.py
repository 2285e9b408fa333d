"""The life of a placement group: one table, and nothing happens that is not in it.

    PENDING ──all held──► PREPARED ──all open──► CREATED
                             │                      │
                             └──its node is dead────┴──► RESCHEDULING ──all held──► PREPARED
    (any) ──removed, or what it ends with is over──► REMOVED

A bundle is held where its node keeps its resources for it, and open where work may use it. First all are
held, then that is stored, then they are opened: so a head that dies between leaves none of them half there.
A group that has lost nodes places the lost bundles again. Its others are in use meanwhile.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID
from ray_mono.common.our_bug import InternalError
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.protobuf import common_pb2


class GroupState(enum.IntEnum):
    """The values are those of PlacementGroupState."""

    PENDING = 0
    PREPARED = 1
    CREATED = 2
    REMOVED = 3
    RESCHEDULING = 4


class GroupEvent(enum.Enum):
    PREPARED = "all of its bundles are held"
    CREATED = "all of its bundles are open"
    LOST = "some of its bundles are lost"
    REMOVED = "it was removed"


_S, _E = GroupState, GroupEvent
TRANSITIONS: dict[tuple[GroupState, GroupEvent], GroupState] = {
    (_S.PENDING, _E.PREPARED): _S.PREPARED,
    # A late node had told of bundles.
    (_S.PENDING, _E.LOST): _S.PENDING,
    (_S.PENDING, _E.REMOVED): _S.REMOVED,
    (_S.PREPARED, _E.CREATED): _S.CREATED,
    (_S.PREPARED, _E.LOST): _S.RESCHEDULING,
    (_S.PREPARED, _E.REMOVED): _S.REMOVED,
    (_S.CREATED, _E.LOST): _S.RESCHEDULING,
    (_S.CREATED, _E.REMOVED): _S.REMOVED,
    (_S.RESCHEDULING, _E.PREPARED): _S.PREPARED,
    (_S.RESCHEDULING, _E.LOST): _S.RESCHEDULING,
    (_S.RESCHEDULING, _E.REMOVED): _S.REMOVED,
}
WAITING = frozenset({GroupState.PENDING, GroupState.RESCHEDULING})
"""They wait for places of bundles."""


@dataclass(frozen=True)
class GroupRegistration:
    """What its creator says of a group."""

    group_id: PlacementGroupID
    job_id: JobID
    strategy: BundleStrategy
    bundles: tuple[Bundle, ...]
    name: str = ""
    """Empty: not named."""
    namespace: str = ""
    is_detached: bool = False
    creator_actor_id: ActorID | None = None
    """The detached actor that it ends with."""
    outlives_job: bool = False
    """It is below a detached actor: it ends when its job is over."""
    target_node_id: bytes = b""
    same_label: str = ""
    creator: common_pb2.Address | None = None
    """The process that made it; None: whoever did said nothing."""
    creator_task_id: bytes = b""


@dataclass(frozen=True)
class PlacementGroup:
    """One group. Replaced, never changed."""

    registration: GroupRegistration
    state: GroupState
    version: int
    """Grows with every change that others can see."""
    start_time_s: float
    places: tuple[NodeID | None, ...] = ()
    """Where each bundle is; None: nowhere. Of a removed one, where it was."""
    is_open: tuple[bool, ...] = ()
    """Of each bundle."""
    placed_at_s: float = 0.0
    """When its bundles were held for the first time, by this head's loop; 0 where an earlier head did it."""
    num_attempts: int = 0
    pending_reason: str = ""
    is_infeasible: bool = False
    """No node could hold it if nothing else ran there."""
    created_time_s: float = 0.0
    end_time_s: float = 0.0
    removed_because: str = ""
    story: tuple[str, ...] = field(default=())
    """The latest transitions, for error messages."""

    @property
    def group_id(self) -> PlacementGroupID:
        return self.registration.group_id

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def unplaced(self) -> list[int]:
        """The indices of the bundles that are nowhere."""
        return [index for index, place in enumerate(self.places) if place is None]

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """The same for groups of one job that want the same."""
        asks = self.registration
        bundles = tuple(asks.bundles[index] for index in self.unplaced)
        others = tuple(place for place in self.places if place is not None)
        return asks.job_id, asks.strategy, bundles, others, asks.target_node_id, asks.same_label

    @property
    def held_name(self) -> tuple[str, str] | None:
        """(namespace, name) that leads to it; None where it has no name, or is removed."""
        if not self.registration.name or self.state is GroupState.REMOVED:
            return None
        return self.registration.namespace, self.registration.name

    def on_node(self, node_id: NodeID) -> list[int]:
        """The indices of its bundles there."""
        return [index for index, place in enumerate(self.places) if place == node_id]

    def by_node(self) -> dict[NodeID, list[int]]:
        """Those that are somewhere."""
        nodes: dict[NodeID, list[int]] = {}
        for index, place in enumerate(self.places):
            if place is not None:
                nodes.setdefault(place, []).append(index)
        return nodes


def next_state(group: PlacementGroup, event: GroupEvent) -> GroupState:
    """The state after `event`. Raises InternalError, with the group's story."""
    state = TRANSITIONS.get((group.state, event))
    if state is None:
        story = " → ".join(group.story) or "none"
        raise InternalError(
            f"placement group {group.group_id.hex()} is {group.state.name}, where {event.name} cannot "
            f"happen; its story: {story}"
        )
    return state
