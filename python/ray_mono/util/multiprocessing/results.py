"""What the pool's callers hold: AsyncResult for apply and map, iterators for imap.

The dispatcher's thread fills them in.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError
from typing import Any

from ray_mono._private.argument_checks import is_number, seconds
from ray_mono.common.short_tracebacks import shortened
from ray_mono.util.multiprocessing.pool_actor import Failure

logger = logging.getLogger(__name__)
__tracebackhide__ = True


def _wait_s(timeout: Any) -> float | None:
    """Below 0 it is 0, as in the standard library. Raises TypeError, ValueError."""
    return seconds(0 if is_number(timeout) and timeout < 0 else timeout)


class AsyncResult:
    """The result of apply_async (one value) or of map_async and starmap_async (a list)."""

    def __init__(
        self,
        num_batches: int,
        is_single: bool,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> None:
        """Made by Pool. num_batches: how often add_batch will be called."""
        for name, given in (("callback", callback), ("error_callback", error_callback)):
            if given is not None and not callable(given):
                raise TypeError(f"{name} must be callable or None, got {given!r}")
        self._batches: list[list[Any]] = [[] for _ in range(num_batches)]
        self._num_missing = num_batches
        self._is_single = is_single
        self._callback = callback
        self._error_callback = error_callback
        self._value: Any = None
        self._failure: Failure | None = None
        self._ended = threading.Event()
        if not num_batches:
            self._end()

    def add_batch(self, index: int, outcomes: list[Any]) -> None:
        """The values of a batch, a Failure for each call that failed.

        The result is there when all batches are.
        """
        self._batches[index] = outcomes
        if self._failure is None:
            self._failure = next((each for each in outcomes if isinstance(each, Failure)), None)
        self._num_missing -= 1
        if not self._num_missing:
            self._end()

    def _end(self) -> None:
        if self._failure is None:
            values = [value for batch in self._batches for value in batch]
            self._value = values[0] if self._is_single else values
        self._batches = []
        try:
            if self._failure is None and self._callback:
                self._callback(self._value)
            if self._failure is not None and self._error_callback:
                self._error_callback(self._failure.exception())
        except Exception:
            # There is nobody to raise to: this is the pool's own thread.
            logger.exception("a callback of a pool's result raised")
        self._callback = self._error_callback = None
        self._ended.set()

    def get(self, timeout: float | None = None) -> Any:
        """Waits for the result and returns it.

        Args:
            timeout: in seconds; None waits as long as it takes.

        Raises multiprocessing.TimeoutError, the first error of the calls, or RayActorError where a process of
        the pool died.
        """
        try:
            has_ended = self._ended.wait(_wait_s(timeout))
        except KeyboardInterrupt as error:
            raise shortened(error)  # noqa: B904
        if not has_ended:
            raise TimeoutError(f"no result within {timeout!r} s")
        if self._failure is not None:
            raise self._failure.exception()
        return self._value

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the result, or an error, is there, or after `timeout` seconds."""
        self._ended.wait(_wait_s(timeout))

    def ready(self) -> bool:
        """Whether the calls have ended."""
        return self._ended.is_set()

    def successful(self) -> bool:
        """Whether no call has raised. Raises ValueError before the calls have ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._failure is None


class Window:
    """How many batches of an iterable may be ahead of their reader."""

    def __init__(self, size: int) -> None:
        self._room = size
        self._is_open = True
        self._is_lifted = False
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Waits for room. False where the pool was terminated meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._room > 0 or self._is_lifted or not self._is_open)
            self._room -= 1
            return self._is_open

    def leave(self) -> None:
        """The reader has taken a batch."""
        with self._changed:
            self._room += 1
            self._changed.notify_all()

    def lift(self) -> None:
        """The pool was closed: the rest is worked off, read or not."""
        with self._changed:
            self._is_lifted = True
            self._changed.notify_all()

    def close(self) -> None:
        """The pool was terminated."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()


class IMapIterator:
    """Results one by one; the base of the two orders. Made by Pool."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._items: deque[Any] = deque()
        """Of the batch that is being read."""
        self._num_taken = 0
        self._num_batches: int | None = None
        """How many there are in all, once the iterable has ended."""
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; waits for it.

        Args:
            timeout: in seconds; None waits as long as it takes.

        Raises StopIteration at the end, multiprocessing.TimeoutError, or what the call raised; the next
        results can be read all the same.
        """
        with self._changed:
            if not self._items:
                if not self._changed.wait_for(
                    lambda: self._has_batch() or self._is_at_end(), _wait_s(timeout)
                ):
                    raise TimeoutError(f"no result within {timeout!r} s")
                if not self._has_batch():
                    raise StopIteration
                self._items.extend(self._take_batch())
                self._num_taken += 1
                self._window.leave()
            item = self._items.popleft()
        if isinstance(item, Failure):
            raise item.exception()
        return item

    def add_batch(self, index: int, outcomes: list[Any]) -> None:
        """As AsyncResult.add_batch."""
        with self._changed:
            self._store_batch(index, outcomes)
            self._changed.notify_all()

    def set_num_batches(self, num_batches: int) -> None:
        """The iterable has ended."""
        with self._changed:
            self._num_batches = num_batches
            self._changed.notify_all()

    def _is_at_end(self) -> bool:
        return self._num_taken == self._num_batches

    def _has_batch(self) -> bool:
        raise NotImplementedError

    def _take_batch(self) -> list[Any]:
        raise NotImplementedError

    def _store_batch(self, index: int, outcomes: list[Any]) -> None:
        raise NotImplementedError


class OrderedIMapIterator(IMapIterator):
    """Results in the order of the iterable."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._batches: dict[int, list[Any]] = {}

    def _has_batch(self) -> bool:
        return self._num_taken in self._batches

    def _take_batch(self) -> list[Any]:
        return self._batches.pop(self._num_taken)

    def _store_batch(self, index: int, outcomes: list[Any]) -> None:
        self._batches[index] = outcomes


class UnorderedIMapIterator(IMapIterator):
    """Results as they come."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._batches: deque[list[Any]] = deque()

    def _has_batch(self) -> bool:
        return bool(self._batches)

    def _take_batch(self) -> list[Any]:
        return self._batches.popleft()

    def _store_batch(self, index: int, outcomes: list[Any]) -> None:
        self._batches.append(outcomes)
