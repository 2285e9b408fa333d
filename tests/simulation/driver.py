"""A simulated driver: submits tasks the way the core worker does, and stands in for it.

Per shape of resources it keeps a queue of tasks and asks its raylet for leases while tasks wait, at most
LEASE_REQUESTS_MAX at a time; goes to the node that a spillback names; pushes one task at a time to each
leased worker; lingers a moment on an empty queue; gives the worker back; cancels requests that it needs no
more. A worker that cannot be reached, or whose connection ends, costs its task an attempt, and is given back
as broken. Nodes that the GCS declares dead count as gone whatever their connections say.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any

from ray_mono.common.ids import TaskID, WorkerID, child_task_id, nil_actor_of, task_seed
from ray_mono.common.resources import ResourceSet
from ray_mono.protobuf import (
    common_pb2,
    core_worker_pb2,
    core_worker_rpc,
    gcs_pb2,
    gcs_rpc,
    raylet_pb2,
    raylet_rpc,
)
from ray_mono.rpc.surface import AsyncChannel, RpcError
from tests.simulation.actors import ActorScript, Owner, SimActor
from tests.simulation.checkers import HeldLease, Journal
from tests.simulation.process import SimProcess
from tests.simulation.submission import PendingTask, Raylet, ShapeQueue
from tests.simulation.workers import TaskScript
from tests.simulation.world import World

logger = logging.getLogger(__name__)

LEASE_REQUESTS_MAX = 8
CONNECT_TIMEOUT_S = 5.0
GCS_TIMEOUT_S = 10.0
LINGER_S = 0.01
RETRY_PAUSE_S = 0.1


class SimDriver:
    """One driver process. `start` and then `submit`; `stop` at the end."""

    def __init__(
        self,
        world: World,
        process: SimProcess,
        gcs_address: str,
        raylet_socket: str,
        node_id: bytes,
        journal: Journal,
    ) -> None:
        self.process = process
        self.job_id = b""
        self.node_id = node_id
        self.worker_id = WorkerID.from_random(world.rng(f"{process.name} id")).binary()
        self._rng: random.Random = world.rng(f"{process.name} lease ids")
        self._world = world
        self._transport = world.transport(process)
        self._gcs_address = gcs_address
        self._raylet_address = f"unix:{raylet_socket}"
        self._journal = journal
        self._counter = 0
        self._shapes: dict[ResourceSet, ShapeQueue] = {}
        self._raylets: dict[str, Raylet] = {}
        self._workers_of_node: dict[bytes, dict[AsyncChannel, None]] = {}
        self._dead_nodes: dict[bytes, None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._is_stopping = False

    # ---- life

    async def start(self) -> None:
        """Joins: a job from the GCS, a registration at the node's raylet, news of dead nodes."""
        address = common_pb2.Address(node_id=self.node_id, worker_id=self.worker_id)
        job = common_pb2.JobInfo(
            entrypoint="simulated",
            driver=address,
            driver_pid=self.process.pid,
            driver_node_id=self.node_id,
        )
        channel = await self._transport.connect(self._gcs_address, CONNECT_TIMEOUT_S)
        stub = gcs_rpc.GcsServiceAsyncStub(channel)
        self.job_id = (await stub.AddJob(gcs_pb2.AddJobRequest(job=job))).job_id
        channel.close()
        raylet = await self._raylet(self._raylet_address)
        await raylet.stub.RegisterClient(
            raylet_pb2.RegisterClientRequest(
                type=common_pb2.DRIVER,
                worker_id=self.worker_id,
                pid=self.process.pid,
                job_id=self.job_id,
                address=address,
            )
        )
        self._spawn(self._watch_nodes(), "watch nodes")

    async def stop(self) -> None:
        """Leaves in order. All tasks have ended before."""
        self._is_stopping = True
        for queue in self._shapes.values():
            queue.arrived.set()
        while any(task.get_name().startswith("lease") for task in self._tasks):
            await asyncio.sleep(LINGER_S)
        await self._finish_job()
        self.process.kill("it is finished")

    async def _finish_job(self) -> None:
        """Tells the GCS, again until it hears."""
        while True:
            try:
                channel = await self._transport.connect(self._gcs_address, CONNECT_TIMEOUT_S)
                stub = gcs_rpc.GcsServiceAsyncStub(channel)
                request = gcs_pb2.MarkJobFinishedRequest(job_id=self.job_id)
                await stub.MarkJobFinished(request, timeout_s=GCS_TIMEOUT_S)
                return
            except RpcError as error:
                logger.debug("finish job: %s", error)
            await asyncio.sleep(RETRY_PAUSE_S)

    def submit(self, script: TaskScript, resources: ResourceSet, max_retries: int) -> asyncio.Future[str]:
        """f.remote(): the future's result is "done" or "crashed" (its worker died more often than it may be
        retried).
        """
        self._counter += 1
        seed = task_seed(TaskID.for_driver(self.job_id).binary())
        task_id = child_task_id(seed, self._counter, nil_actor_of(self.job_id))
        task = PendingTask(task_id, script, resources, max_retries)
        self._journal.task_submitted(task_id, max_retries)
        self._queue(resources).tasks.append(task)
        self._pump(self._queue(resources))
        return task.done

    async def live_with_actor(self, script: ActorScript) -> None:
        """Creates an actor, makes its calls, lets go of it, and returns when it is dead."""
        self._counter += 1
        owner = Owner(self.job_id, self.worker_id, self.node_id, self._gcs_address)
        await SimActor(owner, self._counter, script, self._transport, self._journal.actors).run()

    # ---- leases

    def _queue(self, resources: ResourceSet) -> ShapeQueue:
        return self._shapes.setdefault(resources, ShapeQueue(resources))

    def _pump(self, queue: ShapeQueue) -> None:
        """Asks for as many leases as there are tasks waiting, within the limit; wakes workers that linger."""
        queue.arrived.set()
        while len(queue.requests) < min(len(queue.tasks), LEASE_REQUESTS_MAX):
            lease_id = self._rng.getrandbits(128).to_bytes(16, "little")
            queue.requests[lease_id] = self._raylets[self._raylet_address]
            self._spawn(self._acquire(queue, lease_id), f"lease {lease_id.hex()[:8]}")

    def _cancel_surplus(self, queue: ShapeQueue) -> None:
        """No task waits: requests under way are not wanted any more."""
        if not queue.tasks:
            for lease_id, raylet in queue.requests.items():
                self._spawn(self._cancel(lease_id, raylet), f"cancel {lease_id.hex()[:8]}")

    async def _cancel(self, lease_id: bytes, raylet: Raylet) -> None:
        try:
            await raylet.stub.CancelWorkerLease(raylet_pb2.CancelWorkerLeaseRequest(lease_id=lease_id))
        except RpcError as error:
            logger.debug("cancel: %s", error)

    async def _acquire(self, queue: ShapeQueue, lease_id: bytes) -> None:
        """One request for a lease, wherever it leads, and the use of what was granted."""
        try:
            outcome = await self._ask(queue, lease_id)
        finally:
            queue.requests.pop(lease_id, None)
        if outcome is not None:
            raylet, grant = outcome
            await self._use(queue, raylet, grant)
        if not self._is_stopping:
            self._pump(queue)

    async def _ask(self, queue: ShapeQueue, lease_id: bytes) -> tuple[Raylet, raylet_pb2.Grant] | None:
        """Follows spillbacks until somebody grants. None: nothing is wanted any more, or somebody has to ask
        anew.
        """
        address, spilled = self._raylet_address, False
        while queue.tasks:
            request = raylet_pb2.RequestWorkerLeaseRequest(
                lease_id=lease_id,
                job_id=self.job_id,
                resources=queue.resources.to_proto(),
                requester=common_pb2.Address(worker_id=self.worker_id, node_id=self.node_id),
                backlog=len(queue.tasks),
                grant_or_reject=spilled,
                task_name="simulated",
            )
            try:
                raylet = queue.requests[lease_id] = await self._raylet(address)
                reply = await raylet.stub.RequestWorkerLease(request)
            except RpcError as error:
                logger.debug("lease request at %s: %s", address, error)
                await asyncio.sleep(RETRY_PAUSE_S)
                return None
            outcome = reply.WhichOneof("outcome")
            if outcome == "grant":
                self._journal.lease_granted(
                    HeldLease(
                        lease_id, reply.grant.worker.worker_id, reply.grant.worker.node_id, queue.resources
                    )
                )
                return raylet, reply.grant
            if outcome == "spillback":
                address, spilled = f"{reply.spillback.host}:{reply.spillback.port}", True
            elif reply.rejection.kind == raylet_pb2.Rejection.NOT_HERE:
                address, spilled = self._raylet_address, False
            else:
                return None
        return None

    async def _raylet(self, address: str) -> Raylet:
        """A connection to a raylet, kept. Without its own raylet the driver ends, as a real one does."""
        known = self._raylets.get(address)
        if known is not None and not known.channel.is_closed:
            return known
        if known is not None and address == self._raylet_address:
            self.process.kill("its raylet is gone")
        channel = await self._transport.connect(address, CONNECT_TIMEOUT_S)
        other = self._raylets.get(address)
        if other is not None and not other.channel.is_closed:
            channel.close()  # somebody else was faster
            return other
        self._raylets[address] = Raylet(address, channel, raylet_rpc.RayletServiceAsyncStub(channel))
        if address == self._raylet_address:
            channel.on_close(lambda _reason: self.process.kill("its raylet is gone"))
        return self._raylets[address]

    # ---- workers

    async def _use(self, queue: ShapeQueue, raylet: Raylet, grant: raylet_pb2.Grant) -> None:
        """Runs tasks on a leased worker until none waits or it breaks; then gives it back."""
        is_broken = False
        channel: AsyncChannel | None = None
        try:
            channel = await self._connect_worker(grant.worker)
            stub = core_worker_rpc.CoreWorkerServiceAsyncStub(channel)
            while await self._wait_for_task(queue):
                task = queue.tasks.popleft()
                if not queue.tasks:
                    self._cancel_surplus(queue)
                await self._push(queue, task, stub, grant)
        except RpcError as error:
            logger.debug("worker %s: %s", grant.worker.worker_id.hex()[:8], error)
            is_broken = True
        self._journal.lease_ended(grant.lease_id)
        raylet.stub.ReturnWorker.notify(
            raylet_pb2.ReturnWorkerRequest(lease_id=grant.lease_id, dispose=is_broken)
        )
        if channel is not None:
            self._workers_of_node.get(grant.worker.node_id, {}).pop(channel, None)
            channel.close()

    async def _connect_worker(self, worker: common_pb2.Address) -> AsyncChannel:
        is_local = worker.node_id == self.node_id
        address = f"unix:{worker.unix_path}" if is_local else f"{worker.host}:{worker.port}"
        channel = await self._transport.connect(address, CONNECT_TIMEOUT_S)
        if worker.node_id in self._dead_nodes:
            channel.close()
        self._workers_of_node.setdefault(worker.node_id, {})[channel] = None
        return channel

    async def _wait_for_task(self, queue: ShapeQueue) -> bool:
        """Whether there is a task; lingers a moment for one."""
        if not queue.tasks and not self._is_stopping:
            queue.arrived.clear()
            try:
                async with asyncio.timeout(LINGER_S):
                    await queue.arrived.wait()
            except TimeoutError:
                return False
        return bool(queue.tasks)

    async def _push(
        self,
        queue: ShapeQueue,
        task: PendingTask,
        stub: core_worker_rpc.CoreWorkerServiceAsyncStub,
        grant: raylet_pb2.Grant,
    ) -> None:
        """Runs a task on a worker. Raises RpcError where the worker cannot be used any more; the task is
        taken care of.
        """
        request = core_worker_pb2.PushTaskRequest(
            spec=self._spec(task), intended_worker_id=grant.worker.worker_id, lease_id=grant.lease_id
        )
        try:
            reply = await stub.PushTask(request)
        except RpcError:
            self._retry_or_fail(queue, task)
            raise
        if reply.status == core_worker_pb2.PushTaskReply.DONE:
            self._journal.task_ended(task.task_id, "done")
            task.done.set_result("done")
        else:
            queue.tasks.appendleft(task)

    def _retry_or_fail(self, queue: ShapeQueue, task: PendingTask) -> None:
        task.attempt += 1
        if task.attempt > task.max_retries:
            self._journal.task_ended(task.task_id, "crashed")
            task.done.set_result("crashed")
        else:
            queue.tasks.append(task)
            self._pump(queue)

    def _spec(self, task: PendingTask) -> common_pb2.TaskSpec:
        return common_pb2.TaskSpec(
            type=common_pb2.NORMAL_TASK,
            name="simulated",
            job_id=self.job_id,
            task_id=task.task_id,
            flat_args=task.script.to_bytes(),
            num_returns=1,
            resources=task.resources.to_proto(),
            max_retries=task.max_retries,
            attempt=task.attempt,
        )

    # ---- the cluster's news

    async def _watch_nodes(self) -> None:
        """Closes what leads to nodes that the GCS declared dead. Subscribes again when the stream ends."""
        while True:
            try:
                channel = await self._transport.connect(self._gcs_address, CONNECT_TIMEOUT_S)
                wanted = gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(channel=gcs_pb2.NODE)])
                async for message in gcs_rpc.GcsServiceAsyncStub(channel).Subscribe(wanted):
                    node = common_pb2.NodeInfo.FromString(message.payload)
                    if node.state == common_pb2.NODE_DEAD:
                        self._node_died(node)
            except RpcError as error:
                logger.debug("watch nodes: %s", error)
            await asyncio.sleep(RETRY_PAUSE_S)

    def _node_died(self, node: common_pb2.NodeInfo) -> None:
        self._dead_nodes[node.node_id] = None
        for channel in list(self._workers_of_node.pop(node.node_id, {})):
            channel.close()
        raylet = self._raylets.get(f"{node.host}:{node.node_manager_port}")
        if raylet is not None:
            raylet.channel.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]
