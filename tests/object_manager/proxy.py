"""A peer between two object managers that breaks off.

It knows the secret: nobody else can carry on what is said to another port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.pulls import spread
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.auth import ClientHandshake, ServerHandshake
from tests.object_manager.harness import SECRET, SmallGcs, StoreProcess


def asked_first(reader: bytes, object_id: bytes, other: bytes, is_first: bool = True) -> bytes:
    """The id of a node that the reader asks for the object before the other one, or after it."""
    for number in range(100):
        node_id = f"proxy{number}".encode().ljust(28)
        order = spread(NodeKey(reader), ObjectKey(object_id), [NodeKey(other), NodeKey(node_id)])
        if (order[0] == node_id) is is_first:
            return node_id
    raise AssertionError("there is none")


class Proxy:
    """In front of a real object manager: lets `count` bytes of its answers through, and then hangs up or says
    nothing more."""

    def __init__(
        self,
        source: StoreProcess,
        count: int,
        hangs_up: bool,
        node_id: bytes = b"proxy".ljust(28),
        times: int = 0,
    ) -> None:
        """times: so many connections are reset after `count` bytes each, and those that follow are not.
        0: all connections share `count`."""
        self.node_id = node_id
        self.spent = asyncio.Event()
        self._source = source
        self._left = count
        self._count = count
        self._times = times
        self.num_connections = 0
        self._hangs_up = hangs_up
        self.passed_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self, gcs: SmallGcs) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        gcs.tell_node(common_pb2.NodeInfo(node_id=self.node_id, host="127.0.0.1", object_manager_port=port))
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._source.port)
        client = ClientHandshake(SECRET, self._source.port)
        to_there.write(client.start())
        for handshake, source, target in (
            (client, there, to_there),
            (ServerHandshake(SECRET, writer.get_extra_info("sockname")[1]), reader, writer),
        ):
            while handshake.missing_bytes:
                target.write(handshake.feed(await source.readexactly(handshake.missing_bytes)))
        self.num_connections += 1
        if self._times:
            self._left = self._count if self.num_connections <= self._times else 1 << 62
        forward = asyncio.ensure_future(self._forward(reader, to_there))
        answer = asyncio.ensure_future(self._answer(there, writer))
        self._tasks += [forward, answer]
        await asyncio.wait([forward, answer], return_when=asyncio.FIRST_COMPLETED)
        if self._times:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        for side in (writer, to_there):
            side.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._left > 0 and (data := await reader.read(min(65536, self._left))):
            self._left -= len(data)
            self.passed_bytes += len(data)
            writer.write(data)
            await writer.drain()
        self.spent.set()
        if not self._hangs_up:
            await asyncio.Event().wait()
