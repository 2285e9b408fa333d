"""The simulated network and transport: order, delay, ends of connections, faults; and that a seed decides all
of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode
from tests.simulation.channel import SimChannel
from tests.simulation.loop import new_loop
from tests.simulation.network import NetworkKnobs, SimNetwork
from tests.simulation.process import SimProcess
from tests.simulation.trace import Trace
from tests.simulation.transport import SimTransport

ADDRESS = "10.0.0.1:6379"


class Servicer(gcs_rpc.GcsServiceServicer):
    """Answers a few methods of the GCS in ways that show what the transport does."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.cancelled: list[str] = []
        self.connection_ends: list[str] = []

    async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
        self.seen.append(request.key)
        if not context.connection.state:
            context.connection.state["known"] = True
            context.connection.on_close(self.connection_ends.append)
        if request.key == b"missing":
            raise RpcError(StatusCode.NOT_FOUND, "no such key")
        if request.key == b"slow":
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                self.cancelled.append("slow")
                raise
        return gcs_pb2.KvGetReply(found=True, value=request.key)

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        try:
            for number in range(1000):
                yield gcs_pb2.PubMessage(key=str(number).encode())
                await asyncio.sleep(1)
        finally:
            self.cancelled.append("stream")


class Scene:
    """Two hosts, a server process on the first."""

    def __init__(self, seed: int = 0, knobs: NetworkKnobs | None = None) -> None:
        self.loop = new_loop()
        self.trace = Trace()
        self.network = SimNetwork(self.loop, random.Random(seed), self.trace, knobs or NetworkKnobs())
        self.network.add_host("one")
        self.network.add_host("two")
        self.servicer = Servicer()
        self.server = self.network.start_process("one", "server")
        self.client = self.network.start_process("two", "client")

    async def serve(self, address: str = ADDRESS, secret: str = "s") -> None:
        transport = SimTransport(self.network, self.server, secret)
        await transport.serve(address, gcs_rpc.gcs_service_handlers(self.servicer))

    async def connect(
        self, process: SimProcess | None = None, address: str = ADDRESS, secret: str = "s"
    ) -> SimChannel:
        return await SimTransport(self.network, process or self.client, secret).connect(address, 5)

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async def with_server() -> Any:
            await self.server.spawn(self.serve())
            return await self.client.spawn(main())

        return self.loop.run_until_complete(with_server(), limit_s=3600)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.loop.end()


def key(text: str) -> gcs_pb2.KvGetRequest:
    return gcs_pb2.KvGetRequest(key=text.encode())


def test_a_call_takes_virtual_time_and_gets_its_answer(scene: Scene) -> None:
    async def main() -> bytes:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        return (await stub.KvGet(key("k"))).value

    assert scene.run(main) == b"k"
    assert 0.0004 < scene.loop.time() < 0.1


def test_requests_of_one_connection_arrive_in_order_and_those_of_two_overtake_each_other() -> None:
    overtaken = 0
    for seed in range(20):
        scene = Scene(seed)

        async def main(scene: Scene = scene) -> None:
            stubs = [gcs_rpc.GcsServiceAsyncStub(await scene.connect()) for _ in range(2)]
            await asyncio.gather(*(stubs[number % 2].KvGet(key(f"{number:02}")) for number in range(20)))

        scene.run(main)
        for side in (0, 1):
            arrived = [int(name) for name in scene.servicer.seen if int(name) % 2 == side]
            assert arrived == sorted(arrived)
        overtaken += scene.servicer.seen != sorted(scene.servicer.seen)
        scene.loop.end()
    assert overtaken > 10


def test_processes_may_hear_in_batches_what_came_meanwhile() -> None:
    """Two requests that were sent apart are heard together, and in order."""
    scene = Scene(knobs=NetworkKnobs(grain_s=0.01))
    heard_s: list[float] = []

    async def main() -> None:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        calls = []
        for name in "123":
            calls.append(asyncio.ensure_future(stub.KvGet(key(name))))
            await asyncio.sleep(0.001)
        for call in calls:
            await call
            heard_s.append(scene.loop.time())

    scene.run(main)
    assert scene.servicer.seen == [b"1", b"2", b"3"]
    assert len(set(heard_s)) == 1 and heard_s[0] / 0.01 == pytest.approx(round(heard_s[0] / 0.01))
    scene.loop.end()


def test_a_servicers_error_reaches_its_caller(scene: Scene) -> None:
    async def main() -> None:
        await gcs_rpc.GcsServiceAsyncStub(await scene.connect()).KvGet(key("missing"))

    with pytest.raises(RpcError, match="NOT_FOUND: no such key"):
        scene.run(main)


def test_a_deadline_ends_the_call_on_both_sides(scene: Scene) -> None:
    async def main() -> None:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        with pytest.raises(RpcError) as raised:
            await stub.KvGet(key("slow"), timeout_s=2)
        assert raised.value.code == StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(1)

    scene.run(main)
    assert scene.servicer.cancelled == ["slow"]


def test_leaving_a_stream_ends_it_at_the_server(scene: Scene) -> None:
    async def main() -> list[bytes]:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        keys: list[bytes] = []
        stream = stub.Subscribe(gcs_pb2.SubscribeRequest())
        async for message in stream:
            keys.append(message.key)
            if len(keys) == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        return keys

    assert scene.run(main) == [b"0", b"1", b"2"]
    assert scene.servicer.cancelled == ["stream"]


def test_a_one_way_message_arrives_and_nobody_answers(scene: Scene) -> None:
    async def main() -> None:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        stub.KvGet.notify(key("missing"))
        await asyncio.sleep(1)

    scene.run(main)
    assert scene.servicer.seen == [b"missing"]


def test_a_killed_server_ends_calls_after_what_it_had_answered(scene: Scene) -> None:
    async def main() -> list[str]:
        channel = await scene.connect()
        ends: list[str] = []
        channel.on_close(ends.append)
        stub = gcs_rpc.GcsServiceAsyncStub(channel)
        slow = asyncio.ensure_future(stub.KvGet(key("slow")))
        await stub.KvGet(key("quick"))
        scene.server.kill("the test")
        with pytest.raises(RpcError) as raised:
            await slow
        assert raised.value.code == StatusCode.UNAVAILABLE
        assert channel.is_closed
        with pytest.raises(RpcError, match="connection refused"):
            await scene.connect()
        return ends

    assert scene.run(main) == ["the peer closed the connection"]
    assert scene.servicer.cancelled == []


def test_what_a_server_had_answered_arrives_though_more_is_sent_to_it_after_its_end() -> None:
    for seed in range(20):
        scene = Scene(seed)

        async def main(scene: Scene = scene) -> None:
            stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
            answered = asyncio.ensure_future(stub.KvGet(key("quick")))
            while not scene.servicer.seen:
                await asyncio.sleep(0.00001)
            scene.server.kill("the test")
            with pytest.raises(RpcError):
                await stub.KvGet(key("late"))
            assert (await answered).value == b"quick"

        scene.run(main)
        scene.loop.end()


def test_a_killed_client_ends_its_connection_at_the_server(scene: Scene) -> None:
    async def watch() -> None:
        other = scene.network.start_process("two", "other")

        async def call() -> None:
            await gcs_rpc.GcsServiceAsyncStub(await scene.connect(other)).KvGet(key("slow"))

        other.spawn(call())
        await asyncio.sleep(1)
        other.kill("the test")
        await asyncio.sleep(1)

    scene.run(watch)
    assert scene.servicer.connection_ends == ["the peer closed the connection"]
    assert scene.servicer.cancelled == ["slow"]


def test_a_host_without_power_is_silent_until_tcp_gives_up(scene: Scene) -> None:
    async def main() -> float:
        channel = await scene.connect()
        stub = gcs_rpc.GcsServiceAsyncStub(channel)
        await stub.KvGet(key("k"))
        scene.network.crash_host("one")
        with pytest.raises(RpcError, match="did not answer within 10 s"):
            await stub.KvGet(key("k"), timeout_s=10)
        assert not channel.is_closed
        with pytest.raises(RpcError, match="no answer within 5 s"):
            await scene.connect()
        with pytest.raises(RpcError, match="TCP gave up"):
            await stub.KvGet(key("k"))
        return scene.loop.time()

    assert 900 < scene.run(main) < 902


def test_an_idle_connection_to_a_host_without_power_ends_by_keepalive(scene: Scene) -> None:
    async def main() -> float:
        channel = await scene.connect()
        ended = asyncio.Event()
        channel.on_close(lambda _reason: ended.set())
        scene.network.crash_host("one")
        await ended.wait()
        return scene.loop.time()

    assert 60 < scene.run(main) < 62


def test_a_partition_delays_messages_until_it_heals(scene: Scene) -> None:
    async def main() -> float:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        scene.network.partition("one", "two")
        calls = [asyncio.ensure_future(stub.KvGet(key(str(number)))) for number in range(3)]
        with pytest.raises(RpcError, match="no answer within 5 s"):
            await scene.connect()
        scene.network.heal()
        await asyncio.gather(*calls)
        return scene.loop.time()

    assert scene.run(main) > 5
    assert scene.servicer.seen == [b"0", b"1", b"2"]


def test_a_broken_connection_loses_what_is_under_way_and_tells_both_sides(scene: Scene) -> None:
    async def main() -> None:
        stub = gcs_rpc.GcsServiceAsyncStub(await scene.connect())
        await stub.KvGet(key("before"))
        lost = asyncio.ensure_future(stub.KvGet(key("lost")))
        await asyncio.sleep(0)
        scene.network.break_connection(scene.network.connections()[0])
        with pytest.raises(RpcError, match="connection reset"):
            await lost
        await asyncio.sleep(1)

    scene.run(main)
    assert scene.servicer.seen == [b"before"]
    assert scene.servicer.connection_ends == ["connection reset"]


def test_a_wrong_secret_is_refused_except_on_the_hosts_own_sockets(scene: Scene) -> None:
    async def main() -> None:
        with pytest.raises(RpcError, match="UNAUTHENTICATED"):
            await scene.connect(secret="wrong")
        with pytest.raises(RpcError, match="connection refused"):
            await scene.connect(address="unix:/x")
        await scene.server.spawn(scene.serve("unix:/x"))
        local = scene.network.start_process("one", "local")
        await local.spawn(scene.connect(local, address="unix:/x", secret="wrong"))

    scene.run(main)


def test_messages_are_copies(scene: Scene) -> None:
    reply = common_pb2.DumpStateReply(json="{}")

    async def dump_state(request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return reply

    scene.servicer.DumpState = dump_state  # type: ignore[method-assign]

    async def main() -> Any:
        return await gcs_rpc.GcsServiceAsyncStub(await scene.connect()).DumpState(common_pb2.Empty())

    received = scene.run(main)
    assert received == reply
    assert received is not reply


def test_the_seed_decides_the_trace() -> None:
    def digest(seed: int) -> str:
        scene = Scene(seed, NetworkKnobs(slow_probability=0.1, break_probability=0.02))

        async def call(number: int) -> None:
            for attempt in range(5):
                try:
                    await gcs_rpc.GcsServiceAsyncStub(await scene.connect()).KvGet(key(f"{number}.{attempt}"))
                except RpcError as error:
                    assert error.code == StatusCode.UNAVAILABLE

        async def main() -> None:
            await asyncio.gather(*(call(number) for number in range(20)))

        scene.run(main)
        digest = scene.trace.digest()
        scene.loop.end()
        return digest

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
