"""A gRPC server over the same table of handlers that the framed server answers from.
The only module that imports grpc.

For outsiders and tools: every call must carry the metadata `authorization: Bearer <secret>`. It is looked at
before the message is read: to gRPC all methods take streams, of which one message is asked for once the call
is let in. Only connections come here whose first call has the secret (http2_greeting). What differs for a
servicer: gRPC hides its connections, so each call has a Connection of its own, which ends with the call.
State that must live as long as its client (a registered node, a pinned object) therefore cannot be held by a
gRPC client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from ray_mono.rpc.auth import secret_matches
from ray_mono.rpc.errors import error_of_handler, serialize_reply, unknown_method, unparsable_request
from ray_mono.rpc.framing import FRAME_BYTES_MAX
from ray_mono.rpc.http2_greeting import BEARER, HOW_TO_CALL
from ray_mono.rpc.surface import Handler, Handlers, RpcError, StatusCode

# Calls that run get this long when the server stops.
STOP_GRACE_S = 0.5
# At once on one connection; a client waits with more.
STREAMS_MAX = 256
# Of each call, before its message is asked for.
# Where gRPC probes the network it grants 4 MiB, to strangers as well.
WINDOW_BYTES = 64 << 10

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

logger = logging.getLogger(__name__)


class GrpcDoor:
    """A gRPC server on a private Unix socket; `path` is the socket's."""

    def __init__(
        self,
        secret: str,
        handlers: Handlers,
        path: str,
    ) -> None:
        self.path = path
        self._server = grpc.aio.server(
            handlers=[_Table(secret, handlers)],
            options=[
                ("grpc.max_concurrent_streams", STREAMS_MAX),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
                ("grpc.max_send_message_length", FRAME_BYTES_MAX),
            ],
        )

    async def start(self) -> None:
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        logger.info("the first gRPC client came: serving gRPC behind this listener")

    async def stop(self) -> None:
        await self._server.stop(STOP_GRACE_S)


class _GrpcConnection:
    """surface.Connection for one call."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.state: dict[str, Any] = {}
        self._end_reason = ""
        self._callbacks: list[Callable[[str], None]] = []
        self._task = asyncio.current_task()

    def on_close(self, callback: Callable[[str], None]) -> None:
        if self._end_reason:
            callback(self._end_reason)
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def end(self, reason: str) -> None:
        self._end_reason = reason
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:
                logger.exception("an on_close callback of gRPC call from %s failed", self.peer)


@dataclass(frozen=True)
class _GrpcCallContext:
    """surface.CallContext."""

    connection: _GrpcConnection
    is_oneway: bool = False


class _Table(grpc.GenericRpcHandler):
    """Finds the handler of a path, or the refusal."""

    def __init__(self, secret: str, handlers: Handlers) -> None:
        self._secret = secret
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = handler_call_details.method
        if not self._is_authorized(handler_call_details):
            return _refusal(RpcError(StatusCode.UNAUTHENTICATED, HOW_TO_CALL))
        handler = self._handlers.get(path)
        if handler is None:
            return _refusal(unknown_method(path))
        if handler.streaming:
            return grpc.stream_stream_rpc_method_handler(_stream_method(path, handler))
        return grpc.stream_unary_rpc_method_handler(_unary_method(path, handler))

    def _is_authorized(self, details: grpc.HandlerCallDetails) -> bool:
        given = ""
        for key, value in details.invocation_metadata or ():
            if key == "authorization" and isinstance(value, str) and value.startswith(BEARER):
                given = value.removeprefix(BEARER)
        return secret_matches(self._secret, given)


def _refusal(error: RpcError) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await _abort(context, error)
        return b""

    return grpc.stream_unary_rpc_method_handler(refuse)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: RpcError) -> None:
    await context.abort(_GRPC_CODES[error.code], error.message)


def _unary_method(path: str, handler: Handler[Any, Any]) -> Callable[..., Any]:
    async def call(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        connection = _GrpcConnection(context.peer())
        try:
            request = await _read(path, handler, requests)
            reply = await handler.function(request, _GrpcCallContext(connection))
            return serialize_reply(handler, reply)
        except Exception as exception:
            error = error_of_handler(exception, path)
        finally:
            connection.end("the call ended")
        await _abort(context, error)
        return b""

    return call


def _stream_method(path: str, handler: Handler[Any, Any]) -> Callable[..., Any]:
    async def call(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        connection = _GrpcConnection(context.peer())
        try:
            request = await _read(path, handler, requests)
            async for item in handler.function(request, _GrpcCallContext(connection)):
                yield serialize_reply(handler, item)
            return
        except Exception as exception:
            error = error_of_handler(exception, path)
        finally:
            connection.end("the call ended")
        await _abort(context, error)

    return call


async def _read(path: str, handler: Handler[Any, Any], requests: AsyncIterator[bytes]) -> Any:
    """The call's one message."""
    try:
        payload = await anext(requests)
        return handler.request_type.FromString(payload)
    except Exception as error:
        raise unparsable_request(path, error) from None
