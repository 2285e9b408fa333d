"""Where the values of references are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_mono._private.argument_checks import FOREVER_S, is_number, plain
from ray_mono._private.worker import wait
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.process import current

OWNER_TIMEOUT_MS = 1000
"""An owner answers at once, unless there is no value yet."""


def get_object_locations(
    obj_refs: Sequence[ObjectRef[Any]], timeout_ms: int = -1
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """Of each reference: "node_ids" (hex; empty for small values, which are with their owner), "object_size"
    (bytes; None while there is no value) and "did_spill".

    Args:
        timeout_ms: how long to wait, in milliseconds, for other processes that own values of which this one
            knows nothing; a negative number stands for OWNER_TIMEOUT_MS.

    Raises TypeError for what is no list of references or no number, RaySystemError where this process is not
    connected.
    """
    refs, number = _checked(obj_refs), plain(timeout_ms)
    if not is_number(number) or number != number:
        raise TypeError(f"timeout_ms must be a number of milliseconds, got {timeout_ms!r}")
    return _look_up(refs, OWNER_TIMEOUT_MS if number < 0 else min(number, 1000 * FOREVER_S))


def get_local_object_locations(obj_refs: Sequence[ObjectRef[Any]]) -> dict[ObjectRef[Any], dict[str, Any]]:
    """The same of what this process knows by itself. Does not wait.

    That is all of what it owns, and of others' values what it has asked for.
    """
    return _look_up(_checked(obj_refs), None)


def _checked(obj_refs: Any) -> list[ObjectRef[Any]]:
    if isinstance(obj_refs, ObjectRef):
        raise TypeError(f"obj_refs must be a list of ObjectRefs, got the single {obj_refs!r}")
    refs = list(obj_refs)
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"obj_refs must be a list of ObjectRefs, but has {ref!r} of type {type(ref).__name__}"
            )
    return refs


def _look_up(refs: list[ObjectRef[Any]], timeout_ms: float | None) -> dict[ObjectRef[Any], dict[str, Any]]:
    core = current.require()
    if timeout_ms is not None and (
        unknown := [ref for ref in dict.fromkeys(refs) if core.location_of(ref) is None]
    ):
        wait(unknown, num_returns=len(unknown), timeout=timeout_ms / 1000, fetch_local=False)
    return {ref: _location(*(core.location_of(ref) or ([], None))) for ref in refs}


def _location(node_ids: Sequence[bytes], size_bytes: int | None) -> dict[str, Any]:
    return {
        "node_ids": [node_id.hex() for node_id in node_ids],
        "object_size": size_bytes,
        "did_spill": False,
    }
