"""`profile(...)`: spans that programs mark themselves, in `timeline()` beside the calls."""

from __future__ import annotations

import contextlib
import json
import math
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process import current
from ray_mono.core_worker.task_execution.task_events import TaskEvents

TEXT_MAX = 1000
"""Characters of a span's name, and of its extra data as JSON: the GCS keeps 100,000 of them."""

# A worker's are its executor's.
_of_drivers: weakref.WeakKeyDictionary[CoreWorker, TaskEvents] = weakref.WeakKeyDictionary()


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
    core: Any = current.get()
    started_s = time.perf_counter()
    try:
        yield
    finally:
        if isinstance(core, CoreWorker):
            name = event_type[:TEXT_MAX].encode("utf-8", "replace").decode()
            _events_of(core).add_span(name, _as_json(extra_data or {}), core.context.task_id(), started_s)


def _as_json(extra_data: Mapping[str, Any]) -> str:
    text = json.dumps({str(key): _plain(value) for key, value in extra_data.items()})
    return text if len(text) <= TEXT_MAX else "{}"


def _plain(value: Any) -> str | int | float:
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)


def _events_of(core: CoreWorker) -> TaskEvents:
    if core.executor is not None:
        return core.executor.events
    if core not in _of_drivers:
        _of_drivers[core] = TaskEvents(core)
        core.on_shutdown.append(lambda: send_own(core))
    return _of_drivers[core]


def send_own(core: CoreWorker) -> None:
    """What this driver holds goes out before its next question."""
    events = _of_drivers.get(core)
    if events is not None:
        with core.lock:
            events.send()
