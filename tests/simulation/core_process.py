"""How simulated drivers and workers join: the composition of process/registration.py, over simulated doors.

The process's main thread joins and then, in a worker, runs tasks until the end; a driver's program runs on
threads of the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray_mono.exceptions  # noqa: F401  errors are told by their public names, as in every process
from ray_mono.common import ids
from ray_mono.common.ids import WorkerID
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind, WorkerContext
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.process.gcs_channel import GcsChannel
from ray_mono.core_worker.process.servicer import CoreWorkerServicer, handlers_of
from ray_mono.core_worker.process.worker_exit import OrderlyExit
from ray_mono.core_worker.task_execution.execution import Execution, ExecutionParts
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError
from tests.simulation.actor_programs import AsyncActor, PlainActor, call_actor
from tests.simulation.baton import Killed
from tests.simulation.checkers import Journal
from tests.simulation.core_transport import CoreChannel, CoreServer
from tests.simulation.generator_programs import make_items
from tests.simulation.machine import SimBoard
from tests.simulation.object_programs import run_program
from tests.simulation.process import SimProcess
from tests.simulation.reactor import SimReactor
from tests.simulation.site import Site
from tests.simulation.task_programs import run_task
from tests.simulation.witness import Witness
from tests.simulation.world import SECRET, World

JOIN_TIMEOUT_S = 60.0
FUNCTIONS = (run_task, run_program, make_items, call_actor)
CLASSES = (PlainActor, AsyncActor)
FINISH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where a process joins, and with which limits."""

    gcs_address: str
    raylet_socket: str
    limits: CoreWorkerConfig


class CoreProcess:
    """One driver or worker."""

    def __init__(
        self, world: World, process: SimProcess, worker_id: bytes, place: Place, journal: Journal, type_: int
    ) -> None:
        self.world = world
        self.process = process
        self.worker_id = worker_id
        self.journal = journal
        self._place = place
        self._type = type_
        process.judge = world.judge
        process.on_death(lambda _reason: world.baton.process_died(process))

    def start(self, main: Callable[[], None]) -> None:
        self.process.main_thread = self.world.baton.start(self.process, main, "main", is_main=True)

    # ---- on the main thread

    def listen(self) -> None:
        world, process = self.world, self.process
        self.reactor = SimReactor(world.baton, process)
        is_worker = self._type == common_pb2.WORKER
        self.servicer = CoreWorkerServicer(is_worker)
        self.server = CoreServer(world.network, self.reactor, handlers_of(self.servicer), SECRET)
        unix_path = f"/sim/core.{self.worker_id.hex()[:16]}"
        self.server.listen(f"unix:{unix_path}")
        host = world.network.ip_of(process.host_name)
        port = int(self.server.listen(f"{host}:0").rpartition(":")[2])
        self.address = common_pb2.Address(worker_id=self.worker_id, unix_path=unix_path, host=host, port=port)
        self.journal.address_of(f"unix:{unix_path}", self.worker_id)
        self.journal.address_of(f"{host}:{port}", self.worker_id)

    def channel(self, address: str, peer_name: str = "") -> CoreChannel:
        witness = Witness(self.world, self.journal, self.worker_id, address)
        return CoreChannel(self.world.network, self.reactor, address, SECRET, witness, peer_name)

    def connect(self) -> None:
        """To the node's raylet and the GCS."""
        self._raylet = self.channel(f"unix:{self._place.raylet_socket}", "this node's raylet")
        self.gcs_channel = GcsChannel(
            self.reactor,
            self.world.clock,
            self.channel,  # type: ignore[arg-type]
            self._await_head,
            self._place.gcs_address,
            self.worker_id,
            self._type == common_pb2.DRIVER,
        )
        self.gcs = GcsServiceStub(self.gcs_channel)

    def _await_head(self, number: int, done: Callable[[Any, RpcError | None], None]) -> None:
        raylet = RayletServiceStub(self._raylet)  # type: ignore[arg-type]
        raylet.AwaitHead.start(raylet_pb2.AwaitHeadRequest(after_head_number=number), done)

    def join(
        self,
        job: JobContext,
        on_node_lost: Callable[[CoreWorker, str], None],
        startup_token: int = 0,
        board_fd: int = 0,
    ) -> CoreWorker:
        """Raises RpcError."""
        process, raylet = self.process, self._raylet
        request = raylet_pb2.RegisterClientRequest(
            type=self._type,  # type: ignore[arg-type]
            worker_id=self.worker_id,
            pid=process.pid,
            job_id=job.job_id,
            address=self.address,
            startup_token=startup_token,
            board_fd=board_fd,
        )
        stub = RayletServiceStub(raylet)  # type: ignore[arg-type]
        registered = stub.RegisterClient(request, timeout_s=JOIN_TIMEOUT_S)
        node = registered.node
        with self.reactor.lock:
            self.gcs_channel.joined(registered.gcs_reconnect_timeout_s, registered.cluster_id)
        store = self.channel(f"unix:{node.store_socket}", "this node's object store")
        address = common_pb2.Address(node_id=node.node_id)
        address.MergeFrom(self.address)
        env = Environment(
            config=self._place.limits,
            reactor=self.reactor,
            clock=self.world.clock,
            rng=self.world.rng(f"{process.name} ids"),
            address=address,
            node=node,
            gcs=self.gcs,
            raylet=stub,
            session_dir="/sim",
            is_driver=self._type == common_pb2.DRIVER,
            pid=process.pid,
        )
        main_id = ids.TaskID.for_driver(job.job_id or b"\0\0\0\0").binary()
        context = WorkerContext(TaskContext(main_id, TaskKind(job.job_id)), job)
        core = CoreWorker(
            env,
            context,
            self.channel,  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            self.server,  # type: ignore[arg-type]
            [self.gcs_channel, raylet, store],
        )
        process.core = core
        process.site = Site(self.world, process, core, self.journal)
        with self.reactor.lock:
            self.servicer.serve(core)

            def lost(reason: str) -> None:
                if not context.is_leaving:
                    on_node_lost(core, reason)

            raylet.on_close(lost)
            if not env.is_driver:
                store.on_close(lost)
        return core


class SimDriver(CoreProcess):
    """One driver process: `start_driver`, then programs by `play`; `stop` at the end."""

    job_id = b""

    def __init__(self, world: World, process: SimProcess, place: Place, journal: Journal) -> None:
        worker_id = WorkerID.from_random(world.rng(f"{process.name} id")).binary()
        super().__init__(world, process, worker_id, place, journal, common_pb2.DRIVER)

    async def start_driver(self) -> None:
        """Joins: a job from the GCS, a registration at the node's raylet."""
        joined = self.world.loop.create_future()

        def main() -> None:
            self._join()
            joined.set_result(None)

        self.start(main)
        await joined

    def _join(self) -> None:
        self.listen()
        self.connect()
        job = common_pb2.JobInfo(
            entrypoint="simulated", driver=self.address, driver_pid=self.process.pid, config_json="{}"
        )
        self.job_id = self.gcs.AddJob(gcs_pb2.AddJobRequest(job=job), timeout_s=JOIN_TIMEOUT_S).job_id
        self.core = self.join(JobContext(self.job_id), self._raylet_lost)
        job.MergeFrom(common_pb2.JobInfo(job_id=self.job_id, driver=self.core.env.address))
        with self.core.env.lock:
            self.gcs_channel.on_other_cluster(lambda: self.core.adoption.tell(job))
        self.core.at_shutdown(self._finish_job)
        self.process.site.enter_job(self.job_id)
        self.process.site.export(FUNCTIONS, CLASSES)

    def _raylet_lost(self, core: CoreWorker, reason: str) -> None:
        """As of a real driver, but that its program does not go on to the end."""
        self.process.kill("its raylet is gone")

    def _finish_job(self) -> None:
        try:
            request = gcs_pb2.MarkJobFinishedRequest(job_id=self.job_id)
            self.core.env.gcs.MarkJobFinished(request, timeout_s=FINISH_TIMEOUT_S)
        except RpcError:
            pass  # the end of the connection says it too

    def play(self, program: Callable[[Site], None], name: str) -> asyncio.Future[None]:
        """Runs a program on a thread of the driver's. Never done where the driver dies before."""
        done = self.world.loop.create_future()

        def run() -> None:
            try:
                program(self.process.site)
            except Killed:
                raise
            except BaseException as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(None)

        self.world.baton.start(self.process, run, name)
        return done

    async def stop(self) -> None:
        """Leaves in order."""

        def leave(site: Site) -> None:
            site.leave()
            self.core.shutdown()

        await self.play(leave, "leave")
        self.process.kill("it is finished")


@dataclass(frozen=True)
class WorkerStart:
    """What a simulated worker is started with: what the template's fork is told."""

    worker_id: bytes
    startup_token: int


class SimWorker(CoreProcess):
    """One worker process: as process/worker.py's run_worker."""

    def __init__(
        self, world: World, process: SimProcess, start: WorkerStart, place: Place, journal: Journal
    ) -> None:
        super().__init__(world, process, start.worker_id, place, journal, common_pb2.WORKER)
        self._start = start
        self._rng = world.rng(f"{process.name} main task")

    def main(self) -> None:
        self.listen()
        clock = self.world.clock
        board = SimBoard(
            lambda: self.journal.worker_waits(self.worker_id),
            lambda: round(clock.awake_or_asleep_s() * 1_000_000_000),
            lambda: self.process.is_alive,
        )
        self.world.machine.boards[self.worker_id] = board
        try:
            self.connect()
            core = self.join(JobContext(b""), self._node_lost, self._start.startup_token, board.fd)
        except RpcError:
            self.process.kill("it could not join")
            raise Killed from None
        running = Running()

        def make(parts: ExecutionParts) -> Execution:
            return Execution(parts, running, self._bind, board)  # type: ignore[arg-type]

        execution = core.execute(make)
        self.process.on_sigint = execution.interrupter.on_signal
        with core.env.lock:
            self.gcs_channel.on_other_cluster(
                lambda: core.adoption.tell(held=execution.receiver.told_again())
            )
            self.servicer.execute(execution)
        self.journal.actors.may_leave(self.worker_id, lambda: execution.receiver.has_moved)
        execution.executor.run()
        with core.env.lock:
            execution.running.end()
            execution.receiver.give_back()
            core.env.reactor.flush()
        OrderlyExit(core, execution).leave()

    def _node_lost(self, core: CoreWorker, reason: str) -> None:
        self.process.kill("its raylet or its store is gone")

    def _bind(self, spec: Any) -> None:
        """As worker.py's _Job: the first task makes this worker its job's. Raises RpcError."""
        core = self.process.core
        core.job_code.setup(spec.job_id, spec.caller)
        job = JobContext(spec.job_id, outlives_job=spec.outlives_job)
        main_id = self._rng.randbytes(8) + job.nil_actor
        core.enter_job(job, TaskContext(main_id, TaskKind(spec.job_id)))
        self.process.site.enter_job(spec.job_id)
