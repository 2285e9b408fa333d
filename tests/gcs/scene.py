"""A real GcsServer in virtual time, with raylets and workers that do what a test tells them.

The raylets here grant every lease and start a worker for it, unless the test puts something else in their
place; what they are asked is kept for the test to look at. Real raylets around a real GCS are the business of
tests/simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

from ray_mono.common.ids import ActorID, JobID, NodeID, WorkerID, object_id_bytes
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.config import GcsConfig
from ray_mono.gcs.gcs_server import GcsServer
from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.protobuf import (
    common_pb2,
    core_worker_pb2,
    core_worker_rpc,
    gcs_pb2,
    gcs_rpc,
    raylet_pb2,
    raylet_rpc,
)
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode
from tests.simulation.process import SimProcess
from tests.simulation.world import World

GCS_PORT = 6379
CONNECT_TIMEOUT_S = 5.0
LIMIT_S = 600.0
JOB = JobID.from_int(1)
OWNER = WorkerID(b"o" * 28)

Push = Callable[[core_worker_pb2.PushTaskRequest], Awaitable[core_worker_pb2.PushTaskReply]]
Grant = Callable[[raylet_pb2.RequestWorkerLeaseRequest], Awaitable[raylet_pb2.RequestWorkerLeaseReply]]


Prepare = Callable[[raylet_pb2.PrepareBundlesRequest], Awaitable[raylet_pb2.PrepareBundlesReply]]


class FakeWorker(core_worker_rpc.CoreWorkerServiceServicer):
    """A worker process that creates actors."""

    def __init__(self, node: FakeNode, worker_id: bytes) -> None:
        self.node = node
        self.worker_id = worker_id
        self.process = node.scene.world.network.start_process(node.host_name, f"worker {worker_id.hex()[:6]}")
        self.address = common_pb2.Address()

    async def start(self) -> None:
        scene = self.node.scene
        transport = scene.world.transport(self.process)
        ip = scene.world.network.ip_of(self.node.host_name)
        listener = await transport.serve(f"{ip}:0", core_worker_rpc.core_worker_service_handlers(self))
        self.address = common_pb2.Address(
            node_id=self.node.node_id,
            worker_id=self.worker_id,
            host=ip,
            port=int(listener.address.rpartition(":")[2]),
        )

    async def PushTask(
        self, request: core_worker_pb2.PushTaskRequest, context: CallContext
    ) -> core_worker_pb2.PushTaskReply:
        assert request.intended_worker_id == self.worker_id
        self.node.scene.pushed.append(request)
        return await self.node.scene.push(request)

    async def Exit(self, request: core_worker_pb2.ExitRequest, context: CallContext) -> common_pb2.Empty:
        self.node.scene.exits.append((self.worker_id, request))
        await self.node.scene.on_exit(request)
        return common_pb2.Empty()


class FakeNode(raylet_rpc.RayletServiceServicer):
    """A raylet that grants what it is asked for."""

    def __init__(self, scene: GcsScene, host_name: str, units: Mapping[str, float]) -> None:
        self.scene = scene
        self.host_name = host_name
        self.total = ResourceSet.from_units(units)
        self.node_id = NodeID.from_random(scene.ids).binary()
        self.process = scene.world.network.start_process(host_name, f"raylet on {host_name}")
        self.workers: dict[bytes, FakeWorker] = {}
        self.info = common_pb2.NodeInfo()
        self.grant: Grant = self.grant_new_worker
        self.leases: list[raylet_pb2.RequestWorkerLeaseRequest] = []
        self.cancelled: list[bytes] = []
        self.heard: list[str] = []
        """What was asked about leases, in its order."""
        self.returned: list[raylet_pb2.ReturnWorkerRequest] = []
        self.killed: list[raylet_pb2.KillWorkerRequest] = []
        self.heads: list[common_pb2.HeadPlace] = []
        """Those that said that they have taken over."""
        self.drains: list[common_pb2.NodeDrain] = []
        """What it was asked for."""
        self.is_idle = False
        self.bundles: dict[bytes, dict[int, bool]] = {}
        """By group, whether each that is held is open."""
        self.on_prepare: Prepare = self.hold_bundles
        self.on_commit: Callable[[raylet_pb2.CommitBundlesRequest], Awaitable[None]] = at_once
        self.on_returned: Callable[[raylet_pb2.ReturnBundlesRequest], Awaitable[None]] = at_once
        """Runs when bundles were returned, before that is answered."""
        self.prepares: list[raylet_pb2.PrepareBundlesRequest] = []
        self.returned_bundles: list[raylet_pb2.ReturnBundlesRequest] = []
        self.unwanted_bundles: list[common_pb2.BundleIndices] = []
        """As the head answered last."""
        self.gcs: gcs_rpc.GcsServiceAsyncStub | None = None

    async def start(self, told: gcs_pb2.RegisterNodeRequest | None = None, joins: bool = True) -> None:
        world = self.scene.world
        ip = world.network.ip_of(self.host_name)
        listener = await world.transport(self.process).serve(
            f"{ip}:0", raylet_rpc.raylet_service_handlers(self)
        )
        self.info = common_pb2.NodeInfo(
            node_id=self.node_id,
            host=ip,
            node_manager_port=int(listener.address.rpartition(":")[2]),
            total=self.total.to_proto(),
            head_lease_s=self.scene.head_lease_s,
        )
        if joins:
            await self.join(told=told)

    async def join(
        self,
        actor_leases: Mapping[bytes, bytes] | None = None,
        told: gcs_pb2.RegisterNodeRequest | None = None,
    ) -> list[bytes]:
        """Registers with the GCS that there is now; actor_leases: workers by lease; told: what else it says.

        Returns the leases that the GCS does not want.
        """
        channel = await self.scene.world.transport(self.process).connect(
            self.scene.address, CONNECT_TIMEOUT_S
        )
        self.gcs = gcs_rpc.GcsServiceAsyncStub(channel)
        leases = [
            gcs_pb2.ActorLease(lease_id=lease_id, worker_id=worker_id)
            for lease_id, worker_id in (actor_leases or {}).items()
        ]
        request = gcs_pb2.RegisterNodeRequest(node=self.info, actor_leases=leases)
        if told is not None:
            request.MergeFrom(told)
        reply = await self.gcs.RegisterNode(request)
        self.unwanted_bundles = list(reply.unwanted_bundles)
        return list(reply.unwanted_lease_ids)

    async def is_confirmed(self) -> bool:
        """Asks the GCS, as a raylet does of itself."""
        assert self.gcs is not None
        reply = await self.gcs.CheckAlive(gcs_pb2.CheckAliveRequest(node_ids=[self.node_id]))
        return list(reply.raylet_alive) == [True]

    async def report(self, version: int, free: Mapping[str, float]) -> None:
        assert self.gcs is not None
        available = ResourceSet.from_units(free).to_proto()
        await self.gcs.ReportResources(
            common_pb2.NodeResources(
                node_id=self.node_id, version=version, total=self.total.to_proto(), available=available
            )
        )

    async def report_death(self, worker_id: bytes, cause: common_pb2.DeathCause) -> None:
        assert self.gcs is not None
        await self.gcs.ReportWorkerDeath(
            common_pb2.WorkerInfo(worker_id=worker_id, node_id=self.node_id, death_cause=cause)
        )

    async def crash(self, worker: FakeWorker, cause: common_pb2.DeathCause | None = None) -> None:
        """The worker dies, of a signal unless a cause is given, and the GCS is told."""
        worker.process.kill("it crashed")
        crash = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED, message="signal 11", signal=11)
        await self.report_death(worker.worker_id, cause or crash)

    async def grant_new_worker(
        self, request: raylet_pb2.RequestWorkerLeaseRequest
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        worker = FakeWorker(self, WorkerID.from_random(self.scene.ids).binary())
        await worker.start()
        self.workers[worker.worker_id] = worker
        grant = raylet_pb2.Grant(
            lease_id=request.lease_id, worker=worker.address, worker_pid=worker.process.pid
        )
        return raylet_pb2.RequestWorkerLeaseReply(grant=grant)

    async def hold_bundles(self, request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
        for each in request.groups:
            held = self.bundles.setdefault(each.group.placement_group_id, {})
            held.update((index, held.get(index, False)) for index in each.indices)
        return raylet_pb2.PrepareBundlesReply(refusals=[""] * len(request.groups))

    # ---- RayletService

    async def PrepareBundles(
        self, request: raylet_pb2.PrepareBundlesRequest, context: CallContext
    ) -> raylet_pb2.PrepareBundlesReply:
        self.prepares.append(request)
        return await self.on_prepare(request)

    async def CommitBundles(
        self, request: raylet_pb2.CommitBundlesRequest, context: CallContext
    ) -> common_pb2.Empty:
        await self.on_commit(request)
        for each in request.groups:
            held = self.bundles.get(each.placement_group_id, {})
            if not held.keys() >= set(each.indices):
                raise RpcError(StatusCode.NOT_FOUND, "it is not held here")
            held.update((index, True) for index in each.indices)
        return common_pb2.Empty()

    async def ReturnBundles(
        self, request: raylet_pb2.ReturnBundlesRequest, context: CallContext
    ) -> common_pb2.Empty:
        self.returned_bundles.append(request)
        for each in request.groups:
            for index in each.indices:
                self.bundles.get(each.placement_group_id, {}).pop(index, None)
        await self.on_returned(request)
        return common_pb2.Empty()

    async def RequestWorkerLease(
        self, request: raylet_pb2.RequestWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        self.leases.append(request)
        self.heard.append("RequestWorkerLease")
        return await self.grant(request)

    async def CancelWorkerLease(
        self, request: raylet_pb2.CancelWorkerLeaseRequest, context: CallContext
    ) -> raylet_pb2.CancelWorkerLeaseReply:
        self.cancelled.append(request.lease_id)
        self.heard.append("CancelWorkerLease")
        return raylet_pb2.CancelWorkerLeaseReply(cancelled=False)

    async def ReturnWorker(
        self, request: raylet_pb2.ReturnWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        self.returned.append(request)
        self.heard.append("ReturnWorker")
        await self.scene.on_return(request)
        return common_pb2.Empty()

    async def KillWorker(
        self, request: raylet_pb2.KillWorkerRequest, context: CallContext
    ) -> common_pb2.Empty:
        self.killed.append(request)
        worker = self.workers.pop(request.worker_id, None)
        if worker is None:
            raise RpcError(StatusCode.NOT_FOUND, "no such worker")
        worker.process.kill("its raylet killed it")
        await self.report_death(request.worker_id, request.cause)
        return common_pb2.Empty()

    async def DrainRaylet(
        self, request: raylet_pb2.DrainRayletRequest, context: CallContext
    ) -> raylet_pb2.DrainRayletReply:
        self.drains.append(request.drain)
        if request.drain.reason == common_pb2.DRAIN_NODE_REASON_IDLE_TERMINATION and not self.is_idle:
            return raylet_pb2.DrainRayletReply(rejection_reason_message="it is in use")
        return raylet_pb2.DrainRayletReply(is_accepted=True, drain=request.drain)

    async def CheckAlive(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.Empty:
        return common_pb2.Empty()

    async def FollowHead(self, request: common_pb2.HeadPlace, context: CallContext) -> common_pb2.Empty:
        self.heads.append(request)
        return common_pb2.Empty()


class GcsScene:
    """One GCS (after the other, on the same storage), its nodes, and a client."""

    def __init__(self, world: World, settings: Mapping[str, float]) -> None:
        self.world = world
        self.ids = world.rng("ids")
        self.settings = settings
        self.head_lease_s = 0.0
        """Of the nodes that are added from now on."""
        self.storage = MemoryStorage()
        self.gcs_process: SimProcess | None = None
        self.server: GcsServer | None = None
        self.client_process: SimProcess | None = None
        self.push: Push = create_actor
        self.pushed: list[core_worker_pb2.PushTaskRequest] = []
        self.exits: list[tuple[bytes, core_worker_pb2.ExitRequest]] = []
        self.on_exit: Callable[[core_worker_pb2.ExitRequest], Awaitable[None]] = at_once
        self.on_return: Callable[[raylet_pb2.ReturnWorkerRequest], Awaitable[None]] = at_once
        world.network.add_host("head")
        self.address = f"{world.network.ip_of('head')}:{GCS_PORT}"

    async def start_gcs(self) -> gcs_rpc.GcsServiceAsyncStub:
        """A GCS on the storage; returns a client's stub."""
        process = self.world.network.start_process("head", "gcs")
        self.gcs_process = process
        await process.spawn(self._run_gcs(process))
        return await self.connect()

    async def _run_gcs(self, process: SimProcess) -> None:
        config = GcsConfig(listen=(self.address,), **self.settings)  # type: ignore[arg-type]
        transport = self.world.transport(process)
        rng = self.world.rng(f"gcs {process.pid}")
        self.server = GcsServer(config, self.storage, transport, self.world.clock, rng)
        await self.server.start()

    def kill_gcs(self) -> None:
        assert self.gcs_process is not None
        self.gcs_process.kill("SIGKILL")

    def lose_storage(self) -> None:
        """The next GCS begins on an empty one."""
        self.storage = MemoryStorage()

    async def connect(self) -> gcs_rpc.GcsServiceAsyncStub:
        """A connection of a process of its own."""
        process = self.world.network.start_process("head", "client")
        self.client_process = process
        transport = self.world.transport(process)
        channel = await process.spawn(transport.connect(self.address, CONNECT_TIMEOUT_S))
        return gcs_rpc.GcsServiceAsyncStub(channel)

    async def add_node(
        self,
        units: Mapping[str, float],
        host_name: str = "",
        told: gcs_pb2.RegisterNodeRequest | None = None,
    ) -> FakeNode:
        host = self.world.network.add_host(host_name or f"host{self.ids.getrandbits(32)}")
        node = FakeNode(self, host.name, units)
        await node.process.spawn(node.start(told))
        return node

    def check(self) -> None:
        assert self.server is not None
        self.server.cluster.actors.check_invariants()
        self.server.cluster.groups.manager.check_invariants()


async def at_once(request: object) -> None:
    """What a worker without calls does before it answers, and a raylet."""


async def never(request: object) -> NoReturn:
    """What a worker or a raylet that gives no answer does with a request."""
    while True:
        await asyncio.get_running_loop().create_future()


async def create_actor(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
    return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.DONE, repr_name="Counter()")


def play(script: Callable[[GcsScene], Awaitable[None]], **settings: float) -> None:
    """Runs a scene: script(scene) with GcsConfig's settings."""

    async def run(scene: GcsScene) -> None:
        await script(scene)
        scene.check()

    with World(seed=1) as world:
        world.run(run(GcsScene(world, settings)), LIMIT_S)


def actor_id(number: int = 1) -> bytes:
    return ActorID(number.to_bytes(12, "big") + JOB.binary()).binary()


def registration(
    number: int = 1,
    needs: Mapping[str, float] | None = None,
    owner_node_id: bytes = b"0" * 28,
    name: str = "",
    get_if_exists: bool = False,
    max_restarts: int = 0,
    is_detached: bool = False,
    awaits_arguments: bool = False,
) -> gcs_pb2.RegisterActorRequest:
    """Of an actor that needs `needs` (1 CPU) to be placed and holds nothing."""
    placement = ResourceSet.from_units(needs or {"CPU": 1}).to_proto()
    spec = common_pb2.TaskSpec(
        type=common_pb2.ACTOR_CREATION_TASK,
        name="Counter.__init__",
        job_id=JOB.binary(),
        caller=common_pb2.Address(worker_id=OWNER.binary(), node_id=owner_node_id, host="10.0.0.1", port=9),
        flat_args=b"" if awaits_arguments else b"the arguments",
        placement_resources=placement,
        actor_creation=common_pb2.ActorCreationSpec(
            actor_id=actor_id(number),
            name=name,
            namespace="space",
            max_restarts=max_restarts,
            is_detached=is_detached,
            serialized_handle=b"the handle",
        ),
    )
    return gcs_pb2.RegisterActorRequest(
        creation_spec=spec,
        class_name="Counter",
        get_if_exists=get_if_exists,
        awaits_arguments=awaits_arguments,
    )


async def until_state(
    gcs: gcs_rpc.GcsServiceAsyncStub, state: common_pb2.ActorState, number: int = 1, num_restarts: int = 0
) -> common_pb2.ActorInfo:
    """Watches the actor until it is in the state, with at least so many restarts."""
    info = common_pb2.ActorInfo()
    while info.state != state or info.num_restarts < num_restarts or not info.version:
        info = await gcs.WatchActor(
            gcs_pb2.WatchActorRequest(actor_id=actor_id(number), after_version=info.version)
        )
    return info


def error_reply(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
    """The answer of a worker whose constructor raised."""
    returned = core_worker_pb2.ReturnObject(
        object_id=object_id_bytes(b"t" * 24, 1),
        value=common_pb2.SerializedObject(metadata=b"error", data=b"a pickled error"),
    )
    return core_worker_pb2.PushTaskReply(
        status=core_worker_pb2.PushTaskReply.DONE, is_application_error=True, returns=[returned]
    )
