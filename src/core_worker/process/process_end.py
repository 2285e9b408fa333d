"""What a Python process does at its end, done for a process that was forked and ends by `_exit`. User code
sees the same steps:

    1. What nothing refers to any more is collected, so that __del__ of an actor's instance, and of what it
       holds, runs, and files are closed.
    2. Threads that are no daemons are waited for, THREADS_TIMEOUT_S at most. (Python waits for ever.)
    3. Handlers of atexit run, among them those of weakref.finalize.
    4. What these let go is collected, and files that are still open are flushed.

The interpreter itself is not taken down. Threads of ours run until the last moment, and user code may use the
cluster in all of these steps.
"""

from __future__ import annotations

import atexit
import gc
import io
import logging
import threading
import time

from ray_mono.common.threads import start
from ray_mono.core_worker.task_execution.call_thread import CallThread

logger = logging.getLogger(__name__)

THREADS_TIMEOUT_S = 30.0
"""After this the process ends all the same: others may wait for its name, or its resources."""
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def run() -> None:
    """Runs these steps. Called on the main thread, when no user code is started any more. What it runs may
    fail."""
    _collect()
    _join_threads()
    try:
        atexit._run_exitfuncs()
    except BaseException:
        logger.exception("an exit handler failed")
    _collect()
    _flush_files()


def _collect() -> None:
    # The collector may close the inner layer of a file in a cycle first. Then what the outer one holds is
    # lost.
    _flush_files()
    gc.collect()


def _join_threads() -> None:
    # The pools of concurrent.futures tell their threads to end, and wait for them. That happens on a thread
    # of its own, since the main thread waits for a limited time only.
    threads = threading.enumerate()
    joiner = threading.Thread(target=_end_pools, name="end-of-pools", daemon=True)
    try:
        start(joiner)
        threads.insert(0, joiner)
    except OSError:  # there can be no thread
        _end_pools()
    deadline_s = time.monotonic() + THREADS_TIMEOUT_S
    for thread in threads:
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
            except Exception as error:  # the file is closed, or its reader is gone
                logger.debug("%r was not flushed: %s", found, error)
