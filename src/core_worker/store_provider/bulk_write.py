"""Copies values into the store. Large ones are copied by several threads where there are several CPUs, over
pages that are prepared in bulk.

The interpreter's lock is free while a large value is copied. When `write` has returned or raised, no thread
writes any more, so that whoever gets the range next has it alone.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from ray_mono.common.mapped_file import MappedFile
from ray_mono.common.threads import start

# Up to this a copy takes less time than to hand over the interpreter's lock.
_PLAIN_BYTES_MAX = 512 << 10
# A thread is worth its start if it copies at least this.
_BYTES_PER_THREAD_MIN = 8 << 20
# More threads copy no faster: memory is the limit.
_THREADS_MAX = 4
# So much is prepared and then copied, so that the pages are still in the CPU's cache.
_STEP_BYTES = 1 << 20


def write(target: MappedFile, offset: int, source: Any) -> None:
    """Copies `source` (bytes-like, one dimension of bytes) to `offset` of the file. The store has allocated
    the range."""
    length = len(source)
    if length <= _PLAIN_BYTES_MAX:
        target.prepare(offset, length)
        target.view[offset : offset + length] = source
        return
    array = np.frombuffer(source, np.uint8)
    threads = min(len(os.sched_getaffinity(0)), _THREADS_MAX, length // _BYTES_PER_THREAD_MIN)
    if threads < 2:
        _copy(target, offset, array, threading.Event())
    else:
        _copy_in_parts(target, offset, array, threads)


def _copy(target: MappedFile, offset: int, array: np.ndarray, stopped: threading.Event) -> None:
    """Pages that are prepared already take one copy, which the C library makes without reading the target
    first. The others are prepared and copied step by step."""
    into = np.frombuffer(target.view, np.uint8, len(array), offset)
    done = 0
    while done < len(array) and not stopped.is_set():
        left = len(array) - done
        count = target.prepared_bytes(offset + done, left)
        if not count:
            count = min(_STEP_BYTES, left)
            target.prepare(offset + done, count)
        np.copyto(into[done : done + count], array[done : done + count])
        done += count


def _copy_in_parts(target: MappedFile, offset: int, array: np.ndarray, threads: int) -> None:
    stopped = threading.Event()
    part = -(-len(array) // threads)
    helpers: list[threading.Thread] = []
    try:
        for first in range(part, len(array), part):
            work = (target, offset + first, array[first : first + part], stopped)
            helper = threading.Thread(target=_copy, args=work, daemon=True)
            try:
                start(helper)
            except OSError:
                _copy(*work)
            else:
                helpers.append(helper)
        _copy(target, offset, array[:part], stopped)
    except BaseException:
        stopped.set()
        raise
    finally:
        _join(helpers)


def _join(threads: list[threading.Thread]) -> None:
    """Waits for the threads that copy; they take fractions of a second at most. An interrupt is raised after
    the wait, not instead of it."""
    interrupt: BaseException | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
