"""Real raylets for tests: a GCS process, raylet processes with fake workers, and a client that plays the
driver.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import (
    common_pb2,
    core_worker_pb2,
    core_worker_rpc,
    gcs_pb2,
    gcs_rpc,
    raylet_pb2,
    raylet_rpc,
)
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import AsyncChannel

ROOT = Path(__file__).absolute().parent.parent.parent
SECRET = "open sesame"
BOUND_S = 60.0
JOB = b"\0\0\0\1"


class ServiceProcess:
    """One service; entered when it is ready, left when it has ended."""

    def __init__(self, module: str, *arguments: str) -> None:
        paths = [str(ROOT), *(path for path in sys.path if path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAY_MONO_AUTH_TOKEN": SECRET}
        read_fd, write_fd = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, "--ready-fd", str(write_fd)],
                pass_fds=(write_fd,),
                env=env,
            )
        finally:
            os.close(write_fd)
        with open(read_fd) as ready:
            line = ready.readline()
        self.info: dict[str, Any] = json.loads(line) if line else {}

    @property
    def address(self) -> str:
        return str(self.info["address"])

    def stop(self) -> int:
        """Ends it in order; the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(BOUND_S)
        finally:
            self.process.kill()

    def __enter__(self) -> ServiceProcess:
        assert self.info, f"the service ended with {self.process.wait()}"
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.stop()


class Cluster:
    """A GCS and raylets, each with its own session directory."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base = base
        self._stack = stack
        self.gcs = self._start("ray_mono.gcs.gcs_server", "--session-dir", str(base), "--storage", "memory")

    def session_of(self, name: str) -> Path:
        return self.base / name

    def raylet(self, name: str, resources: dict[str, float], *arguments: str) -> ServiceProcess:
        """Node ids begin with the name."""
        return self._start(
            "ray_mono.raylet.raylet",
            *("--gcs-address", self.gcs.address, "--session-dir", str(self.session_of(name))),
            *("--node-id", name.encode().ljust(28, b".").hex(), "--resources", json.dumps(resources)),
            *("--worker-module", "tests.raylet.fake_worker:run"),
            *arguments,
        )

    def _start(self, module: str, *arguments: str) -> ServiceProcess:
        return self._stack.enter_context(ServiceProcess(module, *arguments))


class Driver:
    """A connection to a raylet, and one to the GCS."""

    def __init__(self, transport: FramedTransport, channel: AsyncChannel, gcs: AsyncChannel) -> None:
        self.channel = channel
        self.raylet = raylet_rpc.RayletServiceAsyncStub(channel)
        self.gcs = gcs_rpc.GcsServiceAsyncStub(gcs)
        self.worker_id = b"driver".ljust(28, b"_")
        self._node_id = b""
        self._transport = transport
        self._workers: dict[bytes, core_worker_rpc.CoreWorkerServiceAsyncStub] = {}
        self._count = 0

    async def register(self) -> raylet_pb2.RegisterClientReply:
        """As a driver would; leases asked for afterwards are those of a process of this node."""
        request = raylet_pb2.RegisterClientRequest(
            type=common_pb2.DRIVER, worker_id=self.worker_id, pid=os.getpid(), job_id=JOB
        )
        reply = await self.raylet.RegisterClient(request)
        self._node_id = reply.node.node_id
        return reply

    def ask(
        self, resources: dict[str, float] | None = None, lease_id: bytes = b"", **more: Any
    ) -> asyncio.Future[raylet_pb2.RequestWorkerLeaseReply]:
        """Requests a lease of one CPU, unless told otherwise."""
        self._count += 1
        request = raylet_pb2.RequestWorkerLeaseRequest(
            lease_id=lease_id or self._count.to_bytes(28, "big"),
            job_id=JOB,
            resources=ResourceSet.from_units({"CPU": 1} if resources is None else resources).to_proto(),
            requester=common_pb2.Address(worker_id=self.worker_id, node_id=self._node_id),
            task_name="f",
            **more,
        )
        return asyncio.ensure_future(self.raylet.RequestWorkerLease(request))

    async def lease(self, resources: dict[str, float] | None = None, **more: Any) -> raylet_pb2.Grant:
        reply = await self.ask(resources, **more)
        assert reply.HasField("grant"), reply
        return reply.grant

    def give_back(self, grant: raylet_pb2.Grant, dispose: bool = False) -> None:
        self.raylet.ReturnWorker.notify(
            raylet_pb2.ReturnWorkerRequest(lease_id=grant.lease_id, dispose=dispose)
        )

    async def push(self, grant: raylet_pb2.Grant, what: str) -> None:
        """Tells the worker of a lease what to do; see fake_worker."""
        channel = await self._transport.connect(f"unix:{grant.worker.unix_path}", 10)
        worker = core_worker_rpc.CoreWorkerServiceAsyncStub(channel)
        try:
            request = core_worker_pb2.PushTaskRequest(spec=common_pb2.TaskSpec(name=what))
            await worker.PushTask(request)
        finally:
            channel.close()

    async def state(self) -> dict[str, Any]:
        """The raylet's DumpState."""
        reply = await self.raylet.DumpState(common_pb2.Empty())
        state: dict[str, Any] = json.loads(reply.json)
        return state

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Waits for a state of the raylet."""
        async with asyncio.timeout(BOUND_S):
            while not condition(state := await self.state()):
                await asyncio.sleep(0.01)
        return state

    async def dead_worker(self, worker_id: bytes) -> common_pb2.WorkerInfo:
        """Its row at the GCS, once it is dead."""
        async with asyncio.timeout(BOUND_S):
            while True:
                for row in (await self.gcs.GetAllWorkers(common_pb2.Empty())).workers:
                    if row.worker_id == worker_id and not row.is_alive:
                        return row
                await asyncio.sleep(0.01)

    async def next_error(self) -> common_pb2.ErrorInfo:
        """The next message on the job's ERROR channel."""
        channels = [gcs_pb2.ChannelFilter(channel=gcs_pb2.ERROR, keys=[JOB])]
        async for message in self.gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=channels)):
            return common_pb2.ErrorInfo.FromString(message.payload)
        raise AssertionError("the subscription ended")


@asynccontextmanager
async def driver_of(cluster: Cluster, raylet: ServiceProcess, by_tcp: bool = False) -> AsyncIterator[Driver]:
    transport = FramedTransport(SECRET)
    address = raylet.address if by_tcp else f"unix:{raylet.info['unix_path']}"
    channel = await transport.connect(address, 10)
    gcs = await transport.connect(cluster.gcs.address, 10)
    try:
        yield Driver(transport, channel, gcs)
    finally:
        channel.close()
        gcs.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(BOUND_S):
            await test

    asyncio.run(bounded())
