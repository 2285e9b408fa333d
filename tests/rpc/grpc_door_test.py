"""gRPC clients get in by the port that framed clients use, with the secret, and no process pays for gRPC
before.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_pb2_grpc
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub, GcsServiceServicer, gcs_service_handlers
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

SECRET = "open sesame"
METADATA = (("authorization", f"Bearer {SECRET}"),)
WAIT_S = 30.0


class KvServicer(GcsServiceServicer):
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.ends: list[str] = []

    async def KvPut(self, request: gcs_pb2.KvPutRequest, context: CallContext) -> gcs_pb2.KvPutReply:
        context.connection.on_close(self.ends.append)
        await asyncio.sleep(0)
        self.values[request.key] = request.value
        return gcs_pb2.KvPutReply()

    async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
        if request.key not in self.values:
            raise RpcError(StatusCode.NOT_FOUND, f"no {request.key!r}")
        return gcs_pb2.KvGetReply(value=self.values[request.key])

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        for number in range(3):
            yield gcs_pb2.PubMessage(key=bytes([number]))
        raise RpcError(StatusCode.DATA_LOSS, "no more")


def run(scene: Callable[[str, KvServicer], Awaitable[None]]) -> None:
    async def main() -> None:
        servicer = KvServicer()
        listener = await FramedTransport(SECRET, private_dir).serve(
            "127.0.0.1:0", gcs_service_handlers(servicer)
        )
        try:
            async with asyncio.timeout(WAIT_S):
                await scene(listener.address, servicer)
        finally:
            await listener.close()

    # The door removes what it made, and an empty directory is left.
    with tempfile.TemporaryDirectory(prefix="rpc", dir="/tmp") as private_dir:
        asyncio.run(main())
        assert os.listdir(private_dir) == []


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_grpc_and_framed_clients_share_a_port_and_a_servicer() -> None:
    async def scene(address: str, servicer: KvServicer) -> None:
        framed = await FramedTransport(SECRET).connect(address, WAIT_S)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            large = bytes(range(256)) * 10_000
            await stub.KvPut(gcs_pb2.KvPutRequest(key=b"k", value=large), metadata=METADATA)
            assert servicer.ends == ["the call ended"]
            assert (await GcsServiceAsyncStub(framed).KvGet(gcs_pb2.KvGetRequest(key=b"k"))).value == large
            await GcsServiceAsyncStub(framed).KvPut(gcs_pb2.KvPutRequest(key=b"f", value=b"framed"))
            replies = await asyncio.gather(
                *(stub.KvGet(gcs_pb2.KvGetRequest(key=key), metadata=METADATA) for key in (b"k", b"f"))
            )
            assert [reply.value for reply in replies] == [large, b"framed"]
        framed.close()

    run(scene)


def test_a_grpc_stream_gives_its_items_and_its_error() -> None:
    async def scene(address: str, servicer: KvServicer) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stream = gcs_pb2_grpc.GcsServiceStub(channel).Subscribe(
                gcs_pb2.SubscribeRequest(), metadata=METADATA
            )
            keys = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for item in stream:
                    keys.append(item.key)
            assert keys == [b"\0", b"\1", b"\2"] and caught.value.code() is grpc.StatusCode.DATA_LOSS

    run(scene)


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", SECRET),)])
def test_a_grpc_call_without_the_secret_is_refused_with_what_to_do(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    async def scene(address: str, servicer: KvServicer) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            calls = (
                stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), metadata=metadata),
                stub.DumpState(common_pb2.Empty(), metadata=metadata),
                channel.unary_unary("/no.Such/Method")(b"", metadata=metadata),
            )
            for call in calls:
                code, details = await refused(call)
                assert code is grpc.StatusCode.UNAUTHENTICATED and "authorization: Bearer" in details
            stream = stub.Subscribe(gcs_pb2.SubscribeRequest(), metadata=metadata)
            code, details = await refused(anext(aiter(stream)))
            assert code is grpc.StatusCode.UNAUTHENTICATED and "authorization: Bearer" in details
            assert servicer.values == {}

    run(scene)


def test_statuses_travel_through_grpc() -> None:
    async def scene(address: str, servicer: KvServicer) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            code, details = await refused(stub.KvGet(gcs_pb2.KvGetRequest(key=b"x"), metadata=METADATA))
            assert (code, details) == (grpc.StatusCode.NOT_FOUND, "no b'x'")
            code, _ = await refused(stub.DumpState(common_pb2.Empty(), metadata=METADATA))
            assert code is grpc.StatusCode.UNIMPLEMENTED
            code, details = await refused(channel.unary_unary("/no.Such/Method")(b"", metadata=METADATA))
            assert code is grpc.StatusCode.UNIMPLEMENTED and "/no.Such/Method" in details
            code, _ = await refused(
                channel.unary_unary("/ray_mono.rpc.GcsService/KvGet")(b"\xff\xff", metadata=METADATA)
            )
            assert code is grpc.StatusCode.INVALID_ARGUMENT

    run(scene)


def test_closing_the_listener_ends_grpc_clients() -> None:
    async def main() -> None:
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(KvServicer()))
        async with grpc.aio.insecure_channel(listener.address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            await stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), metadata=METADATA)
            await listener.close()
            code, _ = await refused(
                stub.KvGet(gcs_pb2.KvGetRequest(key=b"k"), metadata=METADATA, timeout=WAIT_S)
            )
            assert code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_the_transport_alone_imports_no_grpc() -> None:
    program = "import sys, ray_mono.rpc.framed; sys.exit('grpc' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
def test_the_secret_is_asked_for_by_each_call_of_a_connection_that_is_in(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    async def scene(address: str, servicer: KvServicer) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            await stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), metadata=METADATA)
            call = stub.KvPut(gcs_pb2.KvPutRequest(key=b"other"), metadata=metadata)
            stream = stub.Subscribe(gcs_pb2.SubscribeRequest(), metadata=metadata)
            for refused_call in (call, anext(aiter(stream))):
                code, _ = await refused(refused_call)
                assert code is grpc.StatusCode.UNAUTHENTICATED
            assert list(servicer.values) == [b"k"]

    run(scene)
