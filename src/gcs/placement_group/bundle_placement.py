"""Which nodes take the bundles of a placement group: pure functions of snapshots.

    PACK            on few nodes: all on one where that can be, else as many as fit on each
    SPREAD          on many nodes: each where the group has fewest bundles so far
    STRICT_PACK     all on one node
    STRICT_SPREAD   each on a node of its own

All of them prefer nodes that are used less; ties go to the lowest id. A group is placed as a whole or not at
all. Of a group that lost nodes only the lost bundles are placed again: `kept` says where the others are.

STRICT_SPREAD finds a place wherever there is one (a matching of bundles and nodes). PACK and SPREAD take the
largest bundles first, as Ray does; with shapes that differ much they may miss a place that a search would
find.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from ray_mono.common.scheduling.labels import LabelSelector, selects
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import drained
from ray_mono.common.scheduling.resources import CPU, GPU, MEMORY, ResourceSet


class BundleStrategy(enum.Enum):
    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"
    STRICT_SPREAD = "STRICT_SPREAD"


@dataclass(frozen=True)
class Bundle:
    resources: ResourceSet
    selector: LabelSelector = ()


def drained_for(bundles: Iterable[Bundle], nodes: Sequence[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that could hold one of these as well, were they not to end."""
    found = []
    for bundle in bundles:
        found += drained(bundle.resources, nodes, (bundle.selector,) if bundle.selector else ())
    return found


class _Room:
    """A node, and what is left of it while a group is placed."""

    __slots__ = ("free", "node", "num_bundles", "used")

    def __init__(self, node: NodeSnapshot, free: ResourceSet, num_kept: int) -> None:
        self.node = node
        self.free = free
        self.num_bundles = num_kept
        self.used = node.used_share

    def takes(self, bundle: Bundle) -> bool:
        fits = bundle.resources.fits_in(self.free)
        return fits and (not bundle.selector or selects(bundle.selector, self.node.labels))

    def put(self, bundle: Bundle) -> bytes:
        self.free = self.free - bundle.resources
        self.num_bundles += 1
        return self.node.node_id

    @property
    def rank(self) -> tuple[float, bytes]:
        return self.used, self.node.node_id


def place(
    bundles: Sequence[Bundle],
    strategy: BundleStrategy,
    nodes: Sequence[NodeSnapshot],
    kept: Sequence[bytes] = (),
    target_node_id: bytes = b"",
    same_label: str = "",
    ever: bool = False,
) -> list[bytes] | None:
    """The node of each bundle, in their order; None where they cannot be placed.

    kept: the nodes of the group's other bundles. target_node_id: preferred by STRICT_PACK. same_label: all
    nodes of the group have to have the same value of this label (Ray's topology strategy). ever: whether it
    could be if nothing else ran there.
    """
    num_kept = Counter(kept)
    rooms = [
        _Room(node, node.total if ever else node.available, num_kept.get(node.node_id, 0))
        for node in nodes
        if node.takes_work
    ]
    if not same_label:
        return _placed(bundles, strategy, rooms, target_node_id)
    kept_values = {room.node.labels.get(same_label) for room in rooms if room.num_bundles}
    for value in sorted({room.node.labels[same_label] for room in rooms if same_label in room.node.labels}):
        if kept_values <= {value}:
            alike = [room for room in rooms if room.node.labels.get(same_label) == value]
            if found := _placed(bundles, strategy, alike, target_node_id):
                return found
    return None


def _placed(
    bundles: Sequence[Bundle], strategy: BundleStrategy, rooms: list[_Room], target_node_id: bytes
) -> list[bytes] | None:
    match strategy:
        case BundleStrategy.STRICT_PACK:
            return _on_one(bundles, rooms, target_node_id)
        case BundleStrategy.STRICT_SPREAD:
            return _on_one_each(bundles, [room for room in rooms if not room.num_bundles])
        case BundleStrategy.PACK:
            return _on_one(bundles, rooms, b"") or _on_few(bundles, rooms)
        case BundleStrategy.SPREAD:
            return _on_many(bundles, rooms)
        case _:
            assert_never(strategy)


def _on_one(bundles: Sequence[Bundle], rooms: Sequence[_Room], target_node_id: bytes) -> list[bytes] | None:
    together = ResourceSet.sum_of(bundle.resources for bundle in bundles)
    selector = tuple({requirement: None for bundle in bundles for requirement in bundle.selector})
    whole = Bundle(together, selector)
    able = [room for room in rooms if room.takes(whole)]
    if not able:
        return None
    chosen = min(able, key=lambda room: (room.node.node_id != target_node_id, -room.num_bundles, room.rank))
    return [chosen.node.node_id] * len(bundles)


def _on_few(bundles: Sequence[Bundle], rooms: Sequence[_Room]) -> list[bytes] | None:
    """Again and again the node that takes most of what is left, the largest first."""
    left = _largest_first(bundles)
    nodes: dict[int, bytes] = {}
    while left:
        best = max(
            (room for room in rooms if room.takes(bundles[left[0]])),
            key=lambda room: (len(list(_filled(room, bundles, left))), room.num_bundles, -room.used),
            default=None,
        )
        if best is None:
            return None
        taken = list(_filled(best, bundles, left))
        nodes.update((place, best.put(bundles[place])) for place in taken)
        left = [place for place in left if place not in nodes]
    return [nodes[place] for place in range(len(bundles))]


def _filled(room: _Room, bundles: Sequence[Bundle], left: Sequence[int]) -> Iterator[int]:
    """Those that fit there together, in this order."""
    free = room.free
    for place in left:
        bundle = bundles[place]
        if bundle.resources.fits_in(free) and selects(bundle.selector, room.node.labels):
            free = free - bundle.resources
            yield place


def _on_many(bundles: Sequence[Bundle], rooms: Sequence[_Room]) -> list[bytes] | None:
    nodes: dict[int, bytes] = {}
    for place in _largest_first(bundles):
        able = [room for room in rooms if room.takes(bundles[place])]
        if not able:
            return None
        nodes[place] = min(able, key=lambda room: (room.num_bundles, room.rank)).put(bundles[place])
    return [nodes[place] for place in range(len(bundles))]


def _on_one_each(bundles: Sequence[Bundle], rooms: Sequence[_Room]) -> list[bytes] | None:
    """A matching: where all rooms for a bundle are taken, those in them move on, if that makes room."""
    rooms = sorted(rooms, key=lambda room: room.rank)
    holders: dict[int, int] = {}
    for bundle in _largest_first(bundles):
        # The shortest way from this bundle to a free room, over rooms whose holders would move.
        came_from: dict[int, int] = {}
        movers = deque([bundle])
        free: int | None = None
        while movers and free is None:
            mover = movers.popleft()
            for place, room in enumerate(rooms):
                if place not in came_from and room.takes(bundles[mover]):
                    came_from[place] = mover
                    if place not in holders:
                        free = place
                        break
                    movers.append(holders[place])
        if free is None:
            return None
        places = {holder: place for place, holder in holders.items()}
        while free is not None:
            mover = came_from[free]
            holders[free] = mover
            free = places.get(mover)
    nodes = {bundle: rooms[place].node.node_id for place, bundle in holders.items()}
    return [nodes[bundle] for bundle in range(len(bundles))]


def _largest_first(bundles: Sequence[Bundle]) -> list[int]:
    """Places of the bundles: what is scarce comes first, GPUs and what users invented."""

    def size(place: int) -> tuple[int, int, int, int]:
        resources = bundles[place].resources
        custom = sum(amount for name, amount in resources.items() if name not in (CPU, GPU, MEMORY))
        return resources.get(GPU), custom, resources.get(MEMORY), resources.get(CPU)

    return sorted(range(len(bundles)), key=size, reverse=True)
