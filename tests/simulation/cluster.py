"""A simulated cluster: the real GcsServer and real Raylets over simulated adapters, and ways to break it.

Every service is a process of its own on a host of its own (the GCS shares the head's). The classes are those
that the binaries run; only what they are given differs: transport, clock, randomness, storage, worker
launcher.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_mono.common.ids import NodeID
from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.gcs.actor.actor_state import ActorLife
from ray_mono.gcs.config import GcsConfig
from ray_mono.gcs.gcs_server import GcsServer
from ray_mono.object_manager.stored_object import ObjectState
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.raylet import Raylet
from ray_mono.rpc.surface import RpcError
from tests.simulation.checkers import CheckFailed, Journal
from tests.simulation.core_process import Place, SimDriver
from tests.simulation.launcher import SimWorkerLauncher
from tests.simulation.memory import SimMemory
from tests.simulation.process import SimProcess
from tests.simulation.storage import CommitStep, DiskKnobs, SimDisk, SimStorage
from tests.simulation.stores import SimStore
from tests.simulation.world import World

HEAD = "head"
GCS_PORT = 6379
CHECK_PERIOD_S = 0.008
"""Between two recounts of the books, in virtual time: they cost as much as all the rest."""
RAYLET_SOCKET = "/sim/raylet"
DRAINED_BACK_S = 1.0
"""Between the end of a node that was drained and the start of the one that comes for it."""
DRAIN_ANSWER_S = 30.0
DRAIN_RETRY_S = 0.5


@dataclass
class SimNode:
    """A node's raylet process. A node that comes back is a new one."""

    host_name: str
    node_id: bytes
    units: Mapping[str, float]
    process: SimProcess
    launcher: SimWorkerLauncher
    raylet: Raylet
    store: SimStore
    memory: SimMemory | None
    """None: the raylet does not watch it."""


class SimCluster:
    """One cluster in one world."""

    def __init__(
        self,
        world: World,
        journal: Journal,
        limits: CoreWorkerConfig | None = None,
        disk: DiskKnobs | None = None,
        watches_memory: bool = False,
        gcs_reconnect_timeout_s: float = RayletConfig.gcs_reconnect_timeout_s,
        unreadable_probability: float = 0.0,
    ) -> None:
        self.world = world
        self._unreadable_probability = unreadable_probability
        self._gcs_reconnect_timeout_s = gcs_reconnect_timeout_s
        # Who waits long is looked at by a thread that the simulation would not know.
        self._limits = replace(limits or CoreWorkerConfig(), wait_warning_s=math.inf)
        self.journal = journal
        self.nodes: list[SimNode] = []
        self._drivers: list[SimDriver] = []
        self._watches_memory = watches_memory
        self._disk = SimDisk(world.rng("disk"), disk or DiskKnobs())
        self._first_commit = 0
        self._ids = world.rng("node ids")
        self._gcs_process: SimProcess | None = None
        self._gcs: GcsServer | None = None
        self._gcs_starts = 0
        self._driver_count = self._drains = 0
        self._checked_at_s = 0.0
        world.machine.judged_by(journal.objects)
        journal.objects.stored = self._stored
        journal.actors.is_stopped = self._is_stopped
        journal.is_cut_off = self._is_cut_off
        journal.groups.is_over = self._may_be_over
        journal.objects.is_on_dead_node = self._is_dead
        journal.objects.lost_worker_answer_s = self._limits.lost_worker_answer_s

    def _is_cut_off(self, job_id: bytes) -> bool:
        return any(
            self._is_dead(driver.core.env.address.node_id)
            for driver in self._drivers
            if driver.job_id == job_id
        )

    def _may_be_over(self, job_id: bytes) -> bool:
        drivers = [driver for driver in self._drivers if driver.job_id == job_id]
        return self._is_cut_off(job_id) or not any(driver.process.is_alive for driver in drivers)

    def _is_dead(self, node_id: bytes) -> bool:
        return self._gcs is not None and self._gcs.cluster.nodes.is_dead(NodeID(node_id))

    def _is_stopped(self, worker_id: bytes) -> bool:
        name = f"worker {worker_id.hex()[:8]}"
        return any(process.name == name and process.is_stopped for process in self.living_workers())

    def _stored(self, with_evictable: bool) -> list[bytes]:
        return [
            each.object_id
            for store in self.world.stores.values()
            for each in store.node_store.store.objects()
            if with_evictable or each.is_primary or each.num_pins or each.state is not ObjectState.SEALED
        ]

    # ---- start

    async def start(self, node_units: Sequence[Mapping[str, float]]) -> None:
        """The GCS, and a node for each of node_units, the first on the head; returns when all have joined."""
        for number in range(len(node_units)):
            self.world.network.add_host(HEAD if number == 0 else f"node{number}")
        await self._start_gcs()
        for host_name, units in zip(self.host_names(), node_units, strict=True):
            await self.start_node(host_name, units)

    async def _start_gcs(self) -> None:
        self._gcs_starts += 1
        process = self.world.network.start_process(HEAD, f"gcs {self._gcs_starts}")
        self._gcs_process = process
        await process.spawn(self._run_gcs(process), name="gcs main")

    async def _run_gcs(self, process: SimProcess) -> None:
        """The GCS's main, up to where it is ready."""
        ip = self.world.network.ip_of(HEAD)
        server = GcsServer(
            GcsConfig(listen=(f"{ip}:{GCS_PORT}",), node_ip=ip),
            SimStorage(self._disk),
            self.world.transport(process),
            self.world.clock,
            self.world.rng(process.name),
        )
        self._gcs = server
        await server.start()
        process.spawn(server.until_failed(), name="gcs failure")

    async def start_node(self, host_name: str, units: Mapping[str, float]) -> SimNode:
        """A raylet with a new node id on a host; returns when it has joined. Where a slow disk has the head
        answer only when the node's time is over, another one joins."""
        while True:
            node = self._make_node(host_name, units)
            try:
                await node.process.spawn(node.raylet.start(), name="raylet start")
            except RpcError as error:
                await self._give_up(node, error)
                if not self._disk.is_slow:
                    raise
                continue
            node.process.spawn(self._until_ended(node), name="raylet main")
            return node

    def _make_node(self, host_name: str, units: Mapping[str, float]) -> SimNode:
        world = self.world
        node_id = NodeID.from_random(self._ids).binary()
        process = world.network.start_process(host_name, f"raylet {node_id.hex()[:8]}")
        total = ResourceSet.from_units(units)
        launcher = SimWorkerLauncher(world, process, self._place, self.journal)
        memory = SimMemory(launcher, self.journal) if self._watches_memory else None
        store = SimStore(world, host_name, node_id, self.gcs_address, self._unreadable_probability)
        store.process.spawn(store.run(), name="store")
        config = RayletConfig(
            node_id=node_id,
            gcs_address=self.gcs_address,
            socket_path=RAYLET_SOCKET,
            host=world.network.ip_of(host_name),
            session_dir="/sim",
            total=total,
            is_head=host_name == HEAD,
            pid=process.pid,
            store_socket=store.socket,
            store_file=store.path,
            object_manager_port=store.port,
            gcs_reconnect_timeout_s=self._gcs_reconnect_timeout_s,
        )
        make = lambda: Raylet(  # noqa: E731
            config, world.transport(process), launcher, world.clock, world.rng(process.name), memory=memory
        )
        node = SimNode(host_name, node_id, units, process, launcher, process.run(make), store, memory)
        self.journal.node_totals[node_id] = total
        self.nodes.append(node)
        process.on_death(lambda _reason: self.nodes.remove(node))
        return node

    async def _until_ended(self, node: SimNode) -> None:
        """The rest of a raylet's main: it leaves in order when it has to, and the process ends."""
        reason = await node.raylet.until_ended()
        await node.raylet.stop()
        node.process.kill(reason)

    async def start_driver(self, host_name: str) -> SimDriver:
        """A driver beside the raylet of a host; returns when it has joined."""
        self._driver_count += 1
        process = self.world.network.start_process(host_name, f"driver {self._driver_count}")
        driver = SimDriver(self.world, process, self._place, self.journal)
        await driver.start_driver()
        self._drivers.append(driver)
        return driver

    # ---- what there is

    @property
    def _place(self) -> Place:
        return Place(self.gcs_address, RAYLET_SOCKET, self._limits)

    @property
    def gcs_address(self) -> str:
        return f"{self.world.network.ip_of(HEAD)}:{GCS_PORT}"

    def host_names(self) -> list[str]:
        return self.world.network.host_names()

    def stored_bytes(self) -> int:
        """What the head's store holds."""
        tables = self._disk.tables.values()
        return sum(len(key) + len(row) for table in tables for key, row in table.items())

    def nodes_beside_head(self) -> list[SimNode]:
        """The nodes whose loss the cluster has to survive."""
        return [node for node in self.nodes if node.host_name != HEAD]

    def living_workers(self) -> list[SimProcess]:
        return [process for node in self.nodes for process in node.launcher.living()]

    # ---- faults

    def restart_gcs(self, after_s: float, loses_store: bool = False) -> None:
        """Kills the GCS; another one starts on what its disk holds. Nothing where it is down already."""
        if self._gcs_process is not None and self._gcs_process.is_alive:
            self._gcs_process.kill("a fault")
            if loses_store:
                self._disk.lose()
            self._later(after_s, self._start_gcs)

    def restart_gcs_at(self, commits: Mapping[tuple[int, CommitStep], float]) -> None:
        """Kills the GCS at these commits, counted from now on, and starts another one after so many seconds
        each."""
        self._first_commit = self._disk.commits

        def at(number: int, step: CommitStep) -> None:
            after_s = commits.get((number - self._first_commit, step))
            if after_s is not None:
                self.restart_gcs(after_s)

        self._disk.on_step = at

    @property
    def num_commits(self) -> int:
        """Begun since then."""
        return self._disk.commits - self._first_commit

    def start_node_later(self, lost: SimNode, after_s: float) -> None:
        """A node with the resources of one that was lost joins from the same host."""
        self._later(after_s, lambda: self._start_again(lost))

    async def _start_again(self, lost: SimNode) -> None:
        if any(node.host_name == lost.host_name for node in self.nodes):
            return  # a fault that came between has seen to it
        self.world.network.add_host(lost.host_name)
        node = self._make_node(lost.host_name, lost.units)
        node.process.spawn(self._run_node(node), name="raylet main")

    async def _run_node(self, node: SimNode) -> None:
        try:
            await node.raylet.start()
        except RpcError as error:
            await self._give_up(node, error)
        await self._until_ended(node)

    async def _give_up(self, node: SimNode, error: RpcError) -> None:
        """It could not join."""
        await node.raylet.stop()
        node.process.kill(str(error))

    def drain_node(self, node: SimNode, deadline_s: float | None) -> None:
        """Its provider takes it away, at that time or when nothing is left on it, and gives another for
        it."""
        self.journal.drains_node()
        self._drains += 1
        process = self.world.network.start_process(HEAD, f"drain {self._drains}")
        deadline_ms = 0 if deadline_s is None else int((self.world.clock.wall_s() + deadline_s) * 1000)
        request = gcs_pb2.DrainNodeRequest(
            node_id=node.node_id,
            reason=common_pb2.DRAIN_NODE_REASON_PREEMPTION,
            reason_message="a fault",
            deadline_timestamp_ms=deadline_ms,
        )
        process.spawn(self._ask_until_drained(process, request), name="drain")
        node.process.on_death(lambda _reason: self.start_node_later(node, DRAINED_BACK_S))

    async def _ask_until_drained(self, process: SimProcess, request: gcs_pb2.DrainNodeRequest) -> None:
        """The head may be away, or not reach the node."""
        while True:
            try:
                channel = await self.world.transport(process).connect(self.gcs_address, DRAIN_ANSWER_S)
                await GcsServiceAsyncStub(channel).DrainNode(request, timeout_s=DRAIN_ANSWER_S)
                return
            except RpcError:
                await asyncio.sleep(DRAIN_RETRY_S)

    def _later(self, after_s: float, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(after_s)
            await begin()

        self.world.loop.create_task(wait(), name="a fault's end", context=contextvars.Context())

    # ---- checks

    def check_services(self) -> None:
        """Has the GCS and every living raylet that did something since the last time recount their books."""
        now_s = self.world.loop.time()
        if now_s < self._checked_at_s + CHECK_PERIOD_S:
            return
        self._checked_at_s = now_s
        gcs, process = self._gcs, self._gcs_process
        if gcs is not None and process is not None and process.is_alive and process.has_run:
            process.has_run = False
            gcs.cluster.actors.check_invariants()
            gcs.cluster.groups.manager.check_invariants()
        self.journal.objects.check_invariants()
        for node in self.nodes:
            _recount(node.process, node.raylet.leases.check_invariants)
        for store in self.world.stores.values():
            _recount(store.process, store.node_store.check_invariants)

    async def until_nothing_is_left(self, timeout_s: float) -> None:
        """After all drivers left: waits until there is no lease anywhere, and everything is free."""
        end_s = self.world.loop.time() + timeout_s
        while left := self._what_is_left():
            if self.world.loop.time() > end_s:
                raise CheckFailed(f"{timeout_s:g} s after the last driver left: {'; '.join(left)}")
            await asyncio.sleep(0.5)

    def _what_is_left(self) -> list[str]:
        left = []
        if self.journal.actors.living():
            left.append(f"{self.journal.actors.living()} processes of actors live")
        for node in self.nodes:
            leases, ledger = node.raylet.leases.leases(), node.raylet.ledger
            if leases:
                left.append(f"{node.process.name} has {len(leases)} leases, the first {leases[0]}")
            elif ledger.available != ledger.total:
                left.append(f"{node.process.name} is idle with {ledger.available} of {ledger.total} free")
        for store in self.world.stores.values():
            objects = store.node_store.store.objects()
            if objects:
                left.append(f"{store.process.name} has {len(objects)} objects, the first {objects[0]}")
            elif store.disk.num_files:
                left.append(f"{store.process.name} has {store.disk.num_files} files of objects that are gone")
        if self._gcs is not None:
            running = [job for job in self._gcs.cluster.jobs.rows() if not job.is_over]
            living = [actor for actor in self._gcs.cluster.actors.all() if actor.state is not ActorLife.DEAD]
            left += [
                f"the head holds a group: {group}" for group in self._gcs.cluster.groups.manager.living()
            ]
            left += [f"the head holds job {job.job_id.hex()} to be running" for job in running]
            left += [f"the head holds an actor to be {actor.state.name}: {actor.story}" for actor in living]
        return left


def _recount(process: SimProcess, check_invariants: Callable[[], None]) -> None:
    """If anything happened there."""
    if not process.has_run:
        return
    process.has_run = False
    try:
        check_invariants()
    except InternalError as error:
        raise CheckFailed(f"{process.name}: {error}") from error
