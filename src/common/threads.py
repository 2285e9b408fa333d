"""Work in threads where no more of them may be made (the pids limit of a container, `ulimit -u`): it waits,
or fails with an OSError as what else runs out does. Python raises a bare RuntimeError.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

NO_THREAD = "can't start new thread"
"""Python's own words."""
_PAUSE_S = 0.2

T = TypeVar("T")


def no_thread(error: RuntimeError) -> OSError:
    """What to raise instead of `error`. Raises any other error again."""
    if str(error) != NO_THREAD:
        raise error
    return OSError(errno.EAGAIN, NO_THREAD)


def start(thread: threading.Thread) -> None:
    """Raises OSError where no thread may be made."""
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(error) from error


async def run_in_pool(pool: concurrent.futures.ThreadPoolExecutor, job: Callable[[], T]) -> T:
    """Runs the job once, as soon as the pool has a thread for it."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            outcome.set_result(job())
        except BaseException as error:  # whoever awaits this has to hear of it
            outcome.set_exception(error)

    result = asyncio.wrap_future(outcome)
    # A pool queues what it is given before it looks for a thread: so work() is submitted once, and is done by
    # whichever thread there is next.
    next_work = work
    while not _submitted(pool, next_work):
        next_work = _nothing
        await asyncio.wait([result], timeout=_PAUSE_S)
        if result.done():
            break
    return await result


def _submitted(pool: concurrent.futures.ThreadPoolExecutor, work: Callable[[], None]) -> bool:
    try:
        pool.submit(work)
    except RuntimeError as error:
        no_thread(error)
        return False
    return True


def _nothing() -> None:
    pass
