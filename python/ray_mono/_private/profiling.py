"""`profile(...)`: spans that programs mark themselves, in `timeline()` beside the calls."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mono._private.auto_init import connected_core
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.task_events import TaskEvents

# A worker's are its executor's.
_of_drivers: weakref.WeakKeyDictionary[CoreWorker, TaskEvents] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def profile(event_type: str, extra_data: Mapping[str, str] | None = None) -> Iterator[None]:
    """A span of the timeline from the beginning of the `with` to its end, in a task, an actor or the driver. Local mode has none.

    Args:
        event_type: its name.
        extra_data: "name" in it is its name instead; nothing else is shown.

    Raises RaySystemError where this process is not connected.
    """
    core: Any = connected_core()
    name = (extra_data or {}).get("name", event_type)
    started_s = time.perf_counter()
    try:
        yield
    finally:
        if isinstance(core, CoreWorker):
            _events_of(core).add_span(name, core.context.task_id(), started_s)


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
