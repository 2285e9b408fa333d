"""Copies large values into the store: by several threads where there are several CPUs, and over pages
prepared in bulk.

The interpreter's lock is free meanwhile. When `write` returns or raises, nobody writes any more: who gets the
range next has it alone.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from ray_mono.common.mapped_file import MappedFile

# Below this a copy takes less than handing over the interpreter's lock.
_PLAIN_BYTES_MAX = 512 << 10
# A thread is worth its start from so much on.
_BYTES_PER_THREAD_MIN = 8 << 20
# More copy no faster: memory is the bound.
_THREADS_MAX = 4
# Pages are prepared so far ahead of the copy that they are still in the CPU's cache.
_STEP_BYTES = 1 << 20


def write(target: MappedFile, offset: int, source: Any) -> None:
    """Copies `source` (bytes-like, one dimension of bytes) to `offset` of the file. The range has memory
    behind it."""
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
    """What is prepared goes in one copy, which the C library makes without reading the target first; the rest
    step by step."""
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
    helpers = [
        threading.Thread(
            target=_copy, args=(target, offset + start, array[start : start + part], stopped), daemon=True
        )
        for start in range(part, len(array), part)
    ]
    started: list[threading.Thread] = []
    try:
        for helper in helpers:
            helper.start()
            started.append(helper)
        _copy(target, offset, array[:part], stopped)
    except BaseException:
        stopped.set()
        raise
    finally:
        _join(started)


def _join(threads: list[threading.Thread]) -> None:
    """Waits for copies, which take at most fractions of a second. An interrupt is raised after it, not
    instead of it."""
    interrupt: BaseException | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
