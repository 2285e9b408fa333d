"""The raylet: one per node. Grants leases on workers, feeds the worker pool, keeps the node's ledger of resources.

This is the shell: it turns what connections, the launcher, the GCS and the clock say into events for the machines
(`lease_manager`, and below it ledger, queue, policy, pool), and carries out the effects that come back. It decides
nothing. One thread, one loop; no event waits for another.

Who dies and what follows: a worker's death (its connection or its process, whichever ends first) frees its lease and is
reported; a driver's ends its job on this node; the object manager's, or a GCS that stays away, ends raylet and node.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import sys
from typing import Any, assert_never

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import WorkerID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.service import Service, run_service
from ray_mono.common.world import Clock, SystemClock, system_rng
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.protobuf.raylet_rpc import raylet_service_handlers
from ray_mono.raylet import wire
from ray_mono.raylet.arguments import Arguments, parse_arguments, template_command
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.cluster_events import ClusterEvents
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.dump import dump_raylet
from ray_mono.raylet.effects import (
    CollectGarbage,
    Effect,
    EndWorker,
    Granted,
    ReclaimLease,
    Rejected,
    SpilledBack,
    StartWorker,
    Unclaimed,
    WarnJob,
)
from ray_mono.raylet.gcs_client import GcsClient
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.reclaim_streams import ReclaimStreams
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.fair_share import LOOK_S
from ray_mono.raylet.scheduling.lease_manager import LeaseLimits, LeaseManager
from ray_mono.raylet.scheduling.leases import LeaseRequest
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.servicer import RayletServicer
from ray_mono.raylet.store_client import StoreClient
from ray_mono.raylet.withdrawals import Withdrawals
from ray_mono.raylet.worker.crowd_warnings import CrowdWarnings
from ray_mono.raylet.worker.death_reports import DeathReports
from ray_mono.raylet.worker.deaths import remove_socket
from ray_mono.raylet.worker.launcher import TemplateLauncher, WorkerExit, WorkerLauncher, WorkerOrder
from ray_mono.raylet.worker.worker_ender import WorkerEnder
from ray_mono.raylet.worker.worker_pool import PoolLimits, WorkerPool
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import Connection, Listener, RpcError, StatusCode, Transport

CHECK_EVERY_TICKS = 40
"""How often a running raylet recounts its books: some seconds, since that costs as much as there are leases."""
UNREGISTER_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class Raylet:
    """A node's raylet over an injected world: the same in production and in the simulator."""

    def __init__(
        self,
        config: RayletConfig,
        transport: Transport,
        launcher: WorkerLauncher,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.clock = clock
        self._transport = transport
        self._launcher = launcher
        self.tasks = BackgroundTasks(self._on_task_error)
        self.clients = Clients()
        self.cluster = ClusterView(config.node_id, config.spill_hold_s)
        self.ledger = ResourceLedger(config.total)
        pool_limits = PoolLimits(
            config.startup_concurrency,
            config.prestart,
            config.num_cpus,
            config.idle_worker_timeout_s,
            config.worker_register_timeout_s,
        )
        self.pool = WorkerPool(pool_limits, lambda: WorkerID.from_random(rng).binary())
        here = NodeSnapshot(config.node_id, config.host, config.port, config.total, config.total)
        limits = LeaseLimits(
            config.infeasible_warning_s, config.pending_warning_s, f"{config.session_dir}/logs"
        )
        self._crowd = CrowdWarnings(config.num_cpus, config.host)
        self.leases = LeaseManager(here, self.ledger, self.cluster, self.pool, limits)
        self.node = common_pb2.NodeInfo()
        self.gcs: GcsClient
        self.store: StoreClient | None = None
        self._answers = LeaseAnswers()
        self.deaths = DeathReports(self, launcher)
        self.reclaims = ReclaimStreams()
        self.withdrawals = Withdrawals(self)
        self._will_look = False
        # Ids of the workers that were started, until their exits.
        self._worker_ids: dict[int, bytes] = {}
        grace_s = config.worker_exit_grace_s
        self._ender = WorkerEnder(
            transport, launcher, self.clients, self.tasks, grace_s, self._refused_to_end
        )
        self._listeners: list[Listener] = []
        self._ended = asyncio.Event()
        self._end_reason = ""
        self._failure: BaseException | None = None
        self._is_stopping = False

    # ---- its life

    async def start(self) -> None:
        """Listens, finds its object manager and the GCS, and starts workers. Raises RpcError or OSError where that fails."""
        config = self.config
        await self._launcher.open(self._worker_exited, self.tasks)
        handlers = raylet_service_handlers(RayletServicer(self))
        tcp = await self._transport.serve(f"{config.host}:{config.port}", handlers)
        self._listeners.append(tcp)
        self.node = wire.node_info(config, int(tcp.address.rpartition(":")[2]), self.clock.wall_s())
        events = ClusterEvents(self)
        self.gcs = GcsClient(config, self._transport, self.clock, self.node, self._current_resources, events)
        self._listeners.append(await self._transport.serve(f"unix:{config.socket_path}", handlers))
        if config.store_socket:
            self.store = await StoreClient.connect(
                config.store_socket,
                config.pid,
                self._transport,
                self.clock,
                config.connect_timeout_s,
                self.end,
            )
            self.tasks.spawn(self.store.watch_pressure(config.host, self.apply), "store's pressure")
        self.tasks.spawn(self._keep_gcs(), "gcs")
        self.tasks.spawn(self._tick(), "tick")
        registered = self.tasks.spawn(self.gcs.until_registered(), "registration")
        ended = self.tasks.spawn(self._ended.wait(), "end")
        await asyncio.wait({registered, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not registered.done():
            raise RpcError(StatusCode.UNAVAILABLE, self._end_reason)
        logger.info("node %s: %s, listening at %s", config.node_id.hex(), config.total, self.addresses)

    @property
    def addresses(self) -> list[str]:
        """TCP, then Unix."""
        return [listener.address for listener in self._listeners]

    def end(self, reason: str) -> None:
        """Makes until_ended() return; the first reason counts. An empty one: it was told to."""
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
        self._answers.fail_all(RpcError(StatusCode.UNAVAILABLE, "the raylet is stopping"))
        if self.node.node_id:
            await self.gcs.unregister(self._end_reason, UNREGISTER_TIMEOUT_S)
        await self._launcher.close()
        for listener in self._listeners:
            await listener.close()
        if self.store is not None:
            self.store.close()
        await self.tasks.close()

    async def _keep_gcs(self) -> None:
        self.end(await self.gcs.run())

    async def _tick(self) -> None:
        ticks = 0
        while True:
            self.apply(self.leases.tick(self.clock.time_s()))
            self.apply(self._crowd.due(self.pool, self.ledger.count_blocked()))
            ticks += 1
            if ticks % CHECK_EVERY_TICKS == 0:
                self.leases.check_invariants()
            await asyncio.sleep(self.config.tick_period_s)

    def _on_task_error(self, exception: BaseException, task_name: str) -> None:
        """The books may be wrong: only a new raylet puts them right."""
        logger.critical("the task %s failed", task_name, exc_info=exception)
        self._failure = self._failure or exception
        self.end(f"its task {task_name} failed: {exception}")

    # ---- effects

    def apply(self, effects: list[Effect]) -> None:
        """Carries out what a machine decided."""
        for effect in effects:
            match effect:
                case Granted():
                    self._grant(effect)
                case SpilledBack() | Rejected():
                    self._answers.answer(effect.lease_id, wire.refusal_reply(effect))
                case StartWorker():
                    self._worker_ids[effect.startup_token] = effect.worker_id
                    self._launcher.start(WorkerOrder(effect.startup_token, effect.worker_id))
                case EndWorker():
                    self._ender.end(effect)
                case WarnJob():
                    logger.warning("job %s: %s", effect.job_id.hex(), effect.message)
                    self.gcs.publish_error(wire.error_info(effect, self.clock.wall_s()))
                case Unclaimed():
                    self.gcs.register_again()
                case ReclaimLease():
                    self.reclaims.tell(effect)
                case CollectGarbage():
                    self.gcs.ask_for_garbage()
                case _:
                    assert_never(effect)
        self.gcs.resources_changed()
        if self.leases.num_queued and not self._will_look:
            self._will_look = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._will_look = False
        if not self._is_stopping:
            self.apply(self.leases.look(self.clock.time_s()))
            self.withdrawals.look(self.clock.time_s())

    def _grant(self, effect: Granted) -> None:
        client = self.clients.get(effect.worker_id)
        if client is None:
            raise RuntimeError(f"worker {effect.worker_id.hex()} was granted and is not connected")
        self._answers.answer(effect.lease_id, wire.grant_reply(effect, client.address, client.pid))

    # ---- what requesters say

    def requester_of(self, connection: Connection) -> int:
        return self.clients.requester_of(connection, self._requester_gone)

    def _requester_gone(self, requester: int) -> None:
        self.apply(self.leases.requester_gone(requester, self.clock.time_s()))

    async def lease(self, request: LeaseRequest) -> raylet_pb2.RequestWorkerLeaseReply:
        """Answers when the lease is granted, refused or cancelled. Raises RpcError while stopping, and above lease_queue_max."""
        if self._is_stopping:
            raise RpcError(StatusCode.UNAVAILABLE, "the raylet is stopping")
        if self.leases.num_queued >= self.config.lease_queue_max:
            raise RpcError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{self.leases.num_queued} leases are queued here, and no more can be",
            )
        answer = self._answers.expect(request.lease_id)
        self.apply(self.leases.request(request, self.clock.time_s()))
        try:
            return await answer
        except asyncio.CancelledError:
            # The call was cancelled, or its connection ended: nobody will read the answer, whatever it is by now.
            if self._answers.forget(request.lease_id, answer):
                self.apply(self.leases.cancel(request.lease_id, self.clock.time_s()))
            elif answer.done() and not answer.cancelled() and answer.result().HasField("grant"):
                self.return_lease(request.lease_id)
            raise

    def cancel_lease(self, lease_id: bytes) -> bool:
        """Whether it was still waiting."""
        effects = self.leases.cancel(lease_id, self.clock.time_s())
        self.apply(effects)
        return bool(effects)

    def return_lease(self, lease_id: bytes, dispose: bool = False, leaving: bool = False) -> None:
        self.apply(self.leases.return_lease(lease_id, dispose, leaving, self.clock.time_s()))

    # ---- what workers and drivers say, and their ends

    def register(self, process: ClientProcess) -> None:
        """A worker or driver announced itself. Raises ValueError where it is refused."""
        if self._is_stopping:
            raise ValueError("the raylet is stopping")
        if self.clients.get(process.worker_id) is not None:
            raise ValueError(f"{process.worker_id.hex()} is registered already")
        effects: list[Effect] = []
        if not process.is_driver:
            now_s = self.clock.time_s()
            token, worker_id = process.startup_token, process.worker_id
            refusal, effects = self.leases.worker_registered(token, worker_id, process.pid, now_s)
            if refusal:
                self.apply(effects)
                raise ValueError(refusal)
        self.clients.add(process)
        process.connection.on_close(lambda reason: self._connection_ended(process, reason))
        self.gcs.add_worker(process.info(self.config.node_id))
        self.apply(effects)

    def worker_blocked(self, worker_id: bytes, lease_id: bytes, is_blocked: bool) -> None:
        self.apply(self.leases.worker_blocked(worker_id, lease_id, is_blocked, self.clock.time_s()))

    def kill_worker(self, worker_id: bytes, force: bool, cause: common_pb2.DeathCause) -> None:
        client = self.clients.get(worker_id)
        if client is not None:
            client.ordered_cause.CopyFrom(cause)
        reason = cause.message or "it was told to"
        self.apply(self.leases.kill_worker(worker_id, force, reason, self.clock.time_s()))

    def _refused_to_end(self, worker_id: bytes) -> None:
        self.apply(self.leases.worker_refused_to_end(worker_id, self.clock.time_s()))

    def _connection_ended(self, process: ClientProcess, reason: str) -> None:
        if self.clients.get(process.worker_id) is process and not self._is_stopping:
            self._died(process, reason)

    def _worker_exited(self, exit_: WorkerExit) -> None:
        worker_id = self._worker_ids.pop(exit_.startup_token, b"")
        self.deaths.exited(exit_)
        process = self.clients.get(worker_id)
        if process is not None:
            self.tasks.spawn(self.deaths.hear_out(process), f"hear out {worker_id.hex()[:8]}")
        else:
            self.apply(self.leases.worker_died(worker_id, exit_.message, self.clock.time_s()))

    def _died(self, process: ClientProcess, reason: str) -> None:
        self.clients.remove(process.worker_id)
        worker = self.pool.get(process.worker_id)
        end_reason = worker.end_reason if worker is not None else ""
        if worker is not None and worker.binding is not None:
            process.job_id = worker.binding.job_id
            if self.leases.is_for_tasks(worker):
                process.note_what_ran()
        if process.is_driver:
            remove_socket(process, self.config.session_dir)
            self.apply(self.leases.job_finished(process.job_id, self.clock.time_s()))
        else:
            self.apply(self.leases.worker_died(process.worker_id, reason, self.clock.time_s()))
        self.free_owned_by(process.worker_id)
        name = f"report the death of {process.worker_id.hex()[:8]}"
        self.tasks.spawn(self.deaths.report(process, reason, end_reason), name)

    def free_owned_by(self, worker_id: bytes) -> None:
        """Has the store drop what a process owned that ended."""
        if self.store is not None:
            self.store.free_owned_by(worker_id)

    # ---- what others may know

    def shown_available(self) -> ResourceSet:
        return wire.shown_available(self.ledger.available)

    async def _current_resources(self) -> common_pb2.NodeResources:
        available = self.shown_available()
        if self.store is not None:
            available = await self.store.without_used(available)
        return wire.node_resources(self.config, available, self.leases.queued_demand())

    def dump(self) -> dict[str, Any]:
        """Ledger, leases with the reason why each waits, pool and cluster view, as JSON can carry it."""
        return dump_raylet(self)


async def serve(service: Service, arguments: Arguments) -> None:
    config = arguments.config
    launcher = TemplateLauncher(
        template_command(arguments), "logs/worker-", arguments.exit_grace_s, arguments.template_fd
    )
    raylet = Raylet(
        config, FramedTransport(arguments.secret, config.session_dir), launcher, SystemClock(), system_rng()
    )

    async def end() -> None:
        service.stop(await raylet.until_ended() or "it was told to by Shutdown")

    try:
        await raylet.start()
        service.on_dump(raylet.dump)
        service.tasks.spawn(end(), "raylet")
        service.announce_ready({"address": raylet.addresses[0], "unix_path": config.socket_path})
        await service.until_stopped()
    finally:
        await raylet.stop()


def main() -> int:
    arguments = parse_arguments()
    return run_service("raylet", functools.partial(serve, arguments=arguments), arguments.common)


if __name__ == "__main__":
    sys.exit(main())
