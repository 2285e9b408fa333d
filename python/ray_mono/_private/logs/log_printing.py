"""How a driver shows what its workers wrote: each line with who wrote it.

    (f pid=4711) line
    (Counter pid=4711, ip=10.0.0.2) line, from another node

A line that several workers write is shown once, and then counted (log_deduplication.py):

    (f pid=4712) line [repeated 3x across cluster]

Lines with STATE_PREFIX are not for reading. After it stands the state of a progress bar, in JSON
(experimental/tqdm_ray.py), which is drawn.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TextIO

from ray_mono._private.logs.log_deduplication import LogDeduplicator, Origin
from ray_mono._private.logs.log_files import STATE_PREFIX
from ray_mono.common.output import write_text
from ray_mono.protobuf import common_pb2

STATE_KEYS = {"uuid", "x", "total", "desc", "unit", "pos", "pid", "ip", "closed"}
CLOSE_TIMEOUT_S = 1.0
# Prefixes stand out from the program's own output. Those of errors do so a little more.
_COLOUR = "\033[36m"
_ERROR_COLOUR = "\033[33m"
_RESET = "\033[0m"


class LogPrinter:
    """Shows batches of lines. What several workers write is shown once. What is shown of a batch is one
    write, so that other threads' output does not fall between its lines.

    One thread calls it. A timer's thread tells of repetitions.
    """

    def __init__(
        self,
        own_host: str,
        deduplicator: LogDeduplicator | None = None,
        out: TextIO | None = None,
        error: TextIO | None = None,
        with_prefix: bool = True,
    ) -> None:
        """
        Args:
            deduplicator: None is the one that the environment describes.
            out, error: where lines are printed, and those of a standard error. None is this process's.
                One that is closed is ignored, since the program is ending.
            with_prefix: say who wrote a line. As in Ray this is False with a LoggingConfig, whose lines say
                so themselves.
        """
        self._own_host = own_host
        self._with_prefix = with_prefix
        self._deduplicator = deduplicator or LogDeduplicator.from_environment()
        self._streams = (out, error)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __call__(self, batch: common_pb2.LogBatch) -> None:
        # States of progress bars repeat, and none of them may be missing.
        lines, states = _without_states(batch.lines)
        with self._lock:
            self._show(self._deduplicator.take(_origin(batch), lines, time.monotonic()))
        _draw(batch, states)

    def close(self) -> None:
        """Shows what is still withheld; but not if a thread hangs in a write, since standard output takes
        nothing then."""
        if not self._lock.acquire(timeout=CLOSE_TIMEOUT_S):
            return
        try:
            if self._timer is not None:
                self._timer.cancel()
            self._show(self._deduplicator.take_all())
        finally:
            self._lock.release()

    def _tell_repetitions(self) -> None:
        with self._lock:
            self._timer = None
            self._show(self._deduplicator.take_due(time.monotonic()))

    def _show(self, shown: list[tuple[Origin, list[str]]]) -> None:
        for origin, lines in shown:
            _print(origin, lines, self._own_host, *self._streams, self._with_prefix)
        due_s = self._deduplicator.due_s
        if due_s is not None and self._timer is None:
            self._timer = threading.Timer(max(0.0, due_s - time.monotonic()), self._tell_repetitions)
            self._timer.daemon = True
            self._timer.start()


def _origin(batch: common_pb2.LogBatch) -> Origin:
    return Origin(batch.name, batch.pid, batch.host, batch.is_error)


def _print(
    origin: Origin,
    lines: list[str],
    own_host: str,
    out: TextIO | None,
    error: TextIO | None,
    with_prefix: bool,
) -> None:
    stream = (error or sys.stderr) if origin.is_error else (out or sys.stdout)
    who = f"{origin.name} pid={origin.pid}".lstrip()
    if origin.host and origin.host != own_host:
        who += f", ip={origin.host}"
    prefix = f"({who}) " if with_prefix else ""
    if not lines or stream is None:
        return
    with contextlib.suppress(AttributeError, ValueError):  # a stand-in of the user's; one that is closed
        if prefix and stream.isatty():
            prefix = f"{_ERROR_COLOUR if origin.is_error else _COLOUR}{prefix[:-1]}{_RESET} "
    with _bars_hidden():
        write_text(stream, "".join(f"{prefix}{line}\n" for line in lines))


def _draw(batch: common_pb2.LogBatch, states: list[dict[str, Any]]) -> None:
    if states:
        from ray_mono._private.logs import progress_bars

        for state in states:
            progress_bars.manager().process_state_update({**state, "name": batch.name})
    shown = sys.modules.get("ray_mono._private.logs.progress_bars")
    if batch.is_end and shown is not None:
        shown.manager().end_process(batch.host, batch.pid)


def _without_states(lines: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines that are to be read, and the states of progress bars that were among them."""
    readable: list[str] = []
    states: list[dict[str, Any]] = []
    for line in lines:
        # What a program printed without a line break may stand before a state.
        before, is_state, text = line.partition(STATE_PREFIX)
        if is_state:
            state = _parsed(text)
            if state is None:
                before = line
            else:
                states.append(state)
        if before or not is_state:
            readable.append(before)
    return readable, states


def _parsed(text: str) -> dict[str, Any] | None:
    """The state; None for what is none: the log monitor cut it, or somebody else wrote it."""
    try:
        state = json.loads(text)
    except ValueError:
        return None
    return state if isinstance(state, dict) and state.keys() >= STATE_KEYS else None


def _bars_hidden() -> contextlib.AbstractContextManager[None]:
    progress_bars = sys.modules.get("ray_mono._private.logs.progress_bars")
    return progress_bars.hidden() if progress_bars is not None else contextlib.nullcontext()
