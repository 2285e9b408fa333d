"""Tasks that began before others that were submitted sooner. Called under the core worker's lock; never
blocks.

Short tasks are pushed ahead, so they begin in another order than they were submitted in. That is no harm
while they are short. But such a task may turn out to wait for another, by a file, say. In the order of
submission that ends, as long as both have a CPU. Here tasks that began too early may hold all CPUs, while
those that they wait for have none.

Nobody can tell such a wait from any other sleep. So nothing is done while anything moves. It may be that
for standstill_looks looks in a row no task of a queue has ended or begun, while tasks wait that came back
unstarted. Then the leases of tasks that were submitted after these are named to their raylets (`LendCpus`).
A raylet lends the CPUs of as many as were overtaken, if their workers use next to none, until they use some.
These leases get nothing more, and go back when all is answered. From then on, as long as the queue has
workers, its tasks begin in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.protobuf import raylet_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError


class Overtaking:
    """Looks for such tasks, for one process."""

    def __init__(self, env: Environment, on_closed: Callable[[Lease, int], None]) -> None:
        """on_closed: as Stalls has it."""
        self._env = env
        self._on_closed = on_closed

    def watch(self, queue: SchedulingQueue) -> None:
        """Tasks of it came back."""
        if not queue.is_order_looked_at:
            queue.note_order_looks(True)
            self._look_later(queue, [], 0)

    def _look_later(self, queue: SchedulingQueue, runs: list[int], looks: int) -> None:
        """runs: the tasks that the workers ran at the last look; looks: how many in a row found these."""
        look = partial(self._look, queue, runs, looks)
        self._env.reactor.call_later(self._env.config.order_look_s, look)

    def _look(self, queue: SchedulingQueue, ran: list[int], looks: int) -> None:
        if not queue.tasks or not queue.tasks[0].came_back:
            queue.note_order_looks(False)
            return
        runs = sorted(lease.tasks[0].number for lease in queue.leases.values() if lease.tasks)
        looks = looks + 1 if runs == ran else 0
        if looks >= self._env.config.standstill_looks:
            self._ask(queue)
        self._look_later(queue, runs, looks)

    def _ask(self, queue: SchedulingQueue) -> None:
        first = queue.tasks[0].number
        leases: dict[RayletServiceStub, list[Lease]] = {}
        for lease in queue.leases.values():
            if lease.is_long and lease.tasks[0].number > first:
                leases.setdefault(lease.raylet, []).append(lease)
        for raylet, early in leases.items():
            most = max(queue.num_overtaken(lease.tasks[0].number) for lease in early)
            request = raylet_pb2.LendCpusRequest(lease_ids=[lease.lease_id for lease in early], most=most)
            raylet.LendCpus.start(request, partial(self._on_lent, queue))

    def _on_lent(self, queue: SchedulingQueue, reply: Any, error: RpcError | None) -> None:
        if error is not None or not reply.lent:
            return
        queue.keep_order()
        for lease_id in reply.lent:
            lease = queue.leases.get(lease_id)
            if lease is not None and not lease.is_ending:
                self._on_closed(lease, lease.num_pushed)
