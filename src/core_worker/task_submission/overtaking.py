"""Tasks that began before others that were submitted sooner. Called under the core worker's lock; never
blocks.

Short tasks are pushed ahead, so they begin in another order than they were submitted in. That is no harm
while they are short. But once, one of them may wait for another: for a file that the other writes, say. In
the order of submission that ends as soon as both have a CPU. Here those that began too early may hold all of
them, while those that they wait for have none.

So while tasks wait that came back unstarted, it is looked whether tasks run that were submitted after them,
and are long. The leases of these are named to their raylets (`LendCpus`), which lend the CPUs of as many as
were overtaken, if the workers use next to none. Those leases get nothing more, and go back when all is
answered. A task that computes, or that waits without sleep, keeps its CPUs.
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
            self._env.reactor.call_later(self._env.config.order_look_s, partial(self._look, queue))

    def _look(self, queue: SchedulingQueue) -> None:
        queue.note_order_looks(False)
        if not queue.tasks or not queue.tasks[0].came_back:
            return
        self.watch(queue)
        long = [lease for lease in queue.leases.values() if lease.is_long]
        early = [lease for lease in long if lease.tasks[0].number > queue.tasks[0].number]
        most = max((queue.num_overtaken(lease.tasks[0].number) for lease in early), default=0)
        most -= sum(lease.is_lent for lease in early)
        early = [lease for lease in early if not lease.is_lent]
        if most <= 0 or not early:
            return
        leases: dict[RayletServiceStub, list[Lease]] = {}
        for lease in early:
            leases.setdefault(lease.raylet, []).append(lease)
        for raylet, here in leases.items():
            request = raylet_pb2.LendCpusRequest(lease_ids=[lease.lease_id for lease in here], most=most)
            raylet.LendCpus.start(request, partial(self._on_lent, queue))

    def _on_lent(self, queue: SchedulingQueue, reply: Any, error: RpcError | None) -> None:
        for lease_id in reply.lent if error is None else ():
            lease = queue.leases.get(lease_id)
            if lease is not None:
                lease.lend()
                self._on_closed(lease, lease.num_pushed)
