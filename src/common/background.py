"""Background tasks of a service: kept, named, cancelled together, and never silent.

asyncio keeps only weak references to its tasks, and an exception in one that nobody awaits is told at its
garbage collection, if ever. Here a task's exception reaches on_error at once; what that does is its owner's
choice: a service ends its process, a simulation fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class BackgroundTasks:
    """Tasks that belong to one owner, and end with it at the latest."""

    def __init__(self, on_error: Callable[[BaseException, str], None]) -> None:
        """on_error(exception, name of the task) runs in the loop for each task that fails; cancellation is no
        failure."""
        self._on_error = on_error
        # In order of their start: a dict, because a set's order is not ours.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._is_closed = False

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a task. After close() it is not started, and the task returned is a cancelled one."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._on_done)
        if self._is_closed:
            task.cancel()
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    def names(self) -> list[str]:
        return [task.get_name() for task in self._tasks]

    def cancel(self) -> None:
        """Asks every task to end; does not wait."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self, timeout_s: float = 5.0) -> list[str]:
        """Cancels every task and waits for their ends, at most timeout_s. Returns the names of those that
        still run."""
        self._is_closed = True
        self.cancel()
        # Not the one that closes: it would wait for itself.
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=timeout_s)
        return [task.get_name() for task in others if not task.done()]

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled():
            exception = task.exception()
            if exception is not None:
                self._on_error(exception, task.get_name())
