"""What this raylet knows of the other nodes: who is alive, what they have, and what was free when they last
said so.

The GCS tells it (channels NODE and NODE_RESOURCES), so it is always a little late. A report never replaces
a newer one of the same node. What this raylet itself has just sent to a node is deducted until that node's
next report; otherwise a burst of leases would all go to the node that looked emptiest. If no report comes
it is deducted for `hold_s` (the requester may have changed its mind). What is returned there by somebody of
this node counts as free at once: tasks one after another find the same nodes free each time.

`revision` grows with every change that could make a waiting lease placeable. Whoever keeps a "no" compares
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray_mono.common.scheduling.known_nodes import KnownNodes, NodesInOrder
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet

NOTHING = ResourceSet()
DEAD_MAX = 1000
"""The last ones to die are kept."""


class _Node:
    """One other node, and what was sent to it since its last report."""

    def __init__(self, snapshot: NodeSnapshot, version: int = 0) -> None:
        self.snapshot = snapshot
        self.version = version
        # Leases sent there: (when the hold ends, how much). In order of time.
        self._holds: list[tuple[float, ResourceSet]] = []

    def die(self) -> None:
        self.snapshot = replace(self.snapshot, is_alive=False)

    def report(self, version: int, total: ResourceSet, available: ResourceSet, lasting: ResourceSet) -> None:
        self.version = version
        self._holds = []
        self.snapshot = replace(self.snapshot, total=total, available=available, lasting=lasting)

    def hold(self, until_s: float, amount: ResourceSet) -> None:
        self._holds.append((until_s, amount))

    def free(self, amount: ResourceSet) -> None:
        """A lease there has ended, of those sent since the last report or before it."""
        for place, (_, held) in enumerate(self._holds):
            if held == amount:
                del self._holds[place]
                return
        total, available = self.snapshot.total, self.snapshot.available + amount
        most = {name: min(units, total.get(name)) for name, units in available.items()}
        self.snapshot = replace(self.snapshot, available=ResourceSet(most))

    def end_holds(self, now_s: float) -> bool:
        """Ends those whose time is over. Returns whether there were any."""
        if not self._holds or self._holds[0][0] > now_s:
            return False
        self._holds = [hold for hold in self._holds if hold[0] > now_s]
        return True

    def effective(self) -> NodeSnapshot:
        if not self._holds:
            return self.snapshot
        available = self.snapshot.available
        for _, amount in self._holds:
            available = available - amount
        return replace(self.snapshot, available=available)


class ClusterView:
    """Every node but this one."""

    def __init__(self, own_node_id: bytes, hold_s: float) -> None:
        self._own_node_id = own_node_id
        self._hold_s = hold_s
        self._nodes: dict[bytes, _Node] = {}
        # Those that are dead, in the order of their deaths.
        self._dead: dict[bytes, None] = {}
        # What `nodes` tells. Of those that changed since, the snapshots are made when somebody asks.
        self._known = KnownNodes()
        self._changed_ids: dict[bytes, None] = {}
        self.revision = 0

    def node_joined(
        self,
        node_id: bytes,
        host: str,
        port: int,
        total: ResourceSet,
        is_draining: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A node is alive. Until it reports, all that it has counts as free."""
        if node_id == self._own_node_id:
            return
        known = self._nodes.get(node_id)
        if known is not None and not known.snapshot.is_alive:
            return  # an id never comes back from the dead
        available = known.snapshot.available if known is not None else total
        version = known.version if known is not None else 0
        snapshot = NodeSnapshot(
            node_id, host, port, total, available, is_draining=is_draining, labels=labels or {}
        )
        self._nodes[node_id] = _Node(snapshot, version)
        self._changed(node_id)

    def node_died(self, node_id: bytes) -> bool:
        """Returns whether that is news. The dead stay known for long, so that affinity to them fails with a
        reason."""
        node = self._nodes.get(node_id)
        if node is None or not node.snapshot.is_alive:
            return False
        node.die()
        self._dead[node_id] = None
        if len(self._dead) > DEAD_MAX:
            forgotten = next(iter(self._dead))
            del self._dead[forgotten], self._nodes[forgotten]
            self._changed_ids.pop(forgotten, None)
            self._known.remove(forgotten)
        self._changed(node_id)
        return True

    def resources_reported(
        self,
        node_id: bytes,
        version: int,
        total: ResourceSet,
        available: ResourceSet,
        lasting: ResourceSet = NOTHING,
    ) -> bool:
        """A node's own report. Returns whether it is news: an older one is not, nor one of a node that has
        not joined."""
        node = self._nodes.get(node_id)
        if node is None or version <= node.version:
            return False
        node.report(version, total, available, lasting)
        self._changed(node_id)
        return True

    def hold(self, node_id: bytes, amount: ResourceSet, now_s: float) -> None:
        """A lease of `amount` was sent to the node."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.hold(now_s + self._hold_s, amount)
            self._changed_ids[node_id] = None

    def returned(self, node_id: bytes, amount: ResourceSet) -> None:
        """A lease of `amount` there has ended, as its holder says; the node's next report may come too late
        for the next one."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.free(amount)
            self._changed(node_id)

    def tick(self, now_s: float) -> None:
        """Lets holds end that no report has replaced."""
        for node_id, node in self._nodes.items():
            if node.end_holds(now_s):
                self._changed(node_id)

    def nodes(self) -> NodesInOrder:
        """Every other node, dead ones included, in the order of their ids. It is this view's own: it changes
        when somebody asks again."""
        for node_id in self._changed_ids:
            self._known.put(self._nodes[node_id].effective())
        self._changed_ids.clear()
        return self._known.in_order()

    def describe(self) -> list[dict[str, Any]]:
        """For people."""
        return [
            {
                "node_id": node.node_id.hex(),
                "address": f"{node.host}:{node.port}",
                "is_alive": node.is_alive,
                "is_draining": node.is_draining,
                "total": node.total.to_units(),
                "available": node.available.to_units(),
            }
            for node in self.nodes()
        ]

    def _changed(self, node_id: bytes) -> None:
        self._changed_ids[node_id] = None
        self.revision += 1
