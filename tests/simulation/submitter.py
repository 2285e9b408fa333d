"""The submitting side of a simulated driver or worker, the way the core worker does it: tasks in, leases and
pushes out.

Per shape of resources it keeps a queue of tasks and asks its raylet for leases while tasks wait, at most
LEASE_REQUESTS_MAX at a time; goes to the node that a spillback names; pushes one task at a time to each
leased worker; lingers a moment on an empty queue; gives the worker back, sooner where its raylet asks for it;
cancels requests that it needs no more. A worker that cannot be reached, or whose connection ends, costs its
task an attempt, and is given back as broken. A task that is cancelled is dropped where it waits here, and its
worker told where it was pushed; it is not tried again.
"""

from __future__ import annotations

import asyncio
import logging
import random

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import child_task_id, nil_actor_of, task_seed
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.surface import RpcError
from tests.simulation.checkers import HeldLease, Journal
from tests.simulation.peers import Peers
from tests.simulation.process import SimProcess
from tests.simulation.scripts import TaskScript
from tests.simulation.submission import PendingTask, Raylet, Reply, ShapeQueue
from tests.simulation.transport import SimTransport

logger = logging.getLogger(__name__)

LEASE_REQUESTS_MAX = 8
CONNECT_TIMEOUT_S = 5.0
LINGER_S = 0.01
RETRY_PAUSE_S = 0.1


def fail_the_run(error: BaseException, name: str) -> None:
    """What a task of a simulated process raises, its loop raises."""
    raise error


class Submitter:
    """What one process submitted. `open` first."""

    def __init__(
        self,
        process: SimProcess,
        transport: SimTransport,
        journal: Journal,
        rng: random.Random,
        raylet_socket: str,
        worker_id: bytes,
        node_id: bytes,
        peers: Peers,
    ) -> None:
        self._process = process
        self._peers = peers
        self._transport = transport
        self._journal = journal
        self._rng = rng
        self._raylet_address = f"unix:{raylet_socket}"
        self._worker_id = worker_id
        self._node_id = node_id
        self._job_id = b""
        # Of this process; in the end its tasks' caller.
        self.address = common_pb2.Address(worker_id=worker_id, node_id=node_id)
        self._shapes: dict[ResourceSet, ShapeQueue] = {}
        self._raylets: dict[str, Raylet] = {}
        self._tasks = BackgroundTasks(fail_the_run)
        self._is_stopping = False
        # Leases that others wait for.
        self._reclaimed: set[bytes] = set()
        # An ordered set.
        self._unfinished: dict[PendingTask, None] = {}

    async def open(self, job_id: bytes) -> Raylet:
        """Connects to the process's own raylet."""
        self._job_id = job_id
        return await self._raylet(self._raylet_address)

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    async def stop(self) -> None:
        """Gives back what is leased. All tasks have ended before."""
        self._is_stopping = True
        for queue in self._shapes.values():
            queue.arrived.set()
        while any(name.startswith("lease") for name in self._tasks.names()):
            await asyncio.sleep(LINGER_S)

    def submit(
        self, parent: bytes, counter: int, script: TaskScript, resources: ResourceSet, max_retries: int
    ) -> PendingTask:
        """f.remote(), as the counter-th task of `parent` (the bytes that its ids come from). Its `done` ends
        as "done", "cancelled", or "crashed": its worker died more often than it may be retried.
        """
        task_id = child_task_id(task_seed(parent), counter, nil_actor_of(self._job_id))
        return self.start(PendingTask(task_id, script, resources, max_retries))

    def start(self, task: PendingTask) -> PendingTask:
        task_id, resources, max_retries = task.task_id, task.resources, task.max_retries
        self._journal.task_submitted(task_id, max_retries, self._worker_id)
        self._unfinished[task] = None
        self._queue(resources).tasks.append(task)
        self._pump(self._queue(resources))
        if task.script.cancelled_after_s >= 0.0:
            self._tasks.spawn(self._cancel_later(task), "cancel later")
        return task

    async def _cancel_later(self, task: PendingTask) -> None:
        await asyncio.sleep(task.script.cancelled_after_s)
        self.cancel(task)

    def cancel(self, task: PendingTask) -> None:
        """Nothing where it has ended."""
        if task.done.done():
            return
        task.is_cancelled = True
        self._journal.task_cancelled(task.task_id, task.attempt)
        queue = self._queue(task.resources)
        if task in queue.tasks:
            queue.tasks.remove(task)
            self._end(task, "cancelled")
            self._cancel_surplus(queue)
        elif task.worker is not None:
            self._tasks.spawn(self._tell_cancelled(task, task.worker), "tell of a cancel")

    async def _tell_cancelled(
        self, task: PendingTask, worker: core_worker_rpc.CoreWorkerServiceAsyncStub
    ) -> None:
        script = task.script
        request = core_worker_pb2.CancelTaskRequest(
            task_id=task.task_id, force=script.is_cancelled_by_force, recursive=script.is_cancelled_by_force
        )
        try:
            await worker.CancelTask(request)
        except RpcError as error:
            logger.debug("cancel task: %s", error)

    def _end(
        self,
        task: PendingTask,
        outcome: str,
        reply: Reply | None = None,
        executor: common_pb2.Address | None = None,
    ) -> None:
        self._journal.task_ended(task.task_id, outcome)
        self._unfinished.pop(task)
        task.on_end(reply, executor)
        task.done.set_result(outcome)

    # ---- leases

    def _queue(self, resources: ResourceSet) -> ShapeQueue:
        return self._shapes.setdefault(resources, ShapeQueue(resources))

    def _pump(self, queue: ShapeQueue) -> None:
        """Asks for as many leases as there are tasks waiting, within the limit; wakes workers that linger."""
        queue.arrived.set()
        while len(queue.requests) < min(len(queue.tasks), LEASE_REQUESTS_MAX):
            lease_id = self._rng.getrandbits(128).to_bytes(16, "little")
            queue.requests[lease_id] = self._raylets[self._raylet_address]
            self._tasks.spawn(self._acquire(queue, lease_id), f"lease {lease_id.hex()[:8]}")

    def _cancel_surplus(self, queue: ShapeQueue) -> None:
        """No task waits: requests under way are not wanted any more."""
        if not queue.tasks:
            for lease_id, raylet in queue.requests.items():
                self._tasks.spawn(self._cancel(lease_id, raylet), f"cancel {lease_id.hex()[:8]}")

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
                job_id=self._job_id,
                resources=queue.resources.to_proto(),
                requester=common_pb2.Address(worker_id=self._worker_id, node_id=self._node_id),
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
                spilled = not reply.spillback.may_wait
                address = f"{reply.spillback.host}:{reply.spillback.port}"
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
            self._process.kill("its raylet is gone")
        channel = await self._transport.connect(address, CONNECT_TIMEOUT_S)
        other = self._raylets.get(address)
        if other is not None and not other.channel.is_closed:
            channel.close()  # somebody else was faster
            return other
        self._raylets[address] = Raylet(address, channel, raylet_rpc.RayletServiceAsyncStub(channel))
        if address == self._raylet_address:
            channel.on_close(lambda _reason: self._process.kill("its raylet is gone"))
        self._tasks.spawn(self._watch_reclaims(self._raylets[address]), "watch reclaims")
        return self._raylets[address]

    async def _watch_reclaims(self, raylet: Raylet) -> None:
        try:
            async for named in raylet.stub.WatchReclaims(common_pb2.Empty()):
                self._reclaimed.update(named.lease_ids)
        except RpcError as error:
            logger.debug("watch reclaims: %s", error)

    # ---- workers

    async def _use(self, queue: ShapeQueue, raylet: Raylet, grant: raylet_pb2.Grant) -> None:
        """Runs tasks on a leased worker until none waits or it breaks; then gives it back."""
        is_broken = False
        try:
            stub = await self._peers.stub(grant.worker)
            while grant.lease_id not in self._reclaimed and await self._wait_for_task(queue):
                task = queue.tasks.popleft()
                if not queue.tasks:
                    self._cancel_surplus(queue)
                await self._push(queue, task, stub, grant)
        except RpcError as error:
            logger.debug("worker %s: %s", grant.worker.worker_id.hex()[:8], error)
            is_broken = True
        self._reclaimed.discard(grant.lease_id)
        self._journal.lease_ended(grant.lease_id)
        raylet.stub.ReturnWorker.notify(
            raylet_pb2.ReturnWorkerRequest(lease_id=grant.lease_id, dispose=is_broken)
        )

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
        task.worker = stub
        try:
            reply = await stub.PushTask(request)
        except RpcError:
            self._retry_or_fail(queue, task)
            raise
        finally:
            task.worker = None
        if reply.status == core_worker_pb2.PushTaskReply.DONE:
            self._end(task, "done", reply, grant.worker)
        elif task.is_cancelled:
            self._end(task, "cancelled")
        else:
            queue.tasks.appendleft(task)

    def _retry_or_fail(self, queue: ShapeQueue, task: PendingTask) -> None:
        task.attempt += 1
        if task.is_cancelled:
            self._end(task, "cancelled")
        elif task.attempt > task.max_retries:
            self._end(task, "crashed")
        else:
            queue.tasks.append(task)
            self._pump(queue)

    def _spec(self, task: PendingTask) -> common_pb2.TaskSpec:
        return common_pb2.TaskSpec(
            type=common_pb2.NORMAL_TASK,
            name=task.script.name,
            job_id=self._job_id,
            task_id=task.task_id,
            caller=self.address,
            args=task.args,
            flat_args=task.script.to_bytes(),
            num_returns=1,
            resources=task.resources.to_proto(),
            max_retries=task.max_retries,
            attempt=task.attempt,
        )

    def node_died(self, node: common_pb2.NodeInfo) -> None:
        """Closes what leads to it: it counts as gone whatever its connections say."""
        self._peers.node_died(node.node_id)
        raylet = self._raylets.get(f"{node.host}:{node.node_manager_port}")
        if raylet is not None:
            raylet.channel.close()
