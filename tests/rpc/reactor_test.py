"""The reactor's channels and server: two of them in one process, over real sockets."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from ray_mono.common.limited_log import LimitedLog
from ray_mono.protobuf import gcs_pb2
from ray_mono.rpc import auth, reactor_channel, reactor_socket, strangers
from ray_mono.rpc.reactor import Reactor, Waiter
from ray_mono.rpc.reactor_server import ReactorServer
from ray_mono.rpc.strangers import ADDRESS_MAX, Stage
from ray_mono.rpc.surface import OutOfReach, RpcError, StatusCode
from tests.other_user import OTHER_UID, needs_another_user, run_as_other
from tests.rpc.out_of_descriptors import OutOfDescriptors, SocketModule
from tests.rpc.passed_on import passed_on
from tests.rpc.reactor_pair import SECRET, WAIT_S, caller, served


def test_a_call_is_answered_on_the_thread_that_waits(both: Any) -> None:
    store, _, address = both
    with caller(address) as (_, _, stub):
        for number in range(100):
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"%d" % number), timeout_s=WAIT_S).added
    assert store.order == [b"%d" % number for number in range(100)]


def test_calls_of_one_channel_arrive_in_order_and_large_ones_whole(both: Any) -> None:
    store, _, address = both
    with caller(address) as (reactor, _, stub):
        waiter = Waiter(reactor)
        answers = []

        def done(reply: Any, error: Any) -> None:
            answers.append((reply, error))
            if len(answers) == 50:
                waiter.set()

        for number in range(50):
            value = b"x" * (3_000_000 if number == 10 else 10)
            stub.KvPut.start(gcs_pb2.KvPutRequest(key=b"%d" % number, value=value), done)
        assert reactor.wait(waiter, WAIT_S)
    assert store.order == [b"%d" % number for number in range(50)]
    assert all(error is None and reply.added for reply, error in answers)


def test_errors_of_a_servicer_reach_the_caller_with_their_status(both: Any) -> None:
    _, _, address = both
    with caller(address) as (_, _, stub):
        with pytest.raises(RpcError, match="no such key") as missing:
            stub.KvDel(gcs_pb2.KvDelRequest(), timeout_s=WAIT_S)
        assert missing.value.code is StatusCode.NOT_FOUND
        with pytest.raises(RpcError, match="a bug") as bug:
            stub.KvKeys(gcs_pb2.KvKeysRequest(), timeout_s=WAIT_S)
        assert bug.value.code is StatusCode.INTERNAL


def test_an_unanswered_call_ends_at_its_timeout_and_the_channel_goes_on(both: Any) -> None:
    _, _, address = both
    with caller(address) as (_, _, stub):
        with pytest.raises(RpcError) as late:
            stub.KvGet(gcs_pb2.KvGetRequest(key=b"never"), timeout_s=0.05)
        assert late.value.code is StatusCode.DEADLINE_EXCEEDED
        assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added


def test_open_calls_fail_once_when_the_server_ends_the_connection(both: Any) -> None:
    store, server, address = both
    with caller(address) as (reactor, channel, stub):
        waiter = Waiter(reactor)
        ends = []

        def done(reply: Any, error: Any) -> None:
            ends.append(error.code)
            waiter.set()

        stub.KvGet.start(gcs_pb2.KvGetRequest(key=b"k"), done)
        stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
        with server.reactor.lock:
            store.connections[0].close()
        assert reactor.wait(waiter, WAIT_S)
        assert ends == [StatusCode.UNAVAILABLE]
        assert channel.is_closed
        with pytest.raises(RpcError) as gone:
            stub.KvPut(gcs_pb2.KvPutRequest(), timeout_s=WAIT_S)
        assert gone.value.code is StatusCode.UNAVAILABLE


def test_many_threads_wait_at_once_and_each_gets_its_own_answer(both: Any) -> None:
    _, _, address = both
    with caller(address) as (_, _, stub):
        failures: list[Any] = []

        def work() -> None:
            try:
                for _ in range(50):
                    assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not failures and not any(thread.is_alive() for thread in threads)


def test_a_callback_runs_though_no_thread_waits(both: Any) -> None:
    _, _, address = both
    with caller(address) as (_, _, stub):
        answered = threading.Event()
        stub.KvPut.start(gcs_pb2.KvPutRequest(key=b"k"), lambda reply, error: answered.set())
        assert answered.wait(WAIT_S)


def test_one_way_messages_are_sent_though_nobody_waits(both: Any) -> None:
    store, server, address = both
    with caller(address) as (_, _, stub):
        stub.KvPut.notify(gcs_pb2.KvPutRequest(key=b"one-way"))
        for _ in range(600):
            if store.order:
                break
            threading.Event().wait(0.05)
    assert store.order == [b"one-way"]


def test_a_wrong_secret_is_refused_with_a_hint(tmp_path: Any) -> None:
    directory = f"/tmp/rt-{os.getpid()}-{os.urandom(3).hex()}"
    os.mkdir(directory)
    with served(directory) as (store, _, _, tcp):
        with caller(tcp, "another") as (_, _, stub), pytest.raises(RpcError, match="secret") as refused:
            stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
        assert refused.value.code is StatusCode.UNAUTHENTICATED
        assert store.order == []
    os.rmdir(directory)


def test_a_call_that_is_passed_on_from_another_port_is_refused(tmp_path: Any) -> None:
    directory = f"/tmp/rt-{os.getpid()}-{os.urandom(3).hex()}"
    os.mkdir(directory)
    with served(directory) as (store, _, _, tcp), passed_on(tcp) as address:
        with caller(address, SECRET) as (_, _, stub), pytest.raises(RpcError, match="tunnel") as refused:
            stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
        assert refused.value.code is StatusCode.UNAUTHENTICATED
        assert store.order == []
    os.rmdir(directory)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"RMF2" + bytes(16)])
def test_bytes_that_are_no_handshake_get_no_answer(tmp_path: Any, said: bytes) -> None:
    directory = f"/tmp/rt-{os.getpid()}-{os.urandom(3).hex()}"
    os.mkdir(directory)
    with served(directory) as (_, _, _, tcp):
        host, port = tcp.split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as sock:
            sock.sendall(said)
            assert sock.recv(100) == b""
    os.rmdir(directory)


@pytest.mark.parametrize(
    ("data", "most"),
    [(b"", ADDRESS_MAX[Stage.SILENT]), (b"RMF1" + bytes(16), ADDRESS_MAX[Stage.SHAKING])],
    ids=["silent", "hello"],
)
def test_few_strangers_stay_and_a_rightful_client_gets_in_beside_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, data: bytes, most: int
) -> None:
    monkeypatch.setattr(strangers, "STAY_S", 0.6)
    with served(str(tmp_path)) as (_, server, _, address), contextlib.ExitStack() as stack:
        host, port = address.split(":")
        knocked = [
            stack.enter_context(socket.create_connection((host, int(port)), WAIT_S)) for _ in range(most + 50)
        ]
        for sock in knocked:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
        with caller(address) as (_, _, stub):
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
            with server.reactor.lock:
                assert len(server.connections) <= most + 1
            for sock in knocked:
                with contextlib.suppress(ConnectionError):
                    while sock.recv(4096):
                        pass
            # The client has shown it, and stays.
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
            with server.reactor.lock:
                assert len(server.connections) == 1 and len(server._strangers) == 0


@pytest.mark.parametrize("lost", [1, auth.SHAKES_MAX - 1, auth.SHAKES_MAX])
def test_a_caller_that_a_flooded_port_sends_away_comes_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """A call that was never sent has not failed: or strangers could have actors and owners taken for dead."""
    monkeypatch.setattr(auth, "SHAKE_AGAIN_S", 0.001)
    accept, came = ReactorServer.accept, []

    def accept_late(server: ReactorServer, sock: socket.socket, is_unix: bool) -> None:
        came.append(sock)
        if len(came) > lost:
            accept(server, sock, is_unix)
        else:
            sock.close()

    monkeypatch.setattr(ReactorServer, "accept", accept_late)
    with served(str(tmp_path)) as (store, _, _, tcp), caller(tcp) as (_, _, stub):
        request = gcs_pb2.KvPutRequest(key=b"k")
        if lost < auth.SHAKES_MAX:
            assert stub.KvPut(request, timeout_s=WAIT_S).added and store.order == [b"k"]
        else:
            with pytest.raises(RpcError) as caught:
                stub.KvPut(request, timeout_s=WAIT_S)
            assert caught.value.code is StatusCode.UNAVAILABLE and tcp in caught.value.message
        assert len(came) == min(lost + 1, auth.SHAKES_MAX)


@pytest.mark.parametrize("kind", [0, 1], ids=["unix", "tcp"])
def test_a_connection_that_finds_no_descriptor_is_told_and_made_when_there_is_one(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: int
) -> None:
    monkeypatch.setattr(reactor_channel, "socket", SocketModule(fails=2))
    monkeypatch.setattr(reactor_channel, "_log", LimitedLog(reactor_channel.logger, lines_max=1))
    monkeypatch.setattr(reactor_channel, "OPEN_RETRY_S", 0.01)
    with served(str(tmp_path)) as (_, _, *addresses):
        with caller(addresses[kind]) as (_, _, stub):
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
    assert caplog.text.count("Too many open files") == 1 and addresses[kind] in caplog.text


def test_a_connection_that_never_finds_a_descriptor_fails_with_the_reason(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor_channel, "socket", SocketModule(fails=10**9))
    monkeypatch.setattr(reactor_channel, "CONNECT_TIMEOUT_S", 0.1)
    with caller(f"unix:{tmp_path}/s") as (_, channel, stub):
        assert channel.trouble == f"cannot connect to unix:{tmp_path}/s: Too many open files"
        with pytest.raises(OutOfReach, match="cannot connect to unix:.*: Too many open files") as caught:
            stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
        assert caught.value.code is StatusCode.UNAVAILABLE


def test_who_says_nothing_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still: its machine takes the connection."""
    monkeypatch.setattr(reactor_channel, "CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with caller(f"127.0.0.1:{listening.getsockname()[1]}") as (_, _, stub):
            with pytest.raises(OutOfReach, match="no answer within"):
                stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)


def test_a_listener_without_descriptors_says_so_and_accepts_when_there_are_some(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(str(tmp_path)) as (_, server, _, address):
        with server.reactor.lock:
            listening = server._listeners[1]
            listening._sock = OutOfDescriptors(listening._sock, fails=1)  # type: ignore[assignment]
            looks_for: list[int] = []
            modify = server.reactor.modify

            def modified(pollable: Any, events: int) -> None:
                modify(pollable, events)
                if pollable is listening:
                    looks_for.append(events)

            monkeypatch.setattr(server.reactor, "modify", modified)
        with caller(address) as (_, _, stub):
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
    assert "cannot accept a connection: Too many open files" in caplog.text
    # Not at once again: the peer waits, and the socket would be all that it looks at.
    assert looks_for == [0, select.EPOLLIN]


def test_a_call_waits_for_the_end_of_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(WAIT_S)
        with caller(f"127.0.0.1:{listening.getsockname()[1]}") as (_, channel, stub):
            there, _ = listening.accept()
            with there:
                there.settimeout(WAIT_S)
                assert there.recv(100).startswith(b"RMF1")
                stub.KvPut.start(gcs_pb2.KvPutRequest(key=b"k"), lambda reply, error: None)
                assert channel.has_unsent and not channel.is_closed


def test_nobody_at_the_address_is_told_to_the_call() -> None:
    for address in ("unix:/tmp/there-is-nobody-here", "127.0.0.1:1"):
        with caller(address) as (_, _, stub), pytest.raises(RpcError, match="cannot connect") as nobody:
            stub.KvPut(gcs_pb2.KvPutRequest(), timeout_s=WAIT_S)
        assert nobody.value.code is StatusCode.UNAVAILABLE and not isinstance(nobody.value, OutOfReach)


def test_timers_run_in_order_and_not_when_cancelled() -> None:
    reactor = Reactor("timers")
    ran: list[str] = []
    waiter = Waiter(reactor)
    with reactor.lock:
        reactor.call_later(0.02, lambda: ran.append("second"))
        reactor.call_later(0.03, waiter.set)
        reactor.call_later(0.01, lambda: ran.append("first"))
        reactor.call_later(0.0, lambda: ran.append("never")).cancel()
    assert reactor.wait(waiter, WAIT_S)
    reactor.close()
    assert ran == ["first", "second"]


def wait_of_python(reactor: Reactor) -> None:
    gate = threading.Event()
    reactor.rest_in(gate.wait, WAIT_S)


@pytest.mark.parametrize("wait", [lambda reactor: reactor.wait(Waiter(reactor), WAIT_S), wait_of_python])
def test_an_interrupt_ends_a_wait_and_the_reactor_goes_on(both: Any, wait: Any) -> None:
    _, _, address = both
    with caller(address) as (reactor, _, stub):
        reactor.look_for_signals(0.05)

        def strike() -> None:
            while not reactor._is_at_rest:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(
            signal.SIGINT,
            lambda *given: reactor.takes_interrupt(given[1]) and signal.default_int_handler(*given),
        )
        try:
            for _ in range(20):
                threading.Thread(target=strike).start()
                with pytest.raises(KeyboardInterrupt):
                    wait(reactor)
                assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
        finally:
            signal.signal(signal.SIGINT, before)


def test_closing_ends_every_wait() -> None:
    reactor = Reactor("closing")
    ended = threading.Event()

    def wait() -> None:
        reactor.wait(Waiter(reactor), WAIT_S)
        ended.set()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    reactor.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert ended.is_set() and not any(thread.is_alive() for thread in threads)


def test_what_finalizers_left_is_settled_before_a_wait() -> None:
    reactor = Reactor("alone")
    left = []

    def drain() -> None:
        while left:
            left.pop().set()

    reactor.serve_queues((left,), drain)
    # A finalizer does not wake a reactor that nobody leads; who leads next has to look first.
    for _ in range(3):
        waiter = Waiter(reactor)
        left.append(waiter)
        assert reactor.wait(waiter, WAIT_S)
    reactor.close()


def test_nothing_is_drained_where_nothing_was_left(both: Any) -> None:
    _, _, address = both
    with caller(address) as (reactor, _, stub):
        left: list[Waiter] = []
        drained: list[int] = []

        def drain() -> None:
            drained.append(len(left))
            while left:
                left.pop().set()

        reactor.serve_queues(([], left), drain)
        for _ in range(20):
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
        assert not drained
        waiter = Waiter(reactor)
        left.append(waiter)
        reactor.wake()
        assert reactor.wait(waiter, WAIT_S) and drained == [1]


def walk_of(step: Callable[[], object]) -> tuple[set[str], set[str]]:
    """(functions, files) of the transport that this thread enters in a step."""
    functions, files = set(), set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_globals["__name__"].startswith("ray_mono.rpc."):
            functions.add(frame.f_code.co_qualname)
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return functions, files


def test_a_call_and_the_wait_for_its_answer_are_a_short_walk(both: Any) -> None:
    _, _, address = both
    with caller(address) as (reactor, _, stub):
        assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added
        # Again where the background has led, and read the answer.
        for _ in range(200):
            waiter = Waiter(reactor)
            done = lambda reply, error, waiter=waiter: waiter.set()  # noqa: E731
            functions, files = walk_of(partial(stub.KvPut.start, gcs_pb2.KvPutRequest(key=b"k"), done))
            assert len(functions) <= 3 and len(files) <= 2, functions
            functions, files = walk_of(partial(reactor.wait, waiter, WAIT_S))
            if "ReactorSocket.on_events" in functions:
                break
        assert "ReactorSocket.on_events" in functions and len(functions) <= 12 and len(files) <= 4, functions


@needs_another_user
def test_a_unix_peer_of_another_user_is_not_called() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as his:
        his.bind(f"{directory}/s")
        # The kernel names who listens.
        listen = "socket.socket(fileno=int(sys.argv[1])).listen()"
        run_as_other(listen, str(his.fileno()), pass_fds=(his.fileno(),))
        with caller(f"unix:{directory}/s") as (_, channel, _):
            assert channel.is_closed
            assert f"user id {OTHER_UID}" in channel.error().message


def test_a_unix_client_of_another_user_is_not_served(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served(str(tmp_path)) as (_, server, address, _), socket.socket(socket.AF_UNIX) as his:
        monkeypatch.setattr(auth, "peer_of", lambda sock: (1234, OTHER_UID))
        his.settimeout(WAIT_S)
        his.connect(address.removeprefix("unix:"))
        assert his.recv(1) == b""
        with server.reactor.lock:
            assert not server.connections
    assert f"process 1234 belongs to user id {OTHER_UID}" in caplog.text


def test_answers_to_a_peer_that_reads_nothing_are_bounded(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_socket, "OUT_BYTES_MAX", 1 << 20)
    store, server, address = both
    with caller(address) as (_, _, stub):
        stub.KvGet.start(gcs_pb2.KvGetRequest(key=b"held"), lambda reply, error: None)
        stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S)
        with server.reactor.lock:
            _, call = store.held.pop()
            # Nothing is sent while the lock is held.
            for _ in range(16):
                assert not call.connection.is_closed
                call.reply(gcs_pb2.KvGetReply(value=bytes(1 << 16)))
            assert call.connection.is_closed
