"""What a simulated driver or worker keeps of its work: tasks that have not ended, their queues by shape, the
raylets it talks to.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_rpc
from ray_mono.rpc.surface import AsyncChannel
from tests.simulation.scripts import Script

Reply = core_worker_pb2.PushTaskReply
OnEnd = Callable[[Reply | None, common_pb2.Address | None], None]
"""Of a task: the answer and who gave it; None where there will be none."""


@dataclass(eq=False)
class PendingTask:
    """A task that has not ended."""

    task_id: bytes
    script: Script
    resources: ResourceSet
    max_retries: int
    args: Sequence[common_pb2.TaskArg] = ()
    on_end: OnEnd = lambda reply, executor: None
    attempt: int = 0
    is_cancelled: bool = False
    # Whom it was pushed to and who has not answered.
    worker: core_worker_rpc.CoreWorkerServiceAsyncStub | None = None
    done: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass
class ShapeQueue:
    """Tasks of one shape, and who works on them."""

    resources: ResourceSet
    tasks: collections.deque[PendingTask] = field(default_factory=collections.deque)
    # Lease ids asked for -> the raylet that was asked last.
    requests: dict[bytes, Raylet] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Raylet:
    """A raylet that this driver talks to."""

    address: str
    channel: AsyncChannel
    stub: raylet_rpc.RayletServiceAsyncStub
