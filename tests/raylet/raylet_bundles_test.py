"""A whole raylet in virtual time, with workers and a GCS that only say what a raylet has to hear: bundles of
placement groups over its service, at its registrations, and where a group is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.scheduling.bundle_resources import asked_for_in, given_by
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc, raylet_pb2, raylet_rpc
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.raylet import Raylet
from ray_mono.raylet.worker.launcher import WorkerExit, WorkerOrder
from ray_mono.rpc.surface import AsyncChannel, CallContext, RpcError, StatusCode
from tests.raylet.scheduling.lease_scene import HERE, units
from tests.simulation.process import SimProcess
from tests.simulation.world import World
from tests.waiting import until

G = b"g" * 18
LIMIT_S = 300.0
SOCKET = "/sim/raylet"
EMPTY = common_pb2.Empty()


class Gcs(gcs_rpc.GcsServiceServicer):
    """Of one head. Notes what it hears."""

    def __init__(self) -> None:
        self.registrations: list[gcs_pb2.RegisterNodeRequest] = []
        self.reports: list[common_pb2.NodeResources] = []
        self.warnings: list[str] = []
        self.answer = gcs_pb2.RegisterNodeReply(cluster_id=b"cluster", head_number=1)
        self.group = common_pb2.PlacementGroupInfo(placement_group_id=G, version=1)
        self.has_changed = asyncio.Event()

    async def RegisterNode(
        self, request: gcs_pb2.RegisterNodeRequest, context: CallContext
    ) -> gcs_pb2.RegisterNodeReply:
        self.registrations.append(request)
        return self.answer

    async def CheckAlive(
        self, request: gcs_pb2.CheckAliveRequest, context: CallContext
    ) -> gcs_pb2.CheckAliveReply:
        return gcs_pb2.CheckAliveReply(raylet_alive=[True])

    async def ReportResources(
        self, request: common_pb2.NodeResources, context: CallContext
    ) -> common_pb2.Empty:
        self.reports.append(request)
        return EMPTY

    async def AddWorker(self, request: common_pb2.WorkerInfo, context: CallContext) -> common_pb2.Empty:
        return EMPTY

    async def ReportWorkerDeath(
        self, request: common_pb2.WorkerInfo, context: CallContext
    ) -> common_pb2.Empty:
        return EMPTY

    async def GetAllJobs(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllJobsReply:
        return gcs_pb2.GetAllJobsReply()

    async def Publish(self, request: gcs_pb2.PublishRequest, context: CallContext) -> gcs_pb2.PublishReply:
        self.warnings.append(common_pb2.ErrorInfo.FromString(request.message.payload).message)
        return gcs_pb2.PublishReply()

    async def UnregisterNode(
        self, request: gcs_pb2.UnregisterNodeRequest, context: CallContext
    ) -> common_pb2.Empty:
        return EMPTY

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        news = gcs_pb2.NodeNews(nodes=[common_pb2.NodeInfo(node_id=HERE)])
        yield gcs_pb2.PubMessage(channel=gcs_pb2.NODE, payload=news.SerializeToString())
        await asyncio.Event().wait()

    async def WatchPlacementGroup(
        self, request: gcs_pb2.WatchPlacementGroupRequest, context: CallContext
    ) -> common_pb2.PlacementGroupInfo:
        if request.placement_group_id != G:
            raise RpcError(StatusCode.NOT_FOUND, "there is no such group")
        while self.group.version <= request.after_version:
            self.has_changed.clear()
            await self.has_changed.wait()
        return self.group

    def remove(self) -> None:
        """The group."""
        self.group = common_pb2.PlacementGroupInfo(
            placement_group_id=G, version=2, state=common_pb2.PLACEMENT_GROUP_REMOVED
        )
        self.has_changed.set()


class Workers:
    """WorkerLauncher: processes that register and do nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._on_exit: Callable[[WorkerExit], None] = lambda exit_: None
        self._processes: dict[int, SimProcess] = {}

    async def open(self, on_exit: Callable[[WorkerExit], None], tasks: BackgroundTasks) -> None:
        self._on_exit = on_exit

    def start(self, order: WorkerOrder) -> None:
        process = self._world.network.start_process("node", f"worker {order.startup_token}")
        self._processes[order.startup_token] = process
        process.spawn(self._register(process, order))

    async def _register(self, process: SimProcess, order: WorkerOrder) -> None:
        raylet = await self._world.transport(process).connect(f"unix:{SOCKET}", 10)
        request = raylet_pb2.RegisterClientRequest(
            worker_id=order.worker_id, pid=process.pid, startup_token=order.startup_token
        )
        await raylet_rpc.RayletServiceAsyncStub(raylet).RegisterClient(request)

    def kill(self, startup_token: int, force: bool) -> None:
        process = self._processes.pop(startup_token, None)
        if process is not None:
            process.kill("signal 9")
            ended = WorkerExit(startup_token, process.pid, 0, 9, "it was killed")
            self._world.loop.call_later(0.01, self._on_exit, ended)

    def registered(self, startup_token: int, pid: int) -> None: ...

    def cpu_time_s(self, startup_token: int) -> float | None:
        return None

    def found_dead(self, startup_token: int) -> WorkerExit | None:
        return None

    def lease_ends(self, at_ns: int, awake_ns: int) -> None: ...

    async def close(self) -> None:
        for startup_token in list(self._processes):
            self.kill(startup_token, force=True)


class Node:
    """Two CPUs, and a process that talks to its raylet."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.network.add_host("head")
        world.network.add_host("node")
        self._gcs_process: SimProcess | None = None
        self._gcs_address = f"{world.network.ip_of('head')}:6379"
        self.stub: raylet_rpc.RayletServiceAsyncStub
        self.raylet: Raylet

    async def start_gcs(self) -> Gcs:
        """Another one than before, which knows nothing."""
        if self._gcs_process is not None:
            self._gcs_process.kill("SIGKILL")
        gcs, process = Gcs(), self._world.network.start_process("head", "gcs")
        self._gcs_process = process
        serving = self._world.transport(process).serve(self._gcs_address, gcs_rpc.gcs_service_handlers(gcs))
        await process.spawn(serving)
        return gcs

    async def start(self) -> None:
        world = self._world
        process = world.network.start_process("node", "raylet")
        total = units(CPU=2)
        ip = world.network.ip_of("node")
        config = RayletConfig(HERE, self._gcs_address, SOCKET, ip, "/sim", total)
        transport = world.transport(process)
        self.raylet = process.run(
            lambda: Raylet(config, transport, Workers(world), world.clock, world.rng("raylet"))
        )
        await process.spawn(self.raylet.start())
        _, self.stub = await self.connect()

    async def connect(self) -> tuple[AsyncChannel, raylet_rpc.RayletServiceAsyncStub]:
        """A process of its own."""
        process = self._world.network.start_process("node", "test")
        channel = await self._world.transport(process).connect(self.raylet.addresses[0], 10)
        return channel, raylet_rpc.RayletServiceAsyncStub(channel)

    async def prepare(
        self,
        *amounts: ResourceSet,
        may_wait: bool = False,
        stub: raylet_rpc.RayletServiceAsyncStub | None = None,
    ) -> list[str]:
        group = common_pb2.PlacementGroupInfo(
            placement_group_id=G, bundles=[common_pb2.Bundle(resources=each.to_proto()) for each in amounts]
        )
        bundles = common_pb2.GroupBundles(group=group, indices=range(len(amounts)))
        request = raylet_pb2.PrepareBundlesRequest(groups=[bundles], may_wait=may_wait)
        return list((await (stub or self.stub).PrepareBundles(request)).refusals)

    def prepare_in_turn(
        self, *amounts: ResourceSet, stub: raylet_rpc.RayletServiceAsyncStub | None = None
    ) -> asyncio.Future[list[str]]:
        return asyncio.ensure_future(self.prepare(*amounts, may_wait=True, stub=stub))

    async def is_busy(self) -> None:
        """Tasks hold all CPUs."""
        for name in (b"busy 1", b"busy 2"):
            resources = units(CPU=1).to_proto()
            request = raylet_pb2.RequestWorkerLeaseRequest(
                lease_id=name, job_id=b"\1\0\0\0", resources=resources
            )
            assert (await self.stub.RequestWorkerLease(request)).HasField("grant")

    async def is_idle(self) -> None:
        for name in (b"busy 1", b"busy 2"):
            await self.stub.ReturnWorker(raylet_pb2.ReturnWorkerRequest(lease_id=name))

    async def commit(self, *indices: int, group_id: bytes = G) -> None:
        request = raylet_pb2.CommitBundlesRequest(groups=named(*indices, group_id=group_id))
        await self.stub.CommitBundles(request)

    async def give_back(self, *indices: int, is_removed: bool = False, group_id: bytes = G) -> None:
        request = raylet_pb2.ReturnBundlesRequest(
            groups=named(*indices, group_id=group_id), is_removed=is_removed
        )
        await self.stub.ReturnBundles(request)

    def ask(self, name: bytes, group_id: bytes = G) -> asyncio.Future[raylet_pb2.RequestWorkerLeaseReply]:
        """For a CPU of bundle 0."""
        strategy = common_pb2.PlacementGroupStrategy(placement_group_id=group_id, bundle_index=0)
        request = raylet_pb2.RequestWorkerLeaseRequest(
            lease_id=name,
            job_id=b"\1\0\0\0",
            resources=asked_for_in(units(CPU=1), group_id, 0).to_proto(),
            strategy=common_pb2.SchedulingStrategy(placement_group=strategy),
        )
        return asyncio.ensure_future(self.stub.RequestWorkerLease(request))


def named(*indices: int, group_id: bytes = G) -> list[common_pb2.BundleIndices]:
    return [common_pb2.BundleIndices(placement_group_id=group_id, indices=indices)]


def play(script: Callable[[Node, Gcs], Awaitable[None]]) -> None:
    async def run(world: World) -> None:
        node = Node(world)
        gcs = await node.start_gcs()
        await node.start()
        await script(node, gcs)
        node.raylet.leases.check_invariants()

    with World(seed=1) as world:
        world.run(run(world), LIMIT_S)


def test_a_group_is_made_used_and_removed_and_the_gcs_hears_each_time_what_the_node_has() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        def is_reported(total: ResourceSet, available: ResourceSet) -> bool:
            last = gcs.reports[-1]
            return (last.total, last.available) == (total.to_proto(), available.to_proto())

        assert await node.prepare(units(CPU=1)) == [""]
        await until(lambda: is_reported(units(CPU=2), units(CPU=1)))
        first = node.ask(b"1")
        await node.commit(0)
        assert (await first).HasField("grant")
        given, held = given_by(units(CPU=1), G, 0), asked_for_in(units(CPU=1), G, 0)
        await until(lambda: is_reported(units(CPU=2) + given, units(CPU=1) + given - held))
        second = node.ask(b"2")
        await asyncio.sleep(1)
        assert not second.done()
        await node.give_back(0, is_removed=True)
        assert (await second).rejection.kind == raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED
        await until(lambda: is_reported(units(CPU=2), units(CPU=2)))
        assert not node.raylet.leases.leases()

    play(script)


def test_who_waits_for_a_group_is_refused_when_it_is_removed_or_is_not_there() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        waiting, other = node.ask(b"1"), node.ask(b"2", group_id=b"h" * 18)
        assert (await other).rejection.kind == raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED
        await asyncio.sleep(100)
        assert not waiting.done()
        [warning] = gcs.warnings
        assert "needs {CPU: 1} in bundle 0 of placement group" in warning and "not placed yet" in warning
        gcs.remove()
        rejection = (await waiting).rejection
        assert rejection.kind == raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED
        assert rejection.message == f"placement group {G.hex()} was removed"

    play(script)


def test_who_waits_for_a_group_hears_of_its_end_from_another_head() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        waiting = node.ask(b"1")
        await asyncio.sleep(1)
        gcs = await node.start_gcs()
        await until(lambda: gcs.registrations)
        assert not waiting.done()
        gcs.remove()
        assert (await waiting).HasField("rejection")

    play(script)


def test_a_head_that_comes_back_hears_of_all_bundles_and_says_what_becomes_of_them() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        assert not gcs.registrations[0].bundles
        await node.prepare(units(CPU=1), units(CPU=0.5), units(CPU=0.5))
        await node.commit(0)
        gcs = await node.start_gcs()
        gcs.answer.unwanted_bundles.extend(named(1))
        await until(lambda: gcs.registrations)
        await node.commit(0, 2)
        [told] = gcs.registrations[0].bundles
        assert told.indices == [0, 1, 2] and len(told.group.bundles) == 3
        total = units(CPU=2) + given_by(units(CPU=1), G, 0)
        assert gcs.registrations[0].node.total == total.to_proto()
        total += given_by(units(CPU=0.5), G, 2)
        await until(lambda: gcs.reports and gcs.reports[-1].total == total.to_proto())
        assert gcs.reports[-1].available.amounts["CPU"] == 5_000

    play(script)


def test_what_cannot_be_held_or_is_not_held_is_answered() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        assert "it needs {CPU: 3}, node 62626262 has {CPU: 2} free" in await node.prepare(units(CPU=3))
        with pytest.raises(RpcError) as caught:
            await node.commit(0)
        assert caught.value.code is StatusCode.NOT_FOUND
        await node.give_back(0)

    play(script)


def test_what_is_malformed_is_refused() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        calls = [
            node.prepare(units(CPU=1), ResourceSet({"CPU": -1})),
            node.prepare(units()),
            node.commit(0, group_id=b"g"),
            node.give_back(0, group_id=b"g"),
            node.ask(b"1", group_id=b"g"),
        ]
        for call in calls:
            with pytest.raises(RpcError) as caught:
                await call
            assert caught.value.code is StatusCode.INVALID_ARGUMENT

    play(script)


def test_bundles_that_may_wait_are_held_when_tasks_have_given_way() -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        await node.is_busy()
        assert "has {CPU: 0} free" in (await node.prepare(units(CPU=2)))[0]
        waiting = node.prepare_in_turn(units(CPU=1), units(CPU=1))
        await asyncio.sleep(1)
        assert not waiting.done() and not node.raylet.leases.held_bundles()
        await node.is_idle()
        assert await waiting == [""]
        await node.commit(0, 1)
        assert (await node.ask(b"1")).HasField("grant")
        # Again, as from a head that missed the answer.
        assert await node.prepare(units(CPU=1), units(CPU=1), may_wait=True) == [""]
        gcs = await node.start_gcs()
        await until(lambda: gcs.registrations)
        [told] = gcs.registrations[0].bundles
        assert told.indices == [0, 1] and len(told.group.bundles) == 2

    play(script)


@pytest.mark.parametrize("how", ["returned", "call ends", "connection ends", "asked again", "another head"])
def test_bundles_that_wait_for_nobody_are_withdrawn(how: str) -> None:
    async def script(node: Node, gcs: Gcs) -> None:
        channel, stub = await node.connect()
        await node.is_busy()
        waiting = node.prepare_in_turn(units(CPU=2), stub=stub)
        await until(lambda: node.raylet.leases.num_queued)
        if how == "returned":
            await node.give_back(0)
        elif how == "call ends":
            waiting.cancel()
        elif how == "connection ends":
            channel.close()
        elif how == "asked again":
            assert "has {CPU: 0} free" in (await node.prepare(units(CPU=2)))[0]
        else:
            gcs = await node.start_gcs()
            await until(lambda: gcs.registrations)
        await until(lambda: not node.raylet.leases.num_queued)
        if how in ("returned", "asked again", "another head"):
            assert await waiting == ["cancelled by its requester"]
        await node.is_idle()
        await until(lambda: not node.raylet.leases.has_leases)
        assert not node.raylet.leases.held_bundles() and not node.raylet.leases.leases()
        assert node.raylet.ledger.available == units(CPU=2)
        assert await node.prepare(units(CPU=2), may_wait=True) == [""]

    play(script)
