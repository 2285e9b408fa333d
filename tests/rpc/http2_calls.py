"""HTTP/2 as a gRPC client says it, frame by frame."""

from __future__ import annotations

HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 1, 3, 4, 9
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 0x20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value


def block(secret: str) -> bytes:
    """POST, http, a path, the content's type, and the secret."""
    return (
        b"\x83\x86\x44"
        + text(b"/x.Y/Z")
        + b"\x5f"
        + text(b"application/grpc")
        + b"\x40"
        + text(b"authorization")
        + text(f"Bearer {secret}".encode())
    )


def call(secret: str, stream: int = 1) -> bytes:
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block(secret))
