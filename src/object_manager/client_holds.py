"""What a client's connection holds in a store, and what ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_mono.object_manager.keys import ClientKey, ObjectKey
from ray_mono.object_manager.stored_object import StoredObject


@dataclass(slots=True)
class ClientHolds:
    """Of one connection. Dicts as ordered sets."""

    unsealed: dict[ObjectKey, None] = field(default_factory=dict)
    pins: dict[ObjectKey, int] = field(default_factory=dict)


def read_bytes(
    clients: Mapping[ClientKey, ClientHolds], objects: Mapping[ObjectKey, StoredObject]
) -> dict[ClientKey, int]:
    """Of copies in memory that are not primary: how much each client keeps, since it reads them."""
    kept = {}
    for client, holds in clients.items():
        rows = [objects[object_id] for object_id in holds.pins]
        size_bytes = sum(row.size_bytes for row in rows if row.has_memory and not row.is_primary)
        if size_bytes:
            kept[client] = size_bytes
    return kept
