"""A bundle of a placement group on this node, and its life: one table, and nothing happens that is not in it.

    PREPARED ──committed──► COMMITTED ──returned──► ENDING ──its last lease ended──► ENDED
       └──returned──► ENDED

PREPARED: it holds its resources, as a lease does, and nobody can use them. So the GCS prepares the bundles of
a group on several nodes before it commits any of them.

COMMITTED: the node has its resources a second time, under the names of the group (bundle_resources.py). What
runs in the group holds those, and the bundle holds the plain ones.

ENDING: those names are gone, so that nothing new fits, while some leases still hold what they had of them.
Their workers are being killed. Until the last of these has ended the plain resources stay held. Which leases
these are is settled when the bundle is returned: those that sit in it. A bundle with the same index may be
prepared here meanwhile: it is another one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import ResourceSet


class BundleState(enum.Enum):
    PREPARED = "prepared"
    COMMITTED = "committed"
    ENDING = "ending"
    ENDED = "ended"


class BundleEvent(enum.Enum):
    COMMITTED = "committed"
    RETURNED = "returned"
    LEFT = "left by its last lease"


_S, _E = BundleState, BundleEvent
TRANSITIONS: dict[tuple[BundleState, BundleEvent], BundleState] = {
    (_S.PREPARED, _E.COMMITTED): _S.COMMITTED,
    (_S.PREPARED, _E.RETURNED): _S.ENDED,
    (_S.COMMITTED, _E.RETURNED): _S.ENDING,
    (_S.ENDING, _E.LEFT): _S.ENDED,
}


@dataclass(eq=False)
class Bundle:
    """Only the table of bundles (node_bundles.py) moves it on."""

    group_id: bytes
    index: int
    resources: ResourceSet
    held_since_s: float
    state: BundleState = BundleState.PREPARED
    awaited: frozenset[bytes] = frozenset()
    """The leases whose ends it waited for when it was returned."""
    story: tuple[BundleEvent, ...] = ()
    given: ResourceSet = field(init=False)
    """What the node has more of while it is committed."""

    def __post_init__(self) -> None:
        self.given = bundle_resources.given_by(self.resources, self.group_id, self.index)

    def commit(self) -> None:
        self._step(BundleEvent.COMMITTED)

    def give_back(self, awaited: frozenset[bytes]) -> None:
        self._step(BundleEvent.RETURNED)
        self.awaited = awaited

    def is_left(self) -> None:
        """By the last of the leases that it waited for."""
        self._step(BundleEvent.LEFT)

    def describe(self) -> dict[str, Any]:
        """For people."""
        return {
            "placement_group_id": self.group_id.hex(),
            "index": self.index,
            "state": self.state.value,
            "holds": self.resources.to_units(),
            "waits_for": sorted(lease_id.hex() for lease_id in self.awaited),
        }

    def _step(self, event: BundleEvent) -> None:
        """Moves on. Raises InternalError with the bundle's story where the table has no such step; nothing
        has changed then."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            story = ", ".join(each.value for each in self.story) or "nothing"
            raise InternalError(
                f"bundle {self.index} of placement group {self.group_id.hex()} is {self.state.value} and "
                f"cannot be '{event.value}'; so far: {story}"
            )
        self.story = (*self.story, event)
        self.state = following
