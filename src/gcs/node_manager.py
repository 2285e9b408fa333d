"""The machine that knows the nodes: who is in the cluster, what each has, and who is held to be dead.

A node's row is the NodeInfo that its raylet registered: it is kept and handed on as it is. Two things follow
from events here: the state of the node, and the count of health checks that failed in a row. `node_health.py`
makes the checks; `cluster.py` knows what a death means for others.

A dead node never comes back. Its raylet, if it lives after all, is refused and has to begin anew under
another id. Resources are not stored: after a restart of the GCS a node has what it registers with, until its
next report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.known_nodes import KnownNodes
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.forgetting import oldest
from ray_mono.protobuf import common_pb2


class NodeIsDead(Exception):
    """A raylet that was given up speaks again."""

    def __init__(self, node: common_pb2.NodeInfo) -> None:
        super().__init__(
            f"node {node.node_id.hex()} was declared dead: {node.death_cause.message}; "
            "its raylet must end and start again under a new id"
        )


class UnknownNode(Exception):
    """A node that this GCS has not heard of: it has to register."""

    def __init__(self, node_id: NodeID) -> None:
        super().__init__(f"node {node_id.hex()} is not registered")


@dataclass
class LivingNode:
    """What is known of a living node beyond its row. Belongs to NodeManager."""

    info: common_pb2.NodeInfo
    resources: common_pb2.NodeResources
    is_registered: bool
    """With this GCS; False for a row of an earlier one, until its raylet comes back."""
    failed_checks: int = 0
    refused_checks: int = 0
    """Of the failed ones, the last in a row where the machine said that nobody listens."""


class NodeManager:
    """All nodes. Times are seconds since the epoch, given by the caller."""

    def __init__(self, dead_nodes_max: int, failures_max: int) -> None:
        """failures_max: health checks in a row that may fail before the node is to be declared dead."""
        self._dead_nodes_max = dead_nodes_max
        self._failures_max = failures_max
        # In the order of registration.
        self._living: dict[NodeID, LivingNode] = {}
        # Of those that registered with this GCS: what the scheduler chooses from.
        self.placements = KnownNodes()
        # In the order of death.
        self._dead: dict[NodeID, common_pb2.NodeInfo] = {}

    def restore(self, rows: Iterable[common_pb2.NodeInfo]) -> None:
        """Takes over the rows of an earlier GCS."""
        for info in sorted(rows, key=lambda info: (info.end_time_s, info.start_time_s, info.node_id)):
            if info.state == common_pb2.NODE_DEAD:
                self._dead[NodeID(info.node_id)] = info
            else:
                self._living[NodeID(info.node_id)] = LivingNode(info, _at_start(info), is_registered=False)

    def register(self, info: common_pb2.NodeInfo, now_s: float) -> bool:
        """A raylet joins, or comes back to a GCS that restarted.

        True where the row changed. Raises NodeIsDead.
        """
        node_id = NodeID(info.node_id)
        self.check_not_dead(node_id)
        row = common_pb2.NodeInfo()
        row.CopyFrom(info)
        row.state = common_pb2.NODE_ALIVE
        known = self._living.get(node_id)
        if known is not None and known.info.HasField("drain") and not row.HasField("drain"):
            row.drain.CopyFrom(known.info.drain)
        row.start_time_s = info.start_time_s or (known.info.start_time_s if known else now_s)
        resources = known.resources if known is not None and known.is_registered else _at_start(row)
        self._living[node_id] = LivingNode(row, resources, is_registered=True)
        self._place(self._living[node_id])
        return known is None or known.info != row

    def expect(self, info: common_pb2.NodeInfo) -> bool:
        """Another node named this one, of which nothing is known here. False where something is."""
        node_id = NodeID(info.node_id)
        is_known = node_id in self._living or node_id in self._dead
        if is_known or self.at_address(info.host, info.node_manager_port):
            return False
        self._living[node_id] = LivingNode(info, _at_start(info), is_registered=False)
        return True

    def report(self, resources: common_pb2.NodeResources) -> bool:
        """A node's own view of its resources.

        False for one older than what is here. Raises UnknownNode, NodeIsDead.
        """
        node = self._get(NodeID(resources.node_id))
        if resources.version < node.resources.version:
            return False
        node.resources = common_pb2.NodeResources()
        node.resources.CopyFrom(resources)
        self._place(node)
        return True

    def _place(self, node: LivingNode) -> None:
        if node.is_registered:
            self.placements.put(_placement(node.info, node.resources))

    def _get(self, node_id: NodeID) -> LivingNode:
        self.check_not_dead(node_id)
        node = self._living.get(node_id)
        if node is None or not node.is_registered:
            raise UnknownNode(node_id)
        return node

    def check_not_dead(self, node_id: NodeID) -> None:
        """Raises NodeIsDead."""
        if node_id in self._dead:
            raise NodeIsDead(self._dead[node_id])

    def drain(self, node_id: NodeID, drain: common_pb2.NodeDrain) -> common_pb2.NodeInfo | None:
        """The node's raylet has accepted it. Returns the row; None where that says so, or is dead."""
        node = self._living.get(node_id)
        if node is None or node.info.drain == drain:
            return None
        node.info.drain.CopyFrom(drain)
        self._place(node)
        return node.info

    def draining(self) -> list[NodeID]:
        """The living nodes that are being drained."""
        return [node_id for node_id, node in self._living.items() if node.info.HasField("drain")]

    def check_answered(self, node_id: NodeID) -> None:
        """The raylet answered a health check."""
        if node_id in self._living:
            self._living[node_id].failed_checks = self._living[node_id].refused_checks = 0

    def check_failed(self, node_id: NodeID, is_refused: bool) -> bool:
        """The raylet did not answer. True when that was once too often: the node is to be declared dead.

        is_refused: its machine says that nobody listens there. Such checks are awaited for a while, since
        they tell that the raylet has ended.
        """
        node = self._living.get(node_id)
        if node is None:
            return False
        node.failed_checks += 1
        node.refused_checks = node.refused_checks + 1 if is_refused else 0
        most = 2 * self._failures_max if is_refused else self._failures_max
        return self.has_ended(node_id) or node.failed_checks >= most

    def has_ended(self, node_id: NodeID) -> bool:
        """Whether nobody has listened in a living node's stead for so many checks that its workers have ended
        as well."""
        node = self._living.get(node_id)
        return node is not None and node.refused_checks >= self._failures_max

    def died(
        self, node_id: NodeID, cause: common_pb2.DeathCause, may_linger: bool, now_s: float
    ) -> common_pb2.NodeInfo | None:
        """Declares a node dead and returns its last row; None where it was not alive. may_linger: its
        processes may live."""
        node = self._living.pop(node_id, None)
        if node is None:
            return None
        self.placements.remove(node_id.binary())
        row = common_pb2.NodeInfo()
        row.CopyFrom(node.info)
        row.state = common_pb2.NODE_DEAD
        row.end_time_s = now_s
        row.death_cause.CopyFrom(cause)
        is_preempted = row.drain.reason == common_pb2.DRAIN_NODE_REASON_PREEMPTION
        row.death_cause.MergeFrom(common_pb2.DeathCause(is_preempted=is_preempted))
        row.may_linger = may_linger
        self._dead[node_id] = row
        return row

    def ended(self, node_id: NodeID) -> common_pb2.NodeInfo | None:
        """The processes of a dead node are gone. Returns its row; None where it was forgotten."""
        row = self._dead.get(node_id)
        if row is not None:
            row.may_linger = False
        return row

    def dead(self) -> list[common_pb2.NodeInfo]:
        """Those of which something is known. may_linger: nobody has seen yet that its processes ended."""
        return list(self._dead.values())

    def forget_oldest(self, ended_before_s: float) -> list[NodeID]:
        """Drops dead nodes beyond the limit, and those that died before a time.

        Returns their ids, the oldest first.
        """
        forgotten = oldest(self._dead, self._dead_nodes_max, lambda row: row.end_time_s < ended_before_s)
        for node_id in forgotten:
            del self._dead[node_id]
        return forgotten

    # ---- questions

    def alive(self, node_id: NodeID) -> common_pb2.NodeInfo | None:
        """The row of a node that is alive."""
        node = self._living.get(node_id)
        return None if node is None else node.info

    def is_dead(self, node_id: NodeID) -> bool:
        return node_id in self._dead

    def unregistered(self) -> list[NodeID]:
        """Nodes of an earlier GCS that have not come back."""
        return [node_id for node_id, node in self._living.items() if not node.is_registered]

    def is_awaited(self, node_id: NodeID) -> bool:
        """Whether it is one of these."""
        return node_id in self._living and not self._living[node_id].is_registered

    def head_leases_s(self) -> list[float]:
        """How long each living node may run its actors after it was last confirmed."""
        return [node.info.head_lease_s for node in self._living.values()]

    def rows(self) -> list[common_pb2.NodeInfo]:
        """Every row: the living in the order of registration, then the dead in the order of death."""
        return [node.info for node in self._living.values()] + list(self._dead.values())

    def resources_of(self, node_id: NodeID) -> common_pb2.NodeResources:
        """Raises UnknownNode, NodeIsDead."""
        return self._get(node_id).resources

    def resources(self) -> list[common_pb2.NodeResources]:
        """Of the living nodes that registered with this GCS."""
        return [node.resources for node in self._living.values() if node.is_registered]

    def at_address(self, host: str, port: int) -> list[NodeID]:
        """The living nodes whose raylet is said to listen there."""
        return [
            node_id
            for node_id, node in self._living.items()
            if (node.info.host, node.info.node_manager_port) == (host, port)
        ]


def raylet_address(info: common_pb2.NodeInfo) -> str:
    return f"{info.host}:{info.node_manager_port}"


def _at_start(info: common_pb2.NodeInfo) -> common_pb2.NodeResources:
    """Before its first report a node has all that it registered with."""
    return common_pb2.NodeResources(node_id=info.node_id, version=0, total=info.total, available=info.total)


def _placement(info: common_pb2.NodeInfo, resources: common_pb2.NodeResources) -> NodeSnapshot:
    total, available = ResourceSet.from_proto(resources.total), ResourceSet.from_proto(resources.available)
    is_draining = info.HasField("drain")
    return NodeSnapshot(
        info.node_id,
        info.host,
        info.node_manager_port,
        total,
        available,
        is_draining=is_draining,
        labels=dict(info.labels),
        lasting=ResourceSet.from_proto(resources.lasting),
    )
