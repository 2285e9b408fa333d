"""Errors that nobody asks for: a task failed, and its last reference went without a `get`. They are printed
once, on standard error: a worker's reaches the driver as what it writes does.

Seen is an error that `get`, `wait`, `await`, a future or another process was given, or that went into another
task, which then fails with it. Only what user code raised is printed, not the deaths of workers and actors
that calls were waiting for; but an actor's constructor that failed is, if nobody was told by a call.
Unpickling an error runs user code, so a thread does it, outside of the core worker's lock.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

from ray_mono.common import raw_error
from ray_mono.common.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from ray_mono.common.output import write_text
from ray_mono.core_worker.values import serialization

SILENCED_BY = "RAY_MONO_IGNORE_UNHANDLED_ERRORS"
WAITING_MAX = 1000
"""Errors not printed yet. More fail at once than anybody reads: the rest is counted."""
CLOSE_TIMEOUT_S = 5.0


class UnhandledErrors:
    """Prints them for one process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last_task_id = b""
        self._num_left_out = 0
        # Actors whose constructors' errors were printed: each of their calls has it again.
        self._actors_told: set[str | None] = set()

    def note(self, object_id: bytes, data: bytes | None) -> None:
        """The serialized error of an object that is gone. Lock held."""
        task_id = object_id[:-4]
        # The returns of one task have one error, and usually go together.
        if data is None or task_id == self._last_task_id or os.environ.get(SILENCED_BY):
            return
        self._last_task_id = task_id
        if self._queue.qsize() >= WAITING_MAX:
            self._num_left_out += 1
            return
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._print_all, name="ray_mono-unhandled-errors", daemon=True
            )
            self._thread.start()
        self._queue.put(data)

    def close(self) -> None:
        """Prints what is known, waiting CLOSE_TIMEOUT_S at most."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _print_all(self) -> None:
        while (data := self._queue.get()) is not None:
            text = self._text_of(data)
            if text:
                lead = f"(ray_mono) Nobody asked for the result of a task that failed ({SILENCED_BY}=1 hides this)"
                write_text(sys.stderr, f"{lead}:\n{text}\n")
            if self._queue.empty():
                self._tell_left_out()
        self._tell_left_out()

    def _tell_left_out(self) -> None:
        left_out, self._num_left_out = self._num_left_out, 0
        if left_out:
            write_text(sys.stderr, f"(ray_mono) {left_out} more errors that nobody asked for are not shown\n")

    def _text_of(self, data: bytes) -> str:
        """What to print for a serialized error; empty for what is not the user's, or was told."""
        try:
            error = serialization.deserialize(serialization.ERROR, data)
        except BaseException as failure:  # whatever unpickling raises, or a module that is not here
            return f"an error that cannot be read here: {raw_error.repr_of(failure)}"
        if isinstance(error, RayTaskError):
            return "" if raw_error.is_a(error.cause, TaskCancelledError) else str(error)
        if (
            not isinstance(error, ActorDiedError)
            or not error.actor_init_failed
            or error.actor_id in self._actors_told
        ):
            return ""
        self._actors_told.add(error.actor_id)
        return str(error)
