"""What `get` and `wait` are given, checked."""

from __future__ import annotations

from typing import Any

from ray_mono._private.argument_checks import seconds
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator

REFERENCES = frozenset({ObjectRef})
WAITABLES = frozenset({ObjectRef, ObjectRefGenerator})


def check_references(caller: str, values: list[Any], accepted: frozenset[type]) -> None:
    """Raises TypeError naming what is no reference.

    It looks at the types first, which is fast: programs wait for long lists again and again.
    """
    if accepted.issuperset(map(type, values)):
        return
    for value in values:
        if not isinstance(value, tuple(accepted)):
            raise TypeError(
                f"{caller}() takes ObjectRefs, but the list has {value!r} of type {type(value).__name__}"
            )


def checked_timeout_s(timeout: float | None, caller: str) -> float | None:
    # As in Ray, get() takes -1 for None, and wait() refuses it.
    return None if caller == "get" and timeout == -1 else seconds(timeout)
