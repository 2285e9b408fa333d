"""Tasks go where most bytes of their arguments lie, if their options say nothing of the place (Ray's rule).

Such a task goes to a queue that prefers that node: it runs there as long as the node has room now, and else
as any other. What travels in messages has no place.
"""

from __future__ import annotations

from ray_mono.common.scheduling.argument_nodes import node_with_most
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.options import with_affinity
from ray_mono.core_worker.task_submission.lease import SchedulingQueue
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.protobuf import common_pb2


class ArgumentPlaces:
    """Of the tasks that this process submits."""

    def __init__(self, env: Environment, normal_tasks: NormalTaskSubmitter) -> None:
        self._env = env
        self._normal_tasks = normal_tasks
        # By the number of the queue that a task would be in otherwise, and node.
        self._queues: dict[tuple[int, bytes], SchedulingQueue] = {}

    def queue_for(self, queue: SchedulingQueue, task: PendingTask) -> SchedulingQueue:
        """For a task of whose arguments some lie in stores. queue: of its options."""
        options = queue.options
        if options.strategy is not None and options.strategy.WhichOneof("strategy") is not None:
            return queue
        here = self._env.node.node_id
        node_id = node_with_most(task.request.args, preferred_node_id=here)
        if node_id is None or node_id == here:
            return queue
        there = self._queues.get((queue.number, node_id))
        if there is None:
            affinity = common_pb2.NodeAffinity(node_id=node_id, soft=True, spill_on_unavailable=True)
            there = self._normal_tasks.queue_for(with_affinity(options, affinity))
            self._queues[queue.number, node_id] = there
        return there
