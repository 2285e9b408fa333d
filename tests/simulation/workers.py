"""Simulated workers: they register with their raylet and answer PushTask by letting virtual time pass.

A normal task's "function" is a TaskScript in `flat_args`: how long it computes, how long it waits in `get`
(giving its CPUs back meanwhile), and whether its worker dies of it. A worker runs one task at a time; that it
is never asked for two at once is checked here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ray_mono.common.ids import object_id_bytes
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.surface import AsyncChannel, CallContext
from tests.simulation.actors import ActorScript
from tests.simulation.checkers import Journal
from tests.simulation.process import SimProcess
from tests.simulation.world import World

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class TaskScript:
    """What a simulated task does, in virtual seconds: compute, wait in `get`, compute again. Or kill its
    worker.
    """

    compute_s: float = 0.01
    wait_s: float = 0.0
    compute_again_s: float = 0.0
    dies_in_attempts: int = 0
    """The worker of the first so many attempts dies after compute_s."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> TaskScript:
        return cls(**json.loads(data))


@dataclass(frozen=True)
class WorkerStart:
    """What a simulated worker is started with: what the template's fork is told."""

    worker_id: bytes
    startup_token: int
    raylet_socket: str
    node_id: bytes
    job_id: bytes = b""


class SimWorker(core_worker_rpc.CoreWorkerServiceServicer):
    """One worker process."""

    def __init__(self, world: World, process: SimProcess, start: WorkerStart, journal: Journal) -> None:
        self._world = world
        self._process = process
        self._start = start
        self._journal = journal
        self._raylet: raylet_rpc.RayletServiceAsyncStub | None = None
        self._turn = asyncio.Lock()
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
        await self._raylet.RegisterClient(
            raylet_pb2.RegisterClientRequest(
                type=common_pb2.WORKER,
                worker_id=self._start.worker_id,
                pid=self._process.pid,
                job_id=self._start.job_id,
                startup_token=self._start.startup_token,
                address=common_pb2.Address(
                    worker_id=self._start.worker_id,
                    unix_path=local.address.removeprefix("unix:"),
                    host=ip,
                    port=int(remote.address.rpartition(":")[2]),
                ),
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
        if spec.type != common_pb2.ACTOR_TASK:
            run = self._create_actor if spec.type == common_pb2.ACTOR_CREATION_TASK else self._run_task
            return await self._spawned(run(spec))
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

    async def _run_task(self, spec: common_pb2.TaskSpec) -> core_worker_pb2.PushTaskReply:
        script = TaskScript.from_bytes(spec.flat_args)
        async with self._turn:
            with self._journal.execution(self._start.worker_id, spec.task_id, spec.attempt):
                await self._play(script, spec.attempt)
        return self._done(spec)

    def _done(self, spec: common_pb2.TaskSpec) -> core_worker_pb2.PushTaskReply:
        value = common_pb2.SerializedObject(data=spec.task_id)
        returns = [
            core_worker_pb2.ReturnObject(object_id=object_id_bytes(spec.task_id, index + 1), value=value)
            for index in range(spec.num_returns)
        ]
        return core_worker_pb2.PushTaskReply(returns=returns, pid=self._process.pid)

    async def _play(self, script: TaskScript, attempt: int) -> None:
        await asyncio.sleep(script.compute_s)
        if attempt < script.dies_in_attempts:
            await self._die("its task killed it")
        if script.wait_s and self._raylet is not None:
            notice = raylet_pb2.NotifyBlockedRequest(worker_id=self._start.worker_id)
            self._journal.worker_waits(self._start.worker_id)
            self._raylet.NotifyBlocked.notify(notice)
            await asyncio.sleep(script.wait_s)
            self._raylet.NotifyUnblocked.notify(notice)
        await asyncio.sleep(script.compute_again_s)

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
