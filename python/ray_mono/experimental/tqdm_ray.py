"""Progress bars from anywhere in the cluster, shown whole on the driver: tqdm's interface, as far as it is
about progress.

    @ray.remote
    def work(items):
        for item in tqdm_ray.tqdm(items, desc="working"):
            ...

A worker does not draw: it writes the state of its bar as a line of its output, which travels like any other
and which the driver recognises (`STATE_PREFIX`, `_private/logs/log_printing.py`) and draws
(`_private/logs/progress_bars.py`). So bars are as late as output is, and they come only where output does
(init's log_to_driver).
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ray_mono._private.logs import progress_bars
from ray_mono._private.logs.log_files import STATE_PREFIX
from ray_mono._private.logs.progress_bars import BarManager
from ray_mono._private.logs.progress_bars import safe_print as safe_print
from ray_mono._private.worker import WORKER_MODE, mode
from ray_mono.core_worker.process import current

__all__ = ["instance", "safe_print", "tqdm"]


if mode() != WORKER_MODE and progress_bars.is_terminal(sys.stderr):
    # Early: `print(get(...))` looks print up before the first bar is there.
    progress_bars.patch_print()


def instance() -> BarManager:
    """The bars that this process shows."""
    return progress_bars.manager()


class tqdm:
    """A progress bar: iterated over, or moved by update()."""

    DEFAULT_FLUSH_INTERVAL_SECONDS = 1.0

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: int | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        """
        Args:
            iterable: what an iteration over the bar gives.
            desc: shown in front of the bar.
            total: how many there are; by default the iterable's length, if it has one.
            unit: what is counted; "it" by default.
            position: its place among the bars of this process.
            flush_interval_s: the least time between two states that are sent; 1 by default.
        """
        if total is not None and (isinstance(total, bool) or not isinstance(total, int | float)):
            raise TypeError(f"total must be a number or None, got {total!r} of type {type(total).__name__}")
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self._iterable = iterable
        self._desc = desc or ""
        self._total = total
        self._unit = unit or "it"
        self._position = position or 0
        self._flush_interval_s = (
            self.DEFAULT_FLUSH_INTERVAL_SECONDS if flush_interval_s is None else flush_interval_s
        )
        self._sent_s = float("-inf")
        self._done = 0
        self._uuid = uuid.uuid4().hex
        self._is_closed = False

    def __iter__(self) -> Iterator[Any]:
        """The items of the iterable; the bar is closed after the last.

        Raises ValueError where there is no iterable.
        """
        if self._iterable is None:
            raise ValueError("No iterable provided: tqdm() was made without one, and is moved by update()")
        for item in self._iterable:
            yield item
            self.update(1)
        self.close()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        self._send()

    def set_description(self, desc: str) -> None:
        self._desc = desc
        self._send()

    def refresh(self) -> None:
        """Sends the state now."""
        self._send(now=True)

    def close(self) -> None:
        """No more will come; the last state stays on the screen. Does nothing the second time."""
        if not self._is_closed:
            self._is_closed = True
            self._send(now=True)

    @property
    def total(self) -> int | None:
        """How many there are; None if that is not known."""
        return self._total

    @total.setter
    def total(self, total: int | None) -> None:
        self._total = total

    @property
    def n(self) -> int:
        """How many are done."""
        return self._done

    @n.setter
    def n(self, n: int) -> None:
        self._done = n

    def _send(self, now: bool = False) -> None:
        now_s = time.monotonic()
        if not now and now_s - self._sent_s < self._flush_interval_s:
            return
        self._sent_s = now_s
        core = current.core
        state = {
            "uuid": self._uuid,
            "x": self._done,
            "total": self._total,
            "desc": self._desc[: progress_bars.NAME_CHARACTERS_MAX],
            "unit": self._unit,
            "pos": self._position,
            "pid": os.getpid(),
            "ip": core.node_host if core is not None else "",
            "closed": self._is_closed,
        }
        if mode() == WORKER_MODE:
            _write_state(state)
        else:
            instance().process_state_update(state)


def _write_state(state: Mapping[str, Any]) -> None:
    """In one write, so that no other thread's output falls into the line.

    Not to a sys.stdout that the program has redirected.
    """
    stream = sys.__stdout__
    if stream is not None:
        stream.write(f"{STATE_PREFIX}{json.dumps(state)}\n")
        stream.flush()
