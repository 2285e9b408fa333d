"""What every Transport must do, as scenes: run against the real one and against the simulated one.

A test class inherits TransportConformance and says how a scene runs: `run` makes a transport and an address
to serve at, and runs the coroutine to its end on a loop of its choice. Scenes wait for events, never for
time, so that a loop with virtual time serves as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub, gcs_service_handlers
from ray_mono.rpc.surface import RpcError, StatusCode, Transport
from tests.rpc.toy_servicer import CONNECT_TIMEOUT_S, ToyServicer, error_of, get, put, start, subscribe

Scene = Callable[[Transport, str], Coroutine[Any, Any, None]]


class TransportConformance:
    """Inherit, and define run()."""

    def run(self, scene: Scene) -> None:
        raise NotImplementedError

    # ---- unary calls

    def test_a_call_gets_its_answer(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            assert (await stub.KvGet(get(b"a"))).value == b"a"
            await close()

        self.run(scene)

    def test_each_of_many_calls_gets_its_own_answer(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            keys = [str(number).encode() for number in range(500)]
            replies = await asyncio.gather(*(stub.KvGet(get(key)) for key in keys))
            assert [reply.value for reply in replies] == keys
            await close()

        self.run(scene)

    def test_a_message_of_many_megabytes_arrives_whole(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            large = bytes(range(256)) * (20 << 12)
            reply, small = await asyncio.gather(stub.KvGet(get(large)), stub.KvGet(get(b"small")))
            assert reply.value == large and small.value == b"small"
            await close()

        self.run(scene)

    def test_large_messages_of_two_connections_do_not_mix(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, real_address, _, stub, close = await start(transport, address)
            other = await transport.connect(real_address, CONNECT_TIMEOUT_S)
            sent = [bytes((number,)) * (3 << 20) for number in range(4)]
            stubs = [stub, GcsServiceAsyncStub(other)] * 2
            replies = await asyncio.gather(
                *[each.KvGet(get(large)) for each, large in zip(stubs, sent, strict=True)]
            )
            assert [reply.value for reply in replies] == sent
            other.close()
            await close()

        self.run(scene)

    def test_calls_are_handled_in_the_order_in_which_they_were_made(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)
            calls = [stub.KvGet(get(str(number).encode())) for number in range(50)]
            await asyncio.gather(*calls)
            assert servicer.notes == [f"get {number}" for number in range(50)]
            await close()

        self.run(scene)

    def test_a_handler_that_waits_lets_later_calls_pass(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)
            waiting = [asyncio.ensure_future(stub.KvPut(put())) for _ in range(3)]
            assert (await stub.KvGet(get(b"later"))).value == b"later"
            assert servicer.notes == ["put waits"] * 3 + ["get later"]
            servicer.gate.set()
            await asyncio.gather(*waiting)
            await close()

        self.run(scene)

    def test_a_one_way_message_is_handled_in_order_and_knows_that_it_is_one(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)
            stub.KvGet.notify(get(b"a"))
            await stub.KvGet(get(b"b"))
            assert servicer.notes == ["get a one-way", "get b"]
            await close()

        self.run(scene)

    def test_a_one_way_message_sent_before_the_end_arrives(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, channel, stub, close = await start(transport, address)
            for number in range(3):
                stub.KvGet.notify(get(str(number).encode()))
            channel.close()
            await servicer.until_noted("get 2 one-way")
            await close()

        self.run(scene)

    # ---- errors

    @pytest.mark.parametrize("wait", ["", "+wait"])
    def test_a_handlers_exception_becomes_a_status(self, wait: str) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)

            async def fail(way: str) -> RpcError:
                return await error_of(stub.KvDel(gcs_pb2.KvDelRequest(key=f"{way}{wait}".encode())))

            status = await fail("status")
            assert (status.code, status.message) == (StatusCode.FAILED_PRECONDITION, "not now")
            broken = await fail("broken")
            assert broken.code is StatusCode.INTERNAL
            assert "ZeroDivisionError: by nought" in broken.message and "KvDel" in broken.message
            assert (await fail("cancelled")).code is StatusCode.CANCELLED
            assert (await fail("wrong")).code is StatusCode.INTERNAL
            assert (await stub.KvGet(get(b"still here"))).value == b"still here"
            await close()

        self.run(scene)

    def test_a_method_that_is_not_overridden_is_unimplemented(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            error = await error_of(stub.DumpState(common_pb2.Empty()))
            assert (
                error.code is StatusCode.UNIMPLEMENTED
                and "/ray_mono.rpc.GcsService/DumpState" in error.message
            )
            await close()

        self.run(scene)

    def test_a_method_that_nobody_serves_is_unimplemented_and_named(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, channel, _, close = await start(transport, address)
            call = channel.unary_unary(
                "/no.Such/Method", common_pb2.Empty.SerializeToString, common_pb2.Empty.FromString
            )
            error = await error_of(call(common_pb2.Empty()))
            assert error.code is StatusCode.UNIMPLEMENTED and "/no.Such/Method" in error.message
            await close()

        self.run(scene)

    def test_a_request_that_cannot_be_parsed_is_an_invalid_argument(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, channel, _, close = await start(transport, address)
            call = channel.unary_unary("/ray_mono.rpc.GcsService/KvGet", bytes, gcs_pb2.KvGetReply.FromString)
            assert (await error_of(call(b"\xff\xff\xff"))).code is StatusCode.INVALID_ARGUMENT
            await close()

        self.run(scene)

    # ---- ends of calls

    def test_a_call_that_takes_too_long_fails_and_its_handler_is_cancelled(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)
            error = await error_of(stub.KvPut(put(), timeout_s=0.05))
            assert error.code is StatusCode.DEADLINE_EXCEEDED and "KvPut" in error.message
            await servicer.until_noted("put cancelled")
            await close()

        self.run(scene)

    def test_cancelling_the_task_that_awaits_a_call_cancels_its_handler(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)

            async def call() -> None:
                await stub.KvPut(put())

            task = asyncio.ensure_future(call())
            await servicer.until_noted("put waits")
            task.cancel()
            await servicer.until_noted("put cancelled")
            assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError
            assert (await stub.KvGet(get(b"on"))).value == b"on"
            await close()

        self.run(scene)

    # ---- streams

    def test_a_stream_gives_its_items_in_order_and_ends(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            items = [item.key async for item in stub.Subscribe(subscribe("300"))]
            assert items == [str(number).encode() for number in range(300)]
            assert [item async for item in stub.Subscribe(subscribe("0"))] == []
            await close()

        self.run(scene)

    def test_a_stream_that_fails_gives_its_items_first(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, _, _, stub, close = await start(transport, address)
            items = []
            with pytest.raises(RpcError) as caught:
                async for item in stub.Subscribe(subscribe("2 fail")):
                    items.append(item.key)
            assert items == [b"0", b"1"] and caught.value.code is StatusCode.DATA_LOSS
            await close()

        self.run(scene)

    def test_leaving_a_stream_ends_it_at_the_server(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, _, stub, close = await start(transport, address)
            stream = stub.Subscribe(subscribe("1 wait"))
            assert (await anext(stream)).key == b"0"
            await stream.aclose()  # type: ignore[attr-defined]
            await servicer.until_noted("stream ended")
            assert (await stub.KvGet(get(b"on"))).value == b"on"
            await close()

        self.run(scene)

    # ---- connections

    def test_the_end_of_a_connection_is_told_to_both_ends_once(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, channel, stub, close = await start(transport, address)
            await stub.KvGet(get(b"a"))
            server_told, client_told = asyncio.Event(), []
            servicer.connections[0].on_close(lambda reason: server_told.set())
            channel.on_close(client_told.append)
            channel.close()
            await server_told.wait()
            assert channel.is_closed and len(client_told) == 1
            late: list[str] = []
            channel.on_close(late.append)
            servicer.connections[0].on_close(late.append)
            assert len(late) == 2
            channel.close()
            assert len(client_told) == 1
            await close()

        self.run(scene)

    def test_a_call_fails_when_its_connection_is_closed_or_was(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, real_address, channel, stub, close = await start(transport, address)
            waiting = asyncio.ensure_future(stub.KvPut(put()))
            await servicer.until_noted("put waits")
            channel.close()
            for call in (waiting, stub.KvGet(get(b"a"))):
                error = await error_of(call)
                assert error.code is StatusCode.UNAVAILABLE and real_address in error.message
            error = await error_of(anext(stub.Subscribe(subscribe("1"))))
            assert error.code is StatusCode.UNAVAILABLE
            stub.KvGet.notify(get(b"lost"))
            await close()

        self.run(scene)

    def test_handlers_and_streams_are_cancelled_when_their_client_goes(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, _, channel, stub, close = await start(transport, address)
            waiting = asyncio.ensure_future(stub.KvPut(put()))
            stream = stub.Subscribe(subscribe("1 wait"))
            await anext(stream)
            await servicer.until_noted("put waits")
            channel.close()
            await servicer.until_noted("put cancelled")
            await servicer.until_noted("stream ended")
            assert "put done" not in servicer.notes
            assert (await error_of(waiting)).code is StatusCode.UNAVAILABLE
            assert (await error_of(anext(stream))).code is StatusCode.UNAVAILABLE
            await close()

        self.run(scene)

    def test_a_server_can_end_one_clients_connection(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            _, real_address, channel, stub, close = await start(transport, address)
            other = await transport.connect(real_address, CONNECT_TIMEOUT_S)
            gone = asyncio.Event()
            channel.on_close(lambda reason: gone.set())
            assert (await error_of(stub.KvKeys(gcs_pb2.KvKeysRequest()))).code is StatusCode.UNAVAILABLE
            await gone.wait()
            assert (await GcsServiceAsyncStub(other).KvGet(get(b"b"))).value == b"b"
            other.close()
            await close()

        self.run(scene)

    def test_each_connection_has_its_own_state(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer, real_address, _, stub, close = await start(transport, address)
            other = await transport.connect(real_address, CONNECT_TIMEOUT_S)
            await stub.KvGet(get(b"a"))
            await GcsServiceAsyncStub(other).KvGet(get(b"b"))
            await stub.KvGet(get(b"c"))
            first, second = servicer.connections
            first.state["x"] = 1
            assert second.state == {} and first.peer and second.peer
            other.close()
            await close()

        self.run(scene)

    # ---- listeners

    def test_a_closed_listener_ends_its_connections_and_takes_no_more(self) -> None:
        async def scene(transport: Transport, address: str) -> None:
            servicer = ToyServicer()
            listener = await transport.serve(address, gcs_service_handlers(servicer))
            channel = await transport.connect(listener.address, CONNECT_TIMEOUT_S)
            waiting = asyncio.ensure_future(GcsServiceAsyncStub(channel).KvPut(put()))
            await servicer.until_noted("put waits")
            await listener.close()
            assert (await error_of(waiting)).code is StatusCode.UNAVAILABLE
            assert "put cancelled" in servicer.notes and channel.is_closed
            error = await error_of(transport.connect(listener.address, CONNECT_TIMEOUT_S))
            assert error.code is StatusCode.UNAVAILABLE and listener.address in error.message
            again = await transport.serve(listener.address, gcs_service_handlers(servicer))
            channel = await transport.connect(again.address, CONNECT_TIMEOUT_S)
            assert (await GcsServiceAsyncStub(channel).KvGet(get(b"a"))).value == b"a"
            channel.close()
            await again.close()

        self.run(scene)
