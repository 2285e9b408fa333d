"""`profile(...)`: spans that programs mark themselves, in `timeline()` beside the calls."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mono.core_worker.process import current

TEXT_MAX = 1000
"""The most characters of a span's name, and of its extra data as JSON: the GCS keeps 100,000 spans."""


@contextlib.contextmanager
def profile(event_type: str, extra_data: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A span of the timeline, from the beginning of the `with` to its end, in a task, an actor or the driver.

    It does nothing in local mode, or where this process is not connected.

    Args:
        event_type: its category, and its name; of a longer one the first TEXT_MAX characters.
        extra_data: shown with it, as it is when the span ends: text, numbers, and of everything else its
            str(). "name" in it is the name that is shown, "cname" the colour. What is more than TEXT_MAX
            characters of JSON is left out.

    Raises TypeError for a name that is no text, and for extra data that is no dict.
    """
    if not isinstance(event_type, str):
        raise TypeError(
            f"event_type must be a string, got {event_type!r} of type {type(event_type).__name__}"
        )
    if extra_data is not None and not isinstance(extra_data, Mapping):
        raise TypeError(
            f"extra_data must be a dict or None, got {extra_data!r} of type {type(extra_data).__name__}"
        )
    core = current.core
    started_s = time.perf_counter()
    try:
        yield
    finally:
        if core is not None:
            name = event_type[:TEXT_MAX].encode("utf-8", "replace").decode()
            core.add_span(name, _as_json(extra_data or {}), started_s)


def _as_json(extra_data: Mapping[str, Any]) -> str:
    text = json.dumps({str(key): _plain(value) for key, value in extra_data.items()})
    return text if len(text) <= TEXT_MAX else "{}"


def _plain(value: Any) -> str | int | float:
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)
