"""The surface that services and callers see of any transport: framed, gRPC or simulated.

Generated modules (`x_rpc.py`) name these types, transports implement them. Addresses are strings:
"unix:/path" on a node, "host:port" between nodes, "sim:name" in the simulator. A stub is made from a channel
and calls through it; a servicer's methods become a table of handlers that a server answers from. There are
two kinds of channel with the same shape: asyncio channels (the services: a call is awaited) and the core
worker's reactor channels (plain threads: a call blocks, or `start`s with a callback).

A call fails with RpcError and nothing else. UNAVAILABLE means that the connection could not be made or ended
before the answer; whether the peer did the work is unknown.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from ray_mono.common import ray_error

Request = TypeVar("Request")
Reply = TypeVar("Reply")
RequestIn = TypeVar("RequestIn", contravariant=True)
ReplyOut = TypeVar("ReplyOut", covariant=True)


class StatusCode(enum.IntEnum):
    """gRPC's numbers, so that one table serves both transports."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(ray_error.RpcError):
    """A call that did not succeed. A servicer raises it to choose the status that its caller sees.

    Where none of ours has something better to say it reaches the user, as the RayError that it is.
    """

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message, int(code))
        self.args = (code, message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def __reduce__(self) -> Any:
        """Elsewhere it is only the user's."""
        return ray_error.RpcError, (str(self), int(self.code))


def take_answer(answers: list[tuple[Any, RpcError | None]]) -> Any:
    """Takes the last of these, and returns its reply, or raises its error."""
    reply, error = answers.pop()
    if error is not None:
        try:
            raise error
        finally:
            # Its traceback holds this frame, and the callers'. If one of these held the error, what they and
            # the user's frames above hold would wait for the collector.
            error = None
    return reply


class NobodyListens(RpcError):
    """A machine answers that nobody listens at that address. So whoever did has ended."""

    def __init__(self, message: str) -> None:
        super().__init__(StatusCode.UNAVAILABLE, message)


class OutOfReach(RpcError):
    """Nothing was heard of a machine, not even that nobody listens there; or this process cannot connect to
    anybody. So whoever is called may live."""

    def __init__(self, message: str) -> None:
        super().__init__(StatusCode.UNAVAILABLE, message)


class UnaryUnary(Protocol[RequestIn, ReplyOut]):
    """A method of a reactor channel (threads)."""

    def __call__(self, request: RequestIn, timeout_s: float | None = None) -> ReplyOut:
        """Sends and blocks for the answer; DEADLINE_EXCEEDED after timeout_s (None:
        as long as the connection lives).
        """
        ...

    def start(
        self,
        request: RequestIn,
        on_done: Callable[[Any, RpcError | None], None],
        on_part: Callable[[Any], None] | None = None,
    ) -> None:
        """Sends without blocking; on_done(reply, None) or on_done(None, error) runs once, on whichever thread
        reads.

        on_part(reply) runs before that, for each part that the peer sends ahead of the end of its answer.
        """
        ...

    def notify(self, request: RequestIn) -> None:
        """Sends one-way: no answer, no error; lost if the connection ends first."""
        ...


class UnaryStream(Protocol[RequestIn, ReplyOut]):
    """A streaming method of a reactor channel (threads)."""

    def start(
        self, request: RequestIn, on_item: Callable[[Any], None], on_end: Callable[[RpcError | None], None]
    ) -> Callable[[], None]:
        """on_item runs for each answer, on_end once.
        Returns a function that ends the stream from this side.
        """
        ...


class AsyncUnaryUnary(Protocol[RequestIn, ReplyOut]):
    """A method of an asyncio channel."""

    def __call__(self, request: RequestIn, timeout_s: float | None = None) -> Awaitable[ReplyOut]: ...

    def notify(self, request: RequestIn) -> None:
        """Sends one-way: no answer, no error; lost if the connection ends first."""
        ...


class AsyncUnaryStream(Protocol[RequestIn, ReplyOut]):
    """A streaming method of an asyncio channel;
    leaving the iteration (aclose) ends the stream at the server.
    """

    def __call__(self, request: RequestIn) -> AsyncIterator[ReplyOut]: ...


class Channel(Protocol):
    """What a generated stub is made from."""

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
    ) -> Any: ...

    def unary_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
    ) -> Any: ...


class AsyncChannel(Channel, Protocol):
    """One connection of a service to a peer. Calls on a closed channel fail with UNAVAILABLE."""

    address: str

    @property
    def is_closed(self) -> bool: ...

    def on_close(self, callback: Callable[[str], None]) -> None:
        """callback(reason) runs once, in the loop, when the connection ends for whatever reason (at once if
        it has).
        """
        ...

    def close(self) -> None: ...


class Connection(Protocol):
    """The server's side of one client connection. `state` is the servicers' own:
    what must end with the connection.
    """

    peer: str
    state: dict[str, Any]

    def on_close(self, callback: Callable[[str], None]) -> None:
        """callback(reason) runs once when the connection ends."""
        ...

    def close(self) -> None: ...


class CallContext(Protocol):
    """What a servicer's method knows about the call."""

    connection: Connection
    # True where the client waits for no answer (notify).
    is_oneway: bool


@dataclass(frozen=True)
class Handler(Generic[Request, Reply]):
    """One method of a servicer, as generated `x_handlers()` functions list them by path."""

    function: Callable[..., Any]
    request_type: type[Request]
    reply_type: type[Reply]
    streaming: bool


Handlers: TypeAlias = Mapping[str, Handler[Any, Any]]
"""By the path of the method."""


class Listener(Protocol):
    """A server that listens. `address` has the real port."""

    address: str

    async def close(self) -> None:
        """Stops listening and ends every connection."""
        ...


class Transport(Protocol):
    """How a service reaches others and is reached:
    injected whole, so that the simulator can be put in its place.
    """

    async def connect(self, address: str, timeout_s: float) -> AsyncChannel:
        """Raises RpcError UNAVAILABLE when nobody answers within timeout_s (NobodyListens where the machine
        says so), UNAUTHENTICATED when the secret is refused.
        """
        ...

    async def serve(self, address: str, handlers: Handlers) -> Listener:
        """Listens on "unix:/path" or "host:port" (port 0: any). Raises OSError as bind does."""
        ...
