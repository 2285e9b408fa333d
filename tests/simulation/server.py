"""The server's side of simulated connections: a task per request, started in order of arrival.

What a handler raises is answered as the framed server does. An exception that is no RpcError is our bug: it
is logged as an error besides, which fails the simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_mono.rpc import errors
from ray_mono.rpc.surface import Handler, RpcError, StatusCode
from tests.simulation.canonical import canonical_bytes
from tests.simulation.channel import Ending
from tests.simulation.endpoint import Endpoint, Packet
from tests.simulation.loop import SimulationError
from tests.simulation.network import SimNetwork
from tests.simulation.process import SimProcess

CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class SimCallContext:
    """CallContext."""

    connection: SimConnection
    is_oneway: bool


class SimListener:
    """Listener."""

    address = ""

    def __init__(
        self, network: SimNetwork, process: SimProcess, handlers: Mapping[str, Handler[Any, Any]], secret: str
    ) -> None:
        self._network = network
        self._process = process
        self._handlers = handlers
        self._secret = secret
        self._connections: dict[int, SimConnection] = {}

    def accept(self, endpoint: Endpoint) -> None:
        secret = None if self.address.startswith("unix:") else self._secret
        connection = SimConnection(self._process, endpoint, self._handlers, secret)
        self._connections[endpoint.number] = connection
        connection.on_close(lambda _reason: self._forget(endpoint.number))

    def _forget(self, number: int) -> None:
        self._connections.pop(number, None)

    async def close(self) -> None:
        """Ends every connection and waits for their handlers, at most CLOSE_TIMEOUT_S."""
        self._network.unbind(self._process, self.address)
        tasks: list[asyncio.Task[Any]] = []
        for connection in list(self._connections.values()):
            tasks += connection.close()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)


class SimConnection:
    """The server's side of one connection: a Connection. Runs a task per request, in order of arrival."""

    def __init__(
        self,
        process: SimProcess,
        endpoint: Endpoint,
        handlers: Mapping[str, Handler[Any, Any]],
        secret: str | None,
    ) -> None:
        self.peer = endpoint.peer.name if endpoint.peer else ""
        self.state: dict[str, Any] = {}
        self._process = process
        self._endpoint = endpoint
        self._handlers = handlers
        # Of this server, until the client has shown that it knows it.
        self._secret_wanted = secret
        # By call id; one-way ones, which have none, by a negative number.
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._oneway_numbers = itertools.count(1)
        self._ending = Ending()
        endpoint.receiver = self

    def on_close(self, callback: Callable[[str], None]) -> None:
        self._ending.add(callback)

    def close(self) -> list[asyncio.Task[Any]]:
        """Returns the handlers that still run, cancelled."""
        running = list(self._tasks.values())
        if not self._ending.reason:
            self._endpoint.close()
            self.connection_ended("it was closed by this side")
        return running

    # ---- Receiver

    def connection_ended(self, reason: str) -> None:
        self._ending.reason = reason
        current = asyncio.current_task()
        for task in list(self._tasks.values()):
            # A handler may close its own connection; it ends by itself.
            if task is not current:
                task.cancel()
        self._ending.happen(self._process.loop)

    def packet_received(self, packet: Packet) -> None:
        if self._secret_wanted is not None:
            self._check_hello(packet)
        elif packet.kind == "CANCEL":
            task = self._tasks.pop(packet.call_id, None)
            if task is not None:
                task.cancel()
        else:
            self._start(packet)

    def _check_hello(self, packet: Packet) -> None:
        if packet.kind == "HELLO" and packet.payload.decode() == self._secret_wanted:
            self._secret_wanted = None
            self._send("REPLY", packet.call_id)
        else:
            refusal = RpcError(StatusCode.UNAUTHENTICATED, "the cluster's secret is another one")
            self._send_error(packet.call_id, refusal)
            self.close()

    # ---- requests

    def _start(self, packet: Packet) -> None:
        context = SimCallContext(self, is_oneway=packet.kind == "ONEWAY")
        key = -next(self._oneway_numbers) if context.is_oneway else packet.call_id
        self._tasks[key] = self._process.spawn(self._answer(key, packet, context), name=packet.path)

    async def _answer(self, key: int, packet: Packet, context: SimCallContext) -> None:
        error: RpcError | None = None
        try:
            await self._handle(packet, context)
        except asyncio.CancelledError:
            error = RpcError(StatusCode.CANCELLED, f"{packet.path} was cancelled by the server")
        except SimulationError as failure:
            # A checker's word, not the servicer's.
            self._process.loop.call_exception_handler({"message": packet.path, "exception": failure})
        except Exception as exception:
            if self._process.loop.is_ending:
                return
            error = errors.error_of_handler(exception, packet.path)
        # Not there: its caller cancelled it and hears no more of it.
        is_wanted = self._tasks.pop(key, None) is not None
        if error is not None and is_wanted and not context.is_oneway:
            self._send_error(packet.call_id, error)

    async def _handle(self, packet: Packet, context: SimCallContext) -> None:
        handler = self._handlers.get(packet.path)
        if handler is None:
            raise errors.unknown_method(packet.path)
        try:
            request = handler.request_type.FromString(packet.payload)
        except Exception as exception:
            raise errors.unparsable_request(packet.path, exception) from exception
        if not handler.streaming:
            reply = await handler.function(request, context)
            if not context.is_oneway:
                self._send("REPLY", packet.call_id, self._reply_bytes(handler, reply))
            return
        async with contextlib.aclosing(handler.function(request, context)) as replies:
            async for reply in replies:
                self._send("ITEM", packet.call_id, self._reply_bytes(handler, reply))
        self._send("END", packet.call_id)

    def _reply_bytes(self, handler: Handler[Any, Any], reply: Any) -> bytes:
        if not isinstance(reply, handler.reply_type):
            raise TypeError(f"{handler.function!r} answered {type(reply)!r}, not {handler.reply_type!r}")
        return canonical_bytes(reply, handler.reply_type.SerializeToString)

    def _send(self, kind: str, call_id: int, payload: bytes = b"") -> None:
        self._endpoint.send(Packet(kind, "", call_id, payload))

    def _send_error(self, call_id: int, error: RpcError) -> None:
        self._endpoint.send(Packet("ERROR", "", call_id, error.message.encode(), int(error.code)))
