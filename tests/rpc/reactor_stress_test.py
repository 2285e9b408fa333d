"""The reactor with many threads at once, interrupts at every moment, and forks:
nobody waits for what has happened.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ray_mono.protobuf import gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, GcsServiceStub, gcs_service_handlers
from ray_mono.rpc.reactor import Reactor, Waiter
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer
from ray_mono.rpc.surface import RpcError, StatusCode

WAIT_S = 60.0
THREADS = 8
STEPS = 150


class Echo(GcsServiceServicer):
    """KvPut is answered at once, KvGet after a moment, and never if its connection ends before."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.one_way = 0

    def KvPut(self, request: Any, call: Any) -> None:  # type: ignore[override]
        self.one_way += call.is_oneway
        call.reply(gcs_pb2.KvPutReply(added=True))

    def KvGet(self, request: Any, call: Any) -> None:  # type: ignore[override]
        self.reactor.call_later(0.002, lambda: call.reply(gcs_pb2.KvGetReply(found=True, value=request.key)))


@pytest.fixture
def served() -> Iterator[tuple[Echo, str, str]]:
    """(servicer, unix address, tcp address)."""
    directory = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    reactor = Reactor("server")
    servicer = Echo(reactor)
    with reactor.lock:
        server = ReactorServer(reactor, gcs_service_handlers(servicer), "secret")
        server.listen_unix(f"{directory}/s")
        port = server.listen_tcp("127.0.0.1")
    yield servicer, f"unix:{directory}/s", f"127.0.0.1:{port}"
    with reactor.lock:
        server.close()
    reactor.close()
    shutil.rmtree(directory)


def connected(reactor: Reactor, address: str) -> tuple[ReactorChannel, GcsServiceStub]:
    with reactor.lock:
        channel = ReactorChannel(reactor, address, "secret")
    return channel, GcsServiceStub(channel)


class Work:
    """What one of the threads does, drawn by a seed, and what came of it."""

    def __init__(self, reactor: Reactor, addresses: list[str], stubs: list[Any], seed: int) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._stubs = stubs
        self._random = random.Random(seed)
        self.expected = 0
        self.happened: Counter[int] = Counter()
        self.sent_one_way = 0

    def run(self) -> None:
        steps = [self.call, self.call, self.start, self.one_way, self.timer, self.timeout, self.close_one]
        for _ in range(STEPS):
            self._random.choice(steps)()

    def call(self) -> None:
        key = self._random.randbytes(self._random.choice([1, 100, 300_000]))
        assert (
            self._random.choice(self._stubs).KvGet(gcs_pb2.KvGetRequest(key=key), timeout_s=WAIT_S).value
            == key
        )

    def start(self) -> None:
        number = self.expected
        self.expected += 1
        self._random.choice(self._stubs).KvPut.start(
            gcs_pb2.KvPutRequest(key=b"k"), lambda reply, error: self.happened.update([number])
        )

    def one_way(self) -> None:
        self.sent_one_way += 1
        self._random.choice(self._stubs).KvPut.notify(gcs_pb2.KvPutRequest(key=b"k"))

    def timer(self) -> None:
        number = self.expected
        self.expected += 1
        with self._reactor.lock:
            self._reactor.call_later(self._random.random() * 0.01, lambda: self.happened.update([number]))

    def timeout(self) -> None:
        assert not self._reactor.wait(Waiter(self._reactor), 0.001)

    def close_one(self) -> None:
        """Calls on a connection that ends are told so, each once."""
        channel, stub = connected(self._reactor, self._random.choice(self._addresses))
        for _ in range(5):
            number = self.expected
            self.expected += 1
            stub.KvGet.start(
                gcs_pb2.KvGetRequest(key=b"k"), lambda reply, error, n=number: self.happened.update([n])
            )
        with self._reactor.lock:
            channel.close()
        with pytest.raises(RpcError) as gone:
            stub.KvPut(gcs_pb2.KvPutRequest(), timeout_s=WAIT_S)
        assert gone.value.code is StatusCode.UNAVAILABLE


def test_threads_that_call_wait_time_out_and_disconnect_at_once(served: Any) -> None:
    servicer, unix, tcp = served
    reactor = Reactor("caller")
    opened = [connected(reactor, address) for address in (unix, tcp)]
    works = [Work(reactor, [unix, tcp], [stub for _, stub in opened], seed) for seed in range(THREADS)]
    failures: list[BaseException] = []

    def run(work: Work) -> None:
        try:
            work.run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not failures and not any(thread.is_alive() for thread in threads)
    # Nobody waits now: what is still under way comes by itself.
    for _ in range(1000):
        done = sum(sum(work.happened.values()) for work in works) == sum(work.expected for work in works)
        if done and servicer.one_way == sum(work.sent_one_way for work in works):
            break
        threading.Event().wait(0.01)
    for work in works:
        assert work.happened == Counter(range(work.expected))
    assert servicer.one_way == sum(work.sent_one_way for work in works)
    with reactor.lock:
        for channel, _ in opened:
            channel.close()
    reactor.close()


def test_a_wait_that_another_thread_ends_is_over_though_its_own_leads() -> None:
    reactor = Reactor("alone")
    for _ in range(200):
        waiter = Waiter(reactor)

        def end(waiter: Waiter = waiter) -> None:
            with reactor.lock:
                waiter.set()

        thread = threading.Thread(target=end)
        thread.start()
        assert reactor.wait(waiter, WAIT_S)
        thread.join()
    reactor.close()


def test_a_handler_that_fails_costs_nobody_else_an_answer(served: Any) -> None:
    _, unix, _ = served
    reactor = Reactor("caller")
    channel, stub = connected(reactor, unix)

    def fail(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    with reactor.lock:
        channel.on_close(fail)
        reactor.serve_queues((["never taken out"],), fail)
        reactor.call_later(0.0, fail)
        for _ in range(3):
            stub.KvPut.start(gcs_pb2.KvPutRequest(key=b"k"), fail)
    for _ in range(3):
        assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
    answered: list[Any] = []
    with reactor.lock:
        stub.KvGet.start(gcs_pb2.KvGetRequest(key=b"k"), fail)
        stub.KvGet.start(gcs_pb2.KvGetRequest(key=b"k"), lambda reply, error: answered.append(error))
        channel.close()
    assert [error.code for error in answered] == [StatusCode.UNAVAILABLE]
    reactor.close()


def test_interrupts_at_any_moment_leave_a_reactor_that_others_can_use(served: Any) -> None:
    _, unix, _ = served
    reactor = Reactor("caller")
    channel, stub = connected(reactor, unix)
    before = signal.signal(
        signal.SIGINT, lambda *given: reactor.takes_interrupt(given[1]) and signal.default_int_handler(*given)
    )
    stop = threading.Event()
    sent = threading.Semaphore(0)

    def strike() -> None:
        pause = random.Random(1)
        while sent.acquire() and not stop.is_set():
            stop.wait(pause.random() * 0.002)
            os.kill(os.getpid(), signal.SIGINT)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        for _ in range(200):
            with contextlib.suppress(KeyboardInterrupt):
                sent.release()
                while True:
                    stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
            # This thread computes on; another one waits.
            answered: list[Any] = []
            request = gcs_pb2.KvPutRequest(key=b"k")
            other = threading.Thread(
                target=lambda: answered.append(stub.KvPut(request, timeout_s=WAIT_S))  # noqa: B023
            )
            other.start()
            other.join(WAIT_S)
            assert answered and not reactor._is_at_rest
    finally:
        stop.set()
        sent.release()
        striker.join()
        signal.signal(signal.SIGINT, before)
        with reactor.lock:
            channel.close()
        reactor.close()


def test_a_fork_does_not_keep_its_parents_connections_open(served: Any) -> None:
    _, unix, tcp = served
    for address in (unix, tcp):
        reactor = Reactor("caller")
        channel, stub = connected(reactor, address)
        assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
        descriptors = {channel.fileno(), reactor._epoll.fileno(), reactor._wake_fd}
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            reactor.abandon()
            left = [fd for fd in descriptors if os.path.exists(f"/proc/self/fd/{fd}")]
            os.write(write_end, b"open" if left else b"closed")
            os._exit(0)
        assert os.read(read_end, 10) == b"closed"
        os.waitpid(child, 0)
        # The parent's go on as before.
        assert stub.KvGet(gcs_pb2.KvGetRequest(key=b"k"), timeout_s=WAIT_S).found
        os.close(read_end)
        os.close(write_end)
        with reactor.lock:
            channel.close()
        reactor.close()
