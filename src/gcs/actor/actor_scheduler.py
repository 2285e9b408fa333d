"""The shell that finds a worker for each actor: one task for each that waits for a place.

`actor_placement.choose_node` names the node to ask, `lease_client.py` leases a worker there, and the creation
is pushed straight to that worker. What becomes of it goes to the actor manager as an event (through `apply`).
The manager's StopPlacing ends the task here, whatever it waits for.

Two waits have no bound of their own, since they may rightly take for ever: for a place that nothing has free,
and for the user's constructor. They end with the actor, the node, or the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ray_mono.common.backoff import Backoff, pause_after_s
from ray_mono.common.ids import ActorID, NodeID, WorkerID
from ray_mono.common.our_bug import check
from ray_mono.common.scheduling.argument_nodes import node_with_most
from ray_mono.common.scheduling.policy import feasible, why_never_there
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import StrategyKind
from ray_mono.gcs.actor.actor_effects import Effect, Place
from ray_mono.gcs.actor.actor_ender import ActorEnder
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_placement import Demand, choose_node, explain, moved_to, strategy_at, told_held
from ray_mono.gcs.actor.actor_rows import demand_of
from ray_mono.gcs.actor.actor_state import ActorLife, Death, DeathKind
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.lease_client import LeaseClient, LeasedWorker, NotLeased, reason_of
from ray_mono.gcs.node_fences import NodeFences
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)


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
        fences: NodeFences,
        leases: LeaseClient,
        ender: ActorEnder,
        apply: Callable[[list[Effect]], None],
        warn_driver: Callable[[common_pb2.ErrorInfo], None],
    ) -> None:
        self._environment = environment
        self._config = environment.config
        self._actors = actors
        self._table = table
        self._nodes = nodes
        self._fences = fences
        self._leases = leases
        self._ender = ender
        self._apply = apply
        self._warn_driver = warn_driver
        self._placing: dict[ActorID, asyncio.Task[None]] = {}
        # Of these, those for which a raylet is asked, and for what.
        self._asking: dict[ActorID, raylet_pb2.RequestWorkerLeaseRequest] = {}
        # Of these, those that pause first, and until when.
        self._pausing: dict[ActorID, float] = {}
        self._nodes_changed = asyncio.Event()
        # The nodes that the last actors went to, by strategy.
        self._last_node_ids: dict[StrategyKind, bytes] = {}
        # (job, class, demand) that the driver was warned of.
        self._warned: dict[tuple[bytes, str, ResourceSet], None] = {}

    # ---- what the manager's effects ask for

    def place(self, effect: Place) -> None:
        """Begins when the row is durable. It is being placed from now on: whoever finds an actor that waits,
        and that nobody places, has it placed."""
        durable = asyncio.Event()
        self._environment.writes.after_commit(durable.set)
        delay_s = pause_after_s(
            effect.previous_deaths - 1, self._config.restart_backoff_s, self._config.restart_backoff_max_s
        )
        delay_s = max(delay_s, effect.pause_s)
        self._spawn(effect.actor_id, self._place_when(durable, effect, delay_s))

    def go_on_creating(self, actor_id: ActorID, incarnation: int) -> None:
        """On the worker that an earlier GCS leased."""
        self._spawn(actor_id, self._go_on_creating(actor_id, incarnation))

    def _spawn(self, actor_id: ActorID, coroutine: Coroutine[Any, Any, None]) -> None:
        check(actor_id not in self._placing, f"actor {actor_id.hex()} is being placed, and is placed again")
        task = self._environment.tasks.spawn(coroutine, f"place actor {actor_id.hex()}")
        self._placing[actor_id] = task
        task.add_done_callback(
            lambda task: self._placing.pop(actor_id) if self._placing.get(actor_id) is task else None
        )

    def stop(self, actor_id: ActorID) -> None:
        task = self._placing.pop(actor_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def nodes_changed(self) -> None:
        """A node joined, has other totals, or has ended: actors that wait for that look again."""
        self._nodes_changed.set()
        self._nodes_changed = asyncio.Event()

    def forget_job(self, job_id: bytes) -> None:
        self._warned = {key: None for key in self._warned if key[0] != job_id}

    def demands_to_come(self) -> list[Demand]:
        """Of actors that are being placed, and for which no raylet is asked yet."""
        placing = (self._actors.get(actor_id) for actor_id in self._placing if actor_id not in self._asking)
        return [
            demand_of(self._table.spec(actor.actor_id))
            for actor in placing
            if actor is not None and actor.is_waiting_for_place and actor.worker_id is None
        ]

    def lease_wanted(self, actor_id: ActorID) -> bytes:
        """The id of the lease that a raylet is asked for; empty where none is."""
        wanted = self._asking.get(actor_id)
        return b"" if wanted is None else wanted.lease_id

    def pause_left_s(self, actor_id: ActorID) -> float:
        """How much longer it pauses, since its last processes ended early."""
        return max(0.0, self._pausing.get(actor_id, 0.0) - self._environment.clock.time_s())

    def is_placing(self, actor_id: ActorID) -> bool:
        return actor_id in self._placing

    def count_placing(self) -> int:
        return len(self._placing)

    # ---- one actor

    async def _place_when(self, durable: asyncio.Event, effect: Place, delay_s: float) -> None:
        await durable.wait()
        self._pausing[effect.actor_id] = self._environment.clock.time_s() + delay_s
        try:
            await asyncio.sleep(delay_s)
        finally:
            del self._pausing[effect.actor_id]
        await self._place(effect.actor_id, effect.incarnation)

    async def _place(self, actor_id: ActorID, incarnation: int) -> None:
        await self._until_last_ended(actor_id)
        demand = demand_of(self._table.spec(actor_id))
        waits_for_room = False
        since_s = self._environment.clock.time_s()
        backoff = Backoff(self._config.lease_retry_period_s, self._config.lease_retry_period_max_s)
        while True:
            try:
                lease = await self._lease(actor_id, demand, since_s)
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
                pause_s = backoff.next_s()
                logger.info("actor %s: %s; trying again in %.1f s", actor_id.hex(), gone, pause_s)
            await asyncio.sleep(pause_s)

    async def _go_on_creating(self, actor_id: ActorID, incarnation: int) -> None:
        grant = self._table.grant(actor_id)
        node = self._nodes.alive(NodeID(grant.worker.node_id))
        if node is None:
            death = Death(DeathKind.NODE_DIED, "its node died while it was created")
            worker_id = WorkerID(grant.worker.worker_id)
            self._apply(self._actors.worker_died(worker_id, death, self._environment.clock.wall_s()))
            return
        with contextlib.suppress(PlaceGone, NoRoomThere):
            lease = LeasedWorker(raylet_address(node), grant)
            await self._construct(actor_id, incarnation, lease, waits_for_room=False)
            return
        await self._place(actor_id, incarnation)

    async def _until_last_ended(self, actor_id: ActorID) -> None:
        """Waits until the actor's last worker has ended, also where its node is only silent, or is back at a
        head that did not know that. Bounded by the node's lease."""
        clock = self._environment.clock
        await self._ender.until_killed(actor_id)
        while (actor := self._actors.get(actor_id)) is not None:
            if actor.lost_on is not None:
                await self._leases.until_freed_at(actor.lost_on)
            left_s = self._fences.left_s(actor.lost_on, clock.time_s())
            if not left_s:
                return
            node = "" if actor.lost_on is None else actor.lost_on.hex()
            reason = f"Node {node}, where it ran, is silent and may run it for up to {left_s:.0f} s more."
            self._apply(self._actors.waits_because(actor_id, reason))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._nodes_changed.wait()

    def may_run_s(self, node_id: NodeID) -> float:
        """How much longer actors may run on a dead node."""
        return self._fences.left_s(node_id, self._environment.clock.time_s())

    # ---- the lease

    async def _lease(self, actor_id: ActorID, demand: Demand, since_s: float) -> LeasedWorker:
        """Waits until some raylet grants a worker. since_s: it has been placed. Raises PlaceGone,
        NoPlaceEver."""
        node_id = await self._chosen_node(actor_id, demand)
        spec = self._table.spec(actor_id)
        wanted = raylet_pb2.RequestWorkerLeaseRequest(
            job_id=spec.job_id,
            resources=spec.resources,
            placement_resources=demand.resources.to_proto(),
            strategy=strategy_at(demand, node_id),
            runtime_env=spec.runtime_env,
            for_actor=True,
            actor_id=actor_id.binary(),
            task_name=spec.name,
            depth=spec.depth,
            is_retriable=spec.actor_creation.max_restarts != 0,
            owner_id=spec.caller.worker_id,
            owner_node_id=spec.caller.node_id,
            waited_s=self._environment.clock.time_s() - since_s,
        )
        self._asking[actor_id] = wanted
        try:
            return await self._leases.lease(
                node_id, wanted, demand.resources, lambda: self._tell_why(actor_id, demand)
            )
        except NotLeased as error:
            never = None if error.rejection is None else _death_by(error.rejection)
            if never is not None:
                raise NoPlaceEver(never) from error
            raise PlaceGone(str(error)) from error
        finally:
            del self._asking[actor_id]

    async def _chosen_node(self, actor_id: ActorID, demand: Demand) -> NodeID:
        """The node to ask. Where the demand fits none it waits for one to join, and says so after a while.

        Raises NoPlaceEver.
        """
        tell_at_s: float | None = asyncio.get_running_loop().time() + self._config.pending_warning_s
        while True:
            self._check_affinity(demand)
            kind = demand.strategy.kind
            node_id = choose_node(demand, self._leases.in_order(), self._last_node_ids.get(kind, b""))
            if node_id is not None:
                self._last_node_ids[kind] = node_id.binary()
                return node_id
            if tell_at_s is None:
                self._tell_why(actor_id, demand)
            try:
                async with asyncio.timeout_at(tell_at_s):
                    await self._nodes_changed.wait()
            except TimeoutError:
                tell_at_s = None

    def _check_affinity(self, demand: Demand) -> None:
        """Raises NoPlaceEver."""
        wanted = demand.strategy.only_node_id
        node = None if wanted is None else self._nodes.alive(NodeID(wanted))
        if wanted is not None and (node is None or node.HasField("drain")):
            state = "not in this cluster" if node is None else "drained"
            message = (
                f"it has to live on node {wanted.hex()}, which is {state} (node affinity without soft=True)"
            )
            raise NoPlaceEver(Death(DeathKind.UNSCHEDULABLE, message))
        if wanted is None:
            return
        # It may be one of an earlier head that has not come back yet.
        named = self._leases.in_order().at(wanted)
        if named and not feasible(demand.resources, named, demand.strategy.selectors):
            message = f"it {why_never_there(demand.resources, demand.strategy, named[0])}"
            raise NoPlaceEver(Death(DeathKind.UNSCHEDULABLE, message))

    # ---- the creation

    async def _create(
        self, actor_id: ActorID, incarnation: int, lease: LeasedWorker, waits_for_room: bool
    ) -> None:
        """Creates the actor on the worker and tells the manager what came of it.

        Raises PlaceGone, NoRoomThere.
        """
        worker = lease.grant.worker
        worker_id = WorkerID(worker.worker_id)
        effects = self._actors.leased(
            actor_id, incarnation, NodeID(worker.node_id), worker_id, asyncio.get_running_loop().time()
        )
        if not effects:
            self._leases.free(lease)
            return
        self._table.set_place(actor_id, lease.grant)
        self._apply(effects)
        # A GCS that starts again has to know of this worker before the worker knows of the actor.
        await self._environment.writes.flushed()
        await self._construct(actor_id, incarnation, lease, waits_for_room)

    async def _construct(
        self, actor_id: ActorID, incarnation: int, lease: LeasedWorker, waits_for_room: bool
    ) -> None:
        """As _create, on a worker that the actor's row names."""
        worker_id = WorkerID(lease.grant.worker.worker_id)
        try:
            reply = await self._push(actor_id, incarnation, lease, waits_for_room)
        except RpcError as error:
            # The worker may live on behind a broken connection: it has to be ended before another one begins.
            await asyncio.shield(self._leases.free(lease))
            # The raylet knows the exit status, and its report ends this task.
            await asyncio.sleep(self._config.death_report_grace_s)
            death = Death(
                DeathKind.WORKER_DIED, f"the worker ended while it created the actor: {error.message}"
            )
            self._apply(self._actors.worker_died(worker_id, death, self._environment.clock.wall_s()))
            return
        if reply.status == core_worker_pb2.PushTaskReply.DONE and reply.is_application_error:
            if not reply.worker_exiting:
                self._leases.free(lease)
            self._apply(
                self._actors.creation_failed(
                    actor_id, _creation_death(reply), self._environment.clock.wall_s()
                )
            )
        elif reply.status == core_worker_pb2.PushTaskReply.DONE:
            self._table.set_repr_name(actor_id, reply.repr_name)
            self._apply(self._actors.created(actor_id, worker_id))
        else:
            self._leases.free(lease)
            self._apply(self._actors.given_back(actor_id, worker_id))
            if reply.status == core_worker_pb2.PushTaskReply.NO_ROOM:
                raise NoRoomThere
            status = core_worker_pb2.PushTaskReply.Status.Name(reply.status)
            raise PlaceGone(f"worker {worker_id.hex()} did not start the creation: {status}")

    async def _push(
        self, actor_id: ActorID, incarnation: int, lease: LeasedWorker, waits_for_room: bool
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
            if (actor := self._actors.get(actor_id)) is not None:
                num_preempted = actor.num_restarts_preempted
                spec.actor_creation.num_restarts_due_to_node_preemption = num_preempted
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

    # ---- explanations

    def _tell_why(self, actor_id: ActorID, demand: Demand) -> None:
        """Writes into the row why the actor waits, and warns its driver once for each class and demand."""
        actor = self._actors.get(actor_id)
        if actor is None:
            return
        registration = actor.registration
        shortage = explain(registration.class_name, demand, list(self._nodes.placements))
        self._apply(self._actors.waits_because(actor_id, shortage.message))
        key = (registration.job_id.binary(), registration.class_name, demand.resources)
        if shortage.is_for_the_driver and key not in self._warned:
            self._warned[key] = None
            held = told_held(self._held_by_living(), demand)
            holders = f" Living actors hold {held} until they end." if held else ""
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
            if actor.state is ActorLife.ALIVE:
                held = held + ResourceSet.from_proto(self._table.spec(actor.actor_id).resources)
        return held


def _death_by(rejection: raylet_pb2.Rejection) -> Death | None:
    """The actor's death, where no raylet will ever answer otherwise; None where the next may."""
    if rejection.kind == raylet_pb2.Rejection.RUNTIME_ENV_FAILED:
        message = f"its runtime environment failed: {reason_of(rejection)}"
        return Death(DeathKind.CREATION_FAILED, message)
    if rejection.kind == raylet_pb2.Rejection.INFEASIBLE:
        return Death(DeathKind.UNSCHEDULABLE, reason_of(rejection))
    if rejection.kind == raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED:
        return Death(DeathKind.PLACEMENT_GROUP_REMOVED, reason_of(rejection))
    if rejection.kind == raylet_pb2.Rejection.JOB_FINISHED:
        return Death(DeathKind.JOB_FINISHED, f"its job finished: {reason_of(rejection)}")
    return None


def _creation_death(reply: core_worker_pb2.PushTaskReply) -> Death:
    error = b""
    if reply.returns and reply.returns[0].HasField("value"):
        error = reply.returns[0].value.SerializeToString()
    return Death(DeathKind.CREATION_FAILED, "its constructor raised an exception", error=error)
