"""Tasks of a `map` that travel in one frame (PushTasks), at their submitter.

A task of a `map` is a pending task like any other: it waits, is cancelled, fails and is retried by itself.
Only its way to the worker and its answer's way back are shared with those beside it. So there is one life of
a task, and what is unusual about one (an argument by reference or that needs a message of its own, another
attempt) makes it travel alone.

    queue ──take_together──► one PushTasks ──► the worker
                                    parts, each some answers ──► the submitter, task by task
                                    connection lost ──► `left`: those that have no answer
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from ray_mono.core_worker.peers import OnReply, Peer
from ray_mono.core_worker.task_submission.pending_task import PendingTask

_REST_BYTES = 32
"""What a text takes in a frame besides itself: its length, and its task's id."""


def take_together(tasks: deque[PendingTask], most: int, bytes_max: int) -> list[PendingTask]:
    """Takes tasks from the front while they may share a frame with the first. There is at least one.

    bytes_max: of their arguments and ids. In memory an item takes more than both take in the frame, if it is
    no text.
    """
    together = tasks[0].together
    num_bytes = num_taken = 0
    for task in islice(tasks, most):
        if task.together is not together:
            break
        item = task.item
        if type(item) is not str or item.isascii():
            num_bytes += item.__sizeof__()
        else:
            num_bytes += len(item.encode(errors="surrogatepass")) + _REST_BYTES
        if num_bytes > bytes_max and num_taken:
            break
        num_taken += 1
    return [tasks.popleft() for _ in range(num_taken)]


class SharedPush:
    """One frame of tasks that was pushed."""

    __slots__ = ("_tasks", "first_place", "frame_id", "is_watched", "seen_first")

    def __init__(self, tasks: Sequence[PendingTask]) -> None:
        # None: answered.
        self._tasks: list[PendingTask | None] = list(tasks)
        # Of normal tasks: the first one's place on the lease.
        self.first_place = tasks[0].place
        self.frame_id = tasks[0].task_id
        # A timer looks whether answers are held at the worker. The first without one at the last look.
        self.is_watched = False
        self.seen_first: PendingTask | None = None

    def send(self, peer: Peer, on_done: OnReply, on_part: Callable[[bytes], None]) -> None:
        """To a worker that knows their template. Both take a PushTasksReply's bytes."""
        tasks = self.left
        task_ids, items = [task.task_id for task in tasks], [task.item for task in tasks]
        peer.push_all(tasks[0].template, tasks[0].depth, task_ids, items, on_done, on_part)

    def answered(self, first: int, count: int) -> list[PendingTask]:
        """So many from this one on have their answer. Returns them."""
        answered = [task for task in self._tasks[first : first + count] if task is not None]
        self._tasks[first : first + count] = [None] * count
        return answered

    def answered_with(
        self, first: int, values: Sequence[bytes]
    ) -> tuple[Sequence[PendingTask], Sequence[bytes]]:
        """These values are the answers from this one on. Returns the tasks of those that are new, and
        these."""
        span = slice(first, first + len(values))
        tasks = self._tasks[span]
        self._tasks[span] = [None] * len(tasks)
        new = [task for task in tasks if task is not None]
        if len(new) < len(values):
            values = [value for task, value in zip(tasks, values, strict=False) if task is not None]
        return new, values

    @property
    def first_left(self) -> PendingTask | None:
        """The first that has no answer."""
        return next((task for task in self._tasks if task is not None), None)

    def watch(self, watched: bool) -> bool:
        """watched: whether a timer will look. Returns whether its first without an answer is another one than
        at the last look."""
        self.is_watched = watched
        seen, self.seen_first = self.seen_first, self.first_left
        return seen is not self.seen_first

    @property
    def left(self) -> list[PendingTask]:
        """Those that have none, in order."""
        return [task for task in self._tasks if task is not None]
