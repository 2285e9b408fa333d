"""The scheduling queues of one process, by what tasks have alike that may share a worker.

A queue stays, since whoever submits again finds its workers and what is known of its functions. Those of a
placement group that is removed go, when nothing is in them: a program may make any number of groups.
"""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.core_worker.task_submission.pending_task import PendingTask


class SchedulingQueues:
    """Lock held."""

    def __init__(self, config: CoreWorkerConfig) -> None:
        self._config = config
        self.by_key: dict[Any, SchedulingQueue] = {}
        """To read from."""
        self._num_made = 0
        self._ended_groups: set[bytes] = set()

    def queue_for(self, options: TaskOptions) -> SchedulingQueue:
        """The queue of tasks with such options. It is looked up once per remote function and its options."""
        key = options.scheduling_key
        queue = self.by_key.get(key)
        if queue is None:
            if self._ended_groups:
                self._drop_ended()
            queue = self.by_key[key] = SchedulingQueue(options, self._num_made, self._config)
            self._num_made += 1
        return queue

    def forget_group(self, group_id: bytes) -> list[SchedulingQueue]:
        """The placement group is removed. Returns its queues, which go when nothing is in them."""
        self._ended_groups.add(group_id)
        return [queue for queue in self.by_key.values() if queue.group_id == group_id]

    def _drop_ended(self) -> None:
        for key, queue in list(self.by_key.items()):
            if queue.group_id in self._ended_groups and queue.is_unused:
                del self.by_key[key]
        self._ended_groups &= {queue.group_id for queue in self.by_key.values()}

    def forget_queued(self) -> None:
        """Empties the queues, since all that waits in them is about to fail."""
        for queue in self.by_key.values():
            queue.take_all()

    def take(self, task: PendingTask) -> SchedulingQueue | None:
        """Takes a task out of the queue that it waits in. Returns that queue."""
        queue = self.queue_of(task)
        if queue is not None:
            queue.tasks.remove(task)
        return queue

    def queue_of(self, task: PendingTask) -> SchedulingQueue | None:
        """Where it waits for a worker."""
        return next((queue for queue in self.by_key.values() if task in queue.tasks), None)

    def lease_of(self, task: PendingTask) -> Lease | None:
        """Where it was pushed."""
        leases = (lease for queue in self.by_key.values() for lease in queue.leases.values())
        return next((lease for lease in leases if task in lease.tasks), None)

    # ---- for people

    def trouble_with(self, task: PendingTask) -> str:
        """What keeps a task that was pushed from reaching its worker; empty where it is there."""
        lease = self.lease_of(task)
        return "" if lease is None else lease.peer.channel.trouble

    def describe(self) -> list[dict[str, Any]]:
        """What waits and what is leased, for DumpState."""
        return [queue.describe() for queue in self.by_key.values()]
