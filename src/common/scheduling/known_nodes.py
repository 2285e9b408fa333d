"""Nodes as whoever places work knows them, in the order of their ids, and which of them could ever hold what
somebody needs.

That is a matter of what a node has in all, and of its labels. Both change seldom, and are asked for with each
decision. So the answer is remembered for the needs that were asked for last: a node that changes is looked at
for each of these, and a decision looks only at nodes that could hold the work. Of groups there may be
thousands, each with needs of its own that few nodes meet: those nodes are found by the names of bundles.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from ray_mono.common.scheduling.bundle_resources import bundle_names
from ray_mono.common.scheduling.labels import LabelSelector
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import feasible, is_spared
from ray_mono.common.scheduling.resources import ResourceSet

NEEDS_REMEMBERED_MAX = 64


class Need(NamedTuple):
    """What a node has to have."""

    resources: ResourceSet
    selector: LabelSelector = ()
    spared: bool | None = None
    """Only such nodes as are left alone for others, or only the others; None: both."""

    def is_met_by(self, node: NodeSnapshot) -> bool:
        if self.spared is not None and is_spared(self.resources, node) != self.spared:
            return False
        return bool(feasible(self.resources, (node,), (self.selector,) if self.selector else ()))


class KnownNodes:
    """Snapshots by id."""

    def __init__(self, nodes: Iterable[NodeSnapshot] = ()) -> None:
        self._nodes: dict[bytes, NodeSnapshot] = {}
        # Their ids, sorted; None where they have to be sorted anew.
        self._ids: list[bytes] | None = None
        # Invariant: of each need the nodes that meet it, in the order of their ids. The last one was asked
        # for last.
        self._able: OrderedDict[Need, list[bytes]] = OrderedDict()
        # By the names that bundles are counted by: the ids of the nodes that have some, in order.
        self._with_bundles: dict[str, list[bytes]] = {}
        for node in nodes:
            self.put(node)

    def put(self, node: NodeSnapshot) -> None:
        """It is so from now on."""
        before = self._nodes.get(node.node_id)
        self._nodes[node.node_id] = node
        if before is None:
            self._ids = None
        if before is None or _could_hold(before) != _could_hold(node):
            self._look_at(node.node_id, before, node)

    def remove(self, node_id: bytes) -> None:
        """It is known no more, if it was."""
        before = self._nodes.pop(node_id, None)
        if before is not None:
            self._ids = None
            self._look_at(node_id, before, None)

    def _look_at(self, node_id: bytes, before: NodeSnapshot | None, node: NodeSnapshot | None) -> None:
        for need, ids in self._able.items():
            _set_in(ids, node_id, node is not None and need.is_met_by(node))
        had = set() if before is None else bundle_names(before.total)
        has = set() if node is None else bundle_names(node.total)
        for name in has - had:
            _set_in(self._with_bundles.setdefault(name, []), node_id, True)
        for name in had - has:
            ids = self._with_bundles[name]
            _set_in(ids, node_id, False)
            if not ids:
                del self._with_bundles[name]

    def ids(self) -> Sequence[bytes]:
        """In order."""
        if self._ids is None:
            self._ids = sorted(self._nodes)
        return self._ids

    def able_ids(self, need: Need) -> Sequence[bytes]:
        """Of those that meet it, in order."""
        if names := bundle_names(need.resources):
            # That of one bundle is longer than that of all of the group, and fewer nodes have it.
            some = self._with_bundles.get(max(names, key=len), ())
            return [each for each in some if need.is_met_by(self._nodes[each])]
        ids = self._able.get(need)
        if ids is None:
            ids = self._able[need] = [each for each in self.ids() if need.is_met_by(self._nodes[each])]
            if len(self._able) > NEEDS_REMEMBERED_MAX:
                self._able.popitem(last=False)
        else:
            self._able.move_to_end(need)
        return ids

    def __getitem__(self, node_id: bytes) -> NodeSnapshot:
        return self._nodes[node_id]

    def __iter__(self) -> Iterator[NodeSnapshot]:
        """In the order in which they came."""
        return iter(self._nodes.values())

    def in_order(self, seen_as: Callable[[bytes], NodeSnapshot] | None = None) -> NodesInOrder:
        """All of them. seen_as(id): with less free, say."""
        return NodesInOrder(self, self.ids(), seen_as or self._nodes.__getitem__)


class NodesInOrder(Sequence[NodeSnapshot]):
    """Nodes in the order of their ids. Each is looked at when it is asked for."""

    def __init__(
        self, known: KnownNodes, ids: Sequence[bytes], node_of: Callable[[bytes], NodeSnapshot]
    ) -> None:
        self._known = known
        self._ids = ids
        self._node_of = node_of

    def able(
        self, resources: ResourceSet, selector: LabelSelector = (), spared: bool | None = None
    ) -> NodesInOrder:
        """Of all known nodes those that could ever hold it."""
        if not self._ids:
            return self
        return NodesInOrder(
            self._known, self._known.able_ids(Need(resources, selector, spared)), self._node_of
        )

    def at(self, node_id: bytes) -> list[NodeSnapshot]:
        """That one, if it is there."""
        place = bisect_left(self._ids, node_id)
        return [self._node_of(each) for each in self._ids[place : place + 1] if each == node_id]

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> NodeSnapshot: ...

    @overload
    def __getitem__(self, place: slice) -> list[NodeSnapshot]: ...

    def __getitem__(self, place: int | slice) -> NodeSnapshot | list[NodeSnapshot]:
        if isinstance(place, slice):
            return [self._node_of(each) for each in self._ids[place]]
        return self._node_of(self._ids[place])

    def __iter__(self) -> Iterator[NodeSnapshot]:
        return map(self._node_of, self._ids)


def _set_in(ids: list[bytes], node_id: bytes, is_in: bool) -> None:
    """Whether it is among these, which are in order."""
    place = bisect_left(ids, node_id)
    was_in = place < len(ids) and ids[place] == node_id
    if is_in and not was_in:
        ids.insert(place, node_id)
    elif was_in and not is_in:
        del ids[place]


def _could_hold(node: NodeSnapshot) -> tuple[object, ...]:
    return node.total, node.takes_work, node.labels
