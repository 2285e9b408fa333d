"""The shell that finds actors a worker: one task for each actor that waits for a place.

It asks the raylet that `actor_placement.choose_node` names for a lease, follows at most one spillback from there, and pushes the
creation straight to the worker. What becomes of it goes to the actor manager as an event (through `apply`); the manager's StopPlacing
ends the task here, whatever it was waiting for. Nothing waits without a bound of its own but what may rightly take for ever: a place
that nothing has free, and the user's constructor. Those end with the actor, the node, or the connection.

A lease outlives the wish for it when a grant is already under way, so requests are never cancelled here: `_free` cancels the lease at
the raylet, and gives back the worker if it was too late for that, and asks until it is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray_mono.common.argument_nodes import node_with_most
from ray_mono.common.ids import ActorID, NodeID, WorkerID
from ray_mono.common.resources import ResourceSet
from ray_mono.gcs.actor.actor_effects import Effect
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_rows import demand_of, strategy_of
from ray_mono.gcs.actor.actor_state import ActorState, Death, DeathKind
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.actor_placement import Demand, PlacementNode, choose_node, explain, moved_to
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)

LEASE_ID_SIZE_BYTES = 16


@dataclass(frozen=True)
class Lease:
    """A worker granted by a raylet."""

    raylet_address: str
    grant: raylet_pb2.Grant


class PlaceGone(Exception):
    """This attempt came to nothing; the message says why. The next may fare better."""


class NoRoomThere(Exception):
    """An argument of the constructor has no room on the node; it did not run."""


class NoPlaceEver(Exception):
    """Asking again is of no use."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.message)
        self.death = death


class ActorScheduler:
    """Places actors. `apply(effects)` hands the manager's answers to whoever carries them out."""

    def __init__(
        self,
        environment: Environment,
        actors: ActorManager,
        table: ActorTable,
        nodes: NodeManager,
        apply: Callable[[list[Effect]], None],
        warn_driver: Callable[[common_pb2.ErrorInfo], None],
    ) -> None:
        self._environment = environment
        self._config = environment.config
        self._actors = actors
        self._table = table
        self._nodes = nodes
        self._apply = apply
        self._warn_driver = warn_driver
        self._placing: dict[ActorID, asyncio.Task[None]] = {}
        # Asked of each node, and not answered yet: not in its reports.
        self._asked: dict[NodeID, dict[ActorID, ResourceSet]] = {}
        # Invariant: the leases of `_asked`. Whatever else an actor has been granted is its worker's by now, or is being freed.
        self._awaited: set[bytes] = set()
        self._nodes_changed = asyncio.Event()
        # (job, class, demand) that the driver was warned of.
        self._warned: dict[tuple[bytes, str, ResourceSet], None] = {}

    # ---- what the manager's effects ask for

    def place(self, actor_id: ActorID, incarnation: int, previous_deaths: int) -> None:
        self.stop(actor_id)
        delay_s = 0.0
        if previous_deaths > 1:
            delay_s = min(
                self._config.restart_backoff_s * 2 ** (previous_deaths - 2),
                self._config.restart_backoff_max_s,
            )
        task = self._environment.tasks.spawn(
            self._place(actor_id, incarnation, delay_s), f"place actor {actor_id.hex()}"
        )
        self._placing[actor_id] = task
        task.add_done_callback(
            lambda task: self._placing.pop(actor_id) if self._placing.get(actor_id) is task else None
        )

    def stop(self, actor_id: ActorID) -> None:
        task = self._placing.pop(actor_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def nodes_changed(self) -> None:
        """A node joined, or has other totals: actors that fitted nowhere look again."""
        self._nodes_changed.set()
        self._nodes_changed = asyncio.Event()

    def forget_job(self, job_id: bytes) -> None:
        self._warned = {key: None for key in self._warned if key[0] != job_id}

    def awaits(self, lease_id: bytes) -> bool:
        """Whether this GCS asked for the lease, and has no answer yet."""
        return lease_id in self._awaited

    def count_placing(self) -> int:
        return len(self._placing)

    # ---- one actor

    async def _place(self, actor_id: ActorID, incarnation: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        demand = demand_of(self._table.spec(actor_id))
        waits_for_room = False
        retry_period_s = self._config.lease_retry_period_s
        while True:
            try:
                lease = await self._lease(actor_id, demand)
                await self._create(actor_id, incarnation, lease, waits_for_room)
                return
            except NoRoomThere:
                waits_for_room = True
                args = self._table.spec(actor_id).args
                demand = moved_to(demand, node_with_most(args, except_node_id=lease.grant.worker.node_id))
                continue
            except NoPlaceEver as never:
                self._apply(
                    self._actors.creation_failed(actor_id, never.death, self._environment.clock.wall_s())
                )
                return
            except PlaceGone as gone:
                logger.info("actor %s: %s; trying again in %.1f s", actor_id.hex(), gone, retry_period_s)
            await asyncio.sleep(retry_period_s)
            retry_period_s = min(2 * retry_period_s, self._config.lease_retry_period_max_s)

    # ---- the lease

    async def _lease(self, actor_id: ActorID, demand: Demand) -> Lease:
        """Waits until some raylet grants a worker. Raises PlaceGone, NoPlaceEver."""
        node_id = await self._chosen_node(actor_id, demand)
        info = self._nodes.alive(node_id)
        if info is None:
            raise PlaceGone(f"node {node_id.hex()} died")
        address = f"{info.host}:{info.node_manager_port}"
        reply = await self._ask(actor_id, demand, node_id, address, is_spilled=False)
        if reply.HasField("spillback"):
            spillback = reply.spillback
            address = f"{spillback.host}:{spillback.port}"
            reply = await self._ask(actor_id, demand, NodeID(spillback.node_id), address, is_spilled=True)
        if reply.HasField("grant"):
            return Lease(address, reply.grant)
        rejection = reply.rejection
        why = rejection.message or raylet_pb2.Rejection.Kind.Name(rejection.kind)
        if rejection.kind == raylet_pb2.Rejection.RUNTIME_ENV_FAILED:
            raise NoPlaceEver(Death(DeathKind.CREATION_FAILED, f"its runtime environment failed: {why}"))
        if rejection.kind == raylet_pb2.Rejection.JOB_FINISHED:
            raise NoPlaceEver(Death(DeathKind.JOB_FINISHED, f"its job finished: {why}"))
        raise PlaceGone(f"the raylet at {address} did not grant a worker: {why}")

    async def _chosen_node(self, actor_id: ActorID, demand: Demand) -> NodeID:
        """The node to ask; where the demand fits none, waits for one to join, and says so after a while. Raises NoPlaceEver."""
        tell_at_s: float | None = asyncio.get_running_loop().time() + self._config.pending_warning_s
        while True:
            self._check_affinity(demand)
            node_id = choose_node(demand, self._view())
            if node_id is not None:
                return node_id
            if tell_at_s is None:
                self._tell_why(actor_id, demand)
            try:
                async with asyncio.timeout_at(tell_at_s):
                    await self._nodes_changed.wait()
            except TimeoutError:
                tell_at_s = None

    def _check_affinity(self, demand: Demand) -> None:
        wanted = demand.affinity_node_id
        if wanted is not None and not demand.affinity_is_soft and self._nodes.alive(wanted) is None:
            message = f"it has to live on node {wanted.hex()}, which is not in this cluster (node affinity without soft=True)"
            raise NoPlaceEver(Death(DeathKind.UNSCHEDULABLE, message))

    def _view(self) -> list[PlacementNode]:
        """The nodes, less what they have been asked for and may not have counted yet."""
        view = []
        for node in self._nodes.placement_nodes():
            for asked in self._asked.get(node.node_id, {}).values():
                node = replace(node, available=node.available - asked)
            view.append(node)
        return view

    async def _ask(
        self, actor_id: ActorID, demand: Demand, node_id: NodeID, address: str, is_spilled: bool
    ) -> raylet_pb2.RequestWorkerLeaseReply:
        """One lease request, as long as it waits in the raylet's queue; says why from time to time. Raises PlaceGone."""
        spec = self._table.spec(actor_id)
        request = raylet_pb2.RequestWorkerLeaseRequest(
            lease_id=self._environment.rng.randbytes(LEASE_ID_SIZE_BYTES),
            job_id=spec.job_id,
            resources=spec.resources,
            placement_resources=demand.resources.to_proto(),
            strategy=strategy_of(demand, spec),
            runtime_env=spec.runtime_env,
            for_actor=True,
            actor_id=actor_id.binary(),
            grant_or_reject=is_spilled,
            task_name=spec.name,
        )
        self._asked.setdefault(node_id, {})[actor_id] = demand.resources
        self._awaited.add(request.lease_id)
        call = self._environment.tasks.spawn(
            self._call_lease(address, request), f"lease for actor {actor_id.hex()}"
        )
        try:
            pause_s = self._config.pending_warning_s
            while not (await asyncio.wait({call}, timeout=pause_s))[0]:
                self._tell_why(actor_id, demand)
                pause_s = 2 * pause_s
        except asyncio.CancelledError:
            self._free(node_id, address, request.lease_id)
            raise
        finally:
            self._awaited.remove(request.lease_id)
            asked = self._asked[node_id]
            del asked[actor_id]
            if not asked:
                del self._asked[node_id]
        outcome = call.result()
        if isinstance(outcome, RpcError):
            self._free(node_id, address, request.lease_id)
            raise PlaceGone(f"the raylet at {address} did not answer the lease request: {outcome}")
        return outcome

    async def _call_lease(
        self, address: str, request: raylet_pb2.RequestWorkerLeaseRequest
    ) -> raylet_pb2.RequestWorkerLeaseReply | RpcError:
        """A failure is a result: it belongs to the actor's task, which may have gone."""
        try:
            raylet = raylet_rpc.RayletServiceAsyncStub(await self._environment.peers.channel(address))
            return await raylet.RequestWorkerLease(request)
        except RpcError as error:
            return error

    def _free(self, node_id: NodeID, address: str, lease_id: bytes) -> asyncio.Task[None]:
        """Sees to it that a lease that nobody wants is not held: cancelled, or its worker ended, since it may hold half an actor."""
        return self._environment.tasks.spawn(
            self._free_lease(node_id, address, lease_id), f"free lease {lease_id.hex()}"
        )

    async def _free_lease(self, node_id: NodeID, address: str, lease_id: bytes) -> None:
        """Until the raylet has answered or its node is dead: nobody else would ever end this lease."""
        while self._nodes.alive(node_id) is not None:
            try:
                raylet = raylet_rpc.RayletServiceAsyncStub(await self._environment.peers.channel(address))
                cancel = raylet_pb2.CancelWorkerLeaseRequest(lease_id=lease_id)
                if not (
                    await raylet.CancelWorkerLease(cancel, timeout_s=self._config.connect_timeout_s)
                ).cancelled:
                    dispose = raylet_pb2.ReturnWorkerRequest(lease_id=lease_id, dispose=True)
                    await raylet.ReturnWorker(dispose, timeout_s=self._config.connect_timeout_s)
                return
            except RpcError as error:
                logger.info("lease %s at %s is not free yet: %s", lease_id.hex(), address, error)
            await asyncio.sleep(self._config.lease_retry_period_s)

    # ---- the creation

    async def _create(self, actor_id: ActorID, incarnation: int, lease: Lease, waits_for_room: bool) -> None:
        """Creates the actor on the worker and tells the manager what came of it. Raises PlaceGone, NoRoomThere."""
        worker = lease.grant.worker
        worker_id = WorkerID(worker.worker_id)
        effects = self._actors.leased(actor_id, incarnation, NodeID(worker.node_id), worker_id)
        if not effects:
            self._give_back(lease)
            return
        self._table.set_place(actor_id, worker, lease.grant.worker_pid)
        self._apply(effects)
        # A GCS that starts again has to know of this worker before the worker knows of the actor.
        await self._environment.writes.flushed()
        try:
            reply = await self._push(actor_id, incarnation, lease, waits_for_room)
        except RpcError as error:
            # The worker may live on behind a connection that broke: it is on its way out before another begins.
            await asyncio.shield(self._give_back(lease))
            # The raylet knows the exit status, and its report ends this task.
            await asyncio.sleep(self._config.death_report_grace_s)
            death = Death(
                DeathKind.WORKER_DIED, f"the worker ended while it created the actor: {error.message}"
            )
            self._apply(self._actors.worker_died(worker_id, death, self._environment.clock.wall_s()))
            return
        if reply.status == core_worker_pb2.PushTaskReply.DONE and reply.is_application_error:
            if not reply.worker_exiting:
                self._give_back(lease)
            self._apply(
                self._actors.creation_failed(
                    actor_id, _creation_death(reply), self._environment.clock.wall_s()
                )
            )
        elif reply.status == core_worker_pb2.PushTaskReply.DONE:
            self._table.set_repr_name(actor_id, reply.repr_name)
            self._apply(self._actors.created(actor_id, worker_id))
        else:
            self._give_back(lease)
            self._apply(self._actors.given_back(actor_id, worker_id))
            if reply.status == core_worker_pb2.PushTaskReply.NO_ROOM:
                raise NoRoomThere
            status = core_worker_pb2.PushTaskReply.Status.Name(reply.status)
            raise PlaceGone(f"worker {worker_id.hex()} did not start the creation: {status}")

    async def _push(
        self, actor_id: ActorID, incarnation: int, lease: Lease, waits_for_room: bool
    ) -> core_worker_pb2.PushTaskReply:
        """Runs the constructor, as long as it takes. Raises RpcError where the worker ended first."""
        worker = lease.grant.worker
        channel = await self._environment.transport.connect(
            f"{worker.host}:{worker.port}", self._config.connect_timeout_s
        )
        try:
            spec = common_pb2.TaskSpec()
            spec.CopyFrom(self._table.spec(actor_id))
            spec.attempt = incarnation
            request = core_worker_pb2.PushTaskRequest(
                spec=spec,
                intended_worker_id=worker.worker_id,
                resource_ids=lease.grant.resource_ids,
                lease_id=lease.grant.lease_id,
                waits_for_room=waits_for_room,
            )
            reply = await core_worker_rpc.CoreWorkerServiceAsyncStub(channel).PushTask(request)
            if (
                reply.status == core_worker_pb2.PushTaskReply.DONE
                and reply.worker_exiting
                and not reply.is_application_error
            ):
                raise RpcError(StatusCode.UNAVAILABLE, "the constructor ended its worker")
            return reply
        finally:
            channel.close()

    def _give_back(self, lease: Lease) -> asyncio.Task[None]:
        return self._free(NodeID(lease.grant.worker.node_id), lease.raylet_address, lease.grant.lease_id)

    # ---- explanations

    def _tell_why(self, actor_id: ActorID, demand: Demand) -> None:
        """Writes into the row why the actor waits, and warns its driver once for each class and demand."""
        actor = self._actors.get(actor_id)
        if actor is None:
            return
        registration = actor.registration
        shortage = explain(registration.class_name, demand, self._nodes.placement_nodes())
        self._apply(self._actors.waits_because(actor_id, shortage.message))
        key = (registration.job_id.binary(), registration.class_name, demand.resources)
        if shortage.is_for_the_driver and key not in self._warned:
            self._warned[key] = None
            held = self._held_by_living()
            holders = f" Living actors hold {held.beside(demand.resources)} until they end." if held else ""
            self._warn_driver(
                common_pb2.ErrorInfo(
                    job_id=registration.job_id.binary(),
                    type="scheduling",
                    message=shortage.message + holders,
                    time_s=self._environment.clock.wall_s(),
                )
            )

    def _held_by_living(self) -> ResourceSet:
        held = ResourceSet()
        for actor in self._actors.all():
            if actor.state is ActorState.ALIVE:
                held = held + ResourceSet.from_proto(self._table.spec(actor.actor_id).resources)
        return held


def _creation_death(reply: core_worker_pb2.PushTaskReply) -> Death:
    error = b""
    if reply.returns and reply.returns[0].HasField("value"):
        error = reply.returns[0].value.SerializeToString()
    return Death(DeathKind.CREATION_FAILED, "its constructor raised an exception", error=error)
