"""Values to bytes and back: pickle protocol 5 with out-of-band buffers, cloudpickle for code.

A serialized value is `metadata` (which kind) and `data`:

    b""   data is one pickle; nothing is out of band
    b"B"  data has buffers. It is, one after another:
              u32 count of buffers, u32 pad, u64 length of the pickle
              count x (u64 offset, u64 length)
              the pickle
              the buffers, each at a multiple of 64 bytes
    b"R"  the value is a `bytes`, and data is its content
    b"E"  data is a pickled exception, which `get` raises
    b"X"  an actor's constructor succeeded; there is no value

Offsets count from the beginning of data. Stores align data to 64 bytes, so that arrays are read out of a
store without a copy. Data that came inline may lie at any address; it is moved where its buffers need that.

The references inside a value are listed in `Serialized.nested`. References that are unpickled find the core
worker by themselves (object_ref.py). This module does not count references.
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_mono.common import code_pickler
from ray_mono.core_worker.object_ref import ObjectRef, collect_into
from ray_mono.core_worker.values import library_reducers
from ray_mono.core_worker.values import unpicklable as search

PLAIN = b""
BUFFERS = b"B"
RAW = b"R"
ERROR = b"E"
CREATED = b"X"

ALIGNMENT = 64
_HEAD = struct.Struct("<IIQ")
_BUFFER = struct.Struct("<QQ")
# C's pickle handles these immutable builtins alone, and None and booleans: they have no code, no references,
# nothing of __main__.
_PRIMITIVES = frozenset({int, float, str, complex})
_NONE, _TRUE, _FALSE = pickle.dumps(None, 5), pickle.dumps(True, 5), pickle.dumps(False, 5)
# How the pickle of so many bytes begins: which protocol, and how many follow.
_SHORT_BYTES = [b"\x80\x05C%c" % size for size in range(256)]
# A shorter `bytes` goes through pickle, as primitives do.
_RAW_MIN_BYTES = 1024


@dataclass
class Serialized:
    """A value ready to be stored. It takes `size_bytes`, of which `parts` are to be written, each at its
    offset."""

    metadata: bytes
    size_bytes: int
    parts: list[tuple[int, Any]]
    """(offset, bytes-like)."""
    nested: list[ObjectRef] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        if len(self.parts) == 1:
            part = self.parts[0][1]
            return part if type(part) is bytes else bytes(part)
        data = bytearray(self.size_bytes)
        for offset, part in self.parts:
            data[offset : offset + len(part)] = part
        return bytes(data)


def serialize(value: Any, name: str = "") -> Serialized:
    """Pickles `value`. Raises what pickling raises, among others TypeError and PicklingError.

    name: what a TypeError calls the value. Without a name it is raised as it is, and the caller says which
    argument it was.
    """
    data = plain_pickle(value)
    if data is not None:
        return Serialized(PLAIN, len(data), [(0, data)])
    if type(value) is bytes:
        return Serialized(RAW, len(value), [(0, value)])
    library_reducers.register()
    buffers: list[pickle.PickleBuffer] = []
    nested: list[ObjectRef] = []
    outer = collect_into(nested)
    try:
        stream = io.BytesIO()
        code_pickler.CodePickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        inband = stream.getvalue()
    except TypeError as error:
        if not name:
            raise
        raise unpicklable(name, value, error) from error
    finally:
        collect_into(outer)
    if not buffers:
        return Serialized(PLAIN, len(inband), [(0, inband)], nested)
    return _lay_out(inband, buffers, nested)


def plain_pickle(value: Any) -> bytes | None:
    """The pickle of a builtin that cannot have anything inside; None for every other value."""
    # What most short calls return. Each would cost pickle.dumps 150 ns, which takes 60 at most here.
    if value is None:
        return _NONE
    kind = type(value)
    if kind is bool:
        return _TRUE if value else _FALSE
    if kind is bytes and len(value) < len(_SHORT_BYTES):
        return _SHORT_BYTES[len(value)] + value + b"."
    if kind in _PRIMITIVES or (kind is bytes and len(value) < _RAW_MIN_BYTES):
        return pickle.dumps(value, 5)
    return None


def unpicklable(name: str, value: Any, error: Exception) -> TypeError:
    """The error to raise: it says which part of `value` does not pickle."""
    return TypeError(f"{name} (a {type(value).__name__}) does not pickle: {error}{search.where(value)}")


def serialize_code(target: Any) -> tuple[bytes, list[ObjectRef]]:
    """A function or class, pickled whole, and the references that it captured."""
    captured: list[ObjectRef] = []
    outer = collect_into(captured)
    try:
        return code_pickler.dumps(target, protocol=5), captured
    finally:
        collect_into(outer)


def _lay_out(inband: bytes, buffers: list[pickle.PickleBuffer], nested: list[ObjectRef]) -> Serialized:
    raws = [buffer.raw() for buffer in buffers]
    head_size = _HEAD.size + _BUFFER.size * len(raws)
    offset = head_size + len(inband)
    table = bytearray(_HEAD.pack(len(raws), 0, len(inband)))
    parts: list[tuple[int, Any]] = []
    for raw in raws:
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        table += _BUFFER.pack(offset, len(raw))
        parts.append((offset, raw))
        offset += len(raw)
    return Serialized(BUFFERS, offset, [(0, bytes(table) + inband), *parts], nested)


def serialize_error(error: BaseException) -> Serialized:
    """An error value: what `get` raises."""
    serialized = serialize(error)
    if serialized.metadata != PLAIN:
        # The exception carries arrays. Errors are small and rare, so it becomes one pickle.
        data = code_pickler.dumps(error, protocol=5)
        return Serialized(ERROR, len(data), [(0, data)], serialized.nested)
    serialized.metadata = ERROR
    return serialized


def deserialize(metadata: bytes, data: Any) -> Any:
    """The value of `data` (bytes or memoryview). An ERROR's exception is returned, not raised.

    Arrays in the value may be views of `data`. So where data is a view of a store, they keep that alive.
    """
    if metadata == PLAIN or metadata == ERROR:
        return pickle.loads(data)
    if metadata == BUFFERS:
        view = _aligned(data) if type(data) is bytes else memoryview(data)
        count, _, inband_size = _HEAD.unpack_from(view)
        head_size = _HEAD.size + _BUFFER.size * count
        entries = [_BUFFER.unpack_from(view, _HEAD.size + _BUFFER.size * i) for i in range(count)]
        return pickle.loads(
            view[head_size : head_size + inband_size],
            buffers=[view[offset : offset + length].toreadonly() for offset, length in entries],
        )
    if metadata == RAW:
        return bytes(data)
    if metadata == CREATED:
        return None
    raise ValueError(f"unknown kind of value {metadata!r}: written by another version of ray_mono?")


def _aligned(data: bytes) -> memoryview:
    """The same bytes at a multiple of ALIGNMENT: vector code and other libraries expect that of arrays."""
    array = np.frombuffer(data, np.uint8)
    if not array.__array_interface__["data"][0] % ALIGNMENT:
        return memoryview(data)
    room = np.empty(len(array) + ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT
    moved = room[start : start + len(array)]
    moved[:] = array
    return memoryview(moved)  # type: ignore[arg-type]
