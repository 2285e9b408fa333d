"""A server and a caller, each on a reactor of its own, in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_mono.protobuf import gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, GcsServiceStub, gcs_service_handlers
from ray_mono.rpc.reactor import Reactor
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer
from ray_mono.rpc.surface import RpcError, StatusCode

SECRET = "a secret"
WAIT_S = 30.0


class Store(GcsServiceServicer):
    """Answers KvPut at once, KvGet when it is told to, and fails KvDel."""

    def __init__(self) -> None:
        self.order: list[bytes] = []
        self.held: list[tuple[Any, Any]] = []
        self.connections: list[Any] = []

    def KvPut(self, request: Any, call: Any) -> None:  # type: ignore[override]
        self.order.append(request.key)
        self.connections.append(call.connection)
        call.reply(gcs_pb2.KvPutReply(added=True))

    def KvGet(self, request: Any, call: Any) -> None:  # type: ignore[override]
        self.held.append((request, call))

    def KvDel(self, request: Any, call: Any) -> None:  # type: ignore[override]
        raise RpcError(StatusCode.NOT_FOUND, "no such key")

    def KvKeys(self, request: Any, call: Any) -> None:  # type: ignore[override]
        raise ZeroDivisionError("a bug")


@contextmanager
def served(directory: str) -> Iterator[tuple[Store, ReactorServer, str, str]]:
    """A server on a reactor of its own: (servicer, server, unix address, tcp address)."""
    reactor = Reactor("server")
    store = Store()
    with reactor.lock:
        server = ReactorServer(reactor, gcs_service_handlers(store), SECRET)
        path = os.path.join(directory, "s")
        server.listen_unix(path)
        port = server.listen_tcp("127.0.0.1")
    try:
        yield store, server, f"unix:{path}", f"127.0.0.1:{port}"
    finally:
        with reactor.lock:
            server.close()
        reactor.close()


@contextmanager
def caller(address: str, secret: str = SECRET) -> Iterator[tuple[Reactor, ReactorChannel, GcsServiceStub]]:
    reactor = Reactor("caller")
    with reactor.lock:
        channel = ReactorChannel(reactor, address, secret)
    try:
        yield reactor, channel, GcsServiceStub(channel)
    finally:
        with reactor.lock:
            channel.close()
        reactor.close()
