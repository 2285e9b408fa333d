"""What this raylet knows of the other nodes: who is alive, what they have, what was free when they last said
so.

Fed from the GCS (channels NODE and NODE_RESOURCES), so always a little late. A report never replaces a newer
one of the same node. What this raylet itself has just sent to a node is deducted until that node's next
report, or for `hold_s` if none comes (the requester may have changed its mind): otherwise a burst of leases
would all go to the node that looked emptiest.

`revision` grows with every change that could make a waiting lease placeable; whoever caches a "no" compares
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet


@dataclass
class _Node:
    snapshot: NodeSnapshot
    version: int = 0
    # Leases sent there: (when the hold ends, how much). In order of time.
    holds: list[tuple[float, ResourceSet]] = field(default_factory=list)

    def effective(self) -> NodeSnapshot:
        if not self.holds:
            return self.snapshot
        available = self.snapshot.available
        for _, amount in self.holds:
            available = available - amount
        return replace(self.snapshot, available=available)


class ClusterView:
    """Every node but this one."""

    def __init__(self, own_node_id: bytes, hold_s: float) -> None:
        self._own_node_id = own_node_id
        self._hold_s = hold_s
        self._nodes: dict[bytes, _Node] = {}
        self._snapshots: list[NodeSnapshot] | None = None
        self.revision = 0

    def node_joined(self, node_id: bytes, host: str, port: int, total: ResourceSet) -> None:
        """A node is alive. Until it reports, all that it has counts as free."""
        if node_id == self._own_node_id:
            return
        known = self._nodes.get(node_id)
        if known is not None and not known.snapshot.is_alive:
            return  # an id never comes back from the dead
        available = known.snapshot.available if known is not None else total
        version = known.version if known is not None else 0
        self._nodes[node_id] = _Node(NodeSnapshot(node_id, host, port, total, available), version)
        self._changed()

    def node_died(self, node_id: bytes) -> bool:
        """Returns whether that is news. The dead stay known, so that affinity to them fails with a reason."""
        node = self._nodes.get(node_id)
        if node is None or not node.snapshot.is_alive:
            return False
        node.snapshot = replace(node.snapshot, is_alive=False)
        self._changed()
        return True

    def resources_reported(
        self, node_id: bytes, version: int, total: ResourceSet, available: ResourceSet
    ) -> bool:
        """A node's own report; returns whether it is news. Ignored: an older one, or of a node that has not
        joined.
        """
        node = self._nodes.get(node_id)
        if node is None or version <= node.version:
            return False
        node.version = version
        node.holds = []
        node.snapshot = replace(node.snapshot, total=total, available=available)
        self._changed()
        return True

    def hold(self, node_id: bytes, amount: ResourceSet, now_s: float) -> None:
        """A lease of `amount` was sent to the node."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.holds.append((now_s + self._hold_s, amount))
            self._snapshots = None

    def tick(self, now_s: float) -> None:
        """Lets holds end that no report has replaced."""
        for node in self._nodes.values():
            if node.holds and node.holds[0][0] <= now_s:
                node.holds = [hold for hold in node.holds if hold[0] > now_s]
                self._changed()

    def nodes(self) -> list[NodeSnapshot]:
        """Every other node, dead ones included, in the order of their ids."""
        if self._snapshots is None:
            self._snapshots = [self._nodes[node_id].effective() for node_id in sorted(self._nodes)]
        return self._snapshots

    def alive_node_ids(self) -> list[bytes]:
        return [node.node_id for node in self.nodes() if node.is_alive]

    def _changed(self) -> None:
        self._snapshots = None
        self.revision += 1
