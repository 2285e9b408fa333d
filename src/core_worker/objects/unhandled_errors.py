"""Errors that nobody asks for: a task failed, and its last reference went without a `get`. Each is printed
once, on standard error. From a worker it reaches the driver with what else the worker writes.

An error counts as seen if `get`, `wait`, `await`, a future or another process was given it, or if another
task fails with it as an argument. Only errors that user code raised are printed, not the deaths of workers
and actors that calls were waiting for. The failure of an actor's constructor is printed, if no call told
anybody.

Unpickling an error runs user code. So a thread does it, outside of the core worker's lock.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

from ray_mono.common import ids, raw_error
from ray_mono.common.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from ray_mono.common.output import write_text
from ray_mono.common.threads import start
from ray_mono.core_worker.values import serialization

SILENCED_BY = "RAY_MONO_IGNORE_UNHANDLED_ERRORS"
WAITING_MAX = 1000
"""Errors that wait to be printed. Nobody reads more, so the rest is only counted."""
CLOSE_TIMEOUT_S = 5.0


class UnhandledErrors:
    """Prints the unhandled errors of one process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last_task_id = b""
        self._num_left_out = 0
        self._is_closed = False
        # Actors whose constructor's error was printed. Each call to such an actor fails with it again.
        self._actors_told: set[str | None] = set()

    def note(self, object_id: bytes, data: bytes | None) -> None:
        """The serialized error of an object that is gone. Lock held."""
        task_id = object_id[: -ids.INDEX_BYTES]
        # All returns of a task have the same error, and they usually go together.
        if data is None or task_id == self._last_task_id or os.environ.get(SILENCED_BY) or self._is_closed:
            return
        self._last_task_id = task_id
        if self._queue.qsize() >= WAITING_MAX or not self._has_thread():
            self._num_left_out += 1
            return
        self._queue.put(data)

    def close(self) -> None:
        """Prints what is left. Waits CLOSE_TIMEOUT_S at most. What fails from now on does so since this
        process leaves."""
        self._is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._print_all, name="ray_mono-unhandled-errors", daemon=True)
            try:
                start(thread)
            except OSError:
                return False
            self._thread = thread
        return True

    def _print_all(self) -> None:
        while (data := self._queue.get()) is not None:
            text = self._text_of(data)
            if text:
                lead = (
                    "(ray_mono) Nobody asked for the result of a task that failed"
                    f" ({SILENCED_BY}=1 hides this)"
                )
                write_text(sys.stderr, f"{lead}:\n{text}\n")
            if self._queue.empty():
                self._tell_left_out()
        self._tell_left_out()

    def _tell_left_out(self) -> None:
        left_out, self._num_left_out = self._num_left_out, 0
        if left_out:
            write_text(sys.stderr, f"(ray_mono) {left_out} more errors that nobody asked for are not shown\n")

    def _text_of(self, data: bytes) -> str:
        """What to print for a serialized error. Empty if user code did not raise it, or it was printed
        before."""
        try:
            error = serialization.deserialize(serialization.ERROR, data)
        except BaseException as failure:  # unpickling runs user code, and its modules may not be here
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
