"""Leases that get no more tasks, since a raylet says so, or is gone. Each raylet that was asked for one is
watched (WatchReclaims).

    others wait for a lease ──► what its worker has not begun comes back; it is returned when the rest is
                                answered; where more tasks wait, another one is asked for at the same node
    the raylet is gone ──► so it is with all of its leases: the node is gone, or is about to be

Without the latter a task that is lost with its node would go to another worker of that node, which is not
known to be lost yet, and pay a retry for each.

Whoever gives way on another node waits for its next turn there, as whoever it gave way to did. If it asked
its own node for all of its leases, the others would have all other nodes for most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError


class Reclaims:
    """Of one process. Lock held."""

    def __init__(
        self,
        own_raylet: RayletServiceStub,
        queues: Mapping[Any, SchedulingQueue],
        end_if_answered: Callable[[Lease], None],
        request: Callable[[SchedulingQueue, RayletServiceStub], None],
    ) -> None:
        """request(queue, raylet) asks that raylet for a lease."""
        self._own_raylet = own_raylet
        self._queues = queues
        self._request = request
        self._end_if_answered = end_if_answered
        self._watched: set[RayletServiceStub] = set()

    def watch(self, raylet: RayletServiceStub) -> None:
        """It is asked for a lease."""
        if raylet not in self._watched:
            self._watched.add(raylet)
            raylet.WatchReclaims.start(common_pb2.Empty(), self._named, partial(self._gone, raylet))

    def _named(self, named: Any) -> None:
        for lease_id in named.lease_ids:
            for queue in self._queues.values():
                lease = queue.leases.get(lease_id)
                if lease is not None and not lease.is_ending:
                    lease.end()
                    if len(lease.tasks) > 1:
                        lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())
                    if queue.tasks and lease.raylet is not self._own_raylet and not queue.is_spread:
                        self._request(queue, lease.raylet)
                    self._end_if_answered(lease)

    def _gone(self, raylet: RayletServiceStub, error: RpcError) -> None:
        self._watched.discard(raylet)
        leases = [lease for queue in self._queues.values() for lease in queue.leases.values()]
        ending = [lease for lease in leases if lease.raylet is raylet]
        for lease in ending:
            lease.end()
        for lease in ending:
            self._end_if_answered(lease)
