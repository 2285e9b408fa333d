"""The asking side of transfers: streams to other object managers, kept open and used again.

This is the real TransferStreams. A connection carries one request at a time; what is answered in full leaves
it ready for the next. One that broke, or on which an answer was left unread, is closed. A kept connection may
have died unnoticed, so a request that fails on one before its answer began is sent once more on a new one.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError

from ray_mono.object_manager.bulk_receive import BulkReceive
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.seams import Fetch, Landing, ObjectHeader, PeerAddress, SentOn, TransferFailed
from ray_mono.object_manager.transfer_wire import (
    WireError,
    receive_into,
    receive_message,
    send_message,
    shake_hands,
)
from ray_mono.protobuf import object_manager_pb2
from ray_mono.rpc.auth import ClientHandshake
from ray_mono.rpc.framed_handshake import found_addresses, shaken
from ray_mono.rpc.sockets import speaks_first, tune_tcp, why_not

T = TypeVar("T")

# Of one message: 64 KiB of ids.
_FREES_PER_MESSAGE = 2000
# Smaller ones arrive before a thread has started.
_IN_THREAD_BYTES_MIN = 1 << 20


@dataclass
class _Connections:
    """Connections to one node. At most connections_per_peer_max are in use or kept."""

    places: asyncio.Semaphore
    idle: list[socket.socket] = field(default_factory=list)


class TcpTransferStreams:
    """Implements TransferStreams over TCP."""

    def __init__(self, secret: str, config: ObjectManagerConfig, node_id: NodeKey) -> None:
        """node_id: ours."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self._secret = secret
        self._node_id = node_id
        self._config = config
        self._peers: dict[PeerAddress, _Connections] = {}

    async def fetch(self, peer: PeerAddress, fetch: Fetch, landing: Landing) -> bool:
        """See TransferStreams."""
        return await self._with_connection(peer, lambda sock: self._fetch(sock, fetch, landing))

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        """See TransferStreams."""
        for start in range(0, len(object_ids), _FREES_PER_MESSAGE):
            part = object_ids[start : start + _FREES_PER_MESSAGE]
            await self._with_connection(peer, functools.partial(self._free, object_ids=part))

    def count_sent(self, count: int) -> None:
        """The serving side (transfer_server.py) tells of the object bytes that it sends."""
        self.sent_bytes += count

    def drop(self, peer: PeerAddress) -> None:
        """See TransferStreams. Connections in use break by themselves."""
        for sock in self._peers.pop(peer, _Connections(asyncio.Semaphore(0))).idle:
            sock.close()

    async def close(self) -> None:
        """Ends the connections that nobody uses; the others end with the tasks that use them."""
        for address in list(self._peers):
            self.drop(address)

    # ---- one request

    async def _fetch(self, sock: socket.socket, fetch: Fetch, landing: Landing) -> tuple[bool, bool]:
        """(the object is whole, the connection can be used again)."""
        request = object_manager_pb2.FetchRequest(
            object_id=fetch.object_id,
            offset=landing.at,
            length=0 if landing.end is None else landing.end - landing.at,
            max_bytes=fetch.max_bytes,
            asker_node_id=self._node_id,
            avoided_node_ids=fetch.avoided,
            is_sent_on=fetch.is_sent_on,
            goes_on=fetch.goes_on,
        )
        answer = await self._ask(sock, object_manager_pb2.TransferRequest(fetch=request))
        message = object_manager_pb2.FetchHeader.FromString(answer)
        if not message.found:
            raise _Refused("it holds no copy")
        if message.sent_on_to_node_id:
            raise SentOn(NodeKey(message.sent_on_to_node_id))
        header = ObjectHeader(message.total_bytes, message.metadata, WorkerKey(message.owner_worker_id))
        memory = landing.place(header)
        end = header.size_bytes if landing.end is None else landing.end
        missing_bytes = end - landing.at
        if message.length == 0 and missing_bytes > 0:
            return False, True  # announced only
        if memory is None:
            return False, False
        if message.length != missing_bytes:
            raise WireError(f"it offers {message.length} bytes, {missing_bytes} are missing")

        await self._receive(sock, memory[landing.at : end], landing)
        if landing.at < end:
            raise WireError(f"the connection ended after {landing.at} of {header.size_bytes} bytes")
        return True, True

    async def _receive(self, sock: socket.socket, memory: memoryview, landing: Landing) -> None:
        timeout_s = self._config.idle_transfer_timeout_s
        start = landing.at

        def progress(count: int) -> None:
            landing.arrived(count)
            self.received_bytes += count

        def prepare(at: int, count: int) -> None:
            landing.prepare(start + at, count)

        reception = None
        if len(memory) >= _IN_THREAD_BYTES_MIN:
            try:
                reception = BulkReceive(sock, memory, timeout_s, prepare, landing.arrived_in_thread)
            except OSError as error:
                # There is no thread for it: the loop is slower, and enough.
                if error.errno != errno.EAGAIN:
                    raise
        if reception is None:
            await receive_into(sock, memory, timeout_s, progress)
            return
        try:
            await reception
        finally:
            self.received_bytes += reception.received_bytes

    async def _free(self, sock: socket.socket, object_ids: Sequence[ObjectKey]) -> tuple[None, bool]:
        objects = [object_manager_pb2.ObjectFree(object_id=object_id) for object_id in object_ids]
        request = object_manager_pb2.TransferRequest(free=object_manager_pb2.FreeRequest(objects=objects))
        await self._ask(sock, request)
        return None, True

    async def _ask(self, sock: socket.socket, request: object_manager_pb2.TransferRequest) -> bytes:
        """Raises _NoAnswer where the connection turns out to be dead."""
        timeout_s = self._config.idle_transfer_timeout_s
        try:
            await send_message(sock, request, timeout_s)
            answer = await receive_message(sock, timeout_s)
        except OSError as error:
            raise _NoAnswer(str(error)) from error
        if answer is None:
            raise _NoAnswer("the peer ended the connection")
        return answer

    # ---- connections

    async def _with_connection(
        self, address: PeerAddress, use: Callable[[socket.socket], Awaitable[tuple[T, bool]]]
    ) -> T:
        peer = self._peers.setdefault(
            address, _Connections(asyncio.Semaphore(self._config.connections_per_peer_max))
        )
        async with peer.places:
            try:
                while True:
                    is_kept = bool(peer.idle)
                    sock = peer.idle.pop() if is_kept else await self._connect(address)
                    try:
                        return await self._use(address, peer, sock, use)
                    except _NoAnswer:
                        if not is_kept:
                            raise
            except OSError as error:
                raise TransferFailed(f"{address.host}:{address.port}: {why_not(error)}") from error
            except (_NoAnswer, WireError, DecodeError) as error:
                raise TransferFailed(f"{address.host}:{address.port}: {error}") from error

    async def _use(
        self,
        address: PeerAddress,
        peer: _Connections,
        sock: socket.socket,
        use: Callable[[socket.socket], Awaitable[tuple[T, bool]]],
    ) -> T:
        is_reusable = False
        try:
            result, is_reusable = await use(sock)
        except _Refused as refusal:
            is_reusable = True
            raise TransferFailed(str(refusal)) from None
        except SentOn:
            is_reusable = True
            raise
        finally:
            if is_reusable and self._peers.get(address) is peer:
                peer.idle.append(sock)
            else:
                sock.close()
        return result

    async def _connect(self, address: PeerAddress) -> socket.socket:
        loop = asyncio.get_running_loop()

        async def shake() -> socket.socket:
            found = await found_addresses(address.host, address.port)
            family, kind, protocol, _, target = found[0]
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            try:
                tune_tcp(sock)
                speaks_first(sock)
                await loop.sock_connect(sock, target)
                await shake_hands(sock, ClientHandshake(self._secret, address.port))
            except BaseException:
                sock.close()
                raise
            return sock

        timeout_s = self._config.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await shaken(shake)
        except TimeoutError:
            raise WireError(f"no connection within {timeout_s:g} s") from None


class _NoAnswer(Exception):
    """The connection ended before the answer began."""


class _Refused(Exception):
    """An answer that says no, on a connection that is in order."""
