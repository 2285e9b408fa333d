"""Real object managers for tests: processes, a client that maps the store, and a GCS that knows only nodes
and deaths."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ray_mono.protobuf import common_pb2, gcs_pb2, object_manager_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, gcs_service_handlers
from ray_mono.protobuf.object_manager_rpc import ObjectStoreServiceAsyncStub
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext

SECRET = "open sesame"
TIMEOUT_S = 60.0
FOUND = object_manager_pb2.ObjectFound.FOUND
NOT_HERE = object_manager_pb2.ObjectFound.NOT_HERE
LOST = object_manager_pb2.ObjectFound.LOST


def run(scene: Coroutine[Any, Any, None]) -> None:
    """A scene, which has TIMEOUT_S."""

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await scene

    asyncio.run(bounded())


def noise(size_bytes: int) -> bytes:
    """The same for the same size."""
    return random.Random(size_bytes).randbytes(size_bytes)


def object_id(name: str) -> bytes:
    return name.encode().ljust(28, b"-")


def worker_id(name: str) -> bytes:
    return name.encode().ljust(28, b"_")


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def run_python(*arguments: str, pass_fds: tuple[int, ...] = (), **variables: str) -> subprocess.Popen[bytes]:
    """A Python of our own kind, with our path."""
    return subprocess.Popen([sys.executable, *arguments], pass_fds=pass_fds, env=environment(**variables))


RUN_SERVICE = "import sys; from ray_mono.object_manager.object_manager import main; sys.exit(main())"


class StoreProcess:
    """One object manager."""

    def __init__(
        self,
        base: Path,
        name: str,
        capacity_bytes: int,
        *flags: str,
        program: str = "",
        secret: str = SECRET,
        **config: float,
    ) -> None:
        """program: Python to run before the service."""
        self.name = name
        self.node_id = name.encode().ljust(28, b".")
        self.socket = str(base / f"{name}.sock")
        read_fd, write_fd = os.pipe()
        try:
            self.process = run_python(
                "-c",
                f"{program}\n{RUN_SERVICE}",
                f"--node-id={self.node_id.hex()}",
                f"--store-socket={self.socket}",
                f"--store-file=/dev/shm/{base.name}-{name}",
                f"--capacity-bytes={capacity_bytes}",
                f"--config={json.dumps(config)}",
                f"--ready-fd={write_fd}",
                *(flags or ("--store-only",)),
                pass_fds=(write_fd,),
                RAY_MONO_AUTH_TOKEN=secret,
            )
        finally:
            os.close(write_fd)
        with open(read_fd) as ready:
            line = ready.readline()
        assert line, f"the object manager ended with {self.process.wait()}"
        self.info: dict[str, Any] = json.loads(line)
        self.store_file = Path(self.info["store_file"])

    @property
    def port(self) -> int:
        return int(self.info["address"].rpartition(":")[2])

    def __enter__(self) -> StoreProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It ends in order, and leaves nothing; unless the test has killed it."""
        was_killed = self.process.poll() == -signal.SIGKILL
        try:
            self.process.terminate()
            code = self.process.wait(TIMEOUT_S)
            if error is None and not was_killed:
                assert code == 0
                assert not self.store_file.exists() and not Path(self.socket).exists()
        finally:
            self.process.kill()
            self.process.wait()
            self.store_file.unlink(missing_ok=True)
            Path(self.socket).unlink(missing_ok=True)


@dataclass
class Client:
    """A client on the node: speaks to the store and maps its file."""

    stub: ObjectStoreServiceAsyncStub
    map: mmap.mmap
    owner: bytes

    async def create(self, name: str, size_bytes: int, metadata: bytes = b"") -> int:
        reply = await self.stub.Create(
            object_manager_pb2.CreateRequest(
                object_id=object_id(name),
                size_bytes=size_bytes,
                metadata=metadata,
                owner_worker_id=self.owner,
            )
        )
        return reply.offset

    async def seal(self, name: str) -> None:
        await self.stub.Seal(object_manager_pb2.SealRequest(object_id=object_id(name)))

    async def put(self, name: str, data: bytes, metadata: bytes = b"") -> None:
        offset = await self.create(name, len(data), metadata)
        self.map[offset : offset + len(data)] = data
        await self.seal(name)

    async def find(
        self, *names: str, locations: tuple[bytes, ...] = (), timeout_ms: int = -1
    ) -> list[object_manager_pb2.ObjectFound]:
        wanted = [
            object_manager_pb2.ObjectWanted(object_id=object_id(name), location_node_ids=locations)
            for name in names
        ]
        reply = await self.stub.Get(object_manager_pb2.GetRequest(objects=wanted, timeout_ms=timeout_ms))
        return list(reply.objects)

    async def read(self, name: str, locations: tuple[bytes, ...] = ()) -> bytes:
        """The object's bytes; its pin is kept."""
        (found,) = await self.find(name, locations=locations)
        assert found.state == FOUND, found.reason
        return self.map[found.offset : found.offset + found.size_bytes]

    async def release(self, *names: str) -> None:
        await self.stub.Release(
            object_manager_pb2.ReleaseRequest(object_ids=[object_id(name) for name in names])
        )

    async def free(self, *names: str, locations: tuple[bytes, ...] = ()) -> None:
        objects = [
            object_manager_pb2.ObjectFree(object_id=object_id(name), location_node_ids=locations)
            for name in names
        ]
        await self.stub.Free(object_manager_pb2.FreeRequest(objects=objects))

    async def contains(self, *names: str) -> list[bool]:
        rows = json.loads((await self.stub.DumpState(common_pb2.Empty())).json)["objects"]
        sealed = {row["object_id"] for row in rows if row["state"] == "sealed"}
        return [object_id(name).hex() in sealed for name in names]

    async def stats(self) -> object_manager_pb2.StoreStats:
        return await self.stub.GetStats(common_pb2.Empty())


async def start(client: Client, request: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Sends a request of this client, and returns when the store has it: what the client asks next is
    answered after."""
    task = asyncio.ensure_future(request)
    await asyncio.sleep(0)
    await client.stats()
    return task


@asynccontextmanager
async def connect(
    store: StoreProcess, owner: str = "owner", is_raylet: bool = False
) -> AsyncIterator[Client]:
    channel = await FramedTransport("").connect(f"unix:{store.socket}", TIMEOUT_S)
    stub = ObjectStoreServiceAsyncStub(channel)
    reply = await stub.ConnectClient(
        object_manager_pb2.ConnectClientRequest(
            worker_id=worker_id(owner), pid=os.getpid(), is_raylet=is_raylet
        )
    )
    fd = os.open(reply.store_file, os.O_RDWR)
    try:
        view = mmap.mmap(fd, reply.capacity_bytes)
    finally:
        os.close(fd)
    try:
        yield Client(stub, view, worker_id(owner))
    finally:
        channel.close()
        view.close()
        await asyncio.sleep(0)


class SmallGcs(GcsServiceServicer):
    """Nodes, and deaths of workers, as a test tells them."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, common_pb2.NodeInfo] = {}
        self.workers: dict[bytes, common_pb2.WorkerInfo] = {}
        self._subscribers: list[asyncio.Queue[gcs_pb2.PubMessage]] = []

    def add_node(self, store: StoreProcess, port: int | None = None) -> None:
        self.tell_node(
            common_pb2.NodeInfo(
                node_id=store.node_id, host="127.0.0.1", object_manager_port=port or store.port
            )
        )

    def tell_node(self, node: common_pb2.NodeInfo) -> None:
        self.nodes[node.node_id] = node
        self._tell(self._node_message(node))

    def tell_worker_death(self, name: str) -> None:
        self.workers[worker_id(name)] = common_pb2.WorkerInfo(worker_id=worker_id(name), is_alive=False)
        deaths = gcs_pb2.WorkerDeaths(worker_ids=[worker_id(name)])
        self._tell(gcs_pb2.PubMessage(channel=gcs_pb2.WORKER_DEATH, payload=deaths.SerializeToString()))

    async def Subscribe(  # type: ignore[override]
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        queue: asyncio.Queue[gcs_pb2.PubMessage] = asyncio.Queue()
        for node in self.nodes.values():
            queue.put_nowait(self._node_message(node))
        self._subscribers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.remove(queue)

    async def GetAllWorkers(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllWorkersReply:
        return gcs_pb2.GetAllWorkersReply(workers=self.workers.values())

    def _tell(self, message: gcs_pb2.PubMessage) -> None:
        for queue in self._subscribers:
            queue.put_nowait(message)

    @staticmethod
    def _node_message(node: common_pb2.NodeInfo) -> gcs_pb2.PubMessage:
        news = gcs_pb2.NodeNews(nodes=[node])
        return gcs_pb2.PubMessage(channel=gcs_pb2.NODE, payload=news.SerializeToString())


@asynccontextmanager
async def small_gcs(base: Path) -> AsyncIterator[SmallGcs]:
    gcs = SmallGcs()
    listener = await FramedTransport("").serve(f"unix:{base}/gcs.sock", gcs_service_handlers(gcs))
    try:
        yield gcs
    finally:
        await listener.close()


@asynccontextmanager
async def node(
    gcs: SmallGcs, base: Path, name: str, capacity_bytes: int, **config: float
) -> AsyncIterator[StoreProcess]:
    """An object manager that is part of the GCS's cluster.

    It is started in a thread, since the GCS answers in ours.
    """
    arguments = (base, name, capacity_bytes, f"--gcs-address=unix:{base}/gcs.sock")
    store = await asyncio.to_thread(lambda: StoreProcess(*arguments, **config))
    try:
        gcs.add_node(store)
        yield store
    finally:
        await asyncio.to_thread(store.__exit__, None, None, None)
