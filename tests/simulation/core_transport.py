"""Connections of simulated core workers: rpc.reactor_channel and rpc.reactor_server over a SimNetwork.

As there, what is written waits for the end of a turn or a flush, a channel may be used before it is
connected, and when a connection ends every unanswered call fails, once. The packets are those of channel.py
and server.py: services at the other end see no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray_mono.core_worker.peers import PUSH_TASKS
from ray_mono.protobuf.core_worker_pb2 import PushTaskRequest, PushTasksRequest
from ray_mono.rpc import errors
from ray_mono.rpc.reactor_channel import CONNECT_TIMEOUT_S, await_answer
from ray_mono.rpc.surface import Handler, NobodyListens, OutOfReach, RpcError, StatusCode
from tests.simulation.canonical import canonical_bytes
from tests.simulation.channel import Ending
from tests.simulation.endpoint import Endpoint, Packet
from tests.simulation.network import SimNetwork
from tests.simulation.reactor import SimReactor

OnDone = Callable[[Any, RpcError | None], None]
Watch = Callable[[str, Any, Any], None]
"""watch(path, request, None) as a request is sent; watch(path, request, reply) as its answer, or an item of
it, is heard."""


class _Half:
    """One side of a connection: what is written, and its end. Lock held for everything."""

    def __init__(self, reactor: SimReactor) -> None:
        self.reactor = reactor
        self._endpoint: Endpoint | None = None
        self._unsent: list[Packet] = []
        self._ending = Ending()

    @property
    def is_closed(self) -> bool:
        return bool(self._ending.reason)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def on_close(self, callback: Callable[[str], None]) -> None:
        self._ending.add(callback)

    def write(self, packet: Packet, rings: bool = True) -> None:
        if not self.is_closed:
            self._unsent.append(packet)
            self.reactor.mark_dirty(self, rings)

    def flush(self) -> None:
        if self._endpoint is not None:
            unsent, self._unsent = self._unsent, []
            for packet in unsent:
                self._endpoint.send(packet)

    def drain(self, timeout_s: float) -> bool:
        """Nobody is slow to read here."""
        self.flush()
        return True

    def close(self, reason: str = "it was closed by this side") -> None:
        if self.is_closed:
            return
        self.flush()
        if self._endpoint is not None:
            self._endpoint.close()
        self._over(reason)

    def _over(self, reason: str) -> None:
        if not self.is_closed:
            self._ending.reason = reason
            self._unsent.clear()
            self._ended()
            self._ending.happen(self.reactor.process.loop)

    def _ended(self) -> None: ...

    def _take(self, packet: Packet) -> None: ...

    # ---- Receiver

    def packet_received(self, packet: Packet) -> None:
        self.reactor.turn(self._take, packet)

    def connection_ended(self, reason: str) -> None:
        self.reactor.turn(self._over, reason)


class CoreChannel(_Half):
    """A ReactorChannel."""

    def __init__(
        self,
        network: SimNetwork,
        reactor: SimReactor,
        address: str,
        secret: str,
        watch: Watch,
        peer_name: str = "",
    ) -> None:
        super().__init__(reactor)
        self.address = address
        self.watch = watch
        self._network = network
        self._peer_name = peer_name
        self._calls: dict[int, _Open] = {}
        self._next_id = 1
        self._is_refused = self._is_out_of_reach = False
        if not address.startswith("unix:"):
            self.start_call("HELLO", "", secret.encode(), _Open("the handshake", bytes, self._shaken))
        reactor.process.spawn(self._connect(), name="connect")

    trouble = ""
    is_connecting = False

    @property
    def num_pending(self) -> int:
        return len(self._calls)

    @property
    def who(self) -> str:
        return f"{self._peer_name} at {self.address}" if self._peer_name else self.address

    def error(self) -> RpcError:
        reason = self._ending.reason
        if self._is_refused:
            return RpcError(StatusCode.UNAUTHENTICATED, reason)
        message = f"{self.who} is gone: {reason}" if self._peer_name else reason
        return OutOfReach(message) if self._is_out_of_reach else RpcError(StatusCode.UNAVAILABLE, message)

    async def _connect(self) -> None:
        try:
            endpoint = await self._network.connect(self.reactor.process, self.address, CONNECT_TIMEOUT_S)
        except RpcError as error:
            self._is_out_of_reach = not isinstance(error, NobodyListens)
            self.connection_ended(f"cannot connect to {error.message}")
            return
        if self.is_closed:
            endpoint.close()
            return
        endpoint.receiver = self
        self._endpoint = endpoint
        if not endpoint.is_open:
            self.connection_ended("it ended at once")
        else:
            self.reactor.turn(self.flush)

    def _shaken(self, reply: Any, error: RpcError | None) -> None:
        if error is not None and not self.is_closed:
            self._is_refused = True
            self.close(error.message)

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any) -> CoreMethod:
        return CoreMethod(self, path, request_serializer, response_deserializer)

    def unary_stream(self, path: str, request_serializer: Any, response_deserializer: Any) -> CoreStream:
        return CoreStream(self, path, request_serializer, response_deserializer)

    def start_call(self, kind: str, path: str, payload: bytes, call: _Open) -> int:
        call_id = self._next_id
        self._next_id += 1
        self._calls[call_id] = call
        self.write(Packet(kind, path, call_id, payload))
        return call_id

    def abandon(self, call_id: int) -> None:
        if self._calls.pop(call_id, None) is not None:
            self.write(Packet("CANCEL", "", call_id))

    def _take(self, packet: Packet) -> None:
        if packet.kind == "ITEM":
            call = self._calls.get(packet.call_id)
        else:
            call = self._calls.pop(packet.call_id, None)
        if call is None:
            return
        if packet.kind == "ERROR":
            call.on_done(None, RpcError(StatusCode(packet.code), packet.payload.decode()))
            return
        if packet.kind == "END":
            call.on_done(None, None)
            return
        message = call.deserialize(packet.payload)
        self.watch(call.path, call.request, message)
        if packet.kind == "REPLY":
            call.on_done(message, None)
        elif call.on_part is not None:
            call.on_part(message)

    def _ended(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_done(None, self.error())


class _Open:
    """A call that has no answer, or a stream that has no end."""

    def __init__(
        self,
        path: str,
        deserialize: Callable[[bytes], Any],
        on_done: OnDone,
        on_part: Callable[[Any], None] | None = None,
        request: Any = None,
    ) -> None:
        self.path = path
        self.deserialize = deserialize
        self.on_done = on_done
        self.on_part = on_part
        self.request = request


class _Method:
    def __init__(self, channel: CoreChannel, path: str, serialize: Any, deserialize: Any) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize

    def _pack(self, request: Any) -> tuple[bytes, Any]:
        """Its bytes as they travel, and a copy: the product may go on to use the message."""
        if not isinstance(request, bytes):
            payload = canonical_bytes(request, self._serialize)
            return payload, type(request).FromString(payload)
        # Written by hand (task_wire.py), or a message with maps, of which the order is not the simulation's.
        if self._path == PUSH_TASKS:
            return request, PushTasksRequest.FromString(request)
        copy = PushTaskRequest.FromString(request)
        if copy.HasField("spec") or copy.resource_ids:
            return canonical_bytes(copy, bytes), copy
        return request, copy


class CoreMethod(_Method):
    """A ReactorMethod."""

    def start(self, request: Any, on_done: OnDone, on_part: Callable[[Any], None] | None = None) -> None:
        channel = self._channel
        payload, copy = self._pack(request)
        with channel.reactor.lock:
            if channel.is_closed:
                on_done(None, channel.error())
                return
            channel.watch(self._path, copy, None)
            call = _Open(self._path, self._deserialize, on_done, on_part, copy)
            channel.start_call("REQUEST", self._path, payload, call)

    def notify(self, request: Any) -> None:
        channel = self._channel
        payload, copy = self._pack(request)
        with channel.reactor.lock:
            if not channel.is_closed:
                channel.watch(self._path, copy, None)
                channel.write(Packet("ONEWAY", self._path, 0, payload))

    def __call__(self, request: Any, timeout_s: float | None = None) -> Any:
        channel = self._channel
        reactor: Any = channel.reactor
        return await_answer(
            lambda done: self.start(request, done), reactor, channel.who, self._path, timeout_s
        )


class CoreStream(_Method):
    """A ReactorStream."""

    def start(
        self, request: Any, on_item: Callable[[Any], None], on_end: Callable[[RpcError | None], None]
    ) -> Callable[[], None]:
        channel = self._channel
        payload, copy = self._pack(request)
        with channel.reactor.lock:
            if channel.is_closed:
                on_end(channel.error())
                return lambda: None
            call = _Open(self._path, self._deserialize, lambda _, error: on_end(error), on_item, copy)
            call_id = channel.start_call("REQUEST", self._path, payload, call)

        def end() -> None:
            with channel.reactor.lock:
                channel.abandon(call_id)

        return end


class CoreServer:
    """A ReactorServer."""

    def __init__(
        self, network: SimNetwork, reactor: SimReactor, handlers: Mapping[str, Handler[Any, Any]], secret: str
    ) -> None:
        self.reactor = reactor
        self.handlers = handlers
        self._network = network
        self._secret = secret
        self._addresses: list[str] = []
        # An ordered set.
        self._connections: dict[CoreConnection, None] = {}

    def listen(self, address: str) -> str:
        """Returns the address with the real port."""

        def accept(endpoint: Endpoint) -> None:
            connection = CoreConnection(self, endpoint, "" if address.startswith("unix:") else self._secret)
            self._connections[connection] = None

        address = self._network.bind(self.reactor.process, address, accept)
        self._addresses.append(address)
        return address

    def ended(self, connection: CoreConnection) -> None:
        self._connections.pop(connection, None)

    @property
    def has_unsent(self) -> bool:
        return any(connection.has_unsent for connection in self._connections)

    def close(self) -> None:
        for address in self._addresses:
            self._network.unbind(self.reactor.process, address)
        for connection in list(self._connections):
            connection.close()


class CoreConnection(_Half):
    """A ReactorConnection."""

    def __init__(self, server: CoreServer, endpoint: Endpoint, secret_wanted: str) -> None:
        super().__init__(server.reactor)
        self.state: dict[Any, Any] = {}
        self._server = server
        self._secret_wanted = secret_wanted
        self._endpoint = endpoint
        endpoint.receiver = self

    def _take(self, packet: Packet) -> None:
        call = CoreCall(self, packet.call_id, packet.kind == "ONEWAY")
        if packet.kind == "CANCEL":
            return
        if packet.kind == "HELLO":
            if packet.payload.decode() == self._secret_wanted:
                self._secret_wanted = ""
                self.write(Packet("REPLY", "", packet.call_id))
            else:
                call.fail(RpcError(StatusCode.UNAUTHENTICATED, "refused: another secret"))
            return
        if self._secret_wanted:
            self.close("it has not shown the secret")
            return
        handler = self._server.handlers.get(packet.path)
        if handler is None:
            call.fail(errors.unknown_method(packet.path))
            return
        try:
            handler.function(handler.request_type.FromString(packet.payload), call)
        except RpcError as error:
            call.fail(error)

    def _ended(self) -> None:
        self._server.ended(self)


class CoreCall:
    """A ServerCall."""

    __slots__ = ("_call_id", "connection", "is_oneway")

    def __init__(self, connection: CoreConnection, call_id: int, is_oneway: bool) -> None:
        self.connection = connection
        self._call_id = call_id
        self.is_oneway = is_oneway

    def reply(self, message: Any, rings: bool = True) -> None:
        if not self.is_oneway:
            self._write("REPLY", message, rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        if not self.is_oneway:
            self.connection.write(Packet("REPLY", "", self._call_id, payload), rings)

    def send_bytes(self, payload: bytes) -> None:
        """At once."""
        self.reply_bytes(payload, rings=False)
        self.connection.flush()

    def part(self, message: Any, rings: bool = False) -> None:
        self._write("ITEM", message, rings)

    def part_bytes(self, payload: bytes, rings: bool = False) -> None:
        self.connection.write(Packet("ITEM", "", self._call_id, payload), rings)

    def _write(self, kind: str, message: Any, rings: bool) -> None:
        payload = canonical_bytes(message, message.SerializeToString)
        self.connection.write(Packet(kind, "", self._call_id, payload), rings)

    def fail(self, error: RpcError) -> None:
        if not self.is_oneway:
            payload = error.message.encode()
            self.connection.write(Packet("ERROR", "", self._call_id, payload, int(error.code)))
