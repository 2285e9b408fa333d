"""Simulated workers: they register with their raylet and answer PushTask by letting virtual time pass.

A normal task's "function" is a TaskScript in `flat_args`: how long it computes, how long it waits in `get`
(giving its CPUs back meanwhile), which tasks it submits itself, and whether its worker dies of it; or it is
an ObjectScript, a random program over references (`object_programs.py`). A worker runs one task at a time;
that it is never asked for two at once is checked here. One that owns unfinished tasks, or an object, refuses
to end when it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ray_mono.common.ids import object_id_bytes
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.surface import AsyncChannel, CallContext, RpcError, StatusCode
from tests.simulation.actors import ActorScript
from tests.simulation.checkers import Journal
from tests.simulation.object_programs import OBJECTS, ObjectScript
from tests.simulation.object_tasks import ObjectServicer, ObjectTasks
from tests.simulation.objects import Arrived, ReplyTo, SimObjects
from tests.simulation.peers import Peers, raise_failure
from tests.simulation.process import SimProcess
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, TaskScript
from tests.simulation.submission import PendingTask
from tests.simulation.submitter import Submitter
from tests.simulation.world import World

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class WorkerStart:
    """What a simulated worker is started with: what the template's fork is told."""

    worker_id: bytes
    startup_token: int
    raylet_socket: str
    node_id: bytes
    job_id: bytes = b""


class SimWorker(ObjectServicer):
    """One worker process."""

    def __init__(self, world: World, process: SimProcess, start: WorkerStart, journal: Journal) -> None:
        self._world = world
        self._process = process
        self._start = start
        self._journal = journal
        self._raylet: raylet_rpc.RayletServiceAsyncStub | None = None
        rng = world.rng(f"{process.name} lease ids")
        peers = Peers(process, world.transport(process), start.node_id)
        self._submitter = Submitter(
            process,
            world.transport(process),
            journal,
            rng,
            start.raylet_socket,
            start.worker_id,
            start.node_id,
            peers,
        )
        self.objects = SimObjects(process, peers, journal.objects)
        self._object_tasks = ObjectTasks(self.objects, self._submitter)
        self._owns_until_s = 0.0
        self._turn = asyncio.Lock()
        # Normal tasks that wait for their turn or run; those that were cancelled.
        self._normal: dict[bytes, asyncio.Task[core_worker_pb2.PushTaskReply]] = {}
        self._cancelled: dict[bytes, None] = {}
        self._children: dict[bytes, list[PendingTask]] = {}
        # An ordered set: user code that runs or waits for its turn.
        self._executions: dict[asyncio.Task[Any], None] = {}
        self._actor_id = b""
        # Of the actor's one caller, by sequence number.
        self._calls: dict[int, asyncio.Task[core_worker_pb2.PushTaskReply]] = {}

    async def run(self) -> None:
        """Serves, registers, and lives as long as the connection to the raylet."""
        transport = self._world.transport(self._process)
        handlers = core_worker_rpc.core_worker_service_handlers(self)
        worker_hex = self._start.worker_id.hex()[:12]
        local = await transport.serve(f"unix:/sim/worker.{worker_hex}", handlers)
        ip = self._world.network.ip_of(self._process.host_name)
        remote = await transport.serve(f"{ip}:0", handlers)
        channel = await transport.connect(f"unix:{self._start.raylet_socket}", CONNECT_TIMEOUT_S)
        self._raylet = raylet_rpc.RayletServiceAsyncStub(channel)
        address = common_pb2.Address(
            worker_id=self._start.worker_id,
            node_id=self._start.node_id,
            unix_path=local.address.removeprefix("unix:"),
            host=ip,
            port=int(remote.address.rpartition(":")[2]),
        )
        self._submitter.address = address
        self.objects.joins(address)
        await self._raylet.RegisterClient(
            raylet_pb2.RegisterClientRequest(
                type=common_pb2.WORKER,
                worker_id=self._start.worker_id,
                pid=self._process.pid,
                job_id=self._start.job_id,
                startup_token=self._start.startup_token,
                address=address,
            )
        )
        await _until_closed(channel)
        self._process.kill("its raylet is gone")

    # ---- tasks

    async def PushTask(
        self, request: core_worker_pb2.PushTaskRequest, context: CallContext
    ) -> core_worker_pb2.PushTaskReply:
        spec = request.spec
        if request.intended_worker_id != self._start.worker_id:
            return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.WRONG_WORKER)
        if spec.type == common_pb2.ACTOR_CREATION_TASK:
            return await self._spawned(self._create_actor(spec))
        if spec.type == common_pb2.NORMAL_TASK and spec.name == OBJECTS:
            to = ReplyTo()
            running = self._process.spawn(self._run_program(spec, request.lease_id, to), name="user code")
            running.add_done_callback(raise_failure)
            reply: core_worker_pb2.PushTaskReply = await to.answered()
            return reply
        if spec.type == common_pb2.NORMAL_TASK:
            return await self._spawned(self._run_task(spec, request.lease_id))
        if spec.actor_task.actor_id != self._actor_id:
            return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.WRONG_WORKER)
        # Sent again over another connection: it does not run again.
        number = spec.actor_task.sequence_number
        if number not in self._calls:
            self._calls[number] = self._process.spawn(self._run_call(spec), name="a call")
        return await asyncio.shield(self._calls[number])

    async def _spawned(
        self, execution: Coroutine[Any, Any, core_worker_pb2.PushTaskReply]
    ) -> core_worker_pb2.PushTaskReply:
        """User code does not stop because its caller went away."""
        task = self._process.spawn(execution, name="user code")
        self._executions[task] = None
        task.add_done_callback(self._executions.pop)
        reply: core_worker_pb2.PushTaskReply = await asyncio.shield(task)
        return reply

    async def _run_task(self, spec: common_pb2.TaskSpec, lease_id: bytes) -> core_worker_pb2.PushTaskReply:
        script = TaskScript.from_bytes(spec.flat_args)
        running = asyncio.current_task()
        assert running is not None
        self._normal[spec.task_id] = running
        try:
            async with self._turn:
                with self._journal.execution(self._start.worker_id, spec.task_id, spec.attempt):
                    await self._play(script, spec, lease_id)
        except asyncio.CancelledError:
            if spec.task_id not in self._cancelled:
                raise
            return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.CANCELLED)
        finally:
            del self._normal[spec.task_id]
            self._children.pop(spec.task_id, None)
        self._owns_until_s = max(self._owns_until_s, self._world.loop.time() + script.keeps_s)
        return self._done(spec)

    def _done(self, spec: common_pb2.TaskSpec) -> core_worker_pb2.PushTaskReply:
        value = common_pb2.SerializedObject(data=spec.task_id)
        returns = [
            core_worker_pb2.ReturnObject(object_id=object_id_bytes(spec.task_id, index + 1), value=value)
            for index in range(spec.num_returns)
        ]
        return core_worker_pb2.PushTaskReply(returns=returns, pid=self._process.pid)

    async def _play(self, script: TaskScript, spec: common_pb2.TaskSpec, lease_id: bytes) -> None:
        await asyncio.sleep(script.compute_s)
        if spec.attempt < script.dies_in_attempts:
            await self._die("its task killed it")
        if script.num_children:
            await self._submitter.open(spec.job_id)
        parent = spec.task_id + spec.attempt.to_bytes(4, "little")
        children = self._children[spec.task_id] = [
            self._submitter.submit(parent, number + 1, script.child, CHILD_RESOURCES, CHILD_RETRIES)
            for number in range(script.num_children)
        ]
        if children or script.wait_s:
            with self._blocked(lease_id):
                await asyncio.sleep(script.wait_s)
                # The tasks go on when the one that waits for them is cancelled.
                await asyncio.gather(*(asyncio.shield(child.done) for child in children))
        await asyncio.sleep(script.compute_again_s)

    async def _run_program(self, spec: common_pb2.TaskSpec, lease_id: bytes, to: ReplyTo) -> None:
        script = ObjectScript.from_bytes(spec.flat_args)
        arrived = Arrived()
        running = asyncio.current_task()
        assert running is not None
        self.objects.job_id = spec.job_id
        parent = spec.task_id + spec.attempt.to_bytes(4, "little")
        program = self._object_tasks.program(script, parent, lambda: self._blocked(lease_id))
        is_cancelled = False
        self._normal[spec.task_id] = running
        try:
            async with self._turn:
                with self._journal.execution(self._start.worker_id, spec.task_id, spec.attempt):
                    await self._submitter.open(spec.job_id)
                    program.hand += self.objects.arguments(spec, arrived)
                    await program.play()
                    if script.dies and spec.attempt == 0:
                        await self._die("its task killed it")
        except asyncio.CancelledError:
            if spec.task_id not in self._cancelled:
                raise
            is_cancelled = True
        finally:
            del self._normal[spec.task_id]
        self._object_tasks.answer(spec, arrived, program, is_cancelled, to)

    @contextlib.contextmanager
    def _blocked(self, lease_id: bytes) -> Iterator[None]:
        """Its task waits in `get`."""
        assert self._raylet is not None
        notice = raylet_pb2.NotifyBlockedRequest(worker_id=self._start.worker_id, lease_id=lease_id)
        self._journal.worker_waits(self._start.worker_id)
        self._raylet.NotifyBlocked.notify(notice)
        try:
            yield
        finally:
            self._raylet.NotifyUnblocked.notify(notice)

    async def CancelTask(
        self, request: core_worker_pb2.CancelTaskRequest, context: CallContext
    ) -> core_worker_pb2.CancelTaskReply:
        running = self._normal.get(request.task_id)
        if running is None:
            return core_worker_pb2.CancelTaskReply(found=False)
        if request.recursive:
            for child in self._children.get(request.task_id, []):
                self._submitter.cancel(child)
        if request.force:
            await asyncio.sleep(0.001)  # so that what was said to others gets out
            await self._die("its task was cancelled by force")
        self._cancelled[request.task_id] = None
        running.cancel()
        return core_worker_pb2.CancelTaskReply(found=True)

    async def _die(self, reason: str) -> NoReturn:
        self._process.kill(reason)
        await asyncio.Event().wait()  # a dead process runs no further than here
        raise AssertionError("a dead process runs")

    # ---- an actor

    async def _create_actor(self, spec: common_pb2.TaskSpec) -> core_worker_pb2.PushTaskReply:
        script = ActorScript.from_bytes(spec.flat_args)
        actor_id = spec.actor_creation.actor_id
        journal = self._journal.actors
        journal.constructor_began(actor_id, self._start.worker_id, self._start.node_id, spec.attempt)
        async with self._turn:
            await asyncio.sleep(script.construct_s)
        if spec.attempt < script.dies_in_constructors:
            await self._die("its constructor killed it")
        self._actor_id = actor_id
        reply = core_worker_pb2.PushTaskReply(pid=self._process.pid)
        reply.is_application_error = script.constructor_raises
        return reply

    async def _run_call(self, spec: common_pb2.TaskSpec) -> core_worker_pb2.PushTaskReply:
        script = ActorScript.from_bytes(spec.flat_args)
        number = spec.actor_task.sequence_number
        async with self._turn:
            self._journal.actors.call_runs(
                self._actor_id, self._start.worker_id, number, script.max_task_retries
            )
            await asyncio.sleep(script.call_s)
            if number == script.dies_at_call and spec.attempt == 0:
                await self._die("its call killed it")
        return self._done(spec)

    # ---- its end

    async def Exit(self, request: core_worker_pb2.ExitRequest, context: CallContext) -> common_pb2.Empty:
        owns = (
            self._submitter.num_unfinished
            or self._world.loop.time() < self._owns_until_s
            or self.objects.owns_anything
        )
        if owns and not self._actor_id and not request.force:
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this worker owns objects or has tasks under way")
        self._process.spawn(self._exit(), name="exit")
        return common_pb2.Empty()

    async def _exit(self) -> None:
        """A moment later, so that the answer gets out."""
        async with self._turn:
            await asyncio.sleep(0.001)
        self._process.kill("it was asked to exit")


async def _until_closed(channel: AsyncChannel) -> None:
    ended = asyncio.Event()
    channel.on_close(lambda _reason: ended.set())
    await ended.wait()
