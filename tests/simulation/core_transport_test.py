"""SimReactor, CoreChannel and CoreServer: what rpc.reactor and its channels do for a core worker, here in
virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.protobuf import core_worker_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub, gcs_service_handlers
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.rpc.reactor_pair import SECRET, Store
from tests.simulation.baton import Baton
from tests.simulation.core_transport import CoreChannel, CoreServer
from tests.simulation.loop import SimulationError, new_loop
from tests.simulation.network import NetworkKnobs, SimNetwork
from tests.simulation.process import SimProcess
from tests.simulation.reactor import SimReactor
from tests.simulation.trace import Trace

LIMIT_S = 100.0
PUSH = "/ray_mono.rpc.CoreWorkerService/PushTask"


class Pair:
    """A process that serves, and one on another host that calls."""

    def __init__(self) -> None:
        self.loop = new_loop()
        self.network = SimNetwork(self.loop, random.Random(0), Trace(), NetworkKnobs())
        self.baton = Baton(self.loop)
        self.server_process, self.server_reactor = self._start("there")
        self.process, self.reactor = self._start("here")
        self.store = Store()
        self.server = CoreServer(self.network, self.server_reactor, gcs_service_handlers(self.store), SECRET)
        self.address = self.server.listen(f"{self.network.ip_of('there')}:0")
        self.watched: list[tuple[str, bool]] = []

    def _start(self, host: str) -> tuple[SimProcess, SimReactor]:
        self.network.add_host(host)
        process = self.network.start_process(host, f"process {host}")
        process.on_death(lambda _reason: self.baton.process_died(process))
        return process, SimReactor(self.baton, process)

    def channel(self, secret: str = SECRET, address: str = "") -> CoreChannel:
        def watch(path: str, request: Any, reply: Any) -> None:
            self.watched.append((path.rpartition("/")[2], reply is not None))

        return CoreChannel(self.network, self.reactor, address or self.address, secret, watch, "the store")

    def run(self, program: Callable[[GcsServiceStub, CoreChannel], None], **of_channel: Any) -> None:
        """A program on a thread of the caller's."""

        def main() -> None:
            with self.reactor.lock:
                channel = self.channel(**of_channel)
            program(GcsServiceStub(channel), channel)  # type: ignore[arg-type]

        self.baton.start(self.process, main, "program", is_main=True)
        try:
            self.loop.run_until_idle(LIMIT_S)
        finally:
            self.baton.end()
            self.loop.end()


def put(key: bytes = b"k") -> gcs_pb2.KvPutRequest:
    return gcs_pb2.KvPutRequest(key=key)


def test_a_call_blocks_its_thread_until_it_is_answered() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        assert stub.KvPut(put()).added
        assert pair.loop.time() > 0
        assert channel.num_pending == 0

    pair.run(program)
    assert pair.watched == [("KvPut", False), ("the handshake", True), ("KvPut", True)]


def test_what_is_written_waits_for_a_flush_or_the_end_of_a_turn_and_keeps_its_order() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        stub.KvPut(put(b"first"))
        for number in range(5):
            stub.KvPut.notify(put(b"%d" % number))
        assert channel.has_unsent
        pair.baton.running().sleep(1.0)
        assert not channel.has_unsent

    pair.run(program)
    assert pair.store.order == [b"first", b"0", b"1", b"2", b"3", b"4"]


def test_an_error_of_the_servicer_reaches_the_caller_with_its_status() -> None:
    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        with pytest.raises(RpcError, match="no such key") as raised:
            stub.KvDel(gcs_pb2.KvDelRequest(key=b"k"))
        assert raised.value.code is StatusCode.NOT_FOUND

    Pair().run(program)


def test_a_wait_ends_at_its_timeout() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        with pytest.raises(RpcError, match="did not answer") as raised:
            stub.KvGet(gcs_pb2.KvGetRequest(key=b"k"), timeout_s=5.0)
        assert raised.value.code is StatusCode.DEADLINE_EXCEEDED
        assert pair.loop.time() == pytest.approx(5.0)

    pair.run(program)


def test_open_calls_fail_once_when_the_server_dies() -> None:
    pair = Pair()
    failed: list[StatusCode] = []

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        stub.KvPut(put())
        for _ in range(3):
            stub.KvGet.start(
                gcs_pb2.KvGetRequest(key=b"k"),
                lambda reply, error: failed.append(error.code),  # type: ignore[union-attr]
            )
        pair.loop.call_later(1.0, pair.server_process.kill, "a fault")
        pair.baton.running().sleep(2.0)
        assert channel.is_closed
        with pytest.raises(RpcError, match="the store at .* is gone"):
            stub.KvPut(put())

    pair.run(program)
    assert failed == [StatusCode.UNAVAILABLE] * 3


def test_another_secret_is_refused() -> None:
    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        with pytest.raises(RpcError, match="refused") as raised:
            stub.KvPut(put())
        assert raised.value.code is StatusCode.UNAUTHENTICATED

    pair = Pair()
    pair.run(program, secret="another")
    assert pair.store.order == []


def test_nobody_at_the_address_is_told_to_the_call() -> None:
    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        with pytest.raises(RpcError, match="cannot connect") as raised:
            stub.KvPut(put())
        assert raised.value.code is StatusCode.UNAVAILABLE

    pair = Pair()
    pair.run(program, address=f"{pair.network.ip_of('there')}:1")


def test_bytes_that_are_written_by_hand_travel_as_they_are() -> None:
    pair = Pair()
    usual = core_worker_pb2.PushTaskRequest(template_id=1, task_id=b"t", flat_args=b"a").SerializeToString()
    full = core_worker_pb2.PushTaskRequest(task_id=b"t")
    full.spec.name = "f"
    seen: list[tuple[bytes, bool]] = []

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        method = channel.unary_unary(PUSH, bytes, bytes)
        for request in (usual, full.SerializeToString()):
            payload, copy = method._pack(request)
            seen.append((payload, copy.HasField("spec")))

    pair.run(program)
    assert seen == [(usual, False), (full.SerializeToString(deterministic=True), True)]


def test_timers_and_ends_of_turns_run_under_the_lock_and_drain_queues() -> None:
    pair = Pair()
    queue: list[str] = []
    drained: list[tuple[float, list[str]]] = []

    def drain() -> None:
        assert pair.reactor.lock._is_owned()
        drained.append((pair.loop.time(), list(queue)))
        queue.clear()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        pair.reactor.serve_queues([queue], drain)
        pair.reactor.call_later(1.0, lambda: queue.append("by a timer"))
        pair.baton.running().sleep(2.0)
        queue.append("by a finalizer")
        pair.reactor.wake()
        pair.baton.running().sleep(1.0)
        queue.append("before a wait")
        pair.reactor.wait(Waiter(pair.reactor), 1.0)

    pair.run(program)
    assert drained == [(1.0, ["by a timer"]), (2.0, ["by a finalizer"]), (3.0, ["before a wait"])]


def test_a_wait_under_the_lock_and_a_wait_of_the_loop_are_found() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        with pytest.raises(SimulationError, match="under the core worker's lock"), pair.reactor.lock:
            pair.reactor.wait(Waiter(pair.reactor), 1.0)

    pair.run(program)
    with pytest.raises(SimulationError, match="would block"):
        pair.reactor.wait(Waiter(pair.reactor), 1.0)


def test_an_interrupt_ends_the_main_threads_wait_and_the_reactor_goes_on() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        thread = pair.baton.running()

        def strike() -> None:
            pair.reactor.note_interrupt()
            thread.wake()

        pair.loop.call_later(1.0, strike)
        with pytest.raises(KeyboardInterrupt):
            stub.KvGet(gcs_pb2.KvGetRequest(key=b"k"))
        assert pair.loop.time() == 1.0
        assert stub.KvPut(put()).added

    pair.run(program)


def test_closing_ends_every_wait() -> None:
    pair = Pair()

    def program(stub: GcsServiceStub, channel: CoreChannel) -> None:
        pair.loop.call_later(1.0, pair.reactor.close)
        with pytest.raises(RpcError, match="disconnected meanwhile") as raised:
            stub.KvGet(gcs_pb2.KvGetRequest(key=b"k"))
        assert raised.value.code is StatusCode.CANCELLED

    pair.run(program)
