"""One byte string per message: what travels in a simulation and enters its digest.

Protobuf serializes maps in the order of a hash table whose seed is an address, so equal messages differ from
process to process. Asked to be deterministic it sorts them, but not those inside of bytes fields that hold
messages serialized elsewhere: the payloads of the GCS's pub/sub are parsed and serialized again here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from ray_mono.protobuf import common_pb2, gcs_pb2

_PAYLOAD_TYPES: dict[int, type[Message]] = {
    gcs_pb2.NODE: gcs_pb2.NodeNews,
    gcs_pb2.NODE_RESOURCES: gcs_pb2.ResourceNews,
    gcs_pb2.ACTOR: common_pb2.ActorInfo,
}
"""By channel: the payloads that have maps."""


def canonical_bytes(message: Any, serializer: Callable[[Any], bytes]) -> bytes:
    """serializer is for what is no protobuf message (tests send raw bytes)."""
    if isinstance(message, gcs_pb2.PubMessage) and message.channel in _PAYLOAD_TYPES:
        payload = _PAYLOAD_TYPES[message.channel].FromString(message.payload)
        copy = gcs_pb2.PubMessage()
        copy.CopyFrom(message)
        copy.payload = payload.SerializeToString(deterministic=True)
        message = copy
    if isinstance(message, Message):
        return message.SerializeToString(deterministic=True)
    return serializer(message)
