"""Ids in requests are checked once, where they come in."""

from __future__ import annotations

from typing import TypeVar

from ray_mono.common.ids import BaseID
from ray_mono.rpc.surface import RpcError, StatusCode

AnyID = TypeVar("AnyID", bound=BaseID)


def parse_id(kind: type[AnyID], field: str, value: bytes) -> AnyID:
    """The id in a request. Raises RpcError INVALID_ARGUMENT naming the field."""
    if len(value) != kind.SIZE:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"{field} takes {kind.SIZE} bytes, got {value!r}")
    return kind(value)
