"""By what the bytes of an object are known again when they come back from a disk or a storage.

One checksum for each MiB (xxh3, 64 bits): so a part of an object can be checked without the rest. It costs a
tenth of what a copy in memory does.
"""

from __future__ import annotations

import xxhash

BLOCK_BYTES = 1 << 20
_DIGEST_BYTES = 8


def checksums(content: memoryview) -> bytes:
    """Of its blocks, one after another."""
    blocks = range(0, len(content), BLOCK_BYTES)
    return b"".join(xxhash.xxh3_64_digest(content[at : at + BLOCK_BYTES]) for at in blocks)


def are_right(expected: bytes, start: int, content: memoryview) -> bool:
    """Whether these are the whole blocks from byte `start` of the object on. expected: of all its blocks."""
    first = start // BLOCK_BYTES * _DIGEST_BYTES
    found = checksums(content)
    return expected[first : first + len(found)] == found
