"""The giving side of transfers: a TCP listener of its own, for other object managers.

They fetch objects and free copies here. Nobody is heard before the handshake (rpc/tcp_door). A connection is
then served request by request until its peer ends it. What is sent to whom, outgoing.py says.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.message import DecodeError

from ray_mono.common.limited_log import LimitedLog
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.outgoing import Asked, Outgoing
from ray_mono.object_manager.seams import SentOn, TransferFailed
from ray_mono.object_manager.transfer_wire import (
    WireError,
    receive_message,
    send_bytes,
    send_message,
)
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.rpc.sockets import TcpAddress, listen_tcp
from ray_mono.rpc.tcp_door import TcpDoor

# Connections at once: a peer uses a few, a cluster has a thousand nodes.
CONNECTIONS_MAX = 8192

logger = logging.getLogger(__name__)


class TransferServer:
    """Serves one NodeStore's objects to other nodes."""

    def __init__(
        self,
        node_store: NodeStore,
        secret: str,
        config: ObjectManagerConfig,
        count_sent: Callable[[int], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[Any]],
    ) -> None:
        """count_sent(n) is told of object bytes as they go."""
        self._node_store = node_store
        self._outgoing = Outgoing(node_store, config)
        self._secret = secret
        self._config = config
        self._count_sent = count_sent
        self._spawn = spawn
        self._door: TcpDoor | None = None
        self._log = LimitedLog(logger)
        self._connections: dict[socket.socket, asyncio.Task[Any]] = {}

    def listen(self, host: str, port: int) -> str:
        """Starts to serve; returns "host:port" with the real port. Raises OSError as bind does."""
        listener = listen_tcp(host, port)
        self._door = TcpDoor(self._secret, self._admit, None)
        self._door.open(listener)
        return str(TcpAddress(host, listener.getsockname()[1]))

    def close(self) -> None:
        """Stops listening and ends every connection."""
        if self._door is not None:
            self._door.close()
        for task in self._connections.values():
            task.cancel()

    def _admit(self, sock: socket.socket, peer: str) -> None:
        """A client that has shown the secret."""
        if len(self._connections) >= CONNECTIONS_MAX:
            self._log.warning("refused %s: %d transfer connections are open", peer, CONNECTIONS_MAX)
            sock.close()
            return
        self._connections[sock] = self._spawn(self._serve(sock, peer), f"transfers to {peer}")

    async def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            while (message := await receive_message(sock, None)) is not None:
                await self._answer(sock, object_manager_pb2.TransferRequest.FromString(message))
        except WireError as error:
            logger.warning("transfer connection of %s: %s", peer, error)
        except DecodeError as error:
            logger.warning("transfer connection of %s: not a request: %s", peer, error)
        except OSError as error:
            logger.info("transfer connection of %s ended: %s", peer, error)
        finally:
            sock.close()
            self._connections.pop(sock, None)

    async def _answer(self, sock: socket.socket, request: object_manager_pb2.TransferRequest) -> None:
        kind = request.WhichOneof("request")
        if kind == "fetch":
            await self._send_object(sock, request.fetch)
        elif kind == "free":
            self._node_store.free([ObjectKey(item.object_id) for item in request.free.objects])
            await send_message(sock, common_pb2.Empty(), self._config.idle_transfer_timeout_s)
        else:
            raise WireError("a request of a kind that is not known here")

    async def _send_object(self, sock: socket.socket, fetch: object_manager_pb2.FetchRequest) -> None:
        timeout_s = self._config.idle_transfer_timeout_s
        asked = Asked(
            ObjectKey(fetch.object_id),
            NodeKey(fetch.asker_node_id),
            fetch.offset,
            fetch.length,
            fetch.max_bytes,
            tuple(NodeKey(node_id) for node_id in fetch.avoided_node_ids),
            fetch.is_sent_on,
            fetch.goes_on,
        )
        try:
            parcel = await self._outgoing.open(asked)
        except SentOn as answer:
            header = object_manager_pb2.FetchHeader(found=True, sent_on_to_node_id=answer.node_id)
            await send_message(sock, header, timeout_s)
            return
        if parcel is None:
            await send_message(sock, object_manager_pb2.FetchHeader(found=False), timeout_s)
            return
        try:
            header = object_manager_pb2.FetchHeader(
                found=True,
                total_bytes=parcel.header.size_bytes,
                length=parcel.length,
                metadata=parcel.header.metadata,
                owner_worker_id=parcel.header.owner,
            )
            await send_message(sock, header, timeout_s)
            async for part in parcel.parts():
                await send_bytes(sock, part, self._config.send_slice_bytes, timeout_s, self._count_sent)
        except TransferFailed as error:
            raise WireError(str(error)) from error
        finally:
            parcel.close()
