"""The frames of a connection, as bytes: no sockets, no loop, no threads.
Shared by the asyncio transport and the reactor.

    length u32 | kind u8 | method u16 | call id u32 | payload      little-endian; length: of what follows it

A method is named once per connection: METHOD gives a path to a number, and later frames carry the number. The
side that calls gives the numbers (MethodNumbers) and the side that answers remembers them (MethodPaths). Who
uses which kind:

    caller → callee   METHOD (payload: path), REQUEST, ONEWAY (no answer; call id 0), CANCEL (empty payload)
    callee → caller   REPLY (one, ends the call), ERROR (ends the call or the stream),
                      ITEM (one of a stream, or an early part of a reply), END (of a stream)

An ERROR's payload is the status (u8, surface.StatusCode) and a message in UTF-8.

FrameParser takes the stream in whatever pieces it arrives. A frame that arrives in many pieces grows in one
buffer, which takes memory only for what did arrive, whatever its length claims; everything else is sliced out
of the piece. Kinds are plain ints, and frames are plain tuples: this is the hot path of every process.
"""

from __future__ import annotations

import struct
from typing import Final

from ray_mono.rpc.surface import RpcError, StatusCode

METHOD: Final = 1
REQUEST: Final = 2
ONEWAY: Final = 3
CANCEL: Final = 4
REPLY: Final = 5
ERROR: Final = 6
ITEM: Final = 7
END: Final = 8

LENGTH: Final = struct.Struct("<I")
"""What stands before each message on a stream where nothing but messages travels (`prefixed`)."""
HEADER: Final = struct.Struct("<IBHI")
HEADER_SIZE: Final = HEADER.size
# What `length` counts besides the payload.
_REST_OF_HEADER = HEADER_SIZE - 4
# Larger values travel between object managers; a length above it is a stream that is not ours.
FRAME_BYTES_MAX: Final = 512 << 20
PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX - _REST_OF_HEADER
METHODS_MAX: Final = 1 << 16
METHOD_PATH_BYTES_MAX: Final = 1024
# An error's message is for people; a longer one is cut.
ERROR_MESSAGE_BYTES_MAX: Final = 1 << 20

Frame = tuple[int, int, int, bytes]
"""(kind, method number, call id, payload)"""


class FrameError(Exception):
    """The peer broke the protocol: the connection cannot go on."""


class FrameTooLargeError(ValueError):
    """A payload that no frame can carry: the mistake of this side, found before anything was sent."""


def encode(kind: int, method: int, call_id: int, payload: bytes) -> bytes:
    """One frame. Raises FrameTooLargeError above PAYLOAD_BYTES_MAX."""
    size = len(payload)
    if size > PAYLOAD_BYTES_MAX:
        raise FrameTooLargeError(
            f"a message of {size} bytes is too large: a frame carries at most {PAYLOAD_BYTES_MAX}"
        )
    return HEADER.pack(size + _REST_OF_HEADER, kind, method, call_id) + payload


def prefixed(message: bytes) -> bytes:
    """A message after its length, where no frames are used."""
    return LENGTH.pack(len(message)) + message


def encode_error(call_id: int, error: RpcError) -> bytes:
    """The frame that ends a call, or a stream, with this error."""
    message = error.message.encode(errors="replace")[:ERROR_MESSAGE_BYTES_MAX]
    return encode(ERROR, 0, call_id, bytes((error.code,)) + message)


def decode_error(payload: bytes) -> RpcError:
    """The error in an ERROR frame; a status that this side does not know is UNKNOWN."""
    try:
        code = StatusCode(payload[0])
    except (IndexError, ValueError):
        code = StatusCode.UNKNOWN
    return RpcError(code, payload[1:].decode(errors="replace"))


class FrameParser:
    """Pieces of a byte stream in, frames out. It never holds more than the frame that is under way."""

    __slots__ = ("_body", "_error", "_frame", "_head", "_missing", "is_inside_frame")

    def __init__(self) -> None:
        # At most one of the two is under way. A piece of a header:
        self._head = b""
        # A payload: what has arrived, the header's (kind, method, call id), and how many bytes are missing
        # (0: none under way).
        self._body = bytearray()
        self._frame = (0, 0, 0)
        self._missing = 0
        self._error = ""
        self.is_inside_frame = False
        """Whether the stream would be cut in the middle of a frame if it ended here."""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes, in order. Payloads are bytes of their own;
        `data` may be reused after it.

        Raises FrameError where the stream is not one of frames, then and on every later call;
        the frames of the same piece are lost.
        """
        if self._error:
            raise FrameError(self._error)
        frames: list[Frame] = []
        position = 0
        if self._missing:
            position = self._continue_body(data, frames)
        elif self._head:
            data = self._head + data  # at most HEADER_SIZE - 1 bytes are carried over
            self._head = b""
        end = len(data)
        unpack = HEADER.unpack_from
        if type(data) is not bytes and end - position < 1 << 16:
            data = bytes(data)  # many small frames: slicing bytes is twice as fast as slicing a view
        is_bytes = type(data) is bytes  # what is cut from it is bytes of its own
        while end - position >= HEADER_SIZE:
            length, kind, method, call_id = unpack(data, position)
            if not _REST_OF_HEADER <= length <= FRAME_BYTES_MAX or not METHOD <= kind <= END:
                self._error = (
                    f"a frame of kind {kind} and {length} bytes is none of this protocol "
                    f"(kinds {METHOD} to {END}, {_REST_OF_HEADER} to {FRAME_BYTES_MAX} bytes)"
                )
                raise FrameError(self._error)
            start = position + HEADER_SIZE
            position += length + 4
            if position > end:
                self._frame = (kind, method, call_id)
                self._missing = position - end
                self._body += memoryview(data)[start:]
                self.is_inside_frame = True
                return frames
            payload = data[start:position]
            frames.append((kind, method, call_id, payload if is_bytes else bytes(payload)))  # type: ignore[arg-type]
        if position < end:
            self._head = bytes(data[position:])
        self.is_inside_frame = position < end or self._missing > 0
        return frames

    def _continue_body(self, data: bytes | bytearray | memoryview, frames: list[Frame]) -> int:
        """Takes what belongs to the payload under way; returns where the next frame starts."""
        taken = min(self._missing, len(data))
        self._body += memoryview(data)[:taken]
        self._missing -= taken
        if not self._missing:
            frames.append((*self._frame, bytes(self._body)))
            self._body = bytearray()
        return taken


class MethodNumbers:
    """The caller's side of METHOD: numbers for the paths that one connection calls."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number_of(self, path: str) -> tuple[int, bytes]:
        """The number of `path`, and the frame that must be sent before its first use (empty afterwards)."""
        number = self._numbers.get(path)
        if number is not None:
            return number, b""
        encoded = path.encode()
        if len(self._numbers) >= METHODS_MAX or len(encoded) > METHOD_PATH_BYTES_MAX:
            raise ValueError(
                f"method {path[:100]!r}: a connection can name {METHODS_MAX} methods "
                f"of {METHOD_PATH_BYTES_MAX} bytes each"
            )
        number = self._numbers[path] = len(self._numbers)
        return number, encode(METHOD, number, 0, encoded)


class MethodPaths:
    """The callee's side of METHOD: the paths that one connection's numbers stand for."""

    __slots__ = ("_paths",)

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def add(self, number: int, payload: bytes) -> str:
        """Takes a METHOD frame and returns its path. Raises FrameError for one that no peer of ours sends."""
        if len(payload) > METHOD_PATH_BYTES_MAX or number in self._paths:
            raise FrameError(f"method number {number} was named again, or with {len(payload)} bytes")
        try:
            path = self._paths[number] = payload.decode()
        except UnicodeDecodeError:
            raise FrameError(f"the name of method number {number} is not UTF-8") from None
        return path

    def path_of(self, number: int) -> str:
        """Raises FrameError for a number that was never named."""
        try:
            return self._paths[number]
        except KeyError:
            raise FrameError(f"method number {number} was used before it was named") from None
