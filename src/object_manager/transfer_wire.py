"""What both ends of a transfer connection do to its socket: handshake, messages with their length, raw bytes.

Plain non-blocking sockets and the loop's own socket calls, because those copy straight between the kernel and
the store's pages. Every wait for the peer is bounded by a time in which nothing moved.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from ray_mono.rpc.auth import ClientHandshake, HandshakeState
from ray_mono.rpc.framing import LENGTH, prefixed

# Metadata and lists of ids; never an object's bytes.
MESSAGE_BYTES_MAX = 16 << 20
# After so many bytes others have a turn, even where the peer is never waited for.
_BYTES_PER_TURN = 4 << 20


class WireError(Exception):
    """The connection is of no use any more; the message says why. A refused secret says how to pass it."""


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...


async def shake_hands(sock: socket.socket, handshake: ClientHandshake) -> None:
    """Runs the handshake to its end. The caller bounds its time.

    Raises WireError where one side refuses, ConnectionResetError where the peer ends it without a word.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, handshake.start())
    while handshake.state is HandshakeState.PENDING:
        data = await loop.sock_recv(sock, handshake.missing_bytes)
        if not data:
            raise ConnectionResetError("the peer ended the connection during the handshake")
        answer = handshake.feed(data)
        if answer:
            await loop.sock_sendall(sock, answer)
    if handshake.state is HandshakeState.REFUSED:
        raise WireError(handshake.reason)


async def send_message(sock: socket.socket, message: _Message, timeout_s: float) -> None:
    """Raises WireError, OSError."""
    data = message.SerializeToString()
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_sendall(sock, prefixed(data))
    except TimeoutError as error:
        raise WireError(str(error) or f"the peer took nothing for {timeout_s:g} s") from None


async def receive_message(sock: socket.socket, timeout_s: float | None) -> bytes | None:
    """The next message; None where the peer ended the connection before it. Raises WireError, OSError.

    timeout_s: for its first byte (None: as long as the connection lives). The rest must follow without such a
    pause.
    """
    head = bytearray(LENGTH.size)
    if not await receive_into(sock, memoryview(head), timeout_s, None):
        return None
    length = LENGTH.unpack(head)[0]
    if length > MESSAGE_BYTES_MAX:
        raise WireError(f"a message of {length} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
    body = bytearray(length)
    if await receive_into(sock, memoryview(body), timeout_s, None) < length:
        raise WireError("the peer ended the connection in the middle of a message")
    return bytes(body)


class Progress(Protocol):
    """Told of bytes as they arrive."""

    def __call__(self, count: int, /) -> None: ...


async def receive_into(
    sock: socket.socket, memory: memoryview, timeout_s: float | None, progress: Progress | None
) -> int:
    """Fills `memory`; returns how much came before the peer's end of the connection.

    Raises WireError, OSError. timeout_s: how long no byte may come.
    """
    loop = asyncio.get_running_loop()
    done = turn_bytes = 0
    try:
        async with asyncio.timeout(timeout_s) as timeout:
            while done < len(memory):
                count = await loop.sock_recv_into(sock, memory[done:])
                if not count:
                    break
                done += count
                if progress is not None:
                    progress(count)
                if timeout_s is not None:
                    timeout.reschedule(loop.time() + timeout_s)
                turn_bytes += count
                if turn_bytes >= _BYTES_PER_TURN:
                    turn_bytes = 0
                    await asyncio.sleep(0)
    except TimeoutError as error:  # ours, which says nothing, or the kernel's
        raise WireError(str(error) or f"nothing came from the peer for {timeout_s} s") from None
    return done


async def send_bytes(
    sock: socket.socket, memory: memoryview, slice_bytes: int, timeout_s: float, progress: Progress
) -> None:
    """Sends `memory` in slices; a slice that takes longer than timeout_s ends it.

    Raises WireError, OSError.
    """
    loop = asyncio.get_running_loop()
    for start in range(0, len(memory), slice_bytes):
        part = memory[start : start + slice_bytes]
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_sendall(sock, part)
        except TimeoutError as error:
            raise WireError(
                str(error) or f"the peer took less than {len(part)} bytes in {timeout_s:g} s"
            ) from None
        progress(len(part))
        await asyncio.sleep(0)
