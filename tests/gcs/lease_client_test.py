"""Leases asked of raylets: what is counted meanwhile, who waits, and how a lease goes that nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.config import GcsConfig
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.lease_client import HELD_MAX_S, LeaseClient, LeasedWorker, NotLeased
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.raylet_client_pool import RayletClientPool
from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import AsyncChannel, Handlers, Listener, Transport
from tests.gcs.scene import FakeNode, GcsScene, play

ONE_CPU = ResourceSet.from_units({"CPU": 1})


class TellingTransport:
    """A transport that tells when it is about to have connected: so many turns of the loop before."""

    def __init__(self, transport: Transport, turns: int) -> None:
        self._transport = transport
        self._turns = turns
        self.connects = asyncio.Event()

    async def connect(self, address: str, timeout_s: float) -> AsyncChannel:
        channel = await self._transport.connect(address, timeout_s)
        self.connects.set()
        for _ in range(self._turns):
            await asyncio.sleep(0)
        return channel

    async def serve(self, address: str, handlers: Handlers) -> Listener:
        return await self._transport.serve(address, handlers)


@dataclass
class LeaseScene:
    """A lease client that knows one node with four CPUs."""

    node: FakeNode
    client: LeaseClient
    room: asyncio.Event
    """More may be free than before."""
    connects: asyncio.Event
    """The client reaches the node."""
    waited: list[float] = field(default_factory=list)
    """Every time that a request was still not answered."""

    @property
    def cpus_of_tasks(self) -> float:
        """What is free where they give way."""
        (node,) = self.client.view()
        return node.without_lasting.to_units()["CPU"]

    @property
    def free_cpus(self) -> float:
        (node,) = self.client.view()
        return node.available.to_units()["CPU"]

    def lease(self, resources: ResourceSet = ONE_CPU) -> Coroutine[Any, Any, LeasedWorker]:
        wanted = raylet_pb2.RequestWorkerLeaseRequest(resources=resources.to_proto())
        loop = asyncio.get_running_loop()
        return self.client.lease(
            NodeID(self.node.node_id), wanted, resources, lambda: self.waited.append(loop.time())
        )


def play_leases(script: Callable[[LeaseScene], Coroutine[Any, Any, None]], connecting_turns: int = 0) -> None:
    async def scene(gcs: GcsScene) -> None:
        await gcs.start_gcs()
        node = await gcs.add_node({"CPU": 4})
        process = gcs.world.network.start_process("head", "lessee")
        config = GcsConfig(pending_warning_s=1.0)
        transport = TellingTransport(gcs.world.transport(process), connecting_turns)
        tasks = BackgroundTasks(lambda error, name: None)
        writes = WriteThrough(MemoryStorage(), lambda error: None)
        raylets = RayletClientPool(transport, tasks, config.connect_timeout_s, writes.confirmed)
        environment = Environment(
            config, transport, gcs.world.clock, gcs.world.rng("leases"), tasks, writes, raylets
        )
        room = asyncio.Event()
        nodes = NodeManager(dead_nodes_max=10, failures_max=3)
        nodes.register(node.info, 0.0)
        client = LeaseClient(environment, nodes, room.set)
        await process.spawn(script(LeaseScene(node, client, room, transport.connects)))

    play(scene)


@pytest.mark.parametrize("reports", [True, False])
def test_what_is_asked_for_counts_until_it_is_granted_and_the_node_has_told_what_it_has_left(
    reports: bool,
) -> None:
    """A node tells nothing where what it has free is as it was."""

    async def script(scene: LeaseScene) -> None:
        answer = asyncio.Event()

        async def grant_later(
            request: raylet_pb2.RequestWorkerLeaseRequest,
        ) -> raylet_pb2.RequestWorkerLeaseReply:
            await answer.wait()
            return await scene.node.grant_new_worker(request)

        scene.node.grant = grant_later
        leasing = asyncio.ensure_future(scene.lease())
        await asyncio.sleep(3.5)
        assert scene.free_cpus == scene.cpus_of_tasks == 3 and len(scene.waited) == 2
        assert list(scene.client.in_order()) == scene.client.in_order()[:] == scene.client.view()
        (request,) = scene.node.leases
        assert scene.client.awaits(request.lease_id)
        another = asyncio.ensure_future(scene.lease())
        await asyncio.sleep(0)
        assert scene.free_cpus == 2
        answer.set()
        lease = await leasing
        await another
        assert lease.grant.lease_id == request.lease_id
        assert scene.free_cpus == 2 and not scene.client.awaits(request.lease_id)
        if reports:
            scene.client.reported(NodeID(scene.node.node_id))
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(HELD_MAX_S + 0.1)
        await scene.room.wait()
        assert scene.free_cpus == scene.cpus_of_tasks == 4

    play_leases(script)


def test_leases_of_nothing_may_be_asked_for_together() -> None:
    async def script(scene: LeaseScene) -> None:
        await asyncio.gather(*(scene.lease(ResourceSet()) for _ in range(3)))
        await scene.lease()
        assert scene.free_cpus == 3

    play_leases(script)


def test_a_lease_that_nobody_waits_for_any_more_is_cancelled_and_its_worker_ended() -> None:
    async def script(scene: LeaseScene) -> None:
        leasing = asyncio.ensure_future(scene.lease())
        while not scene.node.leases:
            await asyncio.sleep(0.0001)
        leasing.cancel()
        await asyncio.sleep(1)
        (request,) = scene.node.leases
        assert scene.node.cancelled == [request.lease_id]
        assert [(one.lease_id, one.dispose) for one in scene.node.returned] == [(request.lease_id, True)]
        assert scene.free_cpus == 4

    play_leases(script)


@pytest.mark.parametrize(
    ("turns_before", "turns_after"), [*((n, 0) for n in range(6)), *((0, n) for n in range(1, 6))]
)
def test_a_lease_is_never_cancelled_before_it_is_asked_for(turns_before: int, turns_after: int) -> None:
    """Whoever wanted it goes about when the connection is made: whoever comes then finds it, and those who
    waited for it have yet to run."""

    async def script(scene: LeaseScene) -> None:
        leasing = asyncio.ensure_future(scene.lease())
        await scene.connects.wait()
        for _ in range(turns_after):
            await asyncio.sleep(0)
        leasing.cancel()
        await asyncio.sleep(1)
        assert scene.node.heard in ([], ["RequestWorkerLease", "CancelWorkerLease", "ReturnWorker"])

    play_leases(script, turns_before)


def test_a_refusal_is_told_with_what_the_raylet_answered() -> None:
    async def script(scene: LeaseScene) -> None:
        async def refuse(
            request: raylet_pb2.RequestWorkerLeaseRequest,
        ) -> raylet_pb2.RequestWorkerLeaseReply:
            rejection = raylet_pb2.Rejection(kind=raylet_pb2.Rejection.JOB_FINISHED, message="it is over")
            return raylet_pb2.RequestWorkerLeaseReply(rejection=rejection)

        scene.node.grant = refuse
        with pytest.raises(NotLeased, match="did not grant a worker: it is over") as refused:
            await scene.lease()
        assert refused.value.rejection is not None
        assert refused.value.rejection.kind == raylet_pb2.Rejection.JOB_FINISHED
        assert scene.free_cpus == 4 and not scene.node.returned

    play_leases(script)
