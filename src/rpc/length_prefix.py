"""Messages on a stream where nothing but messages travels: each after its length in bytes."""

from __future__ import annotations

import struct

LENGTH = struct.Struct("<I")


def prefixed(data: bytes) -> bytes:
    """A message as it is sent."""
    return LENGTH.pack(len(data)) + data
