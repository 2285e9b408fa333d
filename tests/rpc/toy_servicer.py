"""A servicer whose methods do what the scenes of the transports' tests need, and the words that the scenes
are told in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from ray_mono.protobuf import gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub, GcsServiceServicer, gcs_service_handlers
from ray_mono.rpc.surface import AsyncChannel, CallContext, Connection, RpcError, StatusCode, Transport

CONNECT_TIMEOUT_S = 10.0


class ToyServicer(GcsServiceServicer):
    """A servicer whose methods do what the scenes need; it notes what happened to it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.changed = asyncio.Event()
        self.gate = asyncio.Event()
        self.connections: list[Connection] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.changed.set()

    async def until_noted(self, text: str) -> None:
        while text not in self.notes:
            self.changed.clear()
            await self.changed.wait()

    async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
        """Answers the key, at once."""
        if context.connection not in self.connections:
            self.connections.append(context.connection)
        self.note(f"get {request.key.decode(errors='replace')[:20]}{' one-way' if context.is_oneway else ''}")
        return gcs_pb2.KvGetReply(value=request.key)

    async def KvPut(self, request: gcs_pb2.KvPutRequest, context: CallContext) -> gcs_pb2.KvPutReply:
        """Answers when the gate is open."""
        self.note("put waits")
        try:
            async with asyncio.timeout(3600):
                await self.gate.wait()
        except asyncio.CancelledError:
            self.note("put cancelled")
            raise
        self.note("put done")
        return gcs_pb2.KvPutReply()

    async def KvDel(self, request: gcs_pb2.KvDelRequest, context: CallContext) -> gcs_pb2.KvDelReply:
        """Fails in the way that the key asks for, after a wait if it ends with one."""
        way, _, wait = request.key.decode().partition("+")
        if wait:
            await asyncio.sleep(0)
        if way == "status":
            raise RpcError(StatusCode.FAILED_PRECONDITION, "not now")
        if way == "cancelled":
            raise asyncio.CancelledError
        if way == "wrong":
            return gcs_pb2.KvGetReply()  # type: ignore[return-value]
        raise ZeroDivisionError("by nought")

    async def KvKeys(self, request: gcs_pb2.KvKeysRequest, context: CallContext) -> gcs_pb2.KvKeysReply:
        """Ends the client's connection from the server's side."""
        context.connection.close()
        return gcs_pb2.KvKeysReply()

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        """Items "0", "1", … as many as the key says; then it ends, fails ("3 fail") or waits ("3 wait")."""
        count, _, then = request.channels[0].keys[0].decode().partition(" ")
        try:
            for number in range(int(count)):
                yield gcs_pb2.PubMessage(key=str(number).encode())
            if then == "fail":
                raise RpcError(StatusCode.DATA_LOSS, "no more")
            if then == "wait":
                await self.gate.wait()
        finally:
            self.note("stream ended")


def get(key: bytes) -> gcs_pb2.KvGetRequest:
    return gcs_pb2.KvGetRequest(key=key)


def put() -> gcs_pb2.KvPutRequest:
    return gcs_pb2.KvPutRequest(key=b"k", value=b"v")


def subscribe(text: str) -> gcs_pb2.SubscribeRequest:
    return gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(keys=[text.encode()])])


async def error_of(call: Awaitable[Any]) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value


async def start(
    transport: Transport, address: str
) -> tuple[ToyServicer, str, AsyncChannel, GcsServiceAsyncStub, Callable[[], Awaitable[None]]]:
    """A server, and a client of it: (servicer, address, channel, stub, close everything)."""
    servicer = ToyServicer()
    listener = await transport.serve(address, gcs_service_handlers(servicer))
    channel = await transport.connect(listener.address, CONNECT_TIMEOUT_S)

    async def close() -> None:
        channel.close()
        await listener.close()

    return servicer, listener.address, channel, GcsServiceAsyncStub(channel), close
