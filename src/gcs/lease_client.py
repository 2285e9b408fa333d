"""Leases workers of raylets, and frees them.

Whoever places something (`actor/actor_scheduler.py`) chooses the node. Its raylet is asked for a lease here,
and the one that it names instead, if it does. A request waits in the raylet's queue for as long as nothing is
free.

A request may be granted just when nobody wants it any more. So what was sent is never cancelled; the lease is
freed. That cancels it at the raylet, gives back the worker if it was too late for that, and is tried until it
is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ray_mono.common.backoff import Backoff
from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.known_nodes import NodesInOrder
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)

LEASE_ID_SIZE_BYTES = 16
HELD_MAX_S = 1.0
"""A node reports sooner than that, unless what it has free is as it was."""


@dataclass(frozen=True)
class LeasedWorker:
    """A worker granted by a raylet."""

    raylet_address: str
    grant: raylet_pb2.Grant


class NotLeased(Exception):
    """No worker was granted; the message says why."""

    def __init__(self, message: str, rejection: raylet_pb2.Rejection | None = None) -> None:
        """rejection: what the raylet answered; None where none did."""
        super().__init__(message)
        self.rejection = rejection


class LeaseClient:
    """The leases that this GCS asks for."""

    def __init__(self, environment: Environment, nodes: NodeManager, on_room: Callable[[], None]) -> None:
        """on_room() is told when more may be free in the view than before."""
        self._on_room = on_room
        self._environment = environment
        self._config = environment.config
        self._nodes = nodes
        # Asked for and not answered yet, and where. Another lease belongs to its worker by now, or is being
        # freed.
        self._awaited: dict[bytes, NodeID] = {}
        # What `free_at` does, and where.
        self._freeing: dict[asyncio.Task[None], NodeID] = {}
        # Invariant: by node, the sum of what these leases hold, and of what it granted since its last report:
        # that does not have it yet. Only a sum, since thousands of actors may wait at once, and each looks at
        # many nodes.
        self._asked: dict[bytes, ResourceSet] = {}
        # Of nodes that are asked: what was looked at last, less what they were asked for. Many may be asked
        # at a time, and each change is of one of them.
        self._views: dict[bytes, tuple[NodeSnapshot, ResourceSet, NodeSnapshot]] = {}
        # Of the nodes that granted leases: set with their next report.
        self._reported: dict[NodeID, asyncio.Event] = {}

    def awaits(self, lease_id: bytes) -> bool:
        """Whether this GCS asked for the lease, and has no answer yet."""
        return lease_id in self._awaited

    def asked_at(self, lease_id: bytes) -> NodeID | None:
        """The node whose raylet has not answered yet; None where none is asked for this."""
        return self._awaited.get(lease_id)

    def view(self) -> list[NodeSnapshot]:
        """The nodes, less what they have been asked for and may not have counted yet."""
        return list(map(self._seen, self._nodes.placements))

    def in_order(self, changed: Mapping[bytes, NodeSnapshot] | None = None) -> NodesInOrder:
        """The same in the order of their ids. Each is looked at when it is asked for: of many some are.
        changed: what these are taken to be instead, by id."""
        instead = {} if changed is None else changed
        nodes = self._nodes.placements
        return nodes.in_order(lambda node_id: instead.get(node_id) or self.node(node_id))

    def node(self, node_id: bytes) -> NodeSnapshot:
        """One of them. Raises KeyError for a node that does not live, or has not registered."""
        return self._seen(self._nodes.placements[node_id])

    def _seen(self, node: NodeSnapshot) -> NodeSnapshot:
        amount = self._asked.get(node.node_id)
        if amount is None:
            return node
        known = self._views.get(node.node_id)
        if known is None or known[0] is not node or known[1] is not amount:
            # Who waits there for tasks to give way has that for good: there is less left for the next one.
            less = replace(node, available=node.available - amount, lasting=node.lasting + amount)
            known = self._views[node.node_id] = node, amount, less
        return known[2]

    def reported(self, node_id: NodeID) -> None:
        """What it has free is known now."""
        event = self._reported.pop(node_id, None)
        if event is not None:
            event.set()

    # ---- to lease

    async def lease(
        self,
        node_id: NodeID,
        wanted: raylet_pb2.RequestWorkerLeaseRequest,
        resources: ResourceSet,
        still_waits: Callable[[], None],
    ) -> LeasedWorker:
        """A worker of the node, or of the one that its raylet names instead. Raises NotLeased.

        Args:
            wanted: belongs to this call, which draws the lease's id, and says whether it may be sent on.
            resources: what has to be free for it.
            still_waits: called from time to time while the request waits.
        """
        info = self._nodes.alive(node_id)
        if info is None:
            raise NotLeased(f"node {node_id.hex()} died")
        address = raylet_address(info)
        reply = await self._ask(node_id, address, wanted, resources, still_waits)
        if reply.HasField("spillback"):
            wanted.grant_or_reject = True
            address = f"{reply.spillback.host}:{reply.spillback.port}"
            node_id = NodeID(reply.spillback.node_id)
            reply = await self._ask(node_id, address, wanted, resources, still_waits)
        if reply.HasField("grant"):
            return LeasedWorker(address, reply.grant)
        why = reason_of(reply.rejection)
        raise NotLeased(f"the raylet at {address} did not grant a worker: {why}", reply.rejection)

    async def _ask(
        self,
        node_id: NodeID,
        address: str,
        request: raylet_pb2.RequestWorkerLeaseRequest,
        resources: ResourceSet,
        still_waits: Callable[[], None],
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        """One request, for as long as it waits in the raylet's queue. Raises NotLeased."""
        lease_id = request.lease_id = self._environment.rng.randbytes(LEASE_ID_SIZE_BYTES)
        self._awaited[lease_id] = node_id
        is_sent = asyncio.Event()
        call = self._environment.tasks.spawn(self._call(address, request, is_sent), f"lease {lease_id.hex()}")
        try:
            pauses = Backoff(self._config.pending_warning_s, math.inf)
            with self.asked(node_id, resources):
                while not (await asyncio.wait({call}, timeout=pauses.next_s()))[0]:
                    still_waits()
        except asyncio.CancelledError:
            if is_sent.is_set():
                self._free(node_id, address, lease_id)
            else:
                # Its end would overtake it: who finds the connection made goes on before who waited for it.
                call.cancel()
            raise
        finally:
            del self._awaited[lease_id]
        outcome = call.result()
        if isinstance(outcome, RpcError):
            self._free(node_id, address, lease_id)
            raise NotLeased(f"the raylet at {address} did not answer the lease request: {outcome}")
        if outcome.HasField("grant"):
            self.hold(node_id, resources)
        return outcome

    def hold(self, node_id: NodeID, resources: ResourceSet) -> None:
        """The node gives these away: they are not free any more, though it has not told so yet."""
        self._environment.tasks.spawn(
            self._until_reported(node_id, resources), f"report of node {node_id.hex()}"
        )
        self._count(node_id, resources)

    async def _until_reported(self, node_id: NodeID, resources: ResourceSet) -> None:
        event = self._reported.setdefault(node_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HELD_MAX_S):
                await event.wait()
        self._discount(node_id, resources)
        self._on_room()

    @contextlib.contextmanager
    def asked(self, node_id: NodeID, resources: ResourceSet) -> Iterator[None]:
        """The node is asked for these while the block runs."""
        self._count(node_id, resources)
        try:
            yield
        finally:
            self._discount(node_id, resources)

    def _count(self, node_id: NodeID, resources: ResourceSet) -> None:
        key = node_id.binary()
        self._asked[key] = self._asked.get(key, ResourceSet()) + resources

    def _discount(self, node_id: NodeID, resources: ResourceSet) -> None:
        key = node_id.binary()
        left = self._asked.pop(key, ResourceSet()) - resources
        if left:
            self._asked[key] = left
        else:
            self._views.pop(key, None)

    async def _call(
        self, address: str, request: raylet_pb2.RequestWorkerLeaseRequest, is_sent: asyncio.Event
    ) -> raylet_pb2.RequestWorkerLeaseReply | RpcError:
        """A failure is a result: it belongs to whoever wanted the lease, who may have gone."""
        try:
            raylet = await self._environment.raylets.client(address)
            is_sent.set()
            return await raylet.RequestWorkerLease(request)
        except RpcError as error:
            return error

    # ---- to free

    def free(self, lease: LeasedWorker) -> asyncio.Task[None]:
        """Ends the worker, since it may hold half of what it was leased for. The task is done when it has."""
        worker = lease.grant.worker
        return self._free(NodeID(worker.node_id), lease.raylet_address, lease.grant.lease_id)

    def free_at(self, node_id: NodeID, lease_id: bytes) -> None:
        """The same of a lease that an earlier GCS asked for."""
        info = self._nodes.alive(node_id)
        if info is not None:
            task = self._free(node_id, raylet_address(info), lease_id)
            self._freeing[task] = node_id
            task.add_done_callback(self._freeing.pop)

    async def until_freed_at(self, node_id: NodeID) -> None:
        """Waits for the ends of the workers that `free_at` ends there."""
        tasks = [task for task, node in self._freeing.items() if node == node_id]
        if tasks:
            await asyncio.wait(tasks)

    def _free(self, node_id: NodeID, address: str, lease_id: bytes) -> asyncio.Task[None]:
        return self._environment.tasks.spawn(
            self._until_free(node_id, address, lease_id), f"free lease {lease_id.hex()}"
        )

    async def _until_free(self, node_id: NodeID, address: str, lease_id: bytes) -> None:
        """Until the raylet has answered or its node is dead: nobody else would ever end this lease."""
        timeout_s = self._config.connect_timeout_s
        while self._nodes.alive(node_id) is not None:
            try:
                raylet = await self._environment.raylets.client(address)
                cancel = raylet_pb2.CancelWorkerLeaseRequest(lease_id=lease_id)
                if not (await raylet.CancelWorkerLease(cancel, timeout_s=timeout_s)).cancelled:
                    dispose = raylet_pb2.ReturnWorkerRequest(lease_id=lease_id, dispose=True)
                    await raylet.ReturnWorker(dispose, timeout_s=timeout_s)
                return
            except RpcError as error:
                logger.info("lease %s at %s is not free yet: %s", lease_id.hex(), address, error)
            await asyncio.sleep(self._config.lease_retry_period_s)


def reason_of(rejection: raylet_pb2.Rejection) -> str:
    """What the raylet says, or else the name of the kind."""
    return rejection.message or raylet_pb2.Rejection.Kind.Name(rejection.kind)
