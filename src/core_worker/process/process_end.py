"""What a Python process does at its end, for one that was forked and ends by `_exit`: user code finds here
what it would find there.

    what nothing refers to any more is collected: __del__ of an actor's instance, of what it holds, files that close
      ──► threads that are no daemons are waited for (THREADS_TIMEOUT_S at most; Python waits for ever)
      ──► handlers of atexit, among them those of weakref.finalize
      ──► what these let go is collected, files that are still open are flushed

The interpreter itself is not taken down: threads of ours run until the last moment, and user code may use the
cluster in all of it.
"""

from __future__ import annotations

import atexit
import gc
import io
import logging
import threading
import time

from ray_mono.core_worker.task_execution.call_thread import CallThread

logger = logging.getLogger(__name__)

THREADS_TIMEOUT_S = 30.0
"""Beyond it the process ends all the same: what waits for its name or its resources has to go on."""
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def run() -> None:
    """On the main thread, when no user code is started any more. What it runs may fail."""
    _flush_files()  # of a file in a cycle the inner layer may be closed first, and what the outer one holds is lost
    gc.collect()
    _join_threads()
    try:
        atexit._run_exitfuncs()
    except BaseException:
        logger.exception("an exit handler failed")
    gc.collect()
    _flush_files()


def _join_threads() -> None:
    # The pools of concurrent.futures tell their threads to end, and wait: here rather than in the main
    # thread, which has a bound.
    joiner = threading.Thread(target=_end_pools, name="end-of-pools", daemon=True)
    joiner.start()
    deadline_s = time.monotonic() + THREADS_TIMEOUT_S
    for thread in [joiner, *threading.enumerate()]:
        is_users = not (thread.daemon or thread is threading.main_thread() or isinstance(thread, CallThread))
        if thread is joiner or is_users:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                logger.warning(
                    "the thread %s did not end in %.0f s: the process ends without it",
                    thread.name,
                    THREADS_TIMEOUT_S,
                )


def _end_pools() -> None:
    for end in reversed(getattr(threading, "_threading_atexits", [])):
        try:
            end()
        except BaseException:
            logger.exception("the end of a pool failed")


def _flush_files() -> None:
    for found in gc.get_objects():
        if type(found) in _FILES:
            try:
                found.flush()
            except Exception as error:  # closed, or its reader is gone
                logger.debug("%r was not flushed: %s", found, error)
