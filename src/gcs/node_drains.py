"""Drains: what the head does while a node is being drained. What the node does is in raylet/drain.py.

    ALIVE ──its raylet accepts──► DRAINING ──its raylet leaves, or dies──► DEAD

    DrainNode: who asks ──► GCS ──DrainRaylet──► the raylet, which decides ──► the node's row, NODE published

- The raylet decides, since it alone knows whether it is idle, and it remembers. It names the drain each time
  that it registers, so a head that knew nothing of it, or that died before it wrote the row, learns it.
- The row makes everybody skip the node: the head for actors, raylets for tasks.
- Actors that may restart are moved as soon as another node has room for them. Their worker is asked: calls
  that run end there, others are given back, and then the actor starts elsewhere, and has those. Who cannot be
  asked is killed. Others stay as long as the node. Which were told to move is in their rows (`killing`), so
  the next head goes on.
- A node that dies while it is drained is an ordinary dead node, but that restarts of its actors do not count
  where its provider took it away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.known_nodes import KnownNodes
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import available
from ray_mono.gcs.actor.actor_effects import Effect
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_placement import Demand, choose_node
from ray_mono.gcs.actor.actor_rows import demand_of
from ray_mono.gcs.actor.actor_state import Death, DeathKind
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
"""For the raylet. It only looks whether it is idle."""


class NodeDrains:
    """Of one GCS."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        actors: ActorManager,
        table: ActorTable,
        leases: LeaseClient,
        demands_to_come: Callable[[], list[Demand]],
        apply: Callable[[list[Effect]], None],
        on_draining: Callable[[common_pb2.NodeInfo], None],
    ) -> None:
        """demands_to_come(): of actors for which no raylet was asked yet. apply(effects) has actors' effects
        carried out. on_draining(row): a node's row has changed so."""
        self._environment = environment
        self._nodes = nodes
        self._actors = actors
        self._table = table
        self._leases = leases
        self._demands_to_come = demands_to_come
        self._apply = apply
        self._on_draining = on_draining

    async def drain(self, node_id: NodeID, drain: common_pb2.NodeDrain) -> gcs_pb2.DrainNodeReply:
        """Asks the node's raylet. A node that is dead counts as drained. Raises RpcError where the raylet
        does not answer."""
        row = self._nodes.alive(node_id)
        if row is None:
            if self._nodes.is_dead(node_id):
                return gcs_pb2.DrainNodeReply(is_accepted=True)
            return _refused(f"node {node_id.hex()} is not in this cluster")
        if row.is_head:
            return _refused(f"node {node_id.hex()} is the cluster's head, which ends with it")
        try:
            raylet = await self._environment.raylets.client(raylet_address(row))
            request = raylet_pb2.DrainRayletRequest(drain=drain)
            answer = await raylet.DrainRaylet(request, timeout_s=ANSWER_TIMEOUT_S)
        except RpcError as error:
            raise RpcError(
                StatusCode.UNAVAILABLE, f"the raylet of node {node_id.hex()} did not answer: {error.message}"
            ) from error
        if not answer.is_accepted:
            return _refused(answer.rejection_reason_message)
        changed = self._nodes.drain(node_id, answer.drain)
        if changed is not None:
            logger.warning("node %s is drained: %s", node_id.hex(), describe(answer.drain))
            self._on_draining(changed)
        self.move_actors()
        return gcs_pb2.DrainNodeReply(is_accepted=True)

    def move_actors(self) -> None:
        """Those for which there is room elsewhere now. To be called when there may be."""
        draining = self._nodes.draining()
        if not draining:
            return
        view = {node.node_id: node for node in self._leases.view()}
        for demand in self._demands_to_come():
            _take(demand, view)
        for node_id in draining:
            # Those that were told before have calls that run, and need their room as well.
            for actor in sorted(self._actors.movable(node_id), key=lambda actor: not actor.leaves):
                if _take(demand_of(self._table.spec(actor.actor_id)), view):
                    self._apply(self._actors.move(actor.actor_id, self._death_on(node_id)))

    def _death_on(self, node_id: NodeID) -> Death:
        row = self._nodes.alive(node_id)
        drain = common_pb2.NodeDrain() if row is None else row.drain
        message = f"its node {node_id.hex()} is drained: {describe(drain)}"
        is_preempted = drain.reason == common_pb2.DRAIN_NODE_REASON_PREEMPTION
        return Death(DeathKind.NODE_DIED, message, is_preempted=is_preempted)


def _take(demand: Demand, view: dict[bytes, NodeSnapshot]) -> bool:
    """Takes what it needs from a node that has it free. Returns whether there is one."""
    chosen = choose_node(demand, KnownNodes(available(demand.resources, view.values())).in_order())
    if chosen is None:
        return False
    target = view[chosen.binary()]
    view[target.node_id] = replace(target, available=target.available - demand.resources)
    return True


def describe(drain: common_pb2.NodeDrain) -> str:
    return f"{common_pb2.DrainNodeReason.Name(drain.reason)}, {drain.reason_message}"


def _refused(why: str) -> gcs_pb2.DrainNodeReply:
    return gcs_pb2.DrainNodeReply(rejection_reason_message=why)
