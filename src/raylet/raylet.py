"""The raylet: one per node. Grants leases on workers, feeds the worker pool, keeps the node's ledger of
resources.

    connections ──► servicer ──► lease_requests, local_processes, withdrawals ─┐
    the GCS     ──► servicer, gcs_client ──► bundle_requests, cluster_events   ├─ events ─► machines
    processes   ──► worker.launcher ──► local_processes                        │               │
    the clock   ──► raylet                                                     ┘            effects
                                                                                               ▼
    answers to leases, worker.launcher, gcs_outbox ◄────────────────────────────────── effect_runner

The machines (`scheduling.lease_manager`, and below it ledger, queue, policy, pool) decide; everything else is
the shell around them. One thread, one loop; no event waits for another.

Here the parts are put together, started and stopped. The end of the object manager, or a GCS that stays away,
ends raylet and node.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import sys
from typing import Any

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import WorkerID
from ray_mono.common.lifeline import LIFELINE_SUFFIX
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.service import LostPlaceError, Service, run_service
from ray_mono.common.world import Clock, SystemClock, system_rng
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.raylet_rpc import raylet_service_handlers
from ray_mono.raylet import wire
from ray_mono.raylet.arguments import Arguments, parse_arguments, template_command
from ray_mono.raylet.bundle_requests import BundleRequests
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.cluster_events import ClusterEvents
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.dead_nodes import DeadNodes
from ray_mono.raylet.drain import Drain
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.evacuation import Evacuation
from ray_mono.raylet.gcs_client import GcsClient
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.group_watches import GroupWatches
from ray_mono.raylet.head_lease import HeadLease
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.lease_requests import LeaseRequests
from ray_mono.raylet.lent_cpus import LentCpus
from ray_mono.raylet.local_processes import LocalProcesses
from ray_mono.raylet.memory.memory_usage import LinuxMemory, Memory
from ray_mono.raylet.memory_guard import MemoryGuard
from ray_mono.raylet.reclaim_streams import ReclaimStreams
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.fair_share import LOOK_S
from ray_mono.raylet.scheduling.lease_manager import LeaseLimits, LeaseManager
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.servicer import RayletServicer
from ray_mono.raylet.store_client import StoreClient
from ray_mono.raylet.taken_objects import TakenObjects
from ray_mono.raylet.wait_reasons import StoreReasons, WaitReasons
from ray_mono.raylet.withdrawals import Withdrawals
from ray_mono.raylet.worker.crowd_warnings import CrowdWarnings
from ray_mono.raylet.worker.death_reports import DeathReports
from ray_mono.raylet.worker.launcher import TemplateLauncher, WorkerLauncher
from ray_mono.raylet.worker.worker_ender import WorkerEnder
from ray_mono.raylet.worker.worker_pool import PoolLimits, WorkerPool
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import Listener, RpcError, StatusCode, Transport

CHECK_EVERY_TICKS = 40
"""How often a running raylet recounts its books. Every ten seconds: the cost grows with the leases."""
UNREGISTER_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class Raylet:
    """A node's raylet over the transport, launcher, clock and random numbers that it is given: the same in
    production and in the simulator."""

    def __init__(
        self,
        config: RayletConfig,
        transport: Transport,
        launcher: WorkerLauncher,
        clock: Clock,
        rng: random.Random,
        memory: Memory | None = None,
    ) -> None:
        """memory: of the machine that it runs on; None: it is not watched."""
        self._config, self._clock = config, clock
        self._transport, self._launcher = transport, launcher
        self._tasks = BackgroundTasks(self._on_task_error)
        self._clients = clients = Clients()
        # The machines.
        self._cluster = ClusterView(config.node_id, config.spill_hold_s)
        self.ledger = ResourceLedger(config.total)
        self._pool = WorkerPool(_pool_limits(config), lambda: WorkerID.from_random(rng).binary())
        here = _unused(config)
        self.leases = LeaseManager(here, self.ledger, self._cluster, self._pool, _lease_limits(config))
        self._crowd = CrowdWarnings(config.num_cpus, config.host)
        # The shell around them.
        answers, reclaims = LeaseAnswers(), ReclaimStreams()
        self._reclaims, self._dead_nodes = reclaims, DeadNodes()
        outbox = GcsOutbox(config.node_id, config.gcs_outbox_max)
        grace_s, is_beside = config.worker_exit_grace_s, config.head_stays_here
        ender = WorkerEnder(transport, launcher, clients, self._tasks, grace_s, self._refused_to_end)
        self._effects = EffectRunner(
            clients, answers, reclaims, outbox, launcher, ender, clock, self._look_if_leases_wait
        )
        self._store = StoreClient(config.store_socket, config.pid, transport, clock, config.connect_timeout_s)
        self._lease = HeadLease(config.gcs_reconnect_timeout_s, clock, launcher, clients, is_beside)
        deaths = DeathReports(config, launcher, clock, outbox)
        self._requests = LeaseRequests(config, clock, clients, self.leases, answers, self._effects, deaths)
        self._processes = LocalProcesses(
            config,
            clock,
            self._tasks,
            clients,
            self._pool,
            self.leases,
            self._effects,
            outbox,
            self._store,
            deaths,
            self._lease,
            launcher,
        )
        self._withdrawals = Withdrawals(clock, clients, self.leases, reclaims, self._effects)
        self._memory_guard = None
        if memory is not None and config.memory_monitor_refresh_ms:
            self._memory_guard = MemoryGuard(
                config, clock, memory, clients, self._pool, self.leases, self._processes, self._effects
            )
        self._lent_cpus = LentCpus(clock, clients, self.leases, self.ledger, launcher, self._effects)
        self._bundles = BundleRequests(config.node_id, clock, self.leases, answers, self._effects)
        events = self._make_events()
        self._gcs = GcsClient(config, transport, clock, self._lease, outbox, self._current_resources, events)
        self._group_watches = GroupWatches(clock, self.leases, self._effects, self._gcs, self._tasks)
        self._drain = self._make_drain()
        self._listeners: list[Listener] = []
        self._ended, self._end_reason = asyncio.Event(), ""
        self._failure: BaseException | None = None
        self._will_look = self._is_stopping = self._has_lost_place = False

    def _make_events(self) -> ClusterEvents:
        return ClusterEvents(
            self._config.node_id,
            self._clock,
            self._clients,
            self.leases,
            self.ledger,
            self._bundles,
            self._cluster,
            self._effects,
            self._store,
            self._dead_nodes,
            lambda: self._drain.drain,
            self.lose_place,
        )

    def _make_drain(self) -> Drain:
        config = self._config
        evacuation = Evacuation(
            config.node_id,
            self._clock,
            self._transport,
            config.connect_timeout_s,
            self._clients,
            self._cluster,
            self._store,
            self._gcs.workers,
        )
        return Drain(
            config.node_id,
            self._clock,
            self._clients,
            self._pool,
            self.leases,
            self._processes,
            self._effects,
            evacuation,
            self.end,
        )

    # ---- its life

    async def start(self) -> None:
        """Listens, finds its object manager and the GCS, and starts workers. Raises RpcError or OSError where
        that fails."""
        config = self._config
        await self._launcher.open(self._processes.exited, self._tasks)
        node = await self._listen()
        await self._store.connect(self.end)
        self._tasks.spawn(self._store.watch_pressure(config.host, self._effects.run), "store's pressure")
        self._tasks.spawn(self._keep_gcs(node), "gcs")
        self._tasks.spawn(self._tick(), "tick")
        self._tasks.spawn(self._drain.run(), "drain")
        if self._memory_guard is not None:
            self._tasks.spawn(self._memory_guard.run(), "memory")
        registered = self._tasks.spawn(self._gcs.until_registered(), "registration")
        ended = self._tasks.spawn(self._ended.wait(), "end")
        await asyncio.wait({registered, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not registered.done():
            raise RpcError(StatusCode.UNAVAILABLE, self._end_reason)
        logger.info("node %s: %s, listening at %s", config.node_id.hex(), config.total, self.addresses)

    async def _listen(self) -> common_pb2.NodeInfo:
        """Serves, and returns the node's row at the GCS."""
        config = self._config
        node = wire.node_info(config, self._clock.wall_s())
        reasons = WaitReasons(self.leases, self.leases.stories, self._clients, self._bundles.of)
        servicer = RayletServicer(
            self._clock,
            node,
            self.ledger,
            self._processes,
            self._requests,
            self._reclaims,
            self._dead_nodes,
            self._withdrawals,
            self._lent_cpus,
            self._drain,
            self._bundles,
            TakenObjects(config.node_id, self._transport, config.connect_timeout_s, self._store),
            self._gcs,
            config,
            reasons,
            StoreReasons(config.node_id, self._store, reasons),
            self.describe,
        )
        handlers = raylet_service_handlers(servicer)
        tcp = await self._transport.serve(f"{config.host}:{config.port}", handlers)
        self._listeners.append(tcp)
        # The real one: the configured port may be 0, any free one.
        node.MergeFrom(common_pb2.NodeInfo(node_manager_port=int(tcp.address.rpartition(":")[2])))
        self._listeners.append(await self._transport.serve(f"unix:{config.socket_path}", handlers))
        return node

    @property
    def addresses(self) -> list[str]:
        """TCP, then Unix."""
        return [listener.address for listener in self._listeners]

    @property
    def has_lost_place(self) -> bool:
        """Whether the cluster has, or will have, given this node up."""
        return self._has_lost_place

    def lose_place(self, reason: str) -> None:
        """As end: the node may run nothing more, and join again as a new one."""
        if not (self._ended.is_set() or self._is_stopping):
            self._has_lost_place = True
        self.end(reason)

    def end(self, reason: str) -> None:
        """Makes until_ended() return; the first reason counts."""
        if not self._ended.is_set():
            self._end_reason = reason
            self._ended.set()

    async def until_ended(self) -> str:
        """Waits until it cannot or shall not go on, and returns why. Raises what failed in the background."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self._end_reason

    async def stop(self) -> None:
        """Leaves the cluster, ends every worker, and waits for that. Nothing is left behind."""
        self._is_stopping = True
        self._requests.close()
        self._processes.close()
        await self._gcs.unregister(self._end_reason, UNREGISTER_TIMEOUT_S)
        await self._launcher.close()
        for listener in self._listeners:
            await listener.close()
        self._store.close()
        await self._tasks.close()

    async def _keep_gcs(self, node: common_pb2.NodeInfo) -> None:
        self.lose_place(await self._gcs.run(node))

    async def _tick(self) -> None:
        ticks = 0
        while True:
            self._effects.run(self.leases.tick(self._clock.time_s()))
            if self._lease.is_over():
                given_s = self._config.gcs_reconnect_timeout_s
                trouble = f" ({self._gcs.trouble})" if self._gcs.trouble else ""
                self.lose_place(f"no head has confirmed this node for {given_s:g} s{trouble}")
            self._effects.run(self._crowd.due(self._pool, self.ledger.count_blocked()))
            self._lent_cpus.look()
            self._group_watches.look()
            ticks += 1
            if ticks % CHECK_EVERY_TICKS == 0:
                self.leases.check_invariants()
            await asyncio.sleep(self._config.tick_period_s)

    def _look_if_leases_wait(self) -> None:
        """Soon; once for all that happens until then."""
        if not self._will_look and self.leases.num_queued:
            self._will_look = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._will_look = False
        if not self._is_stopping:
            self._effects.run(self.leases.look(self._clock.time_s()))
            self._withdrawals.look()
            self._group_watches.look()

    def _refused_to_end(self, worker_id: bytes) -> None:
        self._processes.refused_to_end(worker_id)

    def _on_task_error(self, exception: BaseException, task_name: str) -> None:
        """The books may be wrong: only a new raylet puts them right."""
        logger.critical("the task %s failed", task_name, exc_info=exception)
        self._failure = self._failure or exception
        self.end(f"its task {task_name} failed: {exception}")

    # ---- what others may know

    async def _current_resources(self) -> common_pb2.NodeResources:
        total, available = self.ledger.total, wire.shown_available(self.ledger.available)
        available = await self._store.without_used(available)
        lasting, queued = self.leases.lasting(), self.leases.queued_demand()
        return wire.node_resources(self._config.node_id, total, available, lasting, queued)

    def describe(self) -> dict[str, Any]:
        """For people, as JSON can carry it: ledger, leases with the reason why each waits, pool, cluster
        view.

        DumpState answers it, and SIGUSR1 writes it to the log.
        """
        now_s = self._clock.time_s()
        return {
            "node_id": self._config.node_id.hex(),
            "addresses": self.addresses,
            "resources": self.ledger.describe(),
            "drain": self._drain.story if self._drain.drain is not None else "",
            "memory": self._memory_guard.describe() if self._memory_guard is not None else "not watched",
            **self.leases.describe(now_s),
            **self._pool.describe(now_s),
            "drivers": self._clients.describe(),
            "other_nodes": self._cluster.describe(),
        }


def _pool_limits(config: RayletConfig) -> PoolLimits:
    return PoolLimits(
        startup_concurrency=config.startup_concurrency,
        prestart=config.prestart,
        soft_limit=config.num_cpus,
        idle_timeout_s=config.idle_worker_timeout_s,
        register_timeout_s=config.worker_register_timeout_s,
    )


def _unused(config: RayletConfig) -> NodeSnapshot:
    """This node, when nothing runs on it."""
    total, labels = config.total, config.labels
    return NodeSnapshot(config.node_id, config.host, config.port, total, total, labels=labels)


def _lease_limits(config: RayletConfig) -> LeaseLimits:
    return LeaseLimits(config.infeasible_warning_s, config.pending_warning_s, f"{config.session_dir}/logs")


async def serve(service: Service, arguments: Arguments) -> None:
    config = arguments.config
    launcher = TemplateLauncher(
        template_command(arguments),
        "logs/worker-",
        arguments.exit_grace_s,
        arguments.template_fd,
        lifeline_path=config.socket_path + LIFELINE_SUFFIX,
    )
    raylet = Raylet(
        config,
        FramedTransport(arguments.secret, config.session_dir),
        launcher,
        SystemClock(),
        system_rng(),
        LinuxMemory(config.memory_root),
    )

    async def end() -> None:
        service.stop(await raylet.until_ended())

    try:
        await raylet.start()
        service.on_dump(raylet.describe)
        service.tasks.spawn(end(), "raylet")
        service.announce_ready({"address": raylet.addresses[0], "unix_path": config.socket_path})
        await service.until_stopped()
    finally:
        await raylet.stop()
    if raylet.has_lost_place:
        raise LostPlaceError(f"{await raylet.until_ended()}: it has lost its place in the cluster")


def main() -> int:
    arguments = parse_arguments()
    return run_service("raylet", functools.partial(serve, arguments=arguments), arguments.common)


if __name__ == "__main__":
    sys.exit(main())
