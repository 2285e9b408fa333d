"""A simulated driver: a job at the GCS, a registration at its raylet, tasks and actors, and an end in order.

It stands in for the core worker. Nodes that the GCS declares dead count as gone whatever their connections
say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import TaskID, WorkerID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_rpc, gcs_pb2, gcs_rpc, raylet_pb2
from ray_mono.rpc.surface import RpcError
from tests.simulation.actors import ActorScript, Owner, SimActor
from tests.simulation.checkers import Journal
from tests.simulation.object_programs import ObjectScript
from tests.simulation.object_tasks import ObjectServicer, ObjectTasks
from tests.simulation.objects import SimObjects
from tests.simulation.peers import Peers
from tests.simulation.process import SimProcess
from tests.simulation.scripts import TaskScript
from tests.simulation.submitter import CONNECT_TIMEOUT_S, RETRY_PAUSE_S, Submitter, fail_the_run
from tests.simulation.world import World

logger = logging.getLogger(__name__)

GCS_TIMEOUT_S = 10.0


class SimDriver(ObjectServicer):
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
        self._transport = world.transport(process)
        self._gcs_address = gcs_address
        self._journal = journal
        self._counter = 0
        rng = world.rng(f"{process.name} lease ids")
        peers = Peers(process, self._transport, node_id)
        self._submitter = Submitter(
            process, self._transport, journal, rng, raylet_socket, self.worker_id, node_id, peers
        )
        self.objects = SimObjects(process, peers, journal.objects)
        self._object_tasks = ObjectTasks(self.objects, self._submitter)
        self._ip = world.network.ip_of(process.host_name)
        self._tasks = BackgroundTasks(fail_the_run)

    # ---- life

    async def start(self) -> None:
        """Joins: a job from the GCS, a registration at the node's raylet, news of dead nodes."""
        handlers = core_worker_rpc.core_worker_service_handlers(self)
        listener = await self._transport.serve(f"{self._ip}:0", handlers)
        port = int(listener.address.rpartition(":")[2])
        address = common_pb2.Address(node_id=self.node_id, worker_id=self.worker_id, host=self._ip, port=port)
        self._submitter.address = address
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
        self.objects.job_id = self.job_id
        self.objects.joins(address)
        raylet = await self._submitter.open(self.job_id)
        await raylet.stub.RegisterClient(
            raylet_pb2.RegisterClientRequest(
                type=common_pb2.DRIVER,
                worker_id=self.worker_id,
                pid=self.process.pid,
                job_id=self.job_id,
                address=address,
            )
        )
        self._tasks.spawn(self._watch_nodes(), "watch nodes")

    async def stop(self) -> None:
        """Leaves in order. All tasks have ended before."""
        await self._submitter.stop()
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
        """f.remote(), see Submitter.submit."""
        self._counter += 1
        parent = TaskID.for_driver(self.job_id).binary()
        return self._submitter.submit(parent, self._counter, script, resources, max_retries).done

    async def play(self, script: ObjectScript) -> None:
        """Plays a program over objects, and lets go of what it has."""
        self._counter += 1
        parent = TaskID.for_driver(self.job_id).binary() + self._counter.to_bytes(4, "little")
        program = self._object_tasks.program(script, parent, contextlib.nullcontext)
        await program.play()
        program.let_go()

    async def live_with_actor(self, script: ActorScript) -> None:
        """Creates an actor, makes its calls, lets go of it, and returns when it is dead."""
        self._counter += 1
        owner = Owner(self.job_id, self.worker_id, self.node_id, self._gcs_address)
        await SimActor(owner, self._counter, script, self._transport, self._journal.actors).run()

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
                        self._submitter.node_died(node)
            except RpcError as error:
                logger.debug("watch nodes: %s", error)
            await asyncio.sleep(RETRY_PAUSE_S)
